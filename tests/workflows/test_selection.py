"""`select` on drawn photographs: which are chosen, what is known already, what is written."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import Run
from pipeline.errors import UsageError
from pipeline.run.corrections import NOT_SAID, Corrections, Point
from pipeline.run.directory import RunDirectory
from tests.scenes import Invoke, hash_tree
from workflows import selection
from workflows.selection import select

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 230, 230))
# halves of each photograph: two of them hold all four colours
HALVES = {"a": (0, 0), "b": (0, 1), "c": (1, 1), "d": (2, 3), "e": (3, 3)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """A run with proposals, and no fit."""
    folder = tmp_path_factory.mktemp("halves")
    (folder / "photographs").mkdir()
    for name, halves in HALVES.items():
        pixels = np.zeros((64, 64, 3), np.uint8)
        for number, half in enumerate(halves):
            pixels[32 * number : 32 * number + 32] = COLOURS[half]
        noise = np.random.default_rng(ord(name)).integers(-3, 4, (64, 64, 1))
        path = folder / "photographs" / f"{name}.png"
        Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(path)
    run = folder / "run"
    options = ("--backbone", "handcrafted", "--size", 64, "--no-progress")
    invoke("extract", run, "--dataset", "folder", "--root", folder / "photographs", *options)
    invoke("masks", run, "--crf", "none", "--no-progress")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(made, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def list_ids(chosen: selection.Selection) -> list[str]:
    return [pick.image.id for pick in chosen.picks]


def test_two_images_that_hold_all_four_colours_come_first(run: RunDirectory) -> None:
    chosen = select(run, images=2)
    assert set(list_ids(chosen)) == {"b", "d"}
    assert chosen == select(run, images=2)
    assert "2 images of 5 in all" in chosen.why


def test_what_is_painted_is_known(run: RunDirectory) -> None:
    image = Run(run.path).find_image("b")
    said = np.zeros((64, 64), np.uint8)
    Corrections(run).write_map(image, said, ["wall"])
    chosen = select(run, images=1)
    assert list_ids(chosen) == ["d"]
    assert "1 image left out as known" in chosen.why
    # a stroke is no label of the image: the half that it fills is known, the image is not
    said[16:] = NOT_SAID
    said[:16] = 0
    Corrections(run).write_map(Run(run.path).find_image("d"), said, ["wall"])
    assert "1 image left out as known" in select(run, images=1).why


def test_a_click_and_a_box_make_proposals_known(run: RunDirectory) -> None:
    first = select(run, proposals=4)
    seen = {(pick.image.id, pick.point) for pick in first.picks}
    assert len(seen) == 4
    for pick in first.picks:
        assert pick.point is not None
        x, y = pick.point
        known = Point(x, y, None, None, "thing")
        if pick is first.picks[0]:
            known = Point(0, 32 * (y // 32), 63, 32 * (y // 32) + 31, "thing")
        Corrections(run).add_points(pick.image, [known])
    again = select(run, proposals=4)
    assert "4 proposals that corrections speak of" in again.why
    assert not {(pick.image.id, pick.point) for pick in again.picks} & seen
    # the four colours are known: the others add little
    assert sum(pick.share for pick in again.picks) < 1


def test_a_point_lies_in_its_proposal(run: RunDirectory) -> None:
    chosen = select(run, proposals=8)
    for pick in chosen.picks:
        assert pick.point is not None
        x, y = pick.point
        assert 4 <= x < 60
        assert 4 <= y < 60
        assert abs(y - 31.5) > 4 or len({*HALVES[pick.image.id]}) == 1


def test_a_sample_stands_for_all(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MOST_TARGETS", 5)
    monkeypatch.setattr(selection, "MOST_CANDIDATES", 3)
    monkeypatch.setattr(selection, "_BLOCK", 1)
    chosen = select(run, images=2)
    assert len(chosen.picks) == 2
    assert "(3 drawn of them)" in chosen.why
    assert "5 drawn of" in chosen.why


def test_it_writes_photographs_and_a_list(
    run: RunDirectory, invoke: Invoke, tmp_path: Path
) -> None:
    before = hash_tree(run.path)
    output = invoke("select", run.path, "--images", 2, "--out", tmp_path / "out").output
    assert "2 photographs and images.csv are in" in output
    rows = list(csv.DictReader((tmp_path / "out/images.csv").open()))
    assert {row["image"] for row in rows} == {"b", "d"}
    for row in rows:
        photograph = run.path.parent / "photographs" / f"{row['image']}.png"
        source = Run(run.path).photograph(row["image"])
        assert np.array_equal(np.array(Image.open(tmp_path / "out" / row["file"])), source)
        assert not photograph.exists()  # copied from where the manifest says
    again = invoke("select", run.path, "--images", 3, "--out", tmp_path / "out", code=1).output
    assert "another export" in again
    refused = invoke("select", run.path, "--images", 2, "--out", run.path / "x", code=2).output
    assert "lies in the run" in refused
    assert hash_tree(run.path) == before


def test_a_list_of_proposals_is_filled_in_and_read(
    run: RunDirectory, invoke: Invoke, tmp_path: Path
) -> None:
    invoke("select", run.path, "--proposals", 3, "--out", tmp_path / "out")
    text = (tmp_path / "out/points.csv").read_text()
    run.corrections.mkdir()
    filled = "".join(f"{line}{'road' if n else ''}\n" for n, line in enumerate(text.splitlines()))
    (run.corrections / "points.csv").write_text(filled)
    assert Corrections(run).said_names() == ("road",)
    assert "3 proposals that corrections speak of" in select(run, proposals=1).why


def test_programs_get_json(run: RunDirectory, invoke: Invoke) -> None:
    printed = invoke("select", run.path, "--proposals", 2, "--json").stdout
    found = json.loads(printed)
    assert found["kind"] == "proposals"
    assert [set(each) for each in found["chosen"]] == [
        {"split", "image", "path", "x", "y", "share"}
    ] * 2


@pytest.mark.parametrize("number", [None, 1])
def test_one_number_is_given(run: RunDirectory, number: int | None) -> None:
    with pytest.raises(UsageError, match="one of them"):
        select(run, images=number, proposals=number)


def test_without_proposals_it_says_what_to_run(run: RunDirectory, invoke: Invoke) -> None:
    shutil.rmtree(run.path / "state/masks")
    assert "primaps-pipe masks" in invoke("select", run.path, "--images", 1, code=1).output


def test_an_unknown_split_is_named(run: RunDirectory, invoke: Invoke) -> None:
    said = invoke("select", run.path, "--images", 1, "--split", "al", code=2).output
    assert "did you mean 'all'" in said
