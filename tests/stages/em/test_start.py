"""The number of classes: found where it is plain, the same whenever it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.em.start import ClassCount, estimate_classes, list_numbers


def draw_proposals(classes: int, each: int, seed: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    centres, _ = np.linalg.qr(generator.normal(size=(32, 32)))
    points = centres[np.arange(classes).repeat(each)] + 0.05 * generator.normal(
        size=(classes * each, 32)
    )
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_plain_classes_are_counted(classes: int) -> None:
    found = estimate_classes(draw_proposals(classes, 20, seed=1), seed=0, most=16)
    assert found.classes == classes
    assert max(found.curve, key=lambda pair: pair[1])[0] == classes
    assert all(-1 <= score <= 1 for _, score in found.curve)


def test_no_more_classes_are_tried_than_proposals_speak_for() -> None:
    # noise: the silhouette rises with K, to whatever end there is
    noise = np.random.default_rng(0).normal(size=(145, 3)).astype(np.float32)
    found = estimate_classes(noise, seed=0, most=64)
    assert found.curve[-1][0] == 14
    said: list[str] = []
    plain = estimate_classes(draw_proposals(4, 20, seed=1), seed=0, most=16)
    plain.warn_of_edge(said.append, "em/a")
    assert plain.classes == 4 and not said
    ClassCount(14, found.curve).warn_of_edge(said.append, "em/a")
    assert said[0].startswith("em/a: --classes auto took 14, the most that it tried")


def test_the_same_seed_gives_the_same_curve() -> None:
    pooled = draw_proposals(5, 12, seed=2)
    assert estimate_classes(pooled, seed=3, most=8) == estimate_classes(pooled, seed=3, most=8)


def test_a_large_set_is_sampled() -> None:
    pooled = draw_proposals(3, 1700, seed=4)
    assert estimate_classes(pooled, seed=0, most=4).classes == 3


@pytest.mark.parametrize("pooled", [np.ones((3, 4), np.float32), np.ones((40, 4), np.float32)])
def test_too_few_or_too_alike_are_refused(pooled: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="too few, or too alike"):
        estimate_classes(pooled, seed=0, most=10)


def test_numbers_are_a_fifth_apart() -> None:
    assert list_numbers(12) == [2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert list_numbers(1) == []
    assert list_numbers(2) == [2]
    assert list_numbers(100)[-1] == 100
