"""Exponential and logarithm against NumPy's in float64."""

from __future__ import annotations

import numpy as np

from stages.em.elementary import exponentiate, take_logarithms


def test_the_exponential_is_right_to_the_last_digit() -> None:
    exponents = np.linspace(-87, 87, 100_001, dtype=np.float32)
    found = exponents.copy()
    exponentiate(found)
    np.testing.assert_allclose(found, np.exp(exponents.astype(np.float64)), rtol=1.2e-7)


def test_known_exponentials() -> None:
    values = np.array([0.0, 1.0, -1.0], np.float32)
    exponentiate(values)
    np.testing.assert_allclose(values, [1.0, np.e, 1 / np.e], rtol=1e-7)
    assert values[0] == 1


def test_the_logarithm_is_right_to_the_last_digits() -> None:
    far = np.exp(np.random.default_rng(0).uniform(-80, 80, 100_000))
    numbers = np.concatenate([far, np.linspace(0.5, 2.5, 100_001)]).astype(np.float32)
    found = numbers.copy()
    take_logarithms(found)
    expected = np.log(numbers.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1.1e-7, atol=1.1e-7)


def test_known_logarithms() -> None:
    values = np.array([1.0, 2.0, 0.25], np.float32)
    take_logarithms(values)
    np.testing.assert_allclose(values, [0, np.log(2), -2 * np.log(2)], rtol=1e-7)
    assert values[0] == 0
