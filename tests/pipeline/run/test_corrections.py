"""What a person says is read as it was said, never lost, and a wrong file is one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from pipeline.errors import ImageError, PipelineError, RunError
from pipeline.images.decoding import encode_png
from pipeline.images.windows import Window
from pipeline.run import corrections as module
from pipeline.run.corrections import Corrections, Point, parse_classes
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image, Manifest, Rows
from pipeline.storage.places import list_names

CLICK = Point(3, 2, None, None, "road")
BOX = Point(0, 0, 7, 5, "sky, <b>high</b>")
HEADER = "split,image,x,y,x1,y1,class\n"


def make_image(row: int, id: str, split: str = "train") -> Image:
    return Image(row, id, split, f"{id}.jpg", None, 8, 6, 1, 1, f"d{row}")


A, B, C = make_image(0, "part/a"), make_image(1, "b"), make_image(2, "b", "val")


def make_run(place: Path) -> RunDirectory:
    """A run of three images of 8 x 6 pixels, as far as corrections need one."""
    run = RunDirectory(place)
    images, windows = Rows.gather(Image, (A, B, C)), Rows.gather(Window, ())
    Manifest("folder", place / "photographs", None, images, windows).write(run)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


def paint(*numbers: int) -> np.ndarray:
    """A map of 8 x 6 pixels that holds some numbers in its first pixels, and says nothing else."""
    said = np.full((6, 8), 254, np.uint8)
    said.ravel()[: len(numbers)] = numbers
    return said


def put(run: RunDirectory, name: str, content: str | bytes) -> Path:
    file = run.corrections / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_without_the_folder_nothing_is_said_after_one_listing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def look(place: Path) -> list[tuple[str, bool]]:
        calls.append(place)
        return list_names(place)

    monkeypatch.setattr(module, "list_names", look)
    monkeypatch.setattr(module, "read_manifest", pytest.fail)
    corrections = Corrections(run)
    assert calls == []
    for image in (A, B, C):
        assert corrections.read_map(image) is None
        assert corrections.points_of(image) == []
        assert corrections.fingerprint(image) == ""
    assert corrections.fingerprint() == ""
    assert corrections.classes() == corrections.said_names() == ()
    assert corrections.find_strays() == []
    assert calls == [run.corrections]
    assert not run.corrections.exists()


def test_what_is_said_is_read_back(run: RunDirectory) -> None:
    corrections = Corrections(run)
    corrections.write_map(A, paint(1, 0, 255, 2), ["sky", "road", "Ignore", "unused"])
    corrections.add_points(B, [CLICK, BOX, Point(1, 1, None, None, "ignore")])
    corrections.add_points(C, [Point(7, 5, None, None, "water")])
    again = Corrections(run)
    # in the order of their numbers in the map; only those that are there
    assert again.classes() == ("sky", "road")
    assert again.read_map(A) == pytest.approx(paint(1, 0, 255, 255))
    assert again.read_map(B) is None
    assert again.points_of(B) == [CLICK, BOX, Point(1, 1, None, None, "ignore")]
    assert again.points_of(A) == []
    assert again.said_names() == ("sky", "road", "sky, <b>high</b>", "water")
    assert again.images() == [A, B, C]
    with PillowImage.open(run.corrections / "maps/train/part/a.png") as image:
        assert image.mode == "P" and image.getpalette()[3 * 254 :] == [128] * 3 + [0] * 3  # type: ignore[index]


def test_what_is_said_later_is_laid_over(run: RunDirectory) -> None:
    corrections = Corrections(run)
    corrections.write_map(A, paint(0, 0, 255), ["road"])
    corrections.write_map(A, paint(254, 0, 1, 1), ["sky", "road"])
    # 254 keeps what was said, and numbers stay what they were
    assert corrections.classes() == ("road", "sky")
    assert corrections.read_map(A) == pytest.approx(paint(0, 1, 0, 0))
    corrections.write_map(A, paint(254, 0), ["sky"], replace=True)
    assert corrections.read_map(A) == pytest.approx(paint(254, 1))
    corrections.write_map(A, paint(), [], replace=True)
    assert corrections.read_map(A) is None
    assert list((run.corrections / "maps").rglob("*.png")) == []


def test_a_point_at_the_place_of_another_replaces_it(run: RunDirectory) -> None:
    corrections = Corrections(run)
    corrections.add_points(A, [CLICK, BOX])
    other = Point(3, 2, None, None, "kerb")
    # another one has it open, and has seen nothing of it
    Corrections(run).add_points(B, [CLICK])
    corrections.add_points(A, [other])
    assert corrections.points_of(A) == [BOX, other]
    assert corrections.points_of(B) == [CLICK]
    corrections.remove_points(A, [BOX, CLICK])
    assert corrections.points_of(A) == []
    put(run, "points.csv", HEADER + "val,b,1,1,,,a\nval,b,1,1,,,b\n")
    assert Corrections(run).points_of(C) == [Point(1, 1, None, None, "b")]


def test_a_fingerprint_is_of_what_is_said_of_an_image(run: RunDirectory) -> None:
    def look() -> list[str]:
        corrections = Corrections(run)
        return [corrections.fingerprint(image) for image in (A, B, C, None)]

    Corrections(run).write_map(A, paint(0), ["road"])
    first = look()
    assert first[0] and first[3] and first[1] == first[2] == ""
    assert look() == first
    Corrections(run).add_points(B, [CLICK])
    second = look()
    assert second[0] == first[0] and second[1] and second[3] not in first
    Corrections(run).write_map(A, paint(255), [])
    third = look()
    assert third[0] != first[0] and third[1] == second[1]
    # another name under the same number
    put(run, "classes.yaml", "- kerb\n")
    assert look()[0] != third[0] and look()[1] == third[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"road", "is no list of names"),
        (b"0: road\n", "is no list of names"),
        (b"- road\n- [a]\n", "line 2: a class needs a name .* a list or mapping"),
        (b"- road\n- ''\n", "line 2: a class needs a name of one line"),
        (b"- " + b"a" * 101, "at most 100 characters"),
        (b'- "a\\nb"', "needs a name of one line"),
        (b"- road\n- sky\n- road\n", "line 3: 'road' is class 0, too"),
        (b"- Ignore\n", "'Ignore' is 255 in every map"),
        (b"- a\n" + b"".join(b"- c%d\n" % n for n in range(254)), "255 names, and a map holds 254"),
        (b"- \xff\n", "is not YAML"),
        (b"[" * 5000, "is nested too deeply|is not YAML"),
    ],
)
def test_classes_that_are_none_are_refused(run: RunDirectory, text: bytes, words: str) -> None:
    file = put(run, "classes.yaml", text)
    with pytest.raises(RunError, match=words) as caught:
        Corrections(run).classes()
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    with pytest.raises(RunError):
        Corrections(run).write_map(A, paint(0), ["road"])
    assert file.read_bytes() == text and not (run.corrections / "maps").exists()


def test_names_are_text() -> None:
    text = b"- no\n- 1.0\n- ~\n- <script>alert(1)</script>\n- '=1+1'\n"
    names = ("no", "1.0", "~", "<script>alert(1)</script>", "=1+1")
    assert parse_classes(text, "f") == names
    assert parse_classes(b"", "f") == parse_classes(b"# none yet\n", "f") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has the columns of no name; its first line must be split,image,x,y,x1,y1,class"),
        ("split,image,x,y\n", "has the columns split, image, x, y; its first line must be"),
        (HEADER.replace(",", ";"), "its first line must be"),
        (HEADER[:-1] + ",who\n", "its first line must be"),
        (HEADER + "train,b,1,1,,\n", "line 2: it has 6 fields, and the first line 7"),
        (HEADER + "\ntrain,c,1,1,,,a\n", "line 3: there is no image 'c' in split 'train'; correct"),
        (HEADER + "trian,b,1,1,,,a\n", "no image 'b' in split 'trian' .did you mean 'train'"),
        (HEADER + "train,b,8,1,,,a\n", "line 2: x is '8', and the image has pixels 0 to 7"),
        (HEADER + "train,b,1,-1,,,a\n", "y is '-1', and the image has pixels 0 to 5"),
        (HEADER + "train,b,1.5,1,,,a\n", "x is '1.5'"),
        (HEADER + "train,b,,1,,,a\n", "x is ''"),
        (HEADER + "train,b,4,1,3,2,a\n", "a box goes from x,y to an x1,y1"),
        (HEADER + "train,b,4,1,5,,a\n", "a click has neither"),
        (HEADER + "train,b,4,1,5,6,a\n", "y1 is '6', and the image has pixels 0 to 5"),
        (HEADER + "train,b,1,1,,,\n", "line 2: a class needs a name"),
        (HEADER + f"train,b,1,1,,,{'a' * 101}\n", "at most 100 characters"),
        (HEADER + 'train,b,1,1,,,"a\nb"\n', "a class needs a name of one line"),
        (HEADER + 'train,b,1,1,,,"a"b\n', "is not CSV in UTF-8"),
        ((HEADER + "x").encode("utf-16"), "is not CSV in UTF-8"),
    ],
)
def test_points_that_are_none_are_refused(run: RunDirectory, text: str, words: str) -> None:
    file = put(run, "points.csv", text)
    before = file.read_bytes()
    with pytest.raises(RunError, match=words) as caught:
        Corrections(run).points_of(A)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    with pytest.raises(RunError):
        Corrections(run).add_points(A, [CLICK])
    assert file.read_bytes() == before


def test_points_are_read_as_a_spreadsheet_saves_them(run: RunDirectory) -> None:
    put(run, "points.csv", "\ufeffclass,y,x,image,split\r\n über ,5, 7,part/a,train\r\n,,,,\r\n")
    assert Corrections(run).points_of(A) == [Point(7, 5, None, None, "über")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no image", "not an image"),
        (encode_png(paint(0))[:-30], "truncated|damaged"),
        (encode_png(np.zeros((6, 9), np.uint8)), "it is 9 x 6, the image 8 x 6"),
        (encode_png(np.zeros((6, 8, 3), np.uint8)), "it holds colours"),
        (encode_png(paint(2)), "it holds 2, and classes.yaml names 1 classes"),
    ],
)
def test_a_map_that_is_none_is_refused(run: RunDirectory, content: bytes, words: str) -> None:
    put(run, "classes.yaml", "- road\n")
    file = put(run, "maps/train/b.png", content)
    with pytest.raises(ImageError, match=words) as caught:
        Corrections(run).read_map(B)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    with pytest.raises(ImageError):
        Corrections(run).write_map(B, paint(0), ["road"])
    assert file.read_bytes() == content
    assert Corrections(run).read_map(A) is None


def test_maps_of_no_image_are_named(run: RunDirectory) -> None:
    Corrections(run).write_map(B, paint(0), ["road"])
    put(run, "maps/train/z.png", encode_png(paint(0)))
    put(run, "maps/readme.txt", "mine")
    assert Corrections(run).find_strays() == ["maps/train/z.png"]


@pytest.mark.parametrize(
    ("said", "names", "words"),
    [
        (np.zeros((5, 8), np.uint8), ["road"], "it is 8 x 5, the image 8 x 6"),
        (paint(1), ["road"], "it holds 1, and there are 1 names"),
        (paint(0), [" "], "class 0: a class needs a name"),
    ],
)
def test_what_no_map_can_say_is_not_written(
    run: RunDirectory, said: np.ndarray, names: list[str], words: str
) -> None:
    with pytest.raises(PipelineError, match=words):
        Corrections(run).write_map(A, said, names)
    assert not run.corrections.exists()


def test_a_map_has_no_room_for_more_classes(run: RunDirectory) -> None:
    put(run, "classes.yaml", "".join(f"- class {n}\n" for n in range(254)))
    Corrections(run).write_map(A, paint(0), ["class 253"])
    assert Corrections(run).read_map(A) == pytest.approx(paint(253))
    with pytest.raises(RunError, match="would have 255 classes, and a map holds 254"):
        Corrections(run).write_map(A, paint(0), ["road"])


def test_nothing_is_written_where_a_link_leads(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run.corrections.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out"):
        Corrections(run).write_map(A, paint(0), ["road"])
    assert not any((tmp_path / "elsewhere").iterdir())


def test_points_are_parsed_once_for_every_time_they_were_written(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Corrections(run).add_points(A, [CLICK])
    Corrections(run).points_of(A).clear()
    monkeypatch.setattr(module, "parse_points", pytest.fail)
    assert Corrections(run).points_of(A) == [CLICK]
    monkeypatch.undo()
    put(run, "points.csv", HEADER + "train,part/a,1,1,,,a\n")
    assert Corrections(run).points_of(A) == [Point(1, 1, None, None, "a")]
