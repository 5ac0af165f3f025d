"""One mean-field update: slice both kernels' messages, add the unary, take the softmax."""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import NDArray

from pipeline.compilation import compile_kernel

# Rows of labels are padded to a multiple of this, which also is the number of partial sums.
LANES = 4
# Pixels per block: the logits of a block stay in the first-level cache between the passes.
BLOCK = 64
# Below e^-40 of the likeliest label a probability is far under a float32's last digit of 1: taking
# it as 0 changes no label, and keeps the filter's products out of the denormal numbers, which
# are many times slower and would otherwise need a switch of the whole thread's arithmetic.
NEGLIGIBLE = np.float32(-40.0)

# Adding and subtracting 1.5 * 2^23 rounds a small float32 to the nearest integer.
ROUNDER = np.float32(1.5 * 2**23)
LOG2_E = np.float32(1.4426950408889634)
# ln(2) in two parts, the first with so few digits that its products with integers are exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ONE, HALF, THIRD, FOURTH, FIFTH, SIXTH, SEVENTH = (
    np.float32(1.0 / factorial(order)) for order in range(1, 8)
)

Message = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]


@compile_kernel
def exponentiate(exponents: NDArray[np.float32]) -> None:
    """Replace each number by its exponential, in place; those up to -40 by 0.

    Parameters
    ----------
    exponents : float32 [number]
        At most 0.

    Notes
    -----
    e^x = 2^n e^r with integer n and |r| <= ln(2) / 2, and the Taylor series of e^r up to r^7:
    within one unit in the last place. Without branches and calls it fills the vector registers.
    """
    for index in range(len(exponents)):
        exponent = max(exponents[index], NEGLIGIBLE)
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
        exponents[index] = series * power if exponent > NEGLIGIBLE else np.float32(0.0)


@compile_kernel
def normalise_rows(logits: NDArray[np.float32]) -> None:
    """Replace each row by its softmax, in place.

    Parameters
    ----------
    logits : float32 [pixel, label]
        Finite, C-contiguous; the number of labels is a multiple of `LANES`.
    """
    pixels, labels = logits.shape
    for pixel in range(pixels):
        a, b = logits[pixel, 0], logits[pixel, 1]
        c, d = logits[pixel, 2], logits[pixel, 3]
        for label in range(LANES, labels, LANES):
            a = max(a, logits[pixel, label])
            b = max(b, logits[pixel, label + 1])
            c = max(c, logits[pixel, label + 2])
            d = max(d, logits[pixel, label + 3])
        top = max(max(a, b), max(c, d))
        for label in range(labels):
            logits[pixel, label] -= top
    exponentiate(logits.reshape(-1))
    for pixel in range(pixels):
        a = b = c = d = np.float32(0.0)
        for label in range(0, labels, LANES):
            a += logits[pixel, label]
            b += logits[pixel, label + 1]
            c += logits[pixel, label + 2]
            d += logits[pixel, label + 3]
        share = ONE / ((a + b) + (c + d))
        for label in range(labels):
            logits[pixel, label] *= share


@compile_kernel
def update_posterior(
    energies: NDArray[np.float32],
    near: Message,
    near_weight: np.float32,
    alike: Message,
    alike_weight: np.float32,
    posterior: NDArray[np.float32],
) -> None:
    """Set the posterior to softmax(-energies + weighted messages of both kernels).

    Parameters
    ----------
    energies : float32 [pixel, label]
        Unary energies, finite; the number of labels is a multiple of `LANES`.
    near, alike : (int32 [pixel, corner], float32 [pixel, corner], float32 [vertex, label])
        For the spatial and for the bilateral kernel: each pixel's vertices, their weights, and
        the blurred values of all vertices.
    near_weight, alike_weight : float32
        Weight of the kernel.
    posterior : float32 [pixel, label]
        Written.
    """
    near_vertices, near_shares, near_values = near
    alike_vertices, alike_shares, alike_values = alike
    pixels, labels = energies.shape
    for first in range(0, pixels, BLOCK):
        last = min(first + BLOCK, pixels)
        for pixel in range(first, last):
            for label in range(labels):
                posterior[pixel, label] = -energies[pixel, label]
            for corner in range(near_vertices.shape[1]):
                vertex = near_vertices[pixel, corner]
                share = near_shares[pixel, corner] * near_weight
                for label in range(labels):
                    posterior[pixel, label] += share * near_values[vertex, label]
            for corner in range(alike_vertices.shape[1]):
                vertex = alike_vertices[pixel, corner]
                share = alike_shares[pixel, corner] * alike_weight
                for label in range(labels):
                    posterior[pixel, label] += share * alike_values[vertex, label]
        normalise_rows(posterior[first:last])
