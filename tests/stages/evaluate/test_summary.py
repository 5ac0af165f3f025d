"""What the screen says of the splits."""

from __future__ import annotations

import numpy as np

from stages.evaluate.summary import describe_metrics, summarise_splits
from stages.evaluate.tally import Tally


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
