"""How far two labellings say the same, and colours in which that can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.progress import Screen
from pipeline.run.evaluation import ClusterLook, choose_look
from stages.report.agreement import (
    choose_reference,
    compare_labels,
    count_pairs,
    invert_matching,
    list_legend,
    match_pairs,
    measure_agreement,
    paint_looks,
)
from stages.scores import UNMATCHED

FIRST = np.array([[0, 0, 0, 1], [1, 1, 2, 255]], np.uint8)
SECOND = np.array([[1, 1, 0, 0], [0, 0, 3, 3]], np.uint8)


def total_of(first: np.ndarray, second: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    counts = count_pairs(first, second).toarray()
    assert not counts[shape[0] :].any() and not counts[:, shape[1] :].any()
    return counts[: shape[0], : shape[1]]


def test_pairs_are_counted_by_hand() -> None:
    counts = count_pairs(FIRST, SECOND)
    pairs = zip(counts.row.tolist(), counts.col.tolist(), counts.data.tolist(), strict=True)
    assert list(pairs) == [(0, 0, 1), (0, 1, 2), (1, 0, 3), (2, 3, 1)]
    assert total_of(FIRST, SECOND, (3, 4)).tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]]


def test_matching_and_agreement_by_hand() -> None:
    total = total_of(FIRST, SECOND, (3, 4))
    matching = match_pairs(total)
    # cluster 2 of the second labelling never occurs
    assert matching.tolist() == [1, 0, UNMATCHED, 2]
    # of seven pixels that both label, one is 0 here and 0 there, which is matched to 1
    assert measure_agreement((count_pairs(FIRST, SECOND), matching)) == pytest.approx(6 / 7)


def test_of_more_clusters_some_are_left() -> None:
    first = np.zeros((1, 4), np.uint8)
    second = np.array([[0, 1, 1, 1]], np.uint8)
    matching = match_pairs(total_of(first, second, (1, 2)))
    assert matching.tolist() == [UNMATCHED, 0]
    assert measure_agreement((count_pairs(first, second), matching)) == 0.75
    turned = match_pairs(total_of(second, first, (2, 1)))
    assert turned.tolist() == [1]
    assert measure_agreement((count_pairs(second, first), turned)) == 0.75


def test_nothing_in_common_is_no_agreement() -> None:
    empty = count_pairs(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert np.isnan(measure_agreement((empty, np.zeros(1, np.int64))))
    assert match_pairs(np.zeros((2, 2), np.int64)).tolist() == [UNMATCHED, UNMATCHED]
    assert empty.nnz == 0


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
        return measure_agreement((count_pairs(a, b), match_pairs(total_of(a, b, (5, 5)))))

    table = np.arange(256, dtype=np.uint8)
    table[:5] = order
    one = agree(first, second)
    np.testing.assert_allclose(agree(first, table[second]), one)
    np.testing.assert_allclose(agree(second, first), one)
    if (first != 255).any():
        assert agree(first, table[first]) == 1


def test_a_matching_may_be_turned_around() -> None:
    assert invert_matching(np.array([2, UNMATCHED, 0, 1]), 3).tolist() == [2, 3, 0]
    assert invert_matching(np.array([1, 2]), 3).tolist() == [UNMATCHED, 0, 1]
    turned = invert_matching(np.array([3, UNMATCHED]), 4)
    assert turned.tolist() == [UNMATCHED, UNMATCHED, UNMATCHED, 0]


def test_classes_are_matched_to_themselves_whatever_pixels_say() -> None:
    # numbers 0 and 1 are classes; of the others the pixels in common decide
    total = np.array([[0, 9, 0, 5], [9, 0, 0, 0], [0, 0, 0, 2], [3, 0, 4, 0]], np.int64)
    assert match_pairs(total, 2).tolist() == [0, 1, 3, 2]
    assert match_pairs(total).tolist() == [1, 0, 3, 2]


@dataclass(frozen=True)
class Opened:
    """As much of an evaluation as is compared: one cluster a label map."""

    clusters: tuple[int, int]

    @property
    def images(self) -> dict[tuple[str, str], int]:
        return {("val", "small"): 0, ("val", "large"): 1}

    def read_labels(self, image: int) -> np.ndarray:
        return np.full((1, 1 + 9 * image), self.clusters[image], np.uint8)


def test_what_is_shown_is_compared_and_not_numbers_of_clusters() -> None:
    # both are sky in the small image; in the large one the first is sky and the second is road, so
    # that by pixels the first's sky would be the second's road
    opened: list[Any] = [Opened((0, 0)), Opened((0, 1))]
    look = choose_look(2, [0, 1], NAMES, COLOURS)
    names = list(opened[0].images)

    def compare(*looks: ClusterLook, classes: Sequence[Sequence[str]] = (NAMES, NAMES)) -> Any:
        screen = Screen(progress=False)
        return compare_labels(opened, {"val": looks}, {"val": classes}, names, screen)

    found = compare(look, look)
    assert found.differences == {("val", "small"): 0.0, ("val", "large"): 100.0}
    assert found.shares == {(0, 1): pytest.approx(100 / 11)}
    # classes of other names, or none, are matched by the pixels
    other = compare(look, look, classes=(NAMES, ["a", "b", "c"]))
    assert other.differences == {("val", "small"): 100.0, ("val", "large"): 0.0}
    plain = compare(look, choose_look(2, None, (), ()), classes=(NAMES, ()))
    assert plain.differences == other.differences
    # a person says that the second's clusters are one, and so it is one to compare
    joined = choose_look(2, None, (), (), {0: "a", 1: "a"})
    assert set(compare(look, joined, classes=(NAMES, ())).differences.values()) == {0.0}


NAMES = ["sky", "road", "tree"]
COLOURS = ((1, 2, 3), (40, 50, 60), (7, 80, 90))


def pad(matching: list[int]) -> np.ndarray:
    """Make a matching of all numbers that there may be."""
    full = np.full(255, UNMATCHED)
    full[: len(matching)] = matching
    return full


SAME = np.arange(255)


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
    first, second = paint_looks(looks, [NAMES, [*NAMES, "class 3"]], [SAME, SAME], 0)
    assert (first.by, second.by) == ("class", "class")
    assert [tuple(row) for row in first.palette[:3]] == [COLOURS[2], COLOURS[0], COLOURS[1]]
    assert [tuple(row) for row in second.palette[1:4]] == [COLOURS[1], COLOURS[0], COLOURS[2]]
    assert tuple(second.palette[0]) not in COLOURS
    np.testing.assert_array_equal(first.palette[255], 0)


def test_others_borrow_by_pixels_in_common() -> None:
    looks = [choose_look(3, [2, 0, None], NAMES, COLOURS), choose_look(4, None, [], ())]
    # cluster 1 shows number 0, class 0, and cluster 2 number 3, which has no class
    matching = pad([UNMATCHED, 0, 3, UNMATCHED])
    first, second = paint_looks(looks, [NAMES, []], [SAME, matching], 0)
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
    _, second = paint_looks(looks, [NAMES, ["a", "b"]], [SAME, pad([1, 0])], 0)
    assert second.by == "pixels"
    assert [tuple(row) for row in second.palette[:2]] == [COLOURS[1], COLOURS[0]]


def test_without_any_classes_the_first_keeps_its_own() -> None:
    looks = [choose_look(2, None, [], ()), choose_look(2, None, [], ())]
    first, second = paint_looks(looks, [[], []], [SAME, pad([1, 0])], 0)
    assert (first.by, second.by) == ("itself", "pixels")
    np.testing.assert_array_equal(second.palette[:2], first.palette[[1, 0]])


@pytest.mark.parametrize("clusters", [255, 200])
def test_there_are_colours_for_as_many_clusters_as_there_may_be(clusters: int) -> None:
    looks = [choose_look(255, None, [], ()), choose_look(clusters, None, [], ())]
    matching = pad([])
    _, second = paint_looks(looks, [[], []], [SAME, matching], 0)
    assert second.palette.shape == (256, 3)


def test_the_legend_names_classes_or_clusters() -> None:
    look = choose_look(2, [2, None], NAMES, COLOURS)
    assert list_legend(look, NAMES) == list(zip(NAMES, COLOURS, strict=True))
    plain = choose_look(2, None, [], (), {1: "grass"})
    assert [name for name, _ in list_legend(plain, [])] == ["cluster 0", "grass"]
    joined = choose_look(3, None, [], (), {0: "grass", 2: "grass"})
    assert [name for name, _ in list_legend(joined, [])] == ["grass", "cluster 1"]
