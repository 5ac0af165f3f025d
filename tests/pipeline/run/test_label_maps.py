"""Folders of label PNGs: what they say, as if somebody had painted it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ImageError, PipelineError
from pipeline.images.decoding import encode_png
from pipeline.run.directory import RunDirectory
from pipeline.run.label_maps import open_labels
from tests.pipeline.run.test_corrections import A, B, C, make_run, paint

CLASSES = {
    "classes.txt": "road\nIgnore\nr:d\n",
    "classes.json": json.dumps(["road", "ignore", "r:d", None]),
    "labelmap.txt": "# names\nroad:1,2,3::\nignore:2,2,3::\nr：d:3,2,3::\nbackground:0,0,0::\n",
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


def write(folder: Path, maps: dict[str, np.ndarray], classes: str = "classes.txt") -> Path:
    for name, said in maps.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(said))
    (folder / classes).write_text(CLASSES[classes])
    return folder


@pytest.mark.parametrize("classes", CLASSES)
def test_label_pngs_are_read_as_if_they_were_painted(
    run: RunDirectory, tmp_path: Path, classes: str
) -> None:
    maps = {"a.png": paint(0, 1, 2, 255), "val/b.PNG": paint(2), "c.png": paint(0)}
    said = open_labels(run, write(tmp_path / "png", maps, classes))
    assert said.said_names() == said.classes() == ("road", "r:d")
    assert said.images() == [A, C]
    found = said.read_map(A)
    assert found is not None
    np.testing.assert_array_equal(found, paint(0, 255, 1, 255))
    assert said.read_map(B) is None
    assert said.find_strays() == ["c"]
    assert said.points_of(A) == []


def test_what_is_not_labelled_in_cvat_is_not_said(run: RunDirectory, tmp_path: Path) -> None:
    folder = write(tmp_path / "png", {"a.png": paint(0, 3, 3)}, "labelmap.txt")
    found = open_labels(run, folder).read_map(A)
    assert found is not None
    np.testing.assert_array_equal(found, paint(0))


def test_other_maps_and_other_names_are_another_fingerprint(
    run: RunDirectory, tmp_path: Path
) -> None:
    prints = []
    for said, names in ((paint(0), "road\nsky\n"), (paint(1), None), (paint(1), "sky\nroad\n")):
        folder = write(tmp_path / f"png{len(prints)}", {"part/a.png": said})
        (folder / "classes.txt").write_text(names or "road\nsky\n")
        prints.append(open_labels(run, folder).fingerprint())
    assert len({*prints, ""}) == 4
    assert open_labels(run, folder).fingerprint() == prints[-1]


@pytest.mark.parametrize(
    ("maps", "fault"),
    [
        ({"a.png": paint(3)}, r"it holds 3, which .*classes\.txt does not name"),
        ({"a.png": paint(0)[:5]}, "it is 8 x 5, the image 8 x 6"),
        ({"a.png": np.zeros((6, 8, 3), np.uint8)}, "it holds colours"),
        ({"a.png": paint(0), "part/a.png": paint(1)}, "both named after train/part/a"),
    ],
)
def test_a_wrong_map_is_one_sentence(
    run: RunDirectory, tmp_path: Path, maps: dict[str, np.ndarray], fault: str
) -> None:
    with pytest.raises((PipelineError, ImageError), match=fault):
        open_labels(run, write(tmp_path / "png", maps)).read_map(A)


def test_numbers_need_names(run: RunDirectory, tmp_path: Path) -> None:
    folder = write(tmp_path / "png", {"a.png": paint(0)})
    (folder / "classes.txt").unlink()
    with pytest.raises(PipelineError, match=r"put classes\.txt beside them"):
        open_labels(run, folder)
