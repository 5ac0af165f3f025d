"""A folder in which some files are no images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

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
    assert "none of the 1 images" in output
