"""Folders of label maps scored: what evaluate says of its own, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError, PipelineError, UsageError
from pipeline.progress import Screen
from tests.scenes import FAST_EM, Invoke, write_scenes
from workflows.scoring import Rules, score_folder

Score = Callable[..., dict[str, Any]]
SAME = (
    *("accuracy", "miou", "miou_interval", "classes", "class_names", "assignment", "confusion"),
    "labelled_images",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """A run on scenes of the windows' own size, wider than high, without an evaluation."""
    folder = tmp_path_factory.mktemp("scored")
    write_scenes(folder, 6, width=70, height=64)
    run = folder / "run"
    more = ("--backbone", "handcrafted", "--size", 64, "--frame", "centre", "--no-progress")
    root, labels = folder / "photographs", folder / "labels"
    invoke("extract", run, "--dataset", "folder", "--root", root, "--labels", labels, *more)
    invoke("masks", run, "--no-progress")
    invoke("em", run, "--classes", 4, *FAST_EM, "--no-progress")
    return run


@pytest.mark.parametrize("crf", ["none", "auto"])
def test_the_labels_of_evaluate_have_the_numbers_of_evaluate(
    crf: str, run: Path, invoke: Invoke
) -> None:
    invoke("evaluate", run, "--crf", crf, "--gallery", 0, "--no-progress")
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    end = "" if crf == "none" else "_crf"
    told = {name: metrics.get(name) for name in SAME}
    told |= {name: metrics[name + end] for name in ("accuracy", "miou", "assignment", "confusion")}
    told["miou_interval"] = metrics[f"miou{end}_interval"]
    ious = [each[f"iou{end}"] for each in metrics["per_class"]]
    out = invoke(
        *("score", "--predictions", run / "labels" / "all", "--labels", run.parent / "labels"),
        *("--crop", "centre", "--json", "--no-progress"),
    ).stdout
    found = json.loads(out)
    assert {name: found[name] for name in SAME} == told
    assert [each["iou"] for each in found["per_class"]] == ious
    assert found["label_pixels"] == metrics["label_pixels"]
    assert found["unpredicted_pixels"] == 0 and found["accuracy"] > 50


@pytest.fixture
def score(tmp_path: Path) -> Score:
    def call(
        ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], **rules: Any
    ) -> dict[str, Any]:
        for kind, maps in (("ours", ours), ("theirs", theirs)):
            for name, values in maps.items():
                file = tmp_path / kind / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if file.suffix == ".npy":
                    np.save(file, values)
                else:
                    Image.fromarray(values).save(file)
        screen = Screen(progress=False)
        folders = tmp_path / "ours", tmp_path / "theirs"
        return score_folder(folders[0], labels=folders[1], rules=Rules(**rules), screen=screen)

    return call


TRUTH = np.array([[0, 0, 1, 1, 2, 255]], np.uint8)


def test_what_is_not_predicted_is_wrong_and_what_is_ignored_is_nothing(score: Score) -> None:
    ours = np.array([[5, 5, 7, 255, 255, 7]], np.uint8)
    found = score({"a.png": ours}, {"a.png": TRUTH})
    assert found["accuracy"] == 60 and found["unpredicted_pixels"] == 2
    # sky 2/2, road 1/2, field 0/1
    assert [each["iou"] for each in found["per_class"]] == [100, 50, 0]
    assert found["assignment"][5] == 0 and found["assignment"][7] == 1


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("a.png", np.array([[0, 1, 65535]], np.uint16)),
        ("a.npy", np.array([[0, 1, -1]], np.int64)),
        ("a.npy", np.array([[0, 1, 65535]], np.uint16)),
        ("a.npy", np.array([[0, 1, 255]], np.uint8)),
    ],
)
def test_minus_one_is_ignored_however_it_is_stored(
    name: str, truth: np.ndarray, score: Score
) -> None:
    found = score({"a.npy": np.array([[0, 1, 1]])}, {name: truth}, matching="none")
    assert (found["accuracy"], found["labelled_pixels"], found["miou"]) == (100, 2, 100)


def test_a_named_value_is_ignored_and_predicting_it_is_wrong(score: Score) -> None:
    ours, theirs = np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8)
    found = score({"a.png": ours}, {"a.png": theirs}, matching="none", ignore=[0])
    assert found["per_class"] == [
        {"name": "class 0", "iou": None},
        {"name": "class 1", "iou": 66.67},
    ]


def test_many_to_one_lets_clusters_share_a_class(score: Score) -> None:
    maps = (
        {"a.png": np.array([[0, 1, 2, 3]], np.uint8)},
        {"a.png": np.array([[0, 0, 1, 1]], np.uint8)},
    )
    assert score(*maps)["accuracy"] == 50
    assert score(*maps, matching="many-to-one")["accuracy"] == 100


def test_predictions_of_another_size_are_scaled_where_that_is_said(score: Score) -> None:
    truth = np.repeat(np.repeat(TRUTH, 4, axis=0), 1, axis=1)  # 4 high, 6 wide
    small = truth[::2, ::2]
    with pytest.raises(UsageError, match=r"is 3 x 2, its label map .* 6 x 4: .*--resize nearest"):
        score({"a.png": small}, {"a.png": truth}, matching="none")
    found = score({"a.png": small}, {"a.png": truth}, matching="none", resize="nearest")
    assert found["accuracy"] == 100
    # the square in the middle alone, of a prediction of the whole and of one of the square
    for ours in (truth, truth[:, 1:5]):
        found = score({"a.png": ours}, {"a.png": truth}, matching="none", crop="centre")
        assert (found["accuracy"], found["labelled_pixels"]) == (100, 16)
    with pytest.raises(UsageError, match="another shape"):
        score({"a.png": truth[:, :4]}, {"a.png": truth}, resize="nearest")


@pytest.mark.parametrize(
    ("ours", "error", "message"),
    [
        ({"b.png": TRUTH}, UsageError, r"no prediction of 1 of 1 labelled images: a \(png"),
        ({"a.png": TRUTH, "a.npy": TRUTH}, UsageError, "are both predictions of"),
        ({"a.npy": TRUTH / 2}, DatasetError, "is float64"),
        ({"a.npy": TRUTH.astype(int) + 300}, DatasetError, "it holds 300; numbers"),
        ({"a.png": np.stack([TRUTH] * 3, axis=2)}, DatasetError, "it holds colours"),
    ],
)
def test_what_is_no_prediction_is_named(
    ours: dict[str, np.ndarray], error: type[PipelineError], message: str, score: Score
) -> None:
    with pytest.raises(error, match=message):
        score(ours, {"a.png": TRUTH})


def test_boundaries_are_scored_where_they_are_asked_for(score: Score) -> None:
    truth = np.repeat(TRUTH[:, :4], 4, axis=0).repeat(4, axis=1)
    maps = {"a.png": truth + 3}, {"a.png": truth}
    assert "boundary_f" not in score(*maps)
    assert score(*maps, boundaries=True)["boundary_f"] == {"2": 100.0, "5": 100.0}


def test_values_that_no_class_has_are_not_scored(score: Score, tmp_path: Path) -> None:
    theirs = {"a.npy": np.array([[0, 300]])}
    ours = {"a.npy": np.array([[0, 1]])}
    with pytest.raises(DatasetError, match=r"have values that no class has: 300"):
        score(ours, theirs)
    assert score(ours, theirs, ignore=[300])["labelled_pixels"] == 1


def test_files_of_a_dataset_are_found_by_split_or_id(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind, shape in ((split, (2, 2, 3)), (f"{split}annot", (2, 2))):
            (tmp_path / kind).mkdir()
            Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / kind / "one.png")
    ours = tmp_path / "ours"
    ours.mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(ours / "one.png")
    options = {"dataset": "camvid", "root": tmp_path, "rules": Rules()}
    screen = Screen(progress=False)
    with pytest.raises(UsageError, match=r"put them into folders train and val, or choose one"):
        score_folder(ours, splits=("train", "val"), screen=screen, **options)
    found = score_folder(ours, splits=("val",), screen=screen, **options)
    assert (found["split"], found["accuracy"]) == ("val", 100)
    with pytest.raises(UsageError, match="score needs --labels DIR, or --dataset NAME"):
        score_folder(ours, screen=screen, rules=Rules())
