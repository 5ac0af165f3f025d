"""Formats that further packages read, and files that none does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import get_dataset
from pipeline.errors import DatasetError, ImageError
from pipeline.images import formats
from pipeline.images.decoding import probe_image, read_rgb
from tests.scenes import draw_scene

FOLDER = get_dataset("folder")
HEADS = {
    "HEIF": b"\0\0\0\x18ftypheic" + bytes(99),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(99),
    "JXL": b"\xff\x0a" + bytes(99),
}


@pytest.mark.parametrize("name", formats.EXTRAS)
def test_a_further_format_is_read_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    module, (suffix, *_) = formats.EXTRAS[name]
    pytest.importorskip(module)
    assert formats.load_extra(name) and suffix in formats.list_suffixes()
    pixels = draw_scene(1, 64, 48)[0]
    for path in (tmp_path / f"a{suffix}", tmp_path / "b.jpg"):
        with path.open("wb") as file:
            Image.fromarray(pixels).save(file, format=name, quality=95)
        assert formats.name_extra(path.read_bytes()[:64]) == name
        header, found = probe_image(path), read_rgb(path)
        assert (header.width, header.height) == (64, 48) and found.shape == (48, 64, 3)
        assert abs(found.astype(int) - pixels).mean() < 8
    assert [s.image for s in FOLDER.list_samples(tmp_path, ("all",))] == [f"a{suffix}", "b.jpg"]


@pytest.mark.parametrize("name", HEADS)
def test_one_that_cannot_be_read_names_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_is_there", lambda module: False)
    (tmp_path / "a.jpg").write_bytes(HEADS[name])
    with pytest.raises(ImageError, match=rf"an image in {name}: .*primaps-pipe\[formats\]"):
        probe_image(tmp_path / "a.jpg")


def test_damaged_ones_are_refused(tmp_path: Path) -> None:
    for name, head in HEADS.items():
        (tmp_path / name).write_bytes(head)
        with pytest.raises(ImageError):
            read_rgb(tmp_path / name)


def test_what_is_left_out_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(formats, "_is_there", lambda module: False)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "IMG_0.JPG", format="JPEG")
    names = ("1.HEIC", "2.heic", "3.HEIC", "5.avif", "6.NEF", "7.MOV", "README", ".hidden")
    for name in names:
        (tmp_path / name).touch()
    assert [s.id for s in FOLDER.list_samples(tmp_path, ("all",))] == ["IMG_0"]
    (line,) = caplog.messages
    assert line.startswith("7 files of kinds that are not read (3 .heic, 1 ")
    for told in ("1 .avif", "1 .nef", "1 .mov", "1 without", "pip install 'primaps-pipe[formats]'"):
        assert told in line
    assert str(tmp_path) in line


def test_many_kinds_are_told_in_short() -> None:
    said = formats.describe_others(Counter({f".{n}": 1 for n in range(50)}))
    assert "50 files" in said and "and 41 other kinds" in said and "pip" not in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("all.zip", "not a folder: .* unpack the archive"),
        ("one.jpg", "not a folder: .* give one folder"),
        ("*.jpg", r"no such folder: .* --include '\*.jpg'"),
        ("a.jpg,b.jpg", "no such folder: .* give one folder"),
    ],
)
def test_a_root_that_is_no_folder_says_what_chooses_files(
    name: str, said: str, tmp_path: Path
) -> None:
    for file in ("all.zip", "one.jpg"):
        (tmp_path / file).touch()
    with pytest.raises(DatasetError, match=f"{said}.*--dataset list:FILE.csv") as caught:
        FOLDER.list_samples(tmp_path / name, ("all",))
    assert "\n" not in str(caught.value)
