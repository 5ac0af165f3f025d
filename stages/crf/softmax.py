"""The softmax of a pixel's row of labels, held in one vector."""

from __future__ import annotations

from math import factorial

import numpy as np

from pipeline.compilation import compile_kernel
from pipeline.vectors import (
    Vector,
    add_scaled,
    largest,
    maximum,
    power_of_two,
    spread,
    total,
    zero_below,
)
from stages.crf.definition import NEGLIGIBLE

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

    Parameters
    ----------
    exponents : Vector
        At most 0.

    Notes
    -----
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
