"""What was corrected elsewhere is taken up, once, and what is in conflict is listed and left."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as PillowImage

from pipeline.errors import PipelineError, RunError, UsageError
from pipeline.images.decoding import encode_png
from pipeline.images.windows import Window
from pipeline.progress import Screen
from pipeline.run.corrections import NOT_SAID, Corrections, Point
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, StageRecord
from pipeline.run.manifest import Image, Manifest, Rows
from pipeline.storage.files import write_json
from tests.pipeline.run.test_corrections import HEADER, A, B, C, make_run, paint, put
from workflows.correct.job import Outcome, correct_run, describe_outcome, require_complete

QUIET = Screen(progress=False)
CLICK = Point(3, 2, None, None, "road")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run").create()
    make_run(run.path)
    return run


def take(run: RunDirectory, place: Path, format: str = "auto", **options: Any) -> Outcome:
    return correct_run(run, place, format, screen=QUIET, **options)


def write_maps(
    folder: Path, maps: dict[str, np.ndarray], classes: object = ("road", "sky")
) -> Path:
    for name, said in maps.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(said))
    write_json(folder / "classes.json", classes)
    return folder


def test_pngs_are_found_by_any_name_of_their_images(run: RunDirectory, tmp_path: Path) -> None:
    maps = {
        "deep/train/part/a.png": paint(0, 254, 255, 1),
        "train/b.png": paint(1),
        "val/b.png": paint(0),
        "b.png": paint(0),
        "unknown.png": paint(0),
    }
    folder = write_maps(tmp_path / "maps", maps)
    outcome = take(run, folder)
    corrections = Corrections(run)
    assert corrections.classes() == ("sky", "road") or corrections.classes() == ("road", "sky")
    names = np.array([*corrections.classes()])
    said = corrections.read_map(A)
    assert said is not None
    assert names[said[0, [0, 3]]].tolist() == ["road", "sky"] and said[0, 2] == 255
    assert (said == NOT_SAID).sum() == 45
    assert (outcome.images, outcome.pixels) == (3, 5)
    assert sorted(outcome.strays) == ["b (may be any of train/b, val/b)", "unknown"]
    again = take(run, folder)
    assert (again.images, again.pixels, again.conflicts) == (0, 0, [])
    # one alone, by its last part
    alone = folder / "deep/train/part/a.png"
    assert take(run, alone, classes=folder / "classes.json").strays == []
    with pytest.raises(UsageError, match=r"has no label maps .* name them with --classes"):
        take(run, alone)


def test_a_photograph_names_its_map(run: RunDirectory, tmp_path: Path) -> None:
    assert take(run, write_maps(tmp_path / "m", {"a.png": paint(1)})).images == 1
    said = Corrections(run).read_map(A)
    assert said is not None and said[0, 0] == 0 and Corrections(run).classes() == ("sky",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"none", "train/b.png is not taken up: not an image"),
        (encode_png(np.zeros((6, 9), np.uint8)), "it is 9 x 6, the image 8 x 6"),
        (encode_png(np.zeros((6, 8, 3), np.uint8)), "it holds colours"),
        (encode_png(paint(7, 2)), r"it holds 2, 7, which .*classes.json does not name"),
    ],
)
def test_a_wrong_map_is_told_and_the_others_are_taken(
    run: RunDirectory, tmp_path: Path, content: bytes, words: str
) -> None:
    folder = write_maps(tmp_path / "m", {"a.png": paint(1), "train/b.png": paint(0)})
    (folder / "train/b.png").write_bytes(content)
    outcome = take(run, folder)
    (fault,) = outcome.faults
    assert "\n" not in fault and outcome.images == 1
    assert re.search(words, fault)
    with pytest.raises(RunError, match="1 file, named above, could not be taken up"):
        require_complete(outcome)
    assert Corrections(run).read_map(B) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "road\nsky\n\n"),
        ("classes.yaml", "- road\n- sky\n"),
        ("classes.json", '["road", "sky"]'),
        ("classes.json", '{"classes": [{"id": 1, "name": "sky"}, {"id": 0, "name": "road"}]}'),
    ],
)
def test_a_file_names_the_numbers(run: RunDirectory, tmp_path: Path, name: str, text: str) -> None:
    folder = write_maps(tmp_path / "m", {"a.png": paint(1, 1)})
    (folder / "classes.json").unlink()
    (folder / name).write_text(text)
    take(run, folder)
    assert Corrections(run).classes() == ("sky",)
    (tmp_path / "elsewhere.txt").write_text("kerb\nwater")
    take(run, folder, classes=tmp_path / "elsewhere.txt", prefer="theirs")
    assert Corrections(run).classes() == ("sky", "water")


def test_a_map_of_16_bits_keeps_its_classes(run: RunDirectory, tmp_path: Path) -> None:
    folder = write_maps(tmp_path / "m", {}, [f"class {number}" for number in range(400)])
    said = paint(44, 254, 255).astype(np.uint16)
    said[1] = 300
    PillowImage.fromarray(said).save(folder / "a.png")
    assert take(run, folder).faults == []
    corrections = Corrections(run)
    assert corrections.classes() == ("class 44", "class 300")
    taken = corrections.read_map(A)
    assert taken is not None
    assert taken[0, :3].tolist() == [0, NOT_SAID, 255] and (taken[1] == 1).all()


def test_a_map_of_more_classes_than_a_correction_holds(run: RunDirectory, tmp_path: Path) -> None:
    images = Rows.gather(Image, (replace(A, width=17, height=15),))
    windows = Rows.gather(Window, ())
    Manifest("folder", tmp_path, None, images, windows).write(run)
    folder = write_maps(tmp_path / "m", {}, [f"class {number}" for number in range(400)])
    said = np.arange(255, dtype=np.uint16).reshape(15, 17)
    said[said == NOT_SAID] = 300
    PillowImage.fromarray(said).save(folder / "a.png")
    (fault,) = take(run, folder).faults
    assert "a.png is not taken up: it has more than 254 classes." in fault


@pytest.mark.parametrize(
    "text", ['{"a": 1}', "{", "7", '[{"name": "a"}, ["b"]', pytest.param("[" * 10**5, id="deep")]
)
def test_a_file_that_names_nothing_is_refused(run: RunDirectory, tmp_path: Path, text: str) -> None:
    folder = write_maps(tmp_path / "m", {"a.png": paint(1)})
    (folder / "classes.json").write_text(text)
    with pytest.raises(RunError, match=r"classes.json does not name classes \(.*\); give a list"):
        take(run, folder)
    assert not run.corrections.exists()


def test_points_are_taken_from_a_table(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text(HEADER + "train,b,3,2,,,road\nval,b,0,0,7,5,sky\nval,z,0,0,,,sky\n")
    outcome = take(run, file)
    assert (outcome.images, outcome.points, outcome.strays) == (2, 2, ["val/z"])
    assert Corrections(run).points_of(B) == [CLICK]
    assert Corrections(run).points_of(C) == [Point(0, 0, 7, 5, "sky")]
    file.write_text("x,y\n")
    with pytest.raises(RunError, match=r"clicks\.csv has the columns x, y"):
        take(run, file)


def test_conflicts_are_listed_and_left(run: RunDirectory, tmp_path: Path) -> None:
    ours, other = Corrections(run), make_run(tmp_path / "other")
    ours.write_map(A, paint(0, 0, 1, 255), ["road", "sky"])
    ours.add_points(B, [CLICK])
    ours.write_names("default", {1: "road", 2: "sky"})
    theirs = Corrections(other)
    theirs.write_map(A, paint(1, 1, 0, 0, 0), ["sky", "kerb"])
    theirs.add_points(B, [Point(3, 2, None, None, "kerb"), Point(4, 4, None, None, "kerb")])
    Ledger(run.state("em/default")).write_stage(StageRecord("em", 1, {}, {}, [], {}))
    put(other, "names.yaml", "1: kerb\n2: sky\n3: water\n")
    before = {file: file.read_bytes() for file in run.corrections.rglob("*.*")}

    dry = take(run, other.corrections, dry_run=True)
    assert {file: file.read_bytes() for file in run.corrections.rglob("*.*")} == before
    outcome = take(run, other.corrections)
    for each in (dry, outcome):
        assert sorted(each.conflicts) == [
            "default: cluster 1 is road here and kerb there",
            "train/b: the click on 3,2: road here and kerb there",
            "train/part/a: 1 pixel: ignore here and sky there",
            "train/part/a: 2 pixels: road here and kerb there",
        ]
        assert (each.images, each.pixels, each.points, each.names) == (2, 1, 1, 1)
    with pytest.raises(RunError, match="4 conflicts, listed above, of which nothing was taken up"):
        require_complete(outcome)
    assert ours.read_map(A) == pytest.approx(paint(0, 0, 1, 255, 1))
    assert run.names_file("default").read_text() == "1: road\n2: sky\n3: water\n"

    kept = take(run, other.corrections, prefer="ours")
    assert (kept.images, kept.names, kept.conflicts) == (0, 0, [])
    taken = take(run, other.corrections, prefer="theirs")
    assert (taken.pixels, taken.points, taken.names, taken.conflicts) == (3, 1, 1, [])
    assert Corrections(run).classes() == ("road", "sky", "kerb")
    assert Corrections(run).read_map(A) == pytest.approx(paint(2, 2, 1, 1, 1))
    assert [point.name for point in Corrections(run).points_of(B)] == ["kerb", "kerb"]
    assert run.names_file("default").read_text() == "1: kerb\n2: sky\n3: water\n"


def test_a_remark_among_names_is_kept(run: RunDirectory) -> None:
    corrections = Corrections(run)
    file = put(run, "names.yaml", "# mine\n1: road")
    corrections.write_names("default", {3: "no"})
    assert file.read_text() == "# mine\n1: road\n3: 'no'\n"
    corrections.write_names("default", {1: "kerb"})
    assert file.read_text() == "1: kerb\n3: 'no'\n"
    (kept,) = run.corrections.glob("names.yaml.*")
    assert kept.read_text() == "# mine\n1: road\n3: 'no'\n"
    corrections.write_names("default", {2: "sky"}, replace=True)
    assert file.read_text() == "2: sky\n"


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_is_of_no_format_is_refused(run: RunDirectory, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    words = "there is no such" if name == "missing" else "is of no format that is known"
    with pytest.raises(UsageError, match=words):
        take(run, tmp_path / name)
    with pytest.raises(PipelineError, match=r"is what .* holds itself"):
        take(run, run.path, "corrections")


def test_what_was_taken_is_said(run: RunDirectory) -> None:
    lines = describe_outcome(Outcome(images=2, pixels=1, points=3), run, dry_run=False)
    assert lines[0] == f"correct: took up 1 pixel and 3 points of 2 images, into {run.corrections}"
    (line,) = describe_outcome(Outcome(), run, dry_run=True)
    assert line == f"correct: would take up nothing new, into {run.corrections}"


MAP = arrays(np.uint8, (6, 8), elements=st.sampled_from([0, 1, 254, 255]))
POINTS = st.lists(
    st.builds(
        Point,
        st.integers(0, 2),
        st.integers(0, 2),
        st.none(),
        st.none(),
        st.sampled_from(["road", "sky", "ignore"]),
    ),
    max_size=4,
)


def read_names(run: RunDirectory) -> np.ndarray:
    """The names of A's pixels, "" where nothing is said."""
    corrections = Corrections(run)
    said = corrections.read_map(A)
    names = [*corrections.classes(), *[""] * (255 - len(corrections.classes())), "ignore"]
    return np.array(names)[np.full((6, 8), NOT_SAID) if said is None else said]


@given(MAP, MAP, POINTS, POINTS, st.permutations(["road", "sky"]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_merging_commutes_and_loses_nothing(
    one: np.ndarray, two: np.ndarray, first: list[Point], second: list[Point], names: list[str]
) -> None:
    with TemporaryDirectory() as place:
        runs = []
        for number in range(4):
            run = RunDirectory(Path(place) / str(number)).create()
            make_run(run.path)
            said, points = ((one, first), (two, second))[number % 2]
            Corrections(run).write_map(A, said, names if number % 2 else ["road", "sky"])
            Corrections(run).add_points(B, points)
            runs.append(run)
        ours, theirs, left, right = runs
        was = [read_names(run) for run in (ours, theirs)]
        points = [{p.place: p.name for p in Corrections(r).points_of(B)} for r in (ours, theirs)]
        outcomes = [
            take(run, other.corrections, "corrections")
            for run, other in ((left, theirs), (right, ours))
        ]
        merged = [read_names(run) for run in (left, right)]
        clash = (was[0] != was[1]) & (was[0] != "") & (was[1] != "")
        # but for conflicts, which stay as they were on either side
        assert (merged[0] == merged[1])[~clash].all()
        for result, mine in zip(merged, was, strict=True):
            assert (result[mine != ""] == mine[mine != ""]).all()
            assert ((result == "") == ((was[0] == "") & (was[1] == ""))).all()
        assert len(outcomes[0].conflicts) == len(outcomes[1].conflicts)
        assert bool(outcomes[0].conflicts) == bool(
            clash.any() or any(points[1].get(k, v) != v for k, v in points[0].items())
        )
        for run, mine in zip((left, right), points, strict=True):
            now = {p.place: p.name for p in Corrections(run).points_of(B)}
            assert now == {**points[0], **points[1], **mine}
