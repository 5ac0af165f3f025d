"""From the grid of patches to the pixels: interpolation, the E-step's votes, the M-step's gradient.

Pixel centres are aligned, not corners, as in the published code: a pixel between the centres of two
grid cells mixes both, one beyond the outermost centres has the value there.

The E-step gives every proposal one class, by majority of the momentum prototypes' pixels. The
M-step is the running prototypes' cross entropy against these classes. With p = softmax of the
up-sampled logits over the batch's pixels, N of them, and w_k = (1 - mean p_k) ** focus, held fixed:
loss = 1/N * sum over labelled pixels of -w_y log p_y (PriMaPs, equation 8).

The weight needs the mean over the whole batch before any gradient, so the windows are passed over
twice: :func:`sum_probabilities`, then, with what :func:`weigh_classes` makes of all windows' sums,
:func:`differentiate`. On the processor no logit at image size is ever stored: compiled loops
predict and count pixels, and make softmax, cross entropy and gradient in one pass over them, by
exponentials and logarithms of whole rows of float32, which fill the vector registers. Strict
floating-point rules hold: the same bytes come out on every processor.

Between the centres of two rows of the grid every logit is linear in y, so its exponential follows a
geometric progression down the rows of pixels: one exponential for its start, one for its ratio, and
one multiplication per pixel and class. What is exponentiated is the distance to the line between
the largest logits at both ends, and progressions are so short that no class goes far from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from math import factorial
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
    rows: Taps, columns: Taps, planes, band, logits, proposals, pins, labels, usage
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
    return _label_proposals(proposals, counts, pins, labels, usage)


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
def _label_proposals(proposals, counts, pins, labels, usage):  # type: ignore[no-untyped-def]
    of_proposal = np.empty(256, np.uint8)
    of_proposal[0] = IGNORE
    agreed = 0
    for proposal in range(1, 256):
        winner = np.argmax(counts[proposal])
        if pins[proposal] != IGNORE:
            winner = np.int64(pins[proposal])
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


def assign_proposals(logits: Tensor, proposals: Tensor, pins: Tensor | None = None) -> Assignment:
    """Give every proposal the class that is the largest at most of its pixels.

    Takes float [window, class, row, column], at most 255 classes, and uint8 [window, y, x]: 0 = no
    proposal. Of equal logits and of equally frequent classes the smallest class wins. A proposal
    that ``pins``, uint8 [window, 256], gives a class has that one, whatever its pixels say; 255 is
    none.
    """
    if runs_compiled(logits):
        return _assign_compiled(logits, proposals, pins)
    classes, size = logits.shape[1], (proposals.shape[-2], proposals.shape[-1])
    predictions = predict_pixels(logits, size)
    labels = vote_proposals(predictions, proposals, classes, pins)
    usage = count_numbers(labels, _NUMBERS)[:classes]
    return Assignment(labels.to(torch.uint8), usage, (predictions == labels).sum())


def _assign_compiled(logits: Tensor, proposals: Tensor, pins: Tensor | None) -> Assignment:
    padded, ids = pad_classes(logits), proposals.contiguous().numpy()
    labels, usage = np.empty_like(ids), np.zeros(padded.shape[:2], np.int64)
    free = np.full((len(ids), _NUMBERS), IGNORE, np.uint8)
    known = free if pins is None else pins.numpy()
    arrays = padded, ids, known, labels, usage
    agreed = run_kernel(_vote_window, (2, 2 * BAND), ids.shape[1:], *arrays)
    return Assignment(
        torch.from_numpy(labels),
        torch.from_numpy(usage.sum(axis=0)[: logits.shape[1]]),
        torch.tensor(sum(agreed), dtype=torch.int64),
    )


def predict_pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the largest class of every pixel at ``size`` (height, width), int64 [window, y, x]."""
    runs = split_windows(logits, size)
    return torch.cat([upsample(logits[run], size).argmax(dim=1) for run in runs])


def vote_proposals(
    predictions: Tensor, proposals: Tensor, classes: int, pins: Tensor | None = None
) -> Tensor:
    """Give every proposal the class that most of its pixels have, by torch: int64 [window, y, x].

    ``IGNORE`` where there is no proposal; of equally frequent classes the smallest wins, and
    ``pins`` over all, as of :func:`assign_proposals`.
    """
    ids, windows = proposals.long(), len(proposals)
    region = ids + _NUMBERS * torch.arange(windows, device=ids.device)[:, None, None]
    votes = count_numbers(region * classes + predictions, windows * _NUMBERS * classes)
    winner = votes.reshape(windows * _NUMBERS, classes).argmax(dim=1)
    if pins is not None:
        winner = torch.where(pins.flatten() == IGNORE, winner, pins.flatten().long())
    return torch.where(ids > 0, winner[region], IGNORE)


# Adding and subtracting 1.5 * 2^23 rounds a small float32 to the nearest integer.
ROUNDER = np.float32(1.5 * 2**23)
LOG2_E = np.float32(1.4426950408889634)
# ln(2) in two parts, the first with so few digits that its products with integers are exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ONE, HALF, THIRD, FOURTH, FIFTH, SIXTH, SEVENTH = (
    np.float32(1.0 / factorial(order)) for order in range(1, 8)
)
# Coefficients of 2 atanh(s) / s in powers of s^2.
ATANH_0, ATANH_2, ATANH_4, ATANH_6, ATANH_8 = (np.float32(2.0 / order) for order in range(1, 10, 2))
SQUARE_ROOT_OF_2_BITS = np.int32(np.float32(2**0.5).view(np.int32))
ALMOST_ONE = np.int32(0x7FFFFF)


@compile_kernel
def exponentiate(exponents: NDArray[np.float32]) -> None:
    """Replace each number, from -87 to 87, by its exponential, within one unit in the last place.

    e^x = 2^n e^r with integer n and |r| <= ln(2) / 2, and the Taylor series of e^r up to r^7.
    """
    for index in range(len(exponents)):
        exponent = exponents[index]
        whole = (exponent * LOG2_E + ROUNDER) - ROUNDER
        rest = (exponent - whole * LN2_HIGH) - whole * LN2_LOW
        series = SEVENTH * rest + SIXTH
        series = series * rest + FIFTH
        series = series * rest + FOURTH
        series = series * rest + THIRD
        series = series * rest + HALF
        series = series * rest + ONE
        series = series * rest + ONE
        power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
        exponents[index] = series * power


@compile_kernel
def take_logarithms(numbers: NDArray[np.float32]) -> None:
    """Replace each number, positive and normal, by its natural logarithm, within 1e-7.

    log(2^n m) = n ln(2) + 2 atanh((m - 1) / (m + 1)) with sqrt(1/2) < m <= sqrt(2), and the series
    of atanh up to the ninth power; the error is absolute or relative.
    """
    for index in range(len(numbers)):
        bits = np.float32(numbers[index]).view(np.int32)
        # the distance of the bits to those of sqrt(2) carries into the exponent at the right place
        whole = np.int32(np.int32(bits - SQUARE_ROOT_OF_2_BITS + ALMOST_ONE) >> np.int32(23))
        mantissa = np.int32(bits - np.int32(whole << np.int32(23))).view(np.float32)
        part = (mantissa - ONE) / (mantissa + ONE)
        square = part * part
        series = ATANH_8 * square + ATANH_6
        series = series * square + ATANH_4
        series = series * square + ATANH_2
        series = series * square + ATANH_0
        power = np.float32(whole)
        numbers[index] = power * LN2_HIGH + (power * LN2_LOW + series * part)


# Rows of pixels in a progression, at most: the ratio's rounding errors add up along it.
LONGEST = 16
# How far a class may move against the line along one progression. The sum of exponentials then
# stays above e^-10, so that what starts below FLOOR is nowhere more than e^-30 of it, and what
# starts at FLOOR ends above e^-70: nothing is lost, and no number is denormal, which is slow.
REACH = np.float32(20.0)
FLOOR = np.float32(-50.0)


@compile_kernel
def _sum_softmax(  # type: ignore[no-untyped-def]
    rows: Taps, columns: Taps, planes, band, logits, normaliser, sums
):
    starts, share = rows.starts, rows.share
    upper, lower, power, ratio, shares = planes[0], planes[1], planes[2], planes[3], planes[4]
    inverse, moving, line = band[:LONGEST], band[LONGEST : LONGEST + 2], band[LONGEST + 2 :]
    shares[:] = 0.0
    for strip in range(len(rows.first)):
        upper, lower = hold_rows(logits, rows, columns, strip, upper, lower)
        start, stop = starts[strip], starts[strip + 1]
        length = _choose_length(upper, lower, share[start:stop], line)
        for low in range(start, stop, length):
            high = min(low + length, stop)
            ends = (share[low], share[high - 1])
            _start_progressions(upper, lower, ends, high - low, line, power, ratio)
            inverse[: high - low + 1] = 0.0
            _add_powers(power, ratio, high - low, moving, inverse)
            _invert(inverse[: high - low], normaliser[low:high])
            inverse[: high - low] = normaliser[low:high]
            inverse[high - low :] = 0.0
            _add_shares(power, ratio, high - low, inverse, shares)
    width = len(columns.share)
    for label in range(len(sums)):
        sums[label] = 0.0
        for x in range(width):
            sums[label] += shares[label, x]


@compile_kernel
def _choose_length(upper, lower, shares, line):  # type: ignore[no-untyped-def]
    """Choose how many rows of pixels the progressions of a strip may have."""
    classes, width = upper.shape
    if len(shares) == 1:
        return 1
    _find_largest(upper, lower, np.float32(0.0), ONE, line)
    start, end = line[0], line[1]
    farthest = np.zeros(width, np.float32)
    for label in range(classes):
        above, below = upper[label], lower[label]
        for x in range(width):
            way = abs((below[x] - end[x]) - (above[x] - start[x]))
            farthest[x] = max(way, farthest[x])
    step = (shares[1] - shares[0]) * farthest.max()
    return 1 + int(REACH / step) if step * (LONGEST - 1) > REACH else LONGEST


@compile_kernel
def _find_largest(upper, lower, top, bottom, line):  # type: ignore[no-untyped-def]
    """Find the largest logits in two rows of pixels, ``top`` and ``bottom`` of the way down."""
    classes, width = upper.shape
    start, end = line[0], line[1]
    start[:] = -np.inf
    end[:] = -np.inf
    for label in range(classes):
        above, below = upper[label], lower[label]
        for x in range(width):
            rise = below[x] - above[x]
            start[x] = max(above[x] + top * rise, start[x])
            end[x] = max(above[x] + bottom * rise, end[x])


@compile_kernel
def _start_progressions(  # type: ignore[no-untyped-def]
    upper, lower, ends, length, line, power, ratio
):
    """Find first exponential and ratio of every class's progression in every column of pixels."""
    classes, width = upper.shape
    top, bottom = ends
    _find_largest(upper, lower, top, bottom, line)
    start, end = line[0], line[1]
    step = np.float32(1.0 / max(length - 1, 1))
    for label in range(classes):
        above, below, powers, ratios = upper[label], lower[label], power[label], ratio[label]
        for x in range(width):
            rise = below[x] - above[x]
            exponent = (above[x] + top * rise) - start[x]
            ratios[x] = (((above[x] + bottom * rise) - end[x]) - exponent) * step
            powers[x] = max(exponent, FLOOR)
        exponentiate(powers)
        exponentiate(ratios)


# The three walks along the progressions take two rows at once, and leave what they store between
# half as often; behind an odd number of rows lies one more that counts for nothing.


@compile_kernel
def _add_powers(power, ratio, length, moving, total):  # type: ignore[no-untyped-def]
    """Add the exponentials of all classes to ``total`` [y, x], two classes at once."""
    classes, width = power.shape
    value, other = moving[0], moving[1]
    for label in range(0, classes, 2):
        factor, other_factor = ratio[label], ratio[label + 1]
        value[:] = power[label]
        other[:] = power[label + 1]
        for y in range(0, length, 2):
            row, next_row = total[y], total[y + 1]
            for x in range(width):
                one, two = value[x], other[x]
                row[x] += one + two
                one, two = one * factor[x], two * other_factor[x]
                next_row[x] += one + two
                value[x], other[x] = one * factor[x], two * other_factor[x]


@compile_kernel
def _invert(total, inverse):  # type: ignore[no-untyped-def]
    for y in range(len(total)):
        source, target = total[y], inverse[y]
        for x in range(len(source)):
            target[x] = ONE / source[x]


@compile_kernel
def _add_shares(power, ratio, length, inverse, shares):  # type: ignore[no-untyped-def]
    """Add the softmax of every class, summed down the rows, to ``shares`` [class, x]."""
    classes, width = power.shape
    for label in range(classes):
        value, factor, share = power[label], ratio[label], shares[label]
        for y in range(0, length, 2):
            row, next_row = inverse[y], inverse[y + 1]
            for x in range(width):
                one = value[x]
                two = one * factor[x]
                share[x] += one * row[x] + two * next_row[x]
                value[x] = two * factor[x]


@compile_kernel
def _differentiate(  # type: ignore[no-untyped-def]
    weight, rows: Taps, columns: Taps, planes, band, logits, labels, normaliser, gradient
):
    first, second, starts, share = rows
    upper, lower, power, ratio = planes[0], planes[1], planes[2], planes[3]
    to_upper, to_lower = planes[4], planes[5]
    scale, weights, logarithm = band[:LONGEST], band[LONGEST], band[LONGEST + 1]
    line = band[LONGEST + 2 :]
    losses = np.zeros(len(weights), np.float64)
    parts = np.zeros(LONGEST, np.float32)
    gradient[:] = 0.0
    to_lower[:] = 0.0
    weights[:] = 0.0
    held = -1
    for strip in range(len(first)):
        if held == first[strip]:
            to_upper, to_lower = to_lower, to_upper
        else:
            if held >= 0:
                narrow_row(to_lower, columns, gradient[:, held])
            to_upper[:] = 0.0
        upper, lower = hold_rows(logits, rows, columns, strip, upper, lower)
        to_lower[:] = 0.0
        held = second[strip]
        start, stop = starts[strip], starts[strip + 1]
        length = _choose_length(upper, lower, share[start:stop], line)
        for low in range(start, stop, length):
            high = min(low + length, stop)
            ends = (share[low], share[high - 1])
            _start_progressions(upper, lower, ends, high - low, line, power, ratio)
            step = np.float32(1.0 / max(high - low - 1, 1))
            scale[high - low :] = 0.0
            for y in range(low, high):
                _weigh(labels[y], weight, weights)
                _subtract_labels(
                    labels[y], weights, share[y], upper, lower, to_upper, to_lower, losses
                )
                largest = np.float32(y - low) * step
                _add_logarithms(line, largest, normaliser[y], weights, logarithm, losses)
                _multiply(weights, normaliser[y], scale[y - low])
                parts[y - low] = share[y]
            _add_gradient(power, ratio, high - low, scale, parts, to_upper, to_lower)
        narrow_row(to_upper, columns, gradient[:, first[strip]])
    narrow_row(to_lower, columns, gradient[:, held])
    return losses.sum()


@compile_kernel
def _weigh(labels, weight, weights):  # type: ignore[no-untyped-def]
    for x in range(len(labels)):
        weights[x] = weight[labels[x]]


@compile_kernel
def _subtract_labels(  # type: ignore[no-untyped-def]
    labels, weights, part, upper, lower, to_upper, to_lower, losses
):
    """Take the labels' own logits, weighted, off the losses, and their gradient off the rows."""
    classes, rest = len(upper), ONE - part
    for x in range(len(labels)):
        label = labels[x]
        if label < classes:
            above, below = rest * weights[x], part * weights[x]
            losses[x] -= above * upper[label, x] + below * lower[label, x]
            to_upper[label, x] -= above
            to_lower[label, x] -= below


@compile_kernel
def _add_logarithms(  # type: ignore[no-untyped-def]
    line, way, normaliser, weights, logarithm, losses
):
    """Add the weighted logarithms of the sums of exponentials to the losses."""
    logarithm[:] = normaliser
    take_logarithms(logarithm)
    start, end = line[0], line[1]
    for x in range(len(weights)):
        largest = start[x] + way * (end[x] - start[x])
        losses[x] += weights[x] * (largest - logarithm[x])


@compile_kernel
def _multiply(weights, normaliser, scale):  # type: ignore[no-untyped-def]
    for x in range(len(weights)):
        scale[x] = weights[x] * normaliser[x]


@compile_kernel
def _add_gradient(  # type: ignore[no-untyped-def]
    power, ratio, length, scale, parts, to_upper, to_lower
):
    """Add the weighted softmax of every class to both rows of the grid that it comes from."""
    classes, width = power.shape
    for label in range(classes):
        value, factor, up, down = power[label], ratio[label], to_upper[label], to_lower[label]
        for y in range(0, length, 2):
            row, next_row, part, next_part = scale[y], scale[y + 1], parts[y], parts[y + 1]
            for x in range(width):
                one = value[x]
                two = one * factor[x]
                value[x] = two * factor[x]
                one, two = one * row[x], two * next_row[x]
                below = part * one + next_part * two
                up[x] += (one + two) - below
                down[x] += below


class Softmax(NamedTuple):
    """What the second pass over some windows needs of the first."""

    sums: Tensor  # float64 [window, class]: the softmax, summed over the pixels
    logits: Tensor  # [window, class, row, column]; an even number of classes in compiled loops
    labels: Tensor  # integers [window, y, x], ``IGNORE`` where unlabelled
    # float32 [window, y, x] of the compiled loops; None where they did not run
    normaliser: NDArray[np.float32] | None = None


class Gradient(NamedTuple):
    """Loss of some windows and its gradient, N times those of the formula."""

    loss: Tensor  # float64 [window]
    logits: Tensor  # [window, class, row, column]: d loss / d logits on the grid


def sum_probabilities(logits: Tensor, labels: Tensor) -> Softmax:
    """Sum the softmax of the up-sampled logits over every window's pixels.

    Takes float [window, class, row, column], at most 255 classes, and integers [window, y, x],
    ``IGNORE`` where unlabelled, which say the size.
    """
    logits = logits.detach()
    if not runs_compiled(logits):
        size = (labels.shape[-2], labels.shape[-1])
        runs = [logits[run] for run in split_windows(logits, size)]
        sums = [upsample(run, size).softmax(dim=1).sum(dim=(2, 3)) for run in runs]
        return Softmax(torch.cat(sums).double(), logits, labels)
    padded, targets = pad_classes(logits), labels.to(torch.uint8).contiguous()
    normaliser, totals = allocate_rows(*targets.shape), np.empty(padded.shape[:2])
    arrays = padded, normaliser, totals
    run_kernel(_sum_softmax, (5, LONGEST + 4), targets.shape[1:], *arrays)
    known = torch.from_numpy(totals)[:, : logits.shape[1]]
    return Softmax(known, torch.from_numpy(padded), targets, normaliser)


def weigh_classes(total: Tensor, pixels: int, focus: float) -> Tensor:
    """Weigh the classes of a batch by its softmax summed over its N pixels, float64 [class]."""
    return (1 - total / pixels) ** focus


def differentiate(softmax: Softmax, weight: Tensor) -> Gradient:
    """Compute the focused cross entropy of some windows and its gradient on the grid.

    The weights, float [class], are those of the batch that they belong to.
    """
    compute = _differentiate_on_device if softmax.normaliser is None else _differentiate_compiled
    return compute(softmax, weight)


def _differentiate_compiled(softmax: Softmax, weight: Tensor) -> Gradient:
    padded, targets, normaliser = softmax.logits.numpy(), softmax.labels.numpy(), softmax.normaliser
    assert normaliser is not None
    of_label = np.zeros(_NUMBERS, np.float32)
    of_label[: len(weight)] = weight.numpy()
    gradient = np.empty_like(padded)
    kernel, arrays = partial(_differentiate, of_label), (targets, normaliser, gradient)
    losses = run_kernel(kernel, (6, LONGEST + 4), targets.shape[1:], padded, *arrays)
    return Gradient(
        torch.tensor(losses, dtype=torch.float64), torch.from_numpy(gradient)[:, : len(weight)]
    )


def _differentiate_on_device(softmax: Softmax, weight: Tensor) -> Gradient:
    logits, labels = softmax.logits, softmax.labels
    size, grid = (labels.shape[-2], labels.shape[-1]), (logits.shape[-2], logits.shape[-1])
    of_label = logits.new_zeros(_NUMBERS)
    of_label[: len(weight)] = weight
    losses, gradients = [], []
    for run in split_windows(logits, size):
        target = labels[run].long().unsqueeze(1)
        scale = of_label[target]
        target = target.where(target != IGNORE, 0)
        logarithm = upsample(logits[run], size).log_softmax(dim=1)
        losses.append(-(scale * logarithm.gather(1, target)).sum(dim=(1, 2, 3)))
        gradient = (scale * logarithm.exp()).scatter_add_(1, target, -scale)
        gradients.append(downsample(gradient, grid))
    return Gradient(torch.cat(losses).double(), torch.cat(gradients))
