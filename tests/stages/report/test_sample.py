"""The choice of images that are shown: by hand, and fair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.report.sample import choose_images, rank_choices, sample_evenly


@given(count=st.integers(0, 500), wanted=st.integers(0, 60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_samples_are_even(count: int, wanted: int) -> None:
    chosen = sample_evenly(count, wanted)
    assert len(chosen) == min(count, wanted)
    assert chosen == sorted(set(chosen))
    assert all(0 <= position < count for position in chosen)
    steps = np.diff([*chosen]) if len(chosen) > 1 else np.array([1])
    assert steps.max() - steps.min() <= 1
    if chosen:
        assert abs(chosen[0] - (count - 1 - chosen[-1])) <= 1, "no end is favoured"


def test_the_worst_the_best_and_others() -> None:
    ids = list("abcdefghij")
    scores = np.array([5, 1, 9, 1, 9, 4, 3, np.nan, 6, 7.0])
    assert choose_images(ids, scores, 6) == [
        (1, "worst"),
        (3, "worst"),
        (2, "best"),
        (4, "best"),
        (5, "sample"),
        (8, "sample"),
    ]
    roles = [role for _, role in choose_images(ids, scores, 1)]
    assert roles == ["sample"]
    assert [role for _, role in choose_images(ids, scores, 2)] == ["worst", "sample"]
    assert choose_images(ids, scores, 0) == []
    assert choose_images([], np.array([]), 3) == []


def test_ties_go_by_name_whatever_the_order() -> None:
    names = ["d", "c", "a", "b"]
    chosen = choose_images(names, np.zeros(4), 3)
    assert [(names[i], role) for i, role in chosen] == [
        ("a", "worst"),
        ("b", "best"),
        ("d", "sample"),
    ]


@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), max_size=40),
    wanted=st.integers(0, 45),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_nobody_is_shown_twice_and_nobody_unrated_is_judged(
    scores: list[float], wanted: int
) -> None:
    ids = [f"{i:02d}" for i in range(len(scores))]
    chosen = choose_images(ids, np.array(scores), wanted)
    positions = [position for position, _ in chosen]
    assert len(set(positions)) == len(positions) == min(wanted, len(scores))
    by_role = {role: [scores[p] for p, r in chosen if r == role] for _, role in chosen}
    assert not np.isnan([*by_role.get("worst", []), *by_role.get("best", [])]).any()
    if by_role.get("worst") and by_role.get("best"):
        assert max(by_role["worst"]) <= min(by_role["best"])


def test_room_is_given_to_splits_and_roles_in_turn() -> None:
    first = [(4, "worst"), (5, "worst"), (7, "best"), (1, "sample")]
    second = [(0, "sample"), (9, "sample")]
    order = rank_choices([first, second])  # type: ignore[list-item]
    assert order == [(0, 0), (0, 2), (0, 3), (1, 0), (0, 1), (1, 1)]
    assert rank_choices([]) == []
