"""Accuracy and IoU by hand, and against counting pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from stages.evaluate.matching import UNMATCHED, match_clusters
from stages.evaluate.metrics import IGNORE, count_confusion, score_assignment


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
