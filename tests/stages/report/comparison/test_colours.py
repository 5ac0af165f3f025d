"""Colours in which label maps of different evaluations can be compared."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.run.subject import choose_look
from stages.evaluate.metrics import UNMATCHED
from stages.report.comparison.colours import choose_reference, list_legend, paint_looks

NAMES = ["sky", "road", "tree"]
COLOURS = ((1, 2, 3), (40, 50, 60), (7, 80, 90))


def same(count: int) -> np.ndarray:
    return np.arange(count)


def test_the_reference_is_the_first_with_classes() -> None:
    plain = choose_look(2, None, [], ())
    matched = choose_look(2, [0, 1], NAMES, COLOURS)
    assert choose_reference([plain, matched, matched]) == 1
    assert choose_reference([plain, plain]) == 0


def test_matched_clusters_have_the_colours_of_their_classes() -> None:
    looks = [
        choose_look(3, [2, 0, 1], NAMES, COLOURS),
        choose_look(4, [None, 1, 0, 2], NAMES, COLOURS),
    ]
    # which pixels they have in common does not matter
    first, second = paint_looks(looks, [NAMES, [*NAMES, "class 3"]], [same(3), same(4)], 0)
    assert (first.by, second.by) == ("class", "class")
    assert [tuple(row) for row in first.palette[:3]] == [COLOURS[2], COLOURS[0], COLOURS[1]]
    assert [tuple(row) for row in second.palette[1:4]] == [COLOURS[1], COLOURS[0], COLOURS[2]]
    assert tuple(second.palette[0]) not in COLOURS
    np.testing.assert_array_equal(first.palette[255], 0)


def test_others_borrow_by_pixels_in_common() -> None:
    looks = [choose_look(3, [2, 0, None], NAMES, COLOURS), choose_look(4, None, [], ())]
    matching = np.array([UNMATCHED, 1, 2, UNMATCHED])
    first, second = paint_looks(looks, [NAMES, []], [same(3), matching], 0)
    assert second.by == "pixels"
    np.testing.assert_array_equal(second.palette[1], first.palette[1])
    np.testing.assert_array_equal(second.palette[2], first.palette[2])
    shown = {tuple(row) for row in first.palette[:3]} | set(COLOURS)
    left = [tuple(second.palette[0]), tuple(second.palette[3])]
    assert left[0] != left[1]
    assert shown.isdisjoint(left), "a cluster of its own has a colour of its own"
    np.testing.assert_array_equal(second.palette[255], first.palette[255])


def test_classes_of_other_names_are_other_classes() -> None:
    looks = [choose_look(2, [0, 1], NAMES, COLOURS), choose_look(2, [0, 1], ["a", "b"], COLOURS)]
    _, second = paint_looks(looks, [NAMES, ["a", "b"]], [same(2), np.array([1, 0])], 0)
    assert second.by == "pixels"
    assert [tuple(row) for row in second.palette[:2]] == [COLOURS[1], COLOURS[0]]


def test_without_any_classes_the_first_keeps_its_own() -> None:
    looks = [choose_look(2, None, [], ()), choose_look(2, None, [], ())]
    first, second = paint_looks(looks, [[], []], [same(2), np.array([1, 0])], 0)
    assert (first.by, second.by) == ("itself", "pixels")
    np.testing.assert_array_equal(second.palette[:2], first.palette[[1, 0]])


@pytest.mark.parametrize("clusters", [255, 200])
def test_there_are_colours_for_as_many_clusters_as_there_may_be(clusters: int) -> None:
    looks = [choose_look(255, None, [], ()), choose_look(clusters, None, [], ())]
    matching = np.full(clusters, UNMATCHED)
    _, second = paint_looks(looks, [[], []], [same(255), matching], 0)
    assert second.palette.shape == (256, 3)


def test_the_legend_names_classes_or_clusters() -> None:
    look = choose_look(2, [2, None], NAMES, COLOURS)
    assert list_legend(look, NAMES) == list(zip(NAMES, COLOURS, strict=True))
    plain = choose_look(2, None, [], (), {1: "grass"})
    assert [name for name, _ in list_legend(plain, [])] == ["cluster 0", "grass"]
