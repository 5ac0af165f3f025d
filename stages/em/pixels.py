"""From the grid of patches to the pixels: interpolation, its transpose, and the E-step's votes.

Pixel centres are aligned, not corners, as in the published code: a pixel between the centres of two
grid cells mixes both, one beyond the outermost centres has the value there.

The E-step gives every proposal one class, by majority of the momentum prototypes' pixels. On the
processor, compiled loops predict pixels, which are counted and never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, float32

from pipeline.datasets.definition import IGNORE
from pipeline.run.frames import count_threads, map_ahead
from stages.clustering import count_numbers
from stages.crf.vectors import allocate_aligned, compile_kernel

# Compiled rows of pixels are padded to whole vector registers and start at cache lines: accesses
# that straddle two lines take twice as long.
LANES = 16
# Logits at image size that a CUDA device holds at once: 1 GiB, and a few times that in passing.
# In the processor's caches not even those of one window have room.
_TOGETHER = 2**28


class Taps(NamedTuple):
    """The two grid cells that every pixel along one axis mixes, by strips that mix the same two."""

    first: NDArray[np.int32]  # [strip]: one grid cell of every strip,
    second: NDArray[np.int32]  # and the other; the same one beyond the outermost centres
    starts: NDArray[np.int32]  # [strip + 1]: the first pixel of each, and the number of pixels
    share: NDArray[np.float32]  # [pixel]: of the second cell, in [0, 1), evenly spaced in a strip


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
    """Split a batch into runs of windows whose logits at ``size`` (y, x) fit the device."""
    most = _TOGETHER if logits.is_cuda else 1
    each = max(1, most // (logits.shape[1] * size[0] * size[1]))
    return [slice(low, low + each) for low in range(0, len(logits), each)]


def allocate_rows(*shape: int) -> NDArray[np.float32]:
    """Allocate float32 [..., x] of undefined values, every row padded and aligned to ``LANES``."""
    return allocate_aligned((*shape[:-1], -(-shape[-1] // LANES) * LANES))


@compile_kernel
def widen_row(row: NDArray[np.float32], columns: Taps, wide: NDArray[np.float32]) -> None:
    """Interpolate one row of the grid, [class, column] of any strides, to the pixels' columns.

    The padding of ``wide`` [class, x] repeats the last column.
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
    """Add the transpose of :func:`widen_row` to one row of the grid, [class, column].

    ``wide`` [class, x] is the gradient of the pixels; its padding counts for nothing.
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


@compile_kernel
def hold_rows(  # type: ignore[no-untyped-def]
    logits, rows: Taps, columns: Taps, strip, upper, lower
):
    """Give the two rows of the grid, widened, that a strip of rows of pixels lies between.

    Those of the strip before are given; what was its lower row may be the upper one of this.
    """
    first, second = rows.first, rows.second
    if strip > 0 and second[strip - 1] == first[strip]:
        upper, lower = lower, upper
    else:
        widen_row(logits[:, first[strip]], columns, upper)
    widen_row(logits[:, second[strip]], columns, lower)
    return upper, lower


# Far under every logit, and yet differences between two of them are finite.
NEVER = np.float32(-1e30)


def runs_compiled(logits: Tensor) -> bool:
    """Whether the compiled loops take these logits: float32 in the processor's memory."""
    return logits.device.type == "cpu" and logits.dtype == float32


def pad_classes(logits: Tensor) -> NDArray[np.float32]:
    """Copy logits [window, class, row, column], C-contiguous, to an even number of classes.

    One that is added never wins.
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


def run_kernel(
    kernel: Callable[..., Any],
    scratch: tuple[int, int],
    size: Sequence[int],
    padded: NDArray[np.float32],
    *arrays: NDArray[Any],
) -> list[Any]:
    """Apply a compiled loop to every window of padded logits and of arrays [window, ...].

    It takes the taps of both axes to ``size`` (y, x), so many planes [class, x] and so many rows of
    pixels of any content, and a window of every array, to read or to write.
    """
    windows, classes, *grid = padded.shape
    rows, columns = find_taps(grid[0], size[0]), find_taps(grid[1], size[1])
    found: list[Any] = [None] * windows

    def compute(run: slice) -> None:
        planes = allocate_rows(scratch[0], classes, size[1])
        band = allocate_rows(scratch[1], size[1])
        for window in range(run.start, run.stop):
            own = (array[window] for array in (padded, *arrays))
            found[window] = kernel(rows, columns, planes, band, *own)

    map_windows(compute, windows)
    return found


# Rows of pixels predicted together: their winners stay in the first-level cache between classes.
BAND = 16


@compile_kernel
def _vote_window(  # type: ignore[no-untyped-def]
    rows: Taps, columns: Taps, planes, band, logits, proposals, labels, usage
):
    starts, share = rows.starts, rows.share
    best, winner = band[:BAND], band[BAND:].view(np.int32)
    counts = np.zeros((256, len(logits)), np.int64)
    upper, lower = planes[0], planes[1]
    for strip in range(len(rows.first)):
        upper, lower = hold_rows(logits, rows, columns, strip, upper, lower)
        for low in range(starts[strip], starts[strip + 1], BAND):
            high = min(low + BAND, starts[strip + 1])
            _find_winners(upper, lower, share[low:high], best, winner)
            _count_winners(proposals[low:high], winner, counts)
    return _label_proposals(proposals, counts, labels, usage)


@compile_kernel
def _find_winners(upper, lower, shares, best, winner):  # type: ignore[no-untyped-def]
    """Find the largest class of every pixel of a band between two rows of the grid."""
    classes, width = upper.shape
    best[: len(shares)] = -np.inf
    winner[: len(shares)] = 0
    # two classes at once: half as many visits to the leader
    for label in range(0, classes, 2):
        above, other_above = upper[label], upper[label + 1]
        below, other_below = lower[label], lower[label + 1]
        for row in range(len(shares)):
            share, highest, leader = shares[row], best[row], winner[row]
            for x in range(width):
                logit = above[x] + share * (below[x] - above[x])
                other = other_above[x] + share * (other_below[x] - other_above[x])
                larger = max(logit, other)
                candidate = np.int32(label) if logit >= other else np.int32(label + 1)
                leader[x] = candidate if larger > highest[x] else leader[x]
                highest[x] = max(larger, highest[x])


@compile_kernel
def _count_winners(proposals, winner, counts):  # type: ignore[no-untyped-def]
    # Neighbours mostly agree, so runs are counted: adding to one counter pixel by pixel waits for
    # the sum before every time.
    height, width = proposals.shape
    for y in range(height):
        proposal, label, run = proposals[y, 0], winner[y, 0], 0
        for x in range(width):
            if proposals[y, x] != proposal or winner[y, x] != label:
                counts[proposal, label] += run
                proposal, label, run = proposals[y, x], winner[y, x], 0
            run += 1
        counts[proposal, label] += run


@compile_kernel
def _label_proposals(proposals, counts, labels, usage):  # type: ignore[no-untyped-def]
    of_proposal = np.empty(256, np.uint8)
    of_proposal[0] = IGNORE
    agreed = 0
    for proposal in range(1, 256):
        winner = np.argmax(counts[proposal])
        of_proposal[proposal] = winner
        usage[winner] += counts[proposal].sum()
        agreed += counts[proposal, winner]
    height, width = proposals.shape
    for y in range(height):
        for x in range(width):
            labels[y, x] = of_proposal[proposals[y, x]]
    return agreed


# Proposals are numbered by a byte, labels too.
_NUMBERS = 256


class Assignment(NamedTuple):
    """The classes of the proposals of a batch, pixel by pixel."""

    labels: Tensor  # uint8 [window, y, x]: of the pixel's proposal, ``IGNORE`` where there is none
    usage: Tensor  # int64 [class]: labelled pixels of each class
    agreed: Tensor  # int64, a scalar: those whose own largest class is that of their proposal


def assign_proposals(logits: Tensor, proposals: Tensor) -> Assignment:
    """Give every proposal the class that is the largest at most of its pixels.

    Takes float [window, class, row, column], at most 255 classes, and uint8 [window, y, x]: 0 = no
    proposal. Of equal logits and of equally frequent classes the smallest class wins.
    """
    if runs_compiled(logits):
        return _assign_compiled(logits, proposals)
    classes, size = logits.shape[1], (proposals.shape[-2], proposals.shape[-1])
    predictions = predict_pixels(logits, size)
    labels = vote_proposals(predictions, proposals, classes)
    usage = count_numbers(labels, _NUMBERS)[:classes]
    return Assignment(labels.to(torch.uint8), usage, (predictions == labels).sum())


def _assign_compiled(logits: Tensor, proposals: Tensor) -> Assignment:
    padded, ids = pad_classes(logits), proposals.contiguous().numpy()
    labels, usage = np.empty_like(ids), np.zeros(padded.shape[:2], np.int64)
    agreed = run_kernel(_vote_window, (2, 2 * BAND), ids.shape[1:], padded, ids, labels, usage)
    return Assignment(
        torch.from_numpy(labels),
        torch.from_numpy(usage.sum(axis=0)[: logits.shape[1]]),
        torch.tensor(sum(agreed), dtype=torch.int64),
    )


def predict_pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the largest class of every pixel at ``size`` (height, width), int64 [window, y, x]."""
    runs = split_windows(logits, size)
    return torch.cat([upsample(logits[run], size).argmax(dim=1) for run in runs])


def vote_proposals(predictions: Tensor, proposals: Tensor, classes: int) -> Tensor:
    """Give every proposal the class that most of its pixels have, by torch: int64 [window, y, x].

    ``IGNORE`` where there is no proposal; of equally frequent classes the smallest wins.
    """
    ids, windows = proposals.long(), len(proposals)
    region = ids + _NUMBERS * torch.arange(windows, device=ids.device)[:, None, None]
    votes = count_numbers(region * classes + predictions, windows * _NUMBERS * classes)
    winner = votes.reshape(windows * _NUMBERS, classes).argmax(dim=1)
    return torch.where(ids > 0, winner[region], IGNORE)
