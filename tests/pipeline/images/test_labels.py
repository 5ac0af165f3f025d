"""Label maps: the ids are read back, and those of another evaluation are removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import RunError
from pipeline.images.decoding import read_label, remove_other_labels, write_label

PALETTE = bytes((37 * i + c) % 256 for i in range(256) for c in range(3))


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 255, 255, 254], [5, 5, 5, 5]])
def test_ids_and_colours_are_read_back(tmp_path: Path, ids: list[int]) -> None:
    labels = np.array(ids, np.uint8).reshape(2, 2)
    path = tmp_path / "val" / "a.b" / "é.png"
    write_label(path, labels, PALETTE)
    np.testing.assert_array_equal(read_label(path), labels, strict=True)
    with Image.open(path) as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB"))
    table = np.frombuffer(PALETTE, np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(colours, table[labels])
    assert [p.name for p in path.parent.iterdir()] == ["é.png"]


def test_a_view_with_strides_is_written_as_it_reads(tmp_path: Path) -> None:
    labels = np.arange(40, dtype=np.uint8).reshape(5, 8)[::2, ::-3]
    write_label(tmp_path / "a.png", labels, PALETTE)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), labels)


def test_other_types_are_refused_rather_than_mangled(tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        write_label(tmp_path / "a.png", np.ones((2, 2), np.int64), PALETTE)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_equal_labels_give_equal_files(tmp_path: Path) -> None:
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    write_label(tmp_path / "a.png", labels, PALETTE)
    write_label(tmp_path / "b.png", labels, PALETTE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_folder_that_cannot_be_made_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "val").write_bytes(b"")
    with pytest.raises(RunError, match=r"^cannot write "):
        write_label(tmp_path / "val" / "a.png", np.zeros((2, 2), np.uint8), PALETTE)


def test_other_labels_are_removed(tmp_path: Path) -> None:
    keep = {tmp_path / "val" / "a.png", tmp_path / "val" / "dir.png" / "b.png"}
    others = [tmp_path / "train" / "deep" / "c.png", tmp_path / "val" / "d.png"]
    for path in [*keep, *others]:
        write_label(path, np.zeros((2, 2), np.uint8), PALETTE)
    (tmp_path / "val" / "classes.txt").write_text("a\n")
    assert remove_other_labels(tmp_path, keep) == 2
    left = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {*keep, tmp_path / "val" / "classes.txt"}
    assert not (tmp_path / "train").exists()
    assert remove_other_labels(tmp_path, keep) == 0
    assert remove_other_labels(tmp_path / "none", keep) == 0


def test_links_below_the_labels_are_left_alone(tmp_path: Path) -> None:
    outside, labels = tmp_path / "outside", tmp_path / "labels"
    (outside / "empty").mkdir(parents=True)
    (outside / "precious.png").write_bytes(b"precious")
    labels.mkdir()
    (labels / "full").symlink_to(outside)
    (labels / "empty").symlink_to(outside / "empty")
    (labels / "old.png").write_bytes(b"old")
    assert remove_other_labels(labels, set()) == 1
    assert (outside / "precious.png").read_bytes() == b"precious"
    assert (outside / "empty").is_dir()
