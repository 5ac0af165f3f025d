"""The tally: adding up, packing, and a summary that makes nothing up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.evaluate.tally import Tally, summarise, unpack_tally

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
