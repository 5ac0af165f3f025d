"""A folder in which some files are no images."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image, ImageFile

from pipeline.errors import AccessError
from pipeline.run import frames
from tests.end_to_end.conftest import FAST_EM, Invoke, write_scenes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight scenes, an empty file, a text, a truncated JPEG, and a PNG that claims 0 x 0 pixels."""
    write_scenes(tmp_path, 8)
    photographs = tmp_path / "photographs"
    whole = photographs / "part 0" / "scene 0.png"
    (photographs / "empty.png").write_bytes(b"")
    (photographs / "text.jpg").write_text("not a photograph\n")
    Image.open(whole).resize((200, 200)).save(tmp_path / "whole.jpg", quality=95)
    content = (tmp_path / "whole.jpg").read_bytes()
    (photographs / "cut.jpg").write_bytes(content[: len(content) // 2])
    header = bytearray(whole.read_bytes())
    header[16:24] = bytes(8)
    (photographs / "nothing.png").write_bytes(bytes(header))
    return photographs


def test_broken_images_are_listed_and_skipped(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    run = tmp_path / "run"
    output = invoke(
        *("extract", run, "--dataset", "folder", "--root", folder),
        *("--backbone", "handcrafted", "--size", 64, "--no-progress"),
    ).output
    assert "warning: 4 of 12 images were rejected" in output
    invoke("masks", run, "--no-progress")
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--no-progress")
    assert len(list((run / "labels").rglob("*.png"))) == 8
    rows = {row["path"]: row for row in pq.read_table(run / "manifest.parquet").to_pylist()}
    rejected = {path for path, row in rows.items() if row["state"] == "rejected"}
    assert rejected == {"empty.png", "text.jpg", "cut.jpg", "nothing.png"}
    assert all(rows[path]["reason"] for path in rejected)
    page = (run / "report" / "index.html").read_text()
    assert all(path in page for path in rejected)


def test_a_mended_image_is_tried_again(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = (
        *("extract", run, "--dataset", "folder", "--root", folder),
        *("--backbone", "handcrafted", "--size", 64, "--no-progress"),
    )
    invoke(*arguments)
    again = invoke(*arguments).output
    assert "nothing to do" in again
    shutil.copy(tmp_path / "whole.jpg", folder / "cut.jpg")
    output = invoke(*arguments).output
    assert "3 of 12 images were rejected" in output


def test_a_folder_of_broken_images_alone_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "empty.png").write_bytes(b"")
    output = invoke(
        *("extract", tmp_path / "run", "--dataset", "folder", "--root", folder),
        *("--backbone", "handcrafted"),
        code=1,
    ).output
    assert "of 1 image at" in output and "none can be read" in output


OPTIONS = ("--backbone", "handcrafted", "--size", 64, "--shard-size", 3, "--no-progress")


@pytest.fixture
def extract(invoke: Invoke, tmp_path: Path) -> Callable[..., str]:
    """Extract four scenes; give what was printed."""
    write_scenes(tmp_path, 4)

    def call(code: int = 0) -> str:
        dataset = ("--dataset", "folder", "--root", tmp_path / "photographs")
        return invoke("extract", tmp_path / "run", *dataset, *OPTIONS, code=code).output

    return call


def find_gaps(run: Path) -> tuple[dict[str, str | None], set[str]]:
    """Return path -> reason of the rejected images, and the paths of those with zero features."""
    images = pq.read_table(run / "manifest.parquet").to_pylist()
    windows = pq.read_table(run / "windows.parquet").to_pylist()
    features = np.asarray(zarr.open_group(run / "features.zarr", mode="r")["clean"])
    zero = {images[w["image"]]["path"] for w in windows if not features[w["index"]].any()}
    return {i["path"]: i["reason"] for i in images if i["state"] == "rejected"}, zero


def test_an_image_that_could_not_be_had_is_known_under_another_name(
    extract: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs, run = tmp_path / "photographs", tmp_path / "run"
    locked = {"part 1/scene 1.png"}
    read = frames.read_strips

    def refuse(path: Path, digest: str = "") -> Any:
        if path.relative_to(photographs).as_posix() in locked:
            raise AccessError("cannot be opened: permission denied")
        return read(path, digest)

    monkeypatch.setattr(frames, "read_strips", refuse)
    extract()
    assert find_gaps(run) == ({next(iter(locked)): "cannot be opened: permission denied"}, locked)
    # its place among the others stays the same
    (photographs / "part 1/scene 1.png").rename(photographs / "part 1/scene 2.png")
    locked = {"part 1/scene 2.png"}
    extract()
    assert find_gaps(run) == ({next(iter(locked)): "cannot be opened: permission denied"}, locked)
    (photographs / "part 1/scene 2.png").rename(photographs / "part 1/scene 1b.png")
    assert "1 of" in extract()
    assert find_gaps(run) == ({}, set())
    assert "nothing to do" in extract()


def test_a_drive_that_fails_rejects_no_image(
    extract: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def fail(self: Path, **how: Any) -> Any:
        if self.name == "scene 1.png":
            raise OSError(errno.EIO, "Input/output error")
        return stat(self, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", fail)
        output = extract(code=1)
    assert "scene 1.png: Input/output error; see to the drive" in output
    extract()
    assert find_gaps(tmp_path / "run") == ({}, set())


def test_memory_that_is_short_rejects_no_image(
    extract: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ImageFile.ImageFile.load

    def fail(self: Any) -> Any:
        if self.size == (140, 100):
            raise MemoryError
        return load(self)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", fail)
        output = extract(code=1)
    assert "MemoryShortError" in output
    assert "scene 1.png cannot be read: memory is short; free some of it" in output
    extract()
    assert find_gaps(tmp_path / "run") == ({}, set())
