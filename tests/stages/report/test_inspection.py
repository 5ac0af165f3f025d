"""One image with what the stages have made of it, at every point that a run can have reached."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RunError, StaleError, UsageError
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import open_evaluation
from stages.report import inspection
from stages.report.inspection import draw_sheet, inspect_image
from stages.report.pictures import RIGHT_COLOUR, WRONG_COLOUR
from tests.scenes import FAST_EM, Invoke

QUIET = "--no-progress"
IMAGE = "part 0/scene 2"
Sheet = SimpleNamespace


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Sheet]:
    """What was drawn, the last sheet last."""
    sheets: list[Sheet] = []

    def draw(**sheet: Any) -> np.ndarray:
        sheets.append(Sheet(**sheet))
        return draw_sheet(**sheet)

    monkeypatch.setattr(inspection, "draw_sheet", draw)
    return sheets


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, invoke: Invoke, extract_options: list[object]
) -> Path:
    """A run that has got as far as its features."""
    run = tmp_path_factory.mktemp("begun") / "run"
    invoke("extract", run, *extract_options)
    return run


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    run = tmp_path / "copy"
    shutil.copytree(begun, run)
    return run


def list_captions(sheet: Sheet) -> list[str]:
    return [panel.caption.partition(":")[0].partition(",")[0] for panel in sheet.panels]


def test_it_shows_as_much_as_there_is(
    copy: Path, tmp_path: Path, invoke: Invoke, drawn: list[Sheet]
) -> None:
    run, out = RunDirectory(copy), tmp_path / "pictures" / "a.png"
    first = ["photograph", "features"]
    labels = ["labels before the CRF", "labels after the CRF (numba)"]
    labels.append("final labels over the photograph")

    def look() -> Sheet:
        assert inspect_image(run, IMAGE, out, em=None, head=None) == out
        with Image.open(out) as picture:
            assert picture.format == "PNG"
            assert picture.size[0] == 1640
        return drawn[-1]

    sheet = look()
    assert list_captions(sheet) == [*first, "ground truth"]
    assert [note.split(":")[0] for note in sheet.notes] == ["No labels", "No proposals"]
    assert f"run `primaps-pipe em {run.quoted} --classes K`" in sheet.notes[0]
    assert f"run `primaps-pipe masks {run.quoted}`" in sheet.notes[1]
    # the colours of the ground truth are named, though no cluster has them
    assert [entry.name for entry in sheet.legend] == [
        "class 1 (ground truth)",
        "class 0 (ground truth)",
        "class 2 (ground truth)",
    ]

    assert sheet.columns == ("class or cluster", "in truth"), "there is nothing else to say"

    invoke("masks", copy, QUIET)
    sheet = look()
    assert list_captions(sheet)[2].endswith("proposals; dark grey")
    assert [note.split(":")[0] for note in sheet.notes] == ["No labels"]

    invoke("em", copy, "--classes", 3, *FAST_EM, QUIET)
    sheet = look()
    assert list_captions(sheet)[3:] == [*labels, "ground truth"]
    (note,) = sheet.notes
    assert "computed for this picture, and no cluster is matched" in note
    assert f"`primaps-pipe evaluate {run.quoted}` first" in note
    assert [name for name, _ in sheet.figures] == ["confidence", "pixels with ground truth"]
    assert "cluster 0" in {entry.name for entry in sheet.legend}
    before = sheet

    invoke("evaluate", copy, QUIET)
    sheet = look()
    assert list_captions(sheet)[3:] == [*labels, "ground truth", "errors"]
    assert sheet.notes == []
    assert dict(before.figures)["confidence"] == dict(sheet.figures)["confidence"]
    assert np.mean(before.panels[3].pixels != sheet.panels[3].pixels) > 0, "other colours"


def test_an_evaluated_image_by_hand(finished: Path, tmp_path: Path, drawn: list[Sheet]) -> None:
    run = RunDirectory(finished)
    inspect_image(run, IMAGE, tmp_path / "a.png", em=None, head=None)
    (sheet,) = drawn
    panels = {c: p.pixels for c, p in zip(list_captions(sheet), sheet.panels, strict=True)}
    truth, errors = panels["ground truth"], panels["errors"]
    labels = panels["labels after the CRF (numba)"]
    right = (labels == truth).all(axis=-1)
    assert (errors[right] == RIGHT_COLOUR).all()
    assert (errors[~right] == WRONG_COLOUR).all()
    (name,) = [n for n in open_evaluation(run, None, None).images if n[1] == IMAGE]
    scores = open_evaluation(run, None, None).read_scores([name])[name]
    assert dict(sheet.figures)["accuracy with CRF"] == f"{scores['accuracy_crf']:.1f} %"
    assert scores["accuracy_crf"] == pytest.approx(100 * right.mean(), abs=1)
    assignment, _ = open_evaluation(run, None, None).match()
    assert assignment is not None
    for entry in sheet.legend:
        if "(cluster " in entry.name:
            cluster = int(entry.name.split("(cluster ")[1].rstrip(")"))
            assert entry.name.startswith(f"class {assignment[cluster]} ")
        share = 100 * (labels == entry.colour).all(axis=-1).mean()
        assert entry.figures[0] == "–" or float(entry.figures[0][:-2]) == pytest.approx(
            share, abs=0.1
        )
    assert sum(float(e.figures[1][:-2]) for e in sheet.legend) == pytest.approx(100, abs=0.5)


def test_the_same_picture_every_time(finished: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        inspect_image(RunDirectory(finished), IMAGE, file, em=None, head=None)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_names_of_the_user_are_shown(finished: Path, tmp_path: Path, drawn: list[Sheet]) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    (run / "names.yaml").write_text("0: meadow\n1: heaven\n2: street\n")
    inspect_image(RunDirectory(run), IMAGE, tmp_path / "a.png", em=None, head=None)
    names = " ".join(entry.name for entry in drawn[0].legend)
    assert "meadow (cluster 0)" in names or "heaven (cluster 1)" in names


def test_a_split_that_was_not_evaluated_is_labelled_now(
    finished: Path, tmp_path: Path, drawn: list[Sheet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_other(*arguments: object) -> object:
        entry = open_evaluation(RunDirectory(finished), None, None)
        entry.metrics["splits"] = {"other": {}}
        return entry

    monkeypatch.setattr(inspection, "open_evaluation", open_other)
    inspect_image(RunDirectory(finished), IMAGE, tmp_path / "a.png", em=None, head=None)
    assert "was not evaluated" in drawn[0].notes[0]
    assert "errors" not in list_captions(drawn[0])


def test_a_fit_that_is_asked_for_must_be_there(copy: Path, tmp_path: Path, invoke: Invoke) -> None:
    run, out = RunDirectory(copy), tmp_path / "a.png"
    with pytest.raises(UsageError, match="--em 'nine': the run has no fit yet"):
        inspect_image(run, IMAGE, out, em="nine", head=None)
    invoke("em", copy, "--classes", 3, "--method", "kmeans", *FAST_EM, QUIET)
    with pytest.raises(UsageError, match="did you mean 'default'"):
        inspect_image(run, IMAGE, out, em="defualt", head=None)
    with pytest.raises(UsageError, match="--head 'stego': the run has no head yet"):
        inspect_image(run, IMAGE, out, em=None, head="stego")


def test_a_stale_fit_is_told_or_refused(
    copy: Path, tmp_path: Path, invoke: Invoke, drawn: list[Sheet]
) -> None:
    run, out = RunDirectory(copy), tmp_path / "a.png"
    invoke("masks", copy, QUIET)
    invoke("em", copy, "--classes", 3, *FAST_EM, QUIET)
    invoke("masks", copy, "--threshold", 0.5, QUIET)
    with pytest.raises(StaleError, match=r"em/default is stale .*masks has changed.* again"):
        inspect_image(run, IMAGE, out, em="default", head=None)
    inspect_image(run, IMAGE, out, em=None, head=None)
    assert "No labels: em/default is stale" in drawn[0].notes[0]
    assert "labels" not in " ".join(list_captions(drawn[0]))


@pytest.mark.parametrize("name", ["a.jpg", "a", "."])
def test_only_a_png_is_written(begun: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png"):
        inspect_image(RunDirectory(begun), IMAGE, tmp_path / name, em=None, head=None)


def test_only_an_earlier_picture_is_overwritten(
    finished: Path, scenes: Path, tmp_path: Path
) -> None:
    run, own = RunDirectory(finished), tmp_path / "own.png"
    for image in (IMAGE, "scene 1"):
        inspect_image(run, image, own, em=None, head=None)
    folder = tmp_path / "labels"
    shutil.copytree(scenes / "labels", folder)
    link, text = tmp_path / "link.png", tmp_path / "text.png"
    link.symlink_to(folder / f"{IMAGE}.png")
    text.write_text("no picture at all")
    for out in (folder / f"{IMAGE}.png", link, text, finished / "labels" / "all" / f"{IMAGE}.png"):
        before = out.read_bytes()
        with pytest.raises(UsageError, match="there already and was not written by inspect"):
            inspect_image(run, IMAGE, out, em=None, head=None)
        assert out.read_bytes() == before


def test_a_run_without_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory"):
        inspect_image(RunDirectory(tmp_path), IMAGE, tmp_path / "a.png", em=None, head=None)


def test_whole_images_of_many_windows(
    scenes: Path, tmp_path: Path, invoke: Invoke, drawn: list[Sheet]
) -> None:
    run = tmp_path / "whole"
    invoke(
        *("extract", run, "--dataset", "folder", "--root", scenes / "photographs"),
        *("--backbone", "handcrafted", "--size", 64, "--frame", "whole", "--limit", 3, QUIET),
    )
    invoke("masks", run, QUIET)
    inspect_image(RunDirectory(run), "scene 0", tmp_path / "a.png", em=None, head=None)
    (sheet,) = drawn
    assert sheet.panels[0].caption == "photograph"
    assert len({panel.pixels.shape for panel in sheet.panels}) == 1
    assert sheet.panels[0].pixels.shape[1] > 64
