"""An image of a run, found by what its user calls it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ImageError, UsageError
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image, Manifest
from pipeline.run.reader import find_image

RUN = RunDirectory(Path("runs/mine"))


def make_image(number: int, identity: str, split: str = "train", **changes: Any) -> Image:
    image = Image(number, identity, split, f"{identity}.jpg", None, 4, 3, 1, 0, str(number))
    return replace(image, **changes)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    images = (
        make_image(0, "street/0001"),
        make_image(1, "street/0001", "val", path="held out/street/0001.jpg"),
        make_image(2, "street/0002"),
        make_image(3, "yard/0002"),
        make_image(4, "yard/0003"),
        make_image(5, "broken", state="rejected", reason="not an image"),
    )
    for image in images:
        path = tmp_path / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Manifest("folder", tmp_path, None, images, ())


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("val/street/0001", 1),
        ("train/street/0001", 0),
        ("street/0002", 2),
        ("held out/street/0001.jpg", 1),
        ("0003", 4),
        ("0003.jpg", 4),
    ],
)
def test_an_image_has_many_names(manifest: Manifest, text: str, row: int) -> None:
    assert find_image(RUN, manifest, text).image == row


def test_the_path_of_the_photograph_finds_it(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_image(RUN, manifest, str(tmp_path / "yard/0002.jpg")).image == 3
    monkeypatch.chdir(tmp_path / "street")
    assert find_image(RUN, manifest, "../yard/0002.jpg").image == 3
    (tmp_path / "link.jpg").symlink_to(tmp_path / "yard/0002.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        find_image(RUN, manifest, str(tmp_path / "elsewhere" / "0009.jpg"))


def test_an_ambiguous_name_lists_the_choices(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="train/street/0001, val/street/0001: give one of these"):
        find_image(RUN, manifest, "street/0001")
    with pytest.raises(UsageError, match="train/street/0002, train/yard/0002"):
        find_image(RUN, manifest, "0002")


def test_many_choices_are_cut_short(tmp_path: Path) -> None:
    images = tuple(make_image(i, f"{i}/a") for i in range(11))
    with pytest.raises(UsageError, match=r"train/7/a and 3 more: give one"):
        find_image(RUN, Manifest("folder", tmp_path, None, images, ()), "a")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("street/002", "street/0002"), ("yrad/0003", "yard/0003"), ("val/stret/0001", "val/street/")],
)
def test_a_slip_of_the_pen_is_understood(manifest: Manifest, text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}"):
        find_image(RUN, manifest, text)


def test_something_else_entirely_is_told_the_ways(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="such as 'street/0001', split/id, or the photograph's"):
        find_image(RUN, manifest, "zzzzzzzz")
    with pytest.raises(UsageError, match="no images at all"):
        find_image(RUN, Manifest("folder", Path(), None, (), ()), "a")


def test_a_rejected_image_says_why(manifest: Manifest) -> None:
    with pytest.raises(
        ImageError, match=r"'broken' was rejected by .*: not an image; .*broken.jpg"
    ):
        find_image(RUN, manifest, "broken")
