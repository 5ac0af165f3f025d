"""The exponential and the softmax of the mean-field update."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from stages.crf.softmax import LANES, exponentiate, normalise_rows


def test_exponential_is_within_an_ulp_and_a_half() -> None:
    exponents = -np.linspace(0.0, 39.9, 200_001, dtype=np.float32)
    expected = np.exp(exponents.astype(np.float64))
    found = exponents.copy()
    exponentiate(found)
    assert np.abs(found / expected - 1.0).max() < 1.5 * 2.0**-23
    assert found[0] == 1.0


def test_exponential_of_the_negligible_is_zero() -> None:
    found = np.array([-40.0, -87.0, -104.0, -1e30, -np.inf], np.float32)
    exponentiate(found)
    assert (found == 0.0).all()


@pytest.mark.parametrize("labels", [LANES, 3 * LANES, 7 * LANES])
def test_rows_become_their_softmax(labels: int) -> None:
    logits = np.random.default_rng(0).normal(0.0, 8.0, (67, labels)).astype(np.float32)
    expected = softmax(logits.astype(np.float64), axis=1)
    normalise_rows(logits)
    np.testing.assert_allclose(logits, expected, atol=3e-7)


def test_the_largest_logit_may_be_anywhere_and_of_any_size() -> None:
    for winner in range(2 * LANES):
        logits = np.full((1, 2 * LANES), -1e30, np.float32)
        logits[0, winner] = 1e4
        normalise_rows(logits)
        assert logits[0].tolist() == np.eye(2 * LANES)[winner].tolist()
