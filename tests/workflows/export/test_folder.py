"""The folder of an export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RunError, UsageError
from pipeline.storage.locks import hold_lock
from workflows.export.folder import open_folder

RECORD = {"format": "mmseg", "run": "mine"}


def test_a_new_folder_gets_a_record_that_ends_finished(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with open_folder(out, RECORD) as folder:
        assert json.loads((out / "export.json").read_text())["finished"] is False
        folder.write("a/b.txt", b"text")
    record = json.loads((out / "export.json").read_text())
    assert record["finished"] is True
    assert record["format"] == "mmseg"
    assert (out / "a" / "b.txt").read_bytes() == b"text"


def test_what_is_there_is_kept_by_the_same_export(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_folder(tmp_path, RECORD) as folder:
        folder.write("a.txt", b"first")
        raise KeyError
    with open_folder(tmp_path, RECORD) as folder:
        assert folder.has("a.txt")
        folder.write("a.txt", b"second")
    assert (tmp_path / "a.txt").read_bytes() == b"first"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(RunError, match=r"is not empty and holds no export; give a new folder"):
        open_folder(tmp_path, RECORD).__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_another_export_is_refused(tmp_path: Path) -> None:
    with open_folder(tmp_path, RECORD):
        pass
    with pytest.raises(RunError, match=r"holds another export \(format mmseg of mine"):
        open_folder(tmp_path, {**RECORD, "format": "yolo-seg"}).__enter__()
    # the same run under another name
    with open_folder(tmp_path, {**RECORD, "run": "other"}):
        pass


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(RunError, match=r"export.json is damaged"):
        open_folder(tmp_path, RECORD).__enter__()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file; give a folder"):
        open_folder(tmp_path / "out", RECORD).__enter__()


def test_two_exports_do_not_write_one_folder(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path / ".export.lock", what="it", wait=False),
        pytest.raises(RunError),
    ):
        open_folder(tmp_path, RECORD).__enter__()


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with open_folder(tmp_path, RECORD) as folder:
        with pytest.raises(KeyError), folder.stream("rows.json") as stream:
            stream.write(b"half")
            raise KeyError
        assert not folder.has("rows.json")
        with folder.stream("rows.json") as stream:
            stream.write(b"whole")
    assert (tmp_path / "rows.json").read_bytes() == b"whole"
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part"]


def test_labels_with_and_without_palette(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    with open_folder(tmp_path, RECORD) as folder:
        folder.write_labels("indexed.png", labels, bytes(range(256)) * 3)
        folder.write_labels("grey.png", labels, None)
    for name, mode in (("indexed", "P"), ("grey", "L")):
        image = Image.open(tmp_path / f"{name}.png")
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), labels)
