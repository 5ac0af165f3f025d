"""Matching: the best of all one-to-one matchings, found by trying them all."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluate.matching import UNMATCHED, match_clusters


def count_matched(confusion: np.ndarray, assignment: np.ndarray) -> int:
    rows = np.flatnonzero(assignment != UNMATCHED)
    return int(confusion[rows, assignment[rows]].sum())


def try_all(confusion: np.ndarray) -> int:
    tall = confusion if len(confusion) >= confusion.shape[1] else confusion.T
    columns = np.arange(tall.shape[1])
    choices = permutations(range(len(tall)), tall.shape[1])
    return max(int(tall[list(rows), columns].sum()) for rows in choices)


@given(
    clusters=st.integers(1, 5),
    classes=st.integers(1, 5),
    largest=st.sampled_from([1, 3, 10**12]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_matching_has_more_pixels(clusters: int, classes: int, largest: int, seed: int) -> None:
    confusion = np.random.default_rng(seed).integers(0, largest + 1, size=(clusters, classes))
    assignment = match_clusters(confusion)
    matched = assignment[assignment != UNMATCHED]
    assert len(set(matched.tolist())) == len(matched) == min(clusters, classes)
    assert assignment.shape == (clusters,)
    assert count_matched(confusion, assignment) == try_all(confusion)


def test_a_permutation_is_undone() -> None:
    classes = np.array([3, 0, 4, 1, 2])
    np.testing.assert_array_equal(match_clusters(np.eye(5, dtype=np.int64)[classes]), classes)


@pytest.mark.parametrize("turn", [False, True])
def test_the_greedy_choice_may_be_wrong(turn: bool) -> None:
    confusion = np.array([[10, 9], [9, 0]])
    assert match_clusters(confusion[::-1] if turn else confusion).tolist() == (
        [0, 1] if turn else [1, 0]
    )


def test_superfluous_clusters_stay_unmatched() -> None:
    confusion = np.array([[5, 0], [0, 1], [0, 7]])
    assert match_clusters(confusion).tolist() == [0, UNMATCHED, 1]


def test_superfluous_classes_stay_without_cluster() -> None:
    assert match_clusters(np.array([[5, 0, 2], [6, 0, 3]])).tolist() in ([0, 2], [2, 0])
    assert match_clusters(np.array([[1, 8, 2]])).tolist() == [1]
