"""How far two labellings say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.evaluate.metrics import UNMATCHED
from stages.report.comparison.agreement import (
    PairCounts,
    add_pairs,
    count_pairs,
    match_pairs,
    measure_agreement,
    pack_pairs,
)

FIRST = np.array([[0, 0, 0, 1], [1, 1, 2, 255]], np.uint8)
SECOND = np.array([[1, 1, 0, 0], [0, 0, 3, 3]], np.uint8)


def total_of(first: np.ndarray, second: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    total = np.zeros(shape, np.int64)
    add_pairs(total, count_pairs(first, second))
    return total


def test_pairs_are_counted_by_hand() -> None:
    counts = count_pairs(FIRST, SECOND)
    pairs = dict(zip(counts.cells.tolist(), counts.pixels.tolist(), strict=True))
    assert pairs == {0 * 256 + 0: 1, 0 * 256 + 1: 2, 1 * 256 + 0: 3, 2 * 256 + 3: 1}


def test_counts_add_up_over_images() -> None:
    total = total_of(FIRST, SECOND, (3, 4))
    add_pairs(total, count_pairs(FIRST, SECOND))
    assert total.tolist() == [[2, 4, 0, 0], [6, 0, 0, 0], [0, 0, 0, 2]]
    again = np.zeros_like(total)
    add_pairs(again, pack_pairs(total))
    np.testing.assert_array_equal(again, total)


def test_matching_and_agreement_by_hand() -> None:
    total = total_of(FIRST, SECOND, (3, 4))
    matching = match_pairs(total)
    # cluster 2 of the second labelling never occurs
    assert matching.tolist() == [1, 0, UNMATCHED, 2]
    # of seven pixels that both label, one is 0 here and 0 there, which is matched to 1
    assert measure_agreement(count_pairs(FIRST, SECOND), matching) == pytest.approx(6 / 7)


def test_of_more_clusters_some_are_left() -> None:
    first = np.zeros((1, 4), np.uint8)
    second = np.array([[0, 1, 1, 1]], np.uint8)
    matching = match_pairs(total_of(first, second, (1, 2)))
    assert matching.tolist() == [UNMATCHED, 0]
    assert measure_agreement(count_pairs(first, second), matching) == 0.75
    turned = match_pairs(total_of(second, first, (2, 1)))
    assert turned.tolist() == [1]
    assert measure_agreement(count_pairs(second, first), turned) == 0.75


def test_nothing_in_common_is_no_agreement() -> None:
    empty = count_pairs(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert np.isnan(measure_agreement(empty, np.zeros(1, np.int64)))
    assert match_pairs(np.zeros((2, 2), np.int64)).tolist() == [UNMATCHED, UNMATCHED]
    assert isinstance(empty, PairCounts)


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        count_pairs(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


maps = arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 4, 255]))


@given(first=maps, second=maps, order=st.permutations(range(5)))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_numbers_of_clusters_do_not_matter(
    first: np.ndarray, second: np.ndarray, order: list[int]
) -> None:
    def agree(a: np.ndarray, b: np.ndarray) -> float:
        return measure_agreement(count_pairs(a, b), match_pairs(total_of(a, b, (5, 5))))

    table = np.arange(256, dtype=np.uint8)
    table[:5] = order
    one = agree(first, second)
    np.testing.assert_allclose(agree(first, table[second]), one)
    np.testing.assert_allclose(agree(second, first), one)
    if (first != 255).any():
        assert agree(first, table[first]) == 1
