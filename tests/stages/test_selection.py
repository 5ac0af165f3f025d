"""Which few stand for all: cases by hand, and the best of all choices as an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from stages import selection
from stages.selection import (
    UNCOVERED,
    Proposals,
    centre,
    choose_covering,
    draw_some,
    measure_nearness,
)

# Four kinds of things, each in several proposals of five images.
KINDS = np.eye(4, dtype=np.float32)
HOLDS = [[0], [0, 1], [1, 2], [2, 3], [3]]


def make_images() -> tuple[Proposals, np.ndarray]:
    owner = [image for image, kinds in enumerate(HOLDS) for _ in kinds]
    feature = KINDS[[kind for kinds in HOLDS for kind in kinds]]
    return Proposals(np.array(owner), feature), feature


def nothing(targets: int) -> np.ndarray:
    return np.full(targets, UNCOVERED)


@pytest.mark.parametrize("block", [1, 3, 512])
def test_nearness_is_that_of_the_nearest_proposal(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(selection, "_BLOCK", block)
    proposals, _ = make_images()
    nearness = measure_nearness([proposals], KINDS, 6)
    expected = [[float(kind in kinds) for kind in range(4)] for kinds in HOLDS]
    assert nearness[:5].tolist() == expected
    assert (nearness[5] == UNCOVERED).all()  # an image without a proposal
    cut = [
        Proposals(proposals.owner[rows], proposals.feature[rows])
        for rows in (slice(2), slice(2, None))
    ]
    assert np.array_equal(measure_nearness(cut, KINDS, 6), nearness)


@pytest.mark.parametrize("block", [2, 512])
def test_two_images_that_hold_all_four_kinds_are_those(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(selection, "_BLOCK", block)
    proposals, targets = make_images()
    nearness = measure_nearness([proposals], targets, 5)
    chosen = choose_covering(nearness, np.ones(8), nothing(8), 5)
    assert chosen.candidates.tolist() == [1, 3]  # the others would add nothing
    assert chosen.shares.tolist() == [0.5, 0.5]


def test_what_is_known_is_not_chosen_again() -> None:
    proposals, targets = make_images()
    nearness = measure_nearness([proposals], targets, 5)
    known = measure_nearness([Proposals(np.zeros(2, np.int64), KINDS[:2])], targets, 1)[0]
    chosen = choose_covering(nearness, np.ones(8), known, 1)
    assert chosen.candidates.tolist() == [3]
    assert chosen.shares.tolist() == [0.5]


def test_what_has_weight_comes_first_and_what_has_none_never() -> None:
    nearness = KINDS.copy()
    chosen = choose_covering(nearness, np.array([1, 3, 0, 2]), np.zeros(4, np.float32), 4)
    assert chosen.candidates.tolist() == [1, 3, 0]
    assert chosen.shares.tolist() == [3 / 6, 2 / 6, 1 / 6]


def test_the_choice_is_nearly_as_good_as_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        nearness = generator.uniform(-1, 1, (9, 30)).astype(np.float32)
        weight = generator.uniform(0, 1, 30)
        chosen = choose_covering(nearness, weight, nothing(30), 3).candidates.tolist()

        def value(
            rows: Sequence[int], near: np.ndarray = nearness, weight: np.ndarray = weight
        ) -> float:
            return float((near[list(rows)].max(axis=0) + 1) @ weight)

        best = max(value(rows) for rows in combinations(range(9), 3))
        assert value(chosen) >= (1 - 1 / np.e) * best
        # and greedily: no other would have added more
        for step, row in enumerate(chosen):
            before = tuple(chosen[:step])
            gains = [value((*before, other)) for other in range(9)]
            assert gains[row] == pytest.approx(max(gains))


def test_of_equals_the_first_and_of_none_none() -> None:
    same = np.ones((3, 4), np.float32)
    assert choose_covering(same, np.ones(4), nothing(4), 2).candidates.tolist() == [0]
    empty = choose_covering(np.zeros((0, 4), np.float32), np.ones(4), nothing(4), 2)
    assert not len(empty.candidates)
    assert not len(empty.shares)


def test_features_are_told_apart_about_their_mean() -> None:
    features = np.array([[10, 1], [10, -1]], np.float16)
    assert centre(features, features.mean(axis=0)).tolist() == [[0, 1], [0, -1]]
    assert not centre(features[:1], features[0]).any()  # and not NaN


def test_a_sample_is_the_same_each_time() -> None:
    assert draw_some(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = draw_some(1000, 10, 0)
    assert len(set(drawn.tolist())) == 10
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, draw_some(1000, 10, 0))
