"""Accuracy and IoU by hand, and against counting pixel by pixel.

Matching: the best of all one-to-one matchings, found by trying them all.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from pipeline.datasets.definition import IGNORE
from stages.scores import (
    UNMATCHED,
    Part,
    count_boundaries,
    count_confusion,
    list_parts,
    match_clusters,
    pair_clusters,
    score,
    score_assignment,
    score_boundaries,
)


@pytest.mark.parametrize(
    ("agreement", "pairs"),
    [
        ([[0, 9], [8, 1]], {0: 1, 1: 0}),
        ([[5, 5], [0, 9]], {1: 1}),  # exactly half is not more than half
        ([[6, 5], [0, 9]], {0: 0, 1: 1}),
        ([[6], [7]], {1: 0}),  # two in one: the larger takes it, for it is more than half
        ([[5, 1, 4]], {}),  # one in three
        ([[0, 0], [0, 3]], {1: 1}),  # one that was not there
        ([[0]], {}),
    ],
)
def test_pairs_that_are_clear(agreement: list[list[int]], pairs: dict[int, int]) -> None:
    assert pair_clusters(np.array(agreement, np.int64)) == pairs


def test_confusion_by_hand_ignored_pixels_left_out() -> None:
    prediction = np.array([[0, 1, 1, IGNORE], [2, 2, 0, 1]], np.uint8)
    truth = np.array([[0, 0, IGNORE, 1], [1, 1, 1, 0]], np.uint8)
    confusion = count_confusion(prediction, truth, 3, 2)
    assert confusion.tolist() == [[1, 1], [2, 0], [0, 2]]


def test_nothing_labelled_counts_nothing() -> None:
    nothing = np.full((3, 3), IGNORE, np.uint8)
    assert not count_confusion(np.zeros((3, 3), np.uint8), nothing, 2, 4).any()
    assert count_confusion(nothing[:0], nothing[:0], 2, 4).shape == (2, 4)


@pytest.mark.parametrize(("prediction", "truth"), [(2, 0), (0, 3)])
def test_values_that_do_not_exist_are_refused(prediction: int, truth: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        count_confusion(np.array([prediction], np.uint8), np.array([truth], np.uint8), 2, 3)


def test_scores_by_hand() -> None:
    # cluster 0 is class 1, cluster 1 is class 0; class 2 is in the labels and never predicted;
    # class 3 is in neither
    confusion = np.array([[1, 6, 0, 0], [4, 2, 3, 0]])
    scores = score_assignment(confusion, np.array([1, 0]))
    assert scores.accuracy == pytest.approx(10 / 16)
    np.testing.assert_allclose(scores.iou, [4 / 10, 6 / 9, 0, np.nan])
    assert scores.miou == pytest.approx((4 / 10 + 6 / 9 + 0) / 3)


def test_unmatched_clusters_are_wrong() -> None:
    confusion = np.array([[5, 0], [0, 5], [5, 5]])
    scores = score_assignment(confusion, np.array([0, 1, UNMATCHED]))
    assert scores.accuracy == pytest.approx(0.5)
    np.testing.assert_allclose(scores.iou, [0.5, 0.5])


def test_a_class_that_is_predicted_and_never_there_scores_0() -> None:
    scores = score_assignment(np.array([[4, 0], [4, 0]]), np.array([0, 1]))
    np.testing.assert_allclose(scores.iou, [0.5, 0])


def test_a_perfect_prediction_scores_1() -> None:
    truth = np.random.default_rng(0).integers(0, 5, size=(20, 20)).astype(np.uint8)
    prediction = np.array([3, 1, 4, 0, 2], np.uint8)[truth]
    confusion = count_confusion(prediction, truth, 5, 6)
    scores = score_assignment(confusion, match_clusters(confusion))
    assert (scores.accuracy, scores.miou) == (1, 1)
    np.testing.assert_array_equal(scores.iou, [1, 1, 1, 1, 1, np.nan])


@given(classes=st.integers(2, 5), side=st.integers(2, 12), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_scores_agree_with_scikit_learn(classes: int, side: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, prediction = generator.integers(0, classes, size=(2, side, side)).astype(np.uint8)
    confusion = count_confusion(prediction, truth, classes, classes)
    assignment = generator.permutation(classes)
    matched = assignment[prediction].ravel()
    scores = score_assignment(confusion, assignment)
    assert scores.accuracy == pytest.approx(accuracy_score(truth.ravel(), matched))
    present = sorted(set(truth.ravel()) | set(matched))
    iou = jaccard_score(truth.ravel(), matched, labels=present, average=None, zero_division=0)
    np.testing.assert_allclose(scores.iou[present], iou)
    assert scores.miou == pytest.approx(iou.mean())


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


LABELS = np.array([[0, 0, 0, 2], [1, 1, 2, 255]], np.uint8)


def test_parts_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0], [0, 0, 255, 0]], np.uint8)
    found = list_parts(LABELS, truth, [1, 0, None])
    assert [part.cluster for part in found] == [0, 1, 2]
    assert [part.share for part in found] == pytest.approx([300 / 7, 200 / 7, 200 / 7])
    # 255 in the labels leaves its pixel out; class 1: 2 of 3; class 0: 2 of 4
    assert [part.iou for part in found] == [pytest.approx(200 / 3), 50.0, None]


@pytest.mark.parametrize(
    ("truth", "classes"),
    [
        (None, [1, 0, None]),
        (np.zeros((2, 4), np.uint8), None),
        (np.full((2, 4), 255, np.uint8), [1, 0, None]),
    ],
)
def test_nothing_is_made_up(truth: np.ndarray | None, classes: list[int | None] | None) -> None:
    assert [part.iou for part in list_parts(LABELS, truth, classes)] == [None] * 3


def test_an_image_without_labels_has_no_parts() -> None:
    assert list_parts(np.full((2, 2), 255, np.uint8), None, None) == []
    assert list_parts(np.full((2, 2), 254, np.uint8), None, None) == [Part(254, 100.0, None)]


def test_boundaries_by_hand_and_by_every_distance() -> None:
    truth = np.zeros((9, 20), np.uint8)
    truth[:, 10:] = 4
    ours = np.full((9, 20), 7, np.uint8)
    ours[:, 13:] = 2  # three pixels to the right
    assert score_boundaries(count_boundaries(ours, truth)) == {"2": 0.0, "5": 100.0}
    ours[:, 2:] = np.where(ours[:, 2:] == 7, 1, ours[:, 2:])  # and one that is nowhere
    assert count_boundaries(ours, truth)[1].tolist() == [[9, 18], [9, 9]]
    truth[:, :7] = IGNORE  # near what is ignored nothing is counted
    assert count_boundaries(ours, truth)[0].tolist() == [[0, 9], [0, 9]]
    assert score_boundaries(count_boundaries(ours, np.zeros_like(truth)))["2"] is None

    generator = np.random.default_rng(0)
    ours, truth = generator.integers(0, 2, (2, 12, 11)).astype(np.uint8)
    edges = []
    for values in (ours, truth):
        padded = np.pad(values, ((0, 1), (0, 1)), mode="edge")
        edge = (padded[:-1, :-1] != padded[1:, :-1]) | (padded[:-1, :-1] != padded[:-1, 1:])
        edges.append(np.argwhere(edge))
    apart = np.linalg.norm(edges[0][:, None] - edges[1], axis=2)
    wanted = [
        [[(apart.min(1) <= w).sum(), len(edges[0])], [(apart.min(0) <= w).sum(), len(edges[1])]]
        for w in (2, 5)
    ]
    assert count_boundaries(ours, truth).tolist() == wanted


def test_the_public_score_on_arrays() -> None:
    truth = np.array([[[0, 0, 1, 1]], [[1, 1, 1, -1]]])
    ours = np.array([[[3, 3, 0, 0]], [[0, 0, 3, 3]]])
    found = score(ours, truth, class_names=("sky",))
    assert found["accuracy"] == round(100 * 6 / 7, 2)
    assert found["per_class"] == [
        {"name": "sky", "iou": round(100 * 2 / 3, 2)},
        {"name": "class 1", "iou": 80.0},
    ]
    assert found["assignment"] == [1, None, None, 0]
    # one image needs no list around it
    assert score(ours[0], truth[0])["accuracy"] == 100
    with pytest.raises(ValueError, match="bring one to the size of the other"):
        score(ours[0][:, :2], truth[0])
    with pytest.raises(ValueError, match="prediction 0 holds 256"):
        score(ours[0] + 253, truth[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_without_matching_it_is_sklearns(seed: int, ignored: int) -> None:
    generator = np.random.default_rng(seed)
    truth, ours = generator.integers(0, 4, (2, 3, 5, 6))
    found = score(ours, truth, ignored, matching="none")
    kept = truth != ignored
    if not kept.any():
        assert found["accuracy"] is None
        return
    told = np.where(ours == ignored, 9, ours)[kept]
    assert found["accuracy"] == round(100 * accuracy_score(truth[kept], told), 2)
    labels = sorted({*truth[kept], *told} - {9})
    iou = jaccard_score(truth[kept], told, labels=labels, average="macro", zero_division=0)
    assert found["miou"] == pytest.approx(100 * iou, abs=0.005)
