"""Mean-field inference in the dense CRF with a spatial and a bilateral kernel.

Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, algorithm 1, with Potts compatibility.

A pixel's labels are a row, one vector (see `stages.crf.vectors`) padded to a whole number of
registers: it is sliced, normalised and splatted without being written in between, in kernels that
are compiled for one length of row.

The spatial kernel of one pixel's width is a stencil: a weighted sum over 7 x 7 pixels. A kernel
over positions alone does not depend on the image, so its lattice may be multiplied out once for
every size. At a standard deviation of one pixel the step from a pixel to the one below is a step
from a vertex to its neighbour: the weights repeat in every row that is far enough from the top and
the bottom, and no message comes from further away than 3 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache, lru_cache
from math import factorial
from typing import NamedTuple

import numpy as np
import scipy.sparse
from llvmlite.binding import get_host_cpu_features
from numpy.typing import NDArray

from stages.crf.definition import (
    FORBIDDEN,
    NARROWEST,
    NEGLIGIBLE,
    Floats,
    Ints,
    Longs,
    spatial_features,
)
from stages.crf.lattice import Lattice, build_lattice
from stages.crf.settings import CrfSettings
from stages.crf.vectors import (
    Vector,
    add_scaled,
    compile_kernel,
    count_lanes,
    largest,
    load,
    maximum,
    minimum,
    power_of_two,
    prefetch,
    spread,
    store,
    take_scratch,
    total,
    zero_below,
    zeros,
)

LEAST = np.float32(NEGLIGIBLE)
# Adding and subtracting 1.5 * 2^23 rounds a small float32 to the nearest integer.
ROUNDER = np.float32(1.5 * 2**23)
LOG2_E = np.float32(1.4426950408889634)
# ln(2) in two parts, the first with so few digits that its products with integers are exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ONE, HALF, THIRD, FOURTH, FIFTH, SIXTH, SEVENTH = (
    np.float32(1.0 / factorial(order)) for order in range(1, 8)
)


@compile_kernel
def exponentiate(exponents: Vector) -> Vector:
    """Return the exponential of each lane; 0 for those up to -40.

    e^x = 2^n e^r with integer n and |r| <= ln(2) / 2, and the Taylor series of e^r up to r^7:
    within one unit in the last place, and the same on every machine.
    """
    bounded = maximum(exponents, LEAST)
    whole = add_scaled(spread(ROUNDER, bounded), bounded, LOG2_E) - ROUNDER
    rest = add_scaled(add_scaled(bounded, whole, -LN2_HIGH), whole, -LN2_LOW)
    series = add_scaled(spread(SIXTH, rest), rest, SEVENTH)
    series = add_scaled(spread(FIFTH, rest), rest, series)
    series = add_scaled(spread(FOURTH, rest), rest, series)
    series = add_scaled(spread(THIRD, rest), rest, series)
    series = add_scaled(spread(HALF, rest), rest, series)
    series = add_scaled(spread(ONE, rest), rest, series)
    series = add_scaled(spread(ONE, rest), rest, series)
    return zero_below(series * power_of_two(whole), exponents, LEAST)


@compile_kernel
def normalise(logits: Vector) -> Vector:
    """Return the softmax of the lanes, which are finite."""
    powers = exponentiate(logits - largest(logits))
    return powers * (ONE / total(powers))


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


def multiply_out(lattice: Lattice, height: int, width: int) -> Floats:
    """Multiply splat, blur and slice of a lattice out to the weights of a stencil.

    Returns float32 [y, x, column, row]: the weight of the pixel at (y + row - 3, x + column - 3) in
    the message to (y, x). The lattice is over positions in units of one pixel.
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
def gather_band(posterior: Floats, stencil: Floats, y: int, messages: Floats, like: Vector) -> None:
    """Compute the messages to a band of rows, float32 [row, x, label], or to those left of it."""
    height = len(posterior) - 2 * REACH
    if y >= BORDER and y + BAND <= height - BORDER:
        _gather_rows(posterior, stencil[BORDER], y, messages, like)
    else:
        for row in range(min(BAND, height - y)):
            weights = stencil[choose_row(y + row, height, len(stencil))]
            _gather_row(posterior, weights, y + row, messages[row], like)


@compile_kernel
def _gather_row(posterior: Floats, weights: Floats, y: int, messages: Floats, like: Vector) -> None:
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
    posterior: Floats, weights: Floats, y: int, messages: Floats, like: Vector
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


# So many pixels and chain entries ahead, rows are asked for before they are needed.
PIXELS_AHEAD = 4
ENTRIES_AHEAD = 16
LINE = 16
LEAST_LOGIT = np.float32(-FORBIDDEN)
# Pixels whose energies are turned into rows together.
BLOCK = 16

# Vertices and weights of the pixels, [pixel, corner] each.
Corners = tuple[Ints, Floats]


class Sweep(NamedTuple):
    """One mean-field update of all pixels."""

    logits: Floats  # [pixel, label]: minus the unary energies
    corners: Corners  # of the pixels in the bilateral lattice
    # [vertex + 1, label]: values of that lattice, blurred, and those to be splatted; the last row
    # is 0, the neighbour of vertices that have none
    old: Floats
    new: Floats
    near_weight: np.float32  # of the spatial kernel
    alike_weight: np.float32  # of the bilateral kernel
    posterior: Floats  # [3 + y + 3, 3 + x + 3, label]: read and replaced; with a border of zeros
    first: bool  # it has no messages yet
    last: bool  # it splats nothing any more


class RowKernels(NamedTuple):
    """The kernels for rows of one length."""

    # (corners, posterior, values): add every pixel's row, weighted, to those of its vertices
    splat: Callable[..., None]
    # (chains, axes, values): blur along one axis after the other, in place
    blur: Callable[..., None]
    # (sweep, stencil, messages): update with a spatial kernel that is a stencil; messages, float32
    # [2, row of a band, x, label], are overwritten
    sweep_stencil: Callable[..., None]
    # (sweep, corners, values, messages): update with one that is a lattice of blurred values
    sweep_lattice: Callable[..., None]


def pad_labels(labels: int) -> int:
    """Return the length of a row of labels, padded to a power of two.

    Other lengths are split into registers of several widths, and 24 lanes take longer than 32.
    """
    return max(8, 1 << (labels - 1).bit_length())


@cache
def compile_rows(lanes: int) -> RowKernels:
    """Compile the kernels for rows of `lanes` labels."""
    part = min(lanes, LANES)

    def splat(corners: Corners, posterior: Floats, values: Floats) -> None:
        vertices, weights = corners
        width = posterior.shape[1] - 2 * REACH
        fresh = 0
        for pixel in range(len(vertices)):
            row = load(posterior, _place(pixel, width) * lanes, zeros(lanes))
            fresh = _splat_row(row, vertices, weights, pixel, values, fresh)

    def blur(chains: Ints, axes: Longs, values: Floats) -> None:
        entries = axes[-1]
        last = entries - 1
        none = len(values) - 1
        half = np.float32(0.5)
        before = zeros(lanes)
        for entry in range(entries):
            far = np.intp(chains[min(entry + ENTRIES_AHEAD, last)])
            _ask_for(values, (far ^ (far >> 63)) * lanes, lanes)
            # -1 at the end of a run, where the next entry is no neighbour, else 0: a branch here
            # would be guessed wrong at every other run.
            link = np.intp(chains[entry])
            end = link >> 63
            vertex = (link ^ end) * lanes
            after = np.intp(chains[min(entry + 1, last)])
            after = ((after ^ (after >> 63)) & ~end) | (none & end)
            own = load(values, vertex, before)
            sides = before + load(values, after * lanes, before)
            store(values, vertex, add_scaled(own, sides, half))
            before = own * np.float32(1 + end)

    def sweep_stencil(sweep: Sweep, stencil: Floats, messages: Floats) -> None:
        height = len(sweep.posterior) - 2 * REACH
        fresh = 0
        if not sweep.first:
            gather_band(sweep.posterior, stencil, 0, messages[0], zeros(part))
        for y in range(0, height, BAND):
            band = y // BAND % 2
            # The next band's messages are gathered before this band's posterior is replaced.
            if not sweep.first and y + BAND < height:
                gather_band(sweep.posterior, stencil, y + BAND, messages[1 - band], zeros(part))
            fresh = _update_band(sweep, messages[band], y, fresh, zeros(lanes))

    def sweep_lattice(sweep: Sweep, near: Corners, values: Floats, messages: Floats) -> None:
        vertices, weights = near
        height = len(sweep.posterior) - 2 * REACH
        width = sweep.posterior.shape[1] - 2 * REACH
        fresh = 0
        for y in range(0, height, BAND):
            if not sweep.first:
                for place in range(min(BAND, height - y) * width):
                    pixel = y * width + place
                    row = _slice_row(zeros(lanes), vertices, weights, pixel, values, np.float32(1))
                    store(messages, place * lanes, row)
            fresh = _update_band(sweep, messages[0], y, fresh, zeros(lanes))

    return RowKernels(
        *(compile_kernel(kernel) for kernel in (splat, blur, sweep_stencil, sweep_lattice))
    )


@compile_kernel
def _update_band(sweep: Sweep, messages: Floats, y: int, fresh: int, like: Vector) -> int:
    """Update the posterior of a band of rows and splat it; return the vertices seen by then."""
    vertices, weights = sweep.corners
    lanes = count_lanes(like)
    height = len(sweep.posterior) - 2 * REACH
    width = sweep.posterior.shape[1] - 2 * REACH
    start = y * width
    for pixel in range(start, min(y + BAND, height) * width):
        # Shorter rows of two scan lines, the old and the new, stay in the cache by themselves.
        if lanes > LINE:
            ahead = min(pixel + PIXELS_AHEAD, len(vertices) - 1)
            for corner in range(vertices.shape[1]):
                at = np.intp(vertices[ahead, corner]) * lanes
                _ask_for(sweep.old, at, lanes)
                _ask_for(sweep.new, at, lanes)
        row = load(sweep.logits, pixel * lanes, like)
        if not sweep.first:
            message = load(messages, (pixel - start) * lanes, like)
            row = add_scaled(row, message, sweep.near_weight)
            row = _slice_row(row, vertices, weights, pixel, sweep.old, sweep.alike_weight)
        row = normalise(row)
        store(sweep.posterior, _place(pixel, width) * lanes, row)
        if not sweep.last:
            fresh = _splat_row(row, vertices, weights, pixel, sweep.new, fresh)
    return fresh


@compile_kernel
def _place(pixel: int, width: int) -> int:
    """Return where a pixel's row stands in the posterior, which has a border."""
    y = pixel // width
    return (y + REACH) * (width + 2 * REACH) + pixel - y * width + REACH


@compile_kernel
def _ask_for(values: Floats, at: int, lanes: int) -> None:
    """Prefetch the first two cache lines of a row; the machine sees a longer one coming."""
    prefetch(values, at)
    if lanes > LINE:
        prefetch(values, at + LINE)


@compile_kernel
def _slice_row(
    row: Vector, vertices: Ints, weights: Floats, pixel: int, values: Floats, scale: np.float32
) -> Vector:
    """Add the weighted rows of a pixel's vertices, times a scale."""
    lanes = count_lanes(row)
    for corner in range(vertices.shape[1]):
        source = load(values, np.intp(vertices[pixel, corner]) * lanes, row)
        row = add_scaled(row, source, weights[pixel, corner] * scale)
    return row


@compile_kernel
def _splat_row(
    row: Vector, vertices: Ints, weights: Floats, pixel: int, values: Floats, fresh: int
) -> int:
    """Add a pixel's row, weighted, to those of its vertices; return the vertices seen by then.

    Vertices are numbered in the order in which the pixels come to them, so that the number of
    those seen tells which is new: its row need not be zeroed before, the zeros behind the last
    vertex's row are added to instead.
    """
    lanes = count_lanes(row)
    none = len(values) - 1
    for corner in range(vertices.shape[1]):
        vertex = int(vertices[pixel, corner])
        # A choice between two addresses and not a branch, which would often be guessed wrong.
        known = vertex if vertex < fresh else none
        fresh = max(fresh, vertex + 1)
        sum_ = add_scaled(load(values, known * lanes, row), row, weights[pixel, corner])
        store(values, vertex * lanes, sum_)
    return fresh


@compile_kernel
def arrange_logits(unary: Floats, logits: Floats) -> None:
    """Lay the negative energies out in rows, the largest 0, padded with labels that never win."""
    labels, pixels = unary.shape
    whole = pixels - pixels % BLOCK
    block = np.full((logits.shape[1], BLOCK), LEAST_LOGIT, np.float32)
    for first in range(0, whole, BLOCK):
        lowest = load(unary, first, zeros(BLOCK))
        for label in range(1, labels):
            lowest = minimum(lowest, load(unary, label * pixels + first, lowest))
        for label in range(labels):
            logit = lowest - load(unary, label * pixels + first, lowest)
            store(block, label * BLOCK, maximum(logit, LEAST_LOGIT))
        logits[first : first + BLOCK] = block.T
    for pixel in range(whole, pixels):
        own = unary[:, pixel]
        logits[pixel] = LEAST_LOGIT
        logits[pixel, :labels] = np.maximum(own.min() - own, LEAST_LOGIT)


@compile_kernel
def collect_labels(posterior: Floats, collected: Floats) -> None:
    """Lay the rows out as planes."""
    labels, height, width = collected.shape
    for y in range(height):
        for label in range(labels):
            for x in range(width):
                collected[label, y, x] = posterior[y + REACH, x + REACH, label]


# The width at which the spatial kernel is a stencil that repeats in every row.
STENCIL_SXY = 1.0


def infer_posterior(unary: Floats, image: NDArray[np.uint8], settings: CrfSettings) -> Floats:
    """Infer the mean-field posterior of the labels; see `stages.crf.backends.Backend.refine`.

    Probabilities below e^-40 of their pixel's largest come out as 0. `CrfError`: a kernel is too
    narrow for an image of this size.
    """
    labels, height, width = unary.shape
    lanes = pad_labels(labels)
    kernels = compile_rows(lanes)
    near = build_spatial_operator(height, width, settings.spatial_sxy)
    alike = build_lattice(
        bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    )
    logits = take_scratch("logits", (height * width, lanes))
    arrange_logits(np.ascontiguousarray(unary).reshape(labels, -1), logits)
    messages = take_scratch("messages", (2, BAND, width, lanes))
    posterior = take_scratch("posterior", (height + 2 * REACH, width + 2 * REACH, lanes))
    posterior[:REACH] = posterior[-REACH:] = 0.0
    posterior[:, :REACH] = posterior[:, -REACH:] = 0.0
    old = take_scratch("old", (alike.size + 1, lanes))
    new = take_scratch("new", (alike.size + 1, lanes))
    beside = near.size if isinstance(near, Lattice) else 0
    splatted = take_scratch("near", (beside + 1, lanes))
    # The neighbour of all vertices that have none.
    old[-1] = new[-1] = splatted[-1] = 0.0
    sweep = Sweep(
        logits=logits,
        corners=(alike.vertices, alike.weights),
        old=old,
        new=new,
        near_weight=np.float32(settings.spatial_weight),
        alike_weight=np.float32(settings.bilateral_weight),
        posterior=posterior,
        first=True,
        last=settings.iterations == 0,
    )
    for iteration in range(settings.iterations + 1):
        if isinstance(near, Lattice):
            if not sweep.first:
                kernels.splat((near.vertices, near.weights), posterior, splatted)
                kernels.blur(near.chains, near.axes, splatted)
            kernels.sweep_lattice(sweep, (near.vertices, near.weights), splatted, messages)
        else:
            kernels.sweep_stencil(sweep, near, messages)
        if not sweep.last:
            kernels.blur(alike.chains, alike.axes, sweep.new)
        sweep = sweep._replace(
            old=sweep.new,
            new=sweep.old,
            first=False,
            last=iteration + 1 == settings.iterations,
        )
    probabilities = np.empty(unary.shape, np.float32)
    collect_labels(posterior, probabilities)
    return probabilities


def bilateral_features(image: NDArray[np.uint8], sxy: float, srgb: float) -> Floats:
    """Place pixels in units of the bilateral kernel, float32 [(x, y, r, g, b), pixel]."""
    height, width = image.shape[:2]
    features = take_scratch("features", (5, height, width))
    features[:2] = spatial_features(height, width, sxy).reshape(2, height, width)
    np.divide(image.transpose(2, 0, 1), np.float32(max(srgb, NARROWEST)), out=features[2:])
    return features.reshape(5, -1)


@lru_cache(maxsize=2)
def build_spatial_operator(height: int, width: int, sxy: float) -> Lattice | Floats:
    """Build the operator of the spatial kernel, which all images of one size share.

    Kept for the next image of the same size; nobody may write to it. At a width of one pixel it is
    a stencil of at most 13 rows, float32 [row, x, column, row], else a lattice.
    """
    if sxy != STENCIL_SXY:
        return deepcopy(build_lattice(spatial_features(height, width, sxy)))
    rows = min(height, 2 * BORDER + 1)
    return multiply_out(build_lattice(spatial_features(rows, width, sxy)), rows, width)
