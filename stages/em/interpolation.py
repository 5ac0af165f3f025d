"""Bilinear interpolation from the grid of patches to the pixels, and its transpose.

Pixel centres are aligned, not corners, as in the published code: a pixel between the centres of two
grid cells mixes both, one beyond the outermost centres has the value there.

How a batch goes through the compiled loops: which, in what layout, in how many threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, float32

from pipeline.run.frames import count_threads, map_ahead
from stages.crf.vectors import allocate_aligned, compile_kernel

# Compiled rows of pixels are padded to whole vector registers and start at cache lines: accesses
# that straddle two lines take twice as long.
LANES = 16
# Logits at image size that a CUDA device holds at once: 1 GiB, and a few times that in passing.
# In the processor's caches not even those of one window have room.
_TOGETHER = 2**28


class Taps(NamedTuple):
    """The two grid cells that every pixel along one axis mixes.

    Attributes
    ----------
    first, second : int32 [strip]
        Grid cells of every strip, a run of pixels that mix the same two; one and the same cell
        beyond the outermost centres.
    starts : int32 [strip + 1]
        The first pixel of every strip, and the number of pixels.
    share : float32 [pixel]
        Weight of the second cell, in [0, 1), evenly spaced in a strip; the first has the rest.
    """

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    starts: NDArray[np.int32]
    share: NDArray[np.float32]


@lru_cache(maxsize=16)
def find_taps(cells: int, pixels: int) -> Taps:
    """Find which of ``cells`` grid cells each of ``pixels`` pixels along the same axis mixes."""
    centre = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
    below = np.floor(centre)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(below)) + 1, [pixels]])
    cell = below[starts[:-1]]
    return Taps(
        np.maximum(cell, 0).astype(np.int32),
        np.minimum(cell + 1, cells - 1).astype(np.int32),
        starts.astype(np.int32),
        (centre - below).astype(np.float32),
    )


def make_matrix(cells: int, pixels: int, like: Tensor) -> Tensor:
    """Return the interpolation along an axis as a matrix [pixel, cell], of the type of ``like``."""
    pixel = torch.arange(pixels, dtype=torch.float64, device=like.device)
    centre = ((pixel + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
    cell = torch.arange(cells, dtype=torch.float64, device=like.device)
    return (1 - (centre[:, None] - cell).abs()).clamp_min(0).to(like.dtype)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate [..., row, column] to ``size`` (height, width), by two matrix products.

    Unlike those of torch's own interpolation, the gradients of products are the same in every run.
    """
    down = make_matrix(logits.shape[-2], size[0], logits)
    across = make_matrix(logits.shape[-1], size[1], logits)
    return down @ logits @ across.T


def downsample(gradient: Tensor, grid: tuple[int, int]) -> Tensor:
    """Apply the transpose of :func:`upsample` to [..., y, x]: give [..., row, column]."""
    down = make_matrix(grid[0], gradient.shape[-2], gradient)
    across = make_matrix(grid[1], gradient.shape[-1], gradient)
    return down.T @ gradient @ across


def split_windows(logits: Tensor, size: tuple[int, int]) -> list[slice]:
    """Split a batch into runs of windows whose logits at image size fit the device.

    Parameters
    ----------
    logits
        float [window, class, row, column].
    size
        Height and width of the image, pixels.
    """
    most = _TOGETHER if logits.is_cuda else 1
    each = max(1, most // (logits.shape[1] * size[0] * size[1]))
    return [slice(low, low + each) for low in range(0, len(logits), each)]


def allocate_rows(*shape: int) -> NDArray[np.float32]:
    """Allocate float32 [..., x] of undefined values, every row padded and aligned to ``LANES``."""
    return allocate_aligned((*shape[:-1], -(-shape[-1] // LANES) * LANES))


@compile_kernel
def widen_row(row: NDArray[np.float32], columns: Taps, wide: NDArray[np.float32]) -> None:
    """Interpolate one row of the grid to the pixels' columns.

    Parameters
    ----------
    row : float32 [class, column]
        Any strides.
    columns : Taps
        Of the columns.
    wide : float32 [class, x]
        Written; its padding repeats the last column.
    """
    first, second, starts, share = columns
    for label in range(len(row)):
        for strip in range(len(first)):
            left = row[label, first[strip]]
            rise = row[label, second[strip]] - left
            shares = share[starts[strip] : starts[strip + 1]]
            pixels = wide[label, starts[strip] : starts[strip + 1]]
            for x in range(len(shares)):
                pixels[x] = left + shares[x] * rise
        wide[label, len(share) :] = wide[label, len(share) - 1]


@compile_kernel
def narrow_row(wide: NDArray[np.float32], columns: Taps, row: NDArray[np.float32]) -> None:
    """Add the transpose of :func:`widen_row` to one row of the grid.

    Parameters
    ----------
    wide : float32 [class, x]
        Gradient with respect to the pixels of the interpolated row; its padding counts for nothing.
    columns : Taps
        Of the columns.
    row : float32 [class, column]
        The gradient with respect to the row of the grid is added to it.
    """
    first, second, starts, share = columns
    for label in range(len(row)):
        for strip in range(len(first)):
            total = to_second = np.float32(0.0)
            for x in range(starts[strip], starts[strip + 1]):
                total += wide[label, x]
                to_second += share[x] * wide[label, x]
            row[label, first[strip]] += total - to_second
            row[label, second[strip]] += to_second


# Far under every logit, and yet differences between two of them are finite.
NEVER = np.float32(-1e30)


def runs_compiled(logits: Tensor) -> bool:
    """Whether the compiled loops take these logits: float32 in the processor's memory."""
    return logits.device.type == "cpu" and logits.dtype == float32


def pad_classes(logits: Tensor) -> NDArray[np.float32]:
    """Copy logits to an even number of classes, the last of which never wins.

    Parameters
    ----------
    logits
        float32 [window, class, row, column], any strides.

    Returns
    -------
    float32 [window, class, row, column]
        C-contiguous.
    """
    windows, classes, *grid = logits.shape
    padded = np.full((windows, classes + classes % 2, *grid), NEVER, np.float32)
    padded[:, :classes] = logits.detach().numpy()
    return padded


def map_windows(function: Callable[[slice], None], windows: int) -> None:
    """Apply a function to runs of windows, a thread to each; it writes every window's own rows.

    What it writes therefore does not depend on the number of threads.
    """
    threads = max(1, min(count_threads(), windows))
    if threads == 1:
        function(slice(0, windows))
        return
    ends = [windows * thread // threads for thread in range(threads + 1)]
    runs = [slice(low, high) for low, high in pairwise(ends)]
    for _ in map_ahead(function, runs, threads, ahead=threads):
        pass
