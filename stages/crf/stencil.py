"""The spatial kernel of one pixel's width as a stencil: a weighted sum over 7 x 7 pixels.

A kernel over positions alone does not depend on the image, so its lattice may be multiplied out
once for every size. At a standard deviation of one pixel the step from a pixel to the one below is
a step from a vertex to its neighbour: the weights repeat in every row that is far enough from the
top and the bottom, and no message comes from further away than 3 pixels.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from llvmlite.binding import get_host_cpu_features
from numpy.typing import NDArray

from pipeline.compilation import compile_kernel
from pipeline.vectors import Vector, add_scaled, count_lanes, load, store
from stages.crf.lattice import Lattice

REACH = 3
WIDTH = 2 * REACH + 1
# So many rows from the top and the bottom differ: their messages come from pixels whose
# normalisation, in turn, lacks those beyond the border.
BORDER = 2 * REACH
# Rows that are computed together: a pixel that is loaded once serves them all.
BAND = 4
# Lanes that are computed together: the sums of a band fill a quarter of AVX-512's registers, and
# half of those of other machines. The result is the same.
LANES = 32 if get_host_cpu_features().get("avx512f", False) else 16


def multiply_out(lattice: Lattice, height: int, width: int) -> NDArray[np.float32]:
    """Multiply splat, blur and slice of a lattice out to the weights of a stencil.

    Parameters
    ----------
    lattice : Lattice
        Over the positions of height x width pixels in units of one pixel, row by row.
    height, width : int
        Size of the image, in pixels.

    Returns
    -------
    float32 [y, x, column, row]
        Weight of the pixel at (y + row - 3, x + column - 3) in the message to (y, x).
    """
    pixels, corners = lattice.vertices.shape
    places = (np.repeat(np.arange(pixels), corners), lattice.vertices.ravel())
    weights = lattice.weights.ravel().astype(np.float64)
    slices = scipy.sparse.csr_matrix((weights, places), shape=(pixels, lattice.size))
    operator = slices.T.tocsr()
    for first, last in zip(lattice.axes[:-1], lattice.axes[1:], strict=True):
        run = lattice.chains[first:last]
        vertices = np.where(run < 0, -1 - run, run)
        linked = run[:-1] >= 0
        one, next_ = vertices[:-1][linked], vertices[1:][linked]
        half = np.full(2 * len(one), 0.5)
        sides = (np.concatenate([one, next_]), np.concatenate([next_, one]))
        blur = scipy.sparse.csr_matrix((half, sides), shape=(lattice.size, lattice.size))
        operator = operator + blur @ operator
    entries = (slices @ operator).tocoo()
    y, x = np.divmod(entries.row, width)
    source_y, source_x = np.divmod(entries.col, width)
    stencil = np.zeros((height, width, WIDTH, WIDTH), np.float32)
    stencil[y, x, source_x - x + REACH, source_y - y + REACH] = entries.data
    return stencil


@compile_kernel
def choose_row(y: int, height: int, rows: int) -> int:
    """Return the row of a stencil of `rows` rows that holds for row y of an image."""
    if y < BORDER or height == rows:
        return y
    return max(BORDER, y - height + rows)


@compile_kernel
def gather_band(
    posterior: NDArray[np.float32],
    stencil: NDArray[np.float32],
    y: int,
    messages: NDArray[np.float32],
    like: Vector,
) -> None:
    """Compute the messages to a band of rows, or to those that are left of it.

    Parameters
    ----------
    posterior : float32 [3 + y + 3, 3 + x + 3, label]
        With a border of zeros.
    stencil : float32 [row, x, column, row]
        As in `multiply_out`, for an image of at most 13 rows.
    y : int
        First row of the band.
    messages : float32 [row, x, label]
        Written.
    like : Vector
        As long as the part of a row of labels that is computed together.
    """
    height = len(posterior) - 2 * REACH
    if y >= BORDER and y + BAND <= height - BORDER:
        _gather_rows(posterior, stencil[BORDER], y, messages, like)
    else:
        for row in range(min(BAND, height - y)):
            weights = stencil[choose_row(y + row, height, len(stencil))]
            _gather_row(posterior, weights, y + row, messages[row], like)


@compile_kernel
def _gather_row(
    posterior: NDArray[np.float32],
    weights: NDArray[np.float32],
    y: int,
    messages: NDArray[np.float32],
    like: Vector,
) -> None:
    """Compute the messages to one row."""
    width, labels = messages.shape
    stride = posterior.shape[1] * labels
    for x in range(width):
        for first in range(0, labels, count_lanes(like)):
            message = like
            for column in range(WIDTH):
                at = y * stride + (x + column) * labels + first
                for row in range(WIDTH):
                    source = load(posterior, at + row * stride, like)
                    message = add_scaled(message, source, weights[x, column, row])
            store(messages, x * labels + first, message)


@compile_kernel
def _gather_rows(
    posterior: NDArray[np.float32],
    weights: NDArray[np.float32],
    y: int,
    messages: NDArray[np.float32],
    like: Vector,
) -> None:
    """Compute the messages to a whole band of rows with the same weights."""
    width, labels = messages.shape[1:]
    stride = posterior.shape[1] * labels
    for x in range(width):
        for first in range(0, labels, count_lanes(like)):
            one = two = three = four = like
            for column in range(WIDTH):
                at = y * stride + (x + column) * labels + first
                # The four corners of the stencil are pairs of zeros.
                corner = 0 if REACH - 1 <= column <= REACH + 1 else 1
                if corner:
                    for row in range(1, WIDTH - 1 + BAND - 1):
                        source = load(posterior, at + row * stride, like)
                        if row < WIDTH - 1:
                            one = add_scaled(one, source, weights[x, column, row])
                        if 2 <= row < WIDTH:
                            two = add_scaled(two, source, weights[x, column, row - 1])
                        if 3 <= row < WIDTH + 1:
                            three = add_scaled(three, source, weights[x, column, row - 2])
                        if row >= 4:
                            four = add_scaled(four, source, weights[x, column, row - 3])
                else:
                    for row in range(WIDTH + BAND - 1):
                        source = load(posterior, at + row * stride, like)
                        if row < WIDTH:
                            one = add_scaled(one, source, weights[x, column, row])
                        if 1 <= row < WIDTH + 1:
                            two = add_scaled(two, source, weights[x, column, row - 1])
                        if 2 <= row < WIDTH + 2:
                            three = add_scaled(three, source, weights[x, column, row - 2])
                        if row >= 3:
                            four = add_scaled(four, source, weights[x, column, row - 3])
            at = x * labels + first
            store(messages, at, one)
            store(messages, at + width * labels, two)
            store(messages, at + 2 * width * labels, three)
            store(messages, at + 3 * width * labels, four)
