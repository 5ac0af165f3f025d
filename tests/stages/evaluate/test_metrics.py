"""What is said of a split: a summary that makes nothing up, and what the screen says."""

from __future__ import annotations

import json

import pytest

from stages.evaluate.metrics import Tally, count_reasons, summarise, summarise_splits
from stages.scores import describe_metrics, put_first
from tests.stages.evaluate.made_up import count, make_row, make_tally

CLUSTERS = 4
RUNNING, PROBE = "running_prototypes", "linear_probe"


def test_a_summary_by_hand() -> None:
    row = make_row(
        [0, 0, 1, 1],
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        labels=[[0, 0, 0, 1], [1, 255, 255, 255]],
        confidence=3.0,
    )
    summary = summarise(count(row), ("sky", "road", "tree"))
    assert summary == {
        "images": 1,
        "labelled_images": 1,
        "label_pixels": {"pixels": 0, "outside": 0, "scored": {}, "ignored": {}, "unknown": {}},
        "refused": None,
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
    # a label map that says nothing is no label map
    given = {"truth": [255] * 4, "refined": [0] * 4} if ignored else {}
    tally = count(
        make_row([0, 0, 3, 3], labels=[0, 1, 255], clusters=CLUSTERS, **given), clusters=4
    )
    for names in ((), ("sky", "road")):
        summary = summarise(tally, names)
        for name in ("accuracy", "miou", "assignment", "confusion"):
            assert summary[name] is None
            assert summary[f"{name}_crf"] is None
        assert summary["class_names"] == list(names)
        assert [entry["iou"] for entry in summary["per_class"]] == [None] * len(names)
        assert 0 < summary["coverage"] < 100


def test_nothing_counted_is_nothing_said() -> None:
    summary = summarise(Tally(CLUSTERS), ())
    assert (summary["images"], summary["coverage"], summary["confidence"]) == (0, 0, 0)
    assert summary["accuracy"] is None
    assert summary["class_usage"] == [0] * CLUSTERS


def test_without_crf_its_scores_are_none() -> None:
    summary = summarise(count(make_row([0, 1, 1], [0, 1, 2])), ("a", "b", "c"))
    assert summary["accuracy"] is not None
    for name in ("accuracy_crf", "miou_crf", "assignment_crf", "confusion_crf"):
        assert summary[name] is None
    assert [entry["iou_crf"] for entry in summary["per_class"]] == [None] * 3


def test_superfluous_clusters_have_no_class() -> None:
    tally = count(make_row([0, 1, 1, 2], [1, 0, 0, 0], clusters=3), clusters=3)
    assert summarise(tally, ("sky", "road"))["assignment"] == [1, 0, None]


@pytest.mark.parametrize("names", [(), ("sky",), ("sky", "road")])
def test_labels_that_nobody_has_named_count_too(names: tuple[str, ...]) -> None:
    summary = summarise(count(make_row([0, 0, 1], [0, 4, 4])), names)
    unnamed = [f"class {index}" for index in range(len(names), 5)]
    assert summary["class_names"] == [*names, *unnamed]
    assert summary["accuracy"] == pytest.approx(66.67)
    assert summary["assignment"] == [0, 4]


def test_other_classifiers_by_hand() -> None:
    plain, truth = [0, 0, 1, 1, 0], [1, 1, 1, 0, 255]
    running, probe = [1, 1, 1, 0, 0], [1, 1, 3, 0, 7]
    tally = count(make_row(plain, truth, **{RUNNING: running, PROBE: probe}))
    summary = summarise(tally, ("sky", "road"), [RUNNING, PROBE])
    assert summary[RUNNING] == {"accuracy": 100.0, "miou": 100.0, "assignment": [0, 1]}
    # right on 3 of 4; IoU 1 of sky, 2/3 of road, 0 of the class that is nowhere but predicted
    assert summary[PROBE] == {"accuracy": 75.0, "miou": 55.56, "assignment": [0, 1, 2, 3]}
    # were it matched like clusters, of which there are two, the third class would be lost
    matched = count(make_row(plain, truth, **{RUNNING: probe}))
    assert summarise(matched, ("sky", "road"), [RUNNING])[RUNNING]["accuracy"] == 100.0


def test_supervised_classes_are_not_matched() -> None:
    truth, swapped = [0, 0, 1, 1], [1, 1, 0, 0]
    summary = summarise(
        count(make_row(truth, truth, **{RUNNING: swapped, PROBE: swapped})), (), [RUNNING, PROBE]
    )
    assert summary[RUNNING]["accuracy"] == 100
    assert summary[PROBE]["accuracy"] == 0


NOTHING = {"accuracy": None, "miou": None, "assignment": None}


def test_without_labels_other_classifiers_have_no_scores() -> None:
    summary = summarise(Tally(2), (), [RUNNING, PROBE])
    assert summary[RUNNING] == summary[PROBE] == NOTHING


def test_a_line_for_every_split() -> None:
    tallies = {"train": make_tally(2), "test": make_tally(truth=False)}
    metrics = put_first(summarise_splits(tallies, ("sky", "road"), [RUNNING, PROBE]))
    assert describe_metrics(metrics) == [
        "train: accuracy 75.0, mIoU 58.3; with CRF 100.0, 100.0; "
        "running prototypes 100.0, 100.0; linear probe 75.0, 58.3 (2 labelled images)",
        "test: 1 images without labels: coverage 100.0 %, confidence 75.0 %",
    ]
    metrics["splits"]["train"] |= {"miou_interval": [50, 60.14], "miou_crf_interval": None}
    assert "mIoU 58.3 [50.0 to 60.1]; with CRF 100.0, 100.0; " in describe_metrics(metrics)[0]


def test_the_split_on_top_is_one_with_labels() -> None:
    tallies = {"train": make_tally(), "val": make_tally(truth=False)}
    metrics = put_first(summarise_splits(tallies, (), [PROBE]))
    assert metrics["split"] == "train"
    assert metrics["linear_probe"] == metrics["splits"]["train"]["linear_probe"]
    assert metrics["splits"]["val"]["linear_probe"] == NOTHING
    both = {"train": make_tally(), "val": make_tally()}
    assert put_first(summarise_splits(both, (), []))["split"] == "val"


def test_nothing_is_said_of_classifiers_that_were_not_scored() -> None:
    known = make_row([0, 1, 1, 1], [0, 0, 1, 1], labels=[0, 0, 1, 1])
    metrics = put_first(summarise_splits({"val": count(known)}, (), []))
    assert "linear_probe" not in metrics
    assert describe_metrics(metrics) == ["val: accuracy 75.0, mIoU 58.3 (1 labelled images)"]


def test_a_linear_probe_that_mixes_up_classes_is_wrong() -> None:
    known, others = [0, 0, 1, 1], {RUNNING: [1, 1, 0, 0], PROBE: [1, 1, 0, 0]}
    metrics = put_first(
        summarise_splits({"val": count(make_row(known, known, **others))}, (), list(others))
    )
    assert metrics["running_prototypes"]["miou"] == 100
    assert metrics["linear_probe"]["accuracy"] == metrics["linear_probe"]["miou"] == 0


def test_reasons_are_grouped_whatever_their_order() -> None:
    reasons = ["b", "a (1 of 2)", "a (2 of 2)", "c: x", "d", "e", "f"]
    expected = [("a", 2), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]
    assert list(count_reasons(reasons).items()) == expected
    assert list(count_reasons(reversed(reasons)).items()) == expected
