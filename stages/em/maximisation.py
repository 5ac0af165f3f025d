"""The M-step: the running prototypes' cross entropy against the proposals' classes.

With p = softmax of the up-sampled logits over the batch's pixels, N of them, and
w_k = (1 - mean p_k) ** focus, held fixed:
loss = 1/N * sum over labelled pixels of -w_y log p_y (PriMaPs, equation 8).

The weight needs the mean over the whole batch before any gradient, so the windows are passed over
twice: :func:`sum_probabilities`, then, with what :func:`weigh_classes` makes of all windows' sums,
:func:`differentiate`. On the processor no logit at image size is ever stored: compiled loops make
softmax, cross entropy and gradient in one pass over the pixels, by exponentials and logarithms of
whole rows of float32, which fill the vector registers. Strict floating-point rules hold: the same
bytes come out on every processor.

Between the centres of two rows of the grid every logit is linear in y, so its exponential follows a
geometric progression down the rows of pixels: one exponential for its start, one for its ratio, and
one multiplication per pixel and class. What is exponentiated is the distance to the line between
the largest logits at both ends, and progressions are so short that no class goes far from it.
"""

from __future__ import annotations

from functools import partial
from math import factorial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.definition import IGNORE
from stages.crf.vectors import compile_kernel
from stages.em.pixels import (
    Taps,
    allocate_rows,
    downsample,
    hold_rows,
    narrow_row,
    pad_classes,
    run_kernel,
    runs_compiled,
    split_windows,
    upsample,
)

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


# Labels are numbered by a byte.
_NUMBERS = 256


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
