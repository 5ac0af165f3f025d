"""Accuracy and IoU by hand, and against counting pixel by pixel.

Matching: the best of all one-to-one matchings, found by trying them all.

The tally: adding up, packing, and a summary that makes nothing up.

What the screen says of the splits.
"""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from stages.evaluate.metrics import (
    IGNORE,
    UNMATCHED,
    Tally,
    count_confusion,
    describe_metrics,
    match_clusters,
    score_assignment,
    summarise,
    summarise_splits,
    unpack_tally,
)


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


CLUSTERS = 4


def count_image(tally: Tally, seed: int, *, truth: bool = True, crf: bool = True) -> None:
    """Count one made-up image of 6 x 7 pixels."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([0, 1, 2, 3, 255], size=(9, 11)).astype(np.uint8)
    plain, refined = generator.integers(0, CLUSTERS, size=(2, 6, 7)).astype(np.uint8)
    # a multiple of 1/8, so that sums are exact in any order
    tally.count_labels(labels, float(generator.integers(100, 300)) / 8, plain.size)
    if truth:
        known = generator.choice([0, 1, 2, 255], size=(6, 7)).astype(np.uint8)
        others = {"probe": known.clip(0, 2), "running": plain[::-1]} if seed % 5 else {}
        tally.count_truth(plain, refined if crf else None, known, others)


def assert_same(one: Tally, other: Tally) -> None:
    assert vars(one).keys() == vars(other).keys()
    assert one.others.keys() == other.others.keys()
    pairs = {name: (value, getattr(other, name)) for name, value in vars(one).items()}
    pairs |= {name: (value, other.others[name]) for name, value in pairs.pop("others")[0].items()}
    for name, (value, expected) in pairs.items():
        np.testing.assert_array_equal(value, expected, err_msg=name)


@given(groups=st.lists(st.lists(st.integers(0, 10**6), max_size=4), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_adding_is_counting_everything_at_once(groups: list[list[int]]) -> None:
    whole, total = Tally(CLUSTERS), Tally(CLUSTERS)
    for group in groups:
        part = Tally(CLUSTERS)
        for seed in group:
            for tally in (whole, part):
                count_image(tally, seed, truth=seed % 3 > 0, crf=seed % 2 > 0)
        total.add(unpack_tally(json.loads(json.dumps(part.pack()))))
    assert_same(total, whole)


def test_packing_keeps_everything() -> None:
    tally = Tally(CLUSTERS)
    assert_same(unpack_tally(json.loads(json.dumps(tally.pack()))), tally)
    count_image(tally, 1)
    count_image(tally, 2, truth=False)
    assert (tally.images, tally.labelled, tally.pixels) == (2, 1, 198)
    unpacked = unpack_tally(json.loads(json.dumps(tally.pack())))
    assert_same(unpacked, tally)
    assert unpacked.confusion.dtype == np.int64


def test_a_summary_by_hand() -> None:
    tally = Tally(2)
    tally.count_labels(np.array([[0, 0, 0, 1], [1, 255, 255, 255]], np.uint8), 3.0, 4)
    plain, refined = np.array([[0, 0, 1, 1]], np.uint8), np.array([[1, 1, 0, 0]], np.uint8)
    tally.count_truth(plain, refined, np.array([[1, 1, 1, 0]], np.uint8))
    summary = summarise(tally, ("sky", "road", "tree"), crf=True)
    assert summary == {
        "images": 1,
        "labelled_images": 1,
        "classes": 2,
        "accuracy": 75.0,
        "miou": 58.33,
        "accuracy_crf": 75.0,
        "miou_crf": 58.33,
        "class_names": ["sky", "road", "tree"],
        "per_class": [
            {"name": "sky", "iou": 50.0, "iou_crf": 50.0},
            {"name": "road", "iou": 66.67, "iou_crf": 66.67},
            {"name": "tree", "iou": None, "iou_crf": None},
        ],
        "assignment": [1, 0],
        "assignment_crf": [0, 1],
        "confusion": [[0, 2, 0], [1, 1, 0]],
        "confusion_crf": [[1, 1, 0], [0, 2, 0]],
        "class_usage": [60.0, 40.0],
        "coverage": 62.5,
        "confidence": 75.0,
    }
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("ignored", [False, True])
def test_without_labels_there_are_no_scores(ignored: bool) -> None:
    tally = Tally(CLUSTERS)
    count_image(tally, 3, truth=False)
    if ignored:  # a label map that says nothing is no label map
        nothing = np.full((6, 7), 255, np.uint8)
        tally.count_truth(np.zeros((6, 7), np.uint8), np.zeros((6, 7), np.uint8), nothing)
    for names in ((), ("sky", "road")):
        summary = summarise(tally, names, crf=True)
        for name in ("accuracy", "miou", "assignment", "confusion"):
            assert summary[name] is None
            assert summary[f"{name}_crf"] is None
        assert summary["class_names"] == list(names)
        assert [entry["iou"] for entry in summary["per_class"]] == [None] * len(names)
        assert 0 < summary["coverage"] < 100


def test_nothing_counted_is_nothing_said() -> None:
    summary = summarise(Tally(CLUSTERS), (), crf=False)
    assert (summary["images"], summary["coverage"], summary["confidence"]) == (0, 0, 0)
    assert summary["accuracy"] is None
    assert summary["class_usage"] == [0] * CLUSTERS


def test_without_crf_its_scores_are_none() -> None:
    tally = Tally(CLUSTERS)
    count_image(tally, 4, crf=False)
    summary = summarise(tally, ("a", "b", "c"), crf=False)
    assert summary["accuracy"] is not None
    for name in ("accuracy_crf", "miou_crf", "assignment_crf", "confusion_crf"):
        assert summary[name] is None
    assert [entry["iou_crf"] for entry in summary["per_class"]] == [None] * 3


def test_superfluous_clusters_have_no_class() -> None:
    tally = Tally(3)
    tally.count_truth(np.array([[0, 1, 1, 2]], np.uint8), None, np.array([[1, 0, 0, 0]], np.uint8))
    assert summarise(tally, ("sky", "road"), crf=False)["assignment"] == [1, 0, None]


@pytest.mark.parametrize("names", [(), ("sky",), ("sky", "road")])
def test_labels_that_nobody_has_named_count_too(names: tuple[str, ...]) -> None:
    tally = Tally(2)
    tally.count_truth(np.array([[0, 0, 1]], np.uint8), None, np.array([[0, 4, 4]], np.uint8))
    summary = summarise(tally, names, crf=False)
    unnamed = [f"class {index}" for index in range(len(names), 5)]
    assert summary["class_names"] == [*names, *unnamed]
    assert summary["accuracy"] == pytest.approx(66.67)
    assert summary["assignment"] == [0, 4]


def test_other_classifiers_by_hand() -> None:
    tally = Tally(2)
    truth = np.array([[1, 1, 1, 0, 255]], np.uint8)
    plain = np.array([[0, 0, 1, 1, 0]], np.uint8)
    running, probe = np.array([[1, 1, 1, 0, 0]], np.uint8), np.array([[1, 1, 3, 0, 7]], np.uint8)
    tally.count_truth(plain, None, truth, {"running": running, "probe": probe})
    options = {"crf": False, "others": ("running", "probe")}
    summary = summarise(tally, ("sky", "road"), **options, supervised=("probe",))
    assert summary["running"] == {"accuracy": 100.0, "miou": 100.0}
    # right on 3 of 4; IoU 1 of sky, 2/3 of road, 0 of the class that is nowhere but predicted
    assert summary["probe"] == {"accuracy": 75.0, "miou": 55.56}
    # were it matched like clusters, of which there are two, the third class would be lost
    assert summarise(tally, ("sky", "road"), **options)["probe"]["accuracy"] == 100.0


def test_supervised_classes_are_not_matched() -> None:
    tally = Tally(2)
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    tally.count_truth(truth, None, truth, {"probe": 1 - truth})
    options = {"crf": False, "others": ("probe",)}
    assert summarise(tally, (), **options)["probe"]["accuracy"] == 100
    assert summarise(tally, (), **options, supervised=("probe",))["probe"]["accuracy"] == 0


def test_without_labels_other_classifiers_have_no_scores() -> None:
    summary = summarise(Tally(2), (), crf=False, others=("running",))
    assert summary["running"] == {"accuracy": None, "miou": None}


def make_tally(*, truth: bool = True) -> Tally:
    tally = Tally(2)
    known = np.array([[0, 0, 1, 1]], np.uint8)
    tally.count_labels(known, 3.0, 4)
    if truth:
        others = {"running_prototypes": 1 - known, "linear_probe": np.array([[0, 0, 1, 0]])}
        others = {name: values.astype(np.uint8) for name, values in others.items()}
        tally.count_truth(np.array([[0, 1, 1, 1]], np.uint8), known, known, others)
    return tally


def test_a_line_for_every_split() -> None:
    names = ["running_prototypes", "linear_probe"]
    tallies = {"train": [make_tally(), make_tally()], "test": [make_tally(truth=False)]}
    metrics = summarise_splits(tallies, ("sky", "road"), crf=True, others=names)
    assert describe_metrics(metrics) == [
        "train: accuracy 75.0, mIoU 58.3; with CRF 100.0, 100.0; "
        "running prototypes 100.0, 100.0; linear probe 75.0, 58.3 (2 labelled images)",
        "test: 1 images without labels: coverage 100.0 %, confidence 75.0 %",
    ]


def test_the_split_on_top_is_one_with_labels() -> None:
    tallies = {"train": [make_tally()], "val": [make_tally(truth=False)]}
    metrics = summarise_splits(tallies, (), crf=False, others=["linear_probe"])
    assert metrics["split"] == "train"
    assert metrics["linear_probe"] == metrics["splits"]["train"]["linear_probe"]
    assert metrics["splits"]["val"]["linear_probe"] == {"accuracy": None, "miou": None}
    both = {"train": [make_tally()], "val": [make_tally()]}
    assert summarise_splits(both, (), crf=False, others=[])["split"] == "val"


def test_nothing_is_said_of_classifiers_that_were_not_scored() -> None:
    metrics = summarise_splits({"val": [make_tally()]}, (), crf=False, others=[])
    assert "linear_probe" not in metrics
    assert describe_metrics(metrics) == ["val: accuracy 75.0, mIoU 58.3 (1 labelled images)"]


def test_a_linear_probe_that_mixes_up_classes_is_wrong() -> None:
    known = np.array([[0, 0, 1, 1]], np.uint8)
    tally = Tally(2)
    others = {"running_prototypes": 1 - known, "linear_probe": 1 - known}
    tally.count_truth(known, None, known, others)
    metrics = summarise_splits({"val": [tally]}, (), crf=False, others=list(others))
    assert metrics["running_prototypes"] == {"accuracy": 100.0, "miou": 100.0}
    assert metrics["linear_probe"] == {"accuracy": 0.0, "miou": 0.0}
