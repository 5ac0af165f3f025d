"""Exponential and logarithm of rows of float32, without branches and calls.

A loop over such a row fills the vector registers, which a call of the mathematical library for
every number does not. Strict floating-point rules hold: the same bytes come out on every processor.
"""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import NDArray

from pipeline.compilation import compile_kernel

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
    """Replace each number by its exponential, in place, within one unit in the last place.

    Parameters
    ----------
    exponents : float32 [number]
        From -87 to 87.

    Notes
    -----
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
    """Replace each number by its natural logarithm, in place, within 1e-7 absolute or relative.

    Parameters
    ----------
    numbers : float32 [number]
        Positive, normal.

    Notes
    -----
    log(2^n m) = n ln(2) + 2 atanh((m - 1) / (m + 1)) with sqrt(1/2) < m <= sqrt(2), and the series
    of atanh up to the ninth power.
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
