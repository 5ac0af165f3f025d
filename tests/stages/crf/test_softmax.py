"""The exponential and the softmax of the mean-field update."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.compilation import compile_kernel
from pipeline.vectors import load, store, zeros
from stages.crf.softmax import exponentiate, normalise


@compile_kernel
def exponentiate_all(numbers: NDArray[np.float32]) -> None:
    for first in range(0, len(numbers), 8):
        store(numbers, first, exponentiate(load(numbers, first, zeros(8))))


def normalise_rows(logits: NDArray[np.float32]) -> None:
    labels = logits.shape[1]

    def kernel(rows: NDArray[np.float32]) -> None:
        for row in range(len(rows)):
            store(rows, row * labels, normalise(load(rows, row * labels, zeros(labels))))

    compile_kernel(kernel)(logits)


def test_exponential_is_within_an_ulp_and_a_half() -> None:
    exponents = -np.linspace(0.0, 39.9, 200_000, dtype=np.float32)
    expected = np.exp(exponents.astype(np.float64))
    found = exponents.copy()
    exponentiate_all(found)
    assert np.abs(found / expected - 1.0).max() < 1.5 * 2.0**-23
    assert found[0] == 1.0


def test_exponential_of_the_negligible_is_zero() -> None:
    found = np.array([-40.0, -87.0, -104.0, -1e30, -np.inf, -41.0, -40.5, -3e38], np.float32)
    exponentiate_all(found)
    assert (found == 0.0).all()


@pytest.mark.parametrize("labels", [8, 16, 24, 32, 48])
def test_rows_become_their_softmax(labels: int) -> None:
    logits = np.random.default_rng(0).normal(0.0, 8.0, (67, labels)).astype(np.float32)
    expected = softmax(logits.astype(np.float64), axis=1)
    normalise_rows(logits)
    np.testing.assert_allclose(logits, expected, atol=3e-7)


def test_the_largest_logit_may_be_anywhere_and_of_any_size() -> None:
    logits = np.full((16, 16), -1e30, np.float32)
    np.fill_diagonal(logits, 1e4)
    normalise_rows(logits)
    assert (logits == np.eye(16)).all()
