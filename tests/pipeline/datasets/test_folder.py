"""Any folder of images: depth, links, twins, splits and label maps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.datasets import Sample, get_dataset
from pipeline.errors import DatasetError, UsageError
from tests.pipeline.datasets.layout import write_image, write_label

FOLDER = get_dataset("folder")


def ids(root: Path, *splits: str, **options: object) -> list[str]:
    return [s.id for s in FOLDER.list_samples(root, splits or ("all",), **options)]  # type: ignore[arg-type]


def test_every_depth_and_suffix(tmp_path: Path) -> None:
    root = tmp_path / "my photos é"
    for name in (
        "b.jpg",
        "a.PNG",
        "sub/deep er/c.tif",
        "sub/d\n.webp",
        ".hidden.jpg",
        ".git/e.jpg",
    ):
        write_image(root / name)
    (root / "notes.txt").write_text("no image")
    (root / "broken.jpg").write_bytes(b"")
    samples = FOLDER.list_samples(root, ["all"])
    assert [s.id for s in samples] == ["a", "b", "broken", "sub/d\n", "sub/deep er/c"]
    assert samples[0] == Sample("a", "all", "a.PNG", None)
    assert all((root / s.image).is_file() for s in samples)


def test_twins_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "sub/a.jpg", "c.jpg", "c.jpg.png"):
        write_image(tmp_path / name)
    # 'c.jpg.png' without its suffix would be called as 'c.jpg' is: it keeps it.
    assert ids(tmp_path) == ["a.jpg", "a.png", "b", "c", "c.jpg.png", "sub/a"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_image(root / "real" / "a.jpg")
    write_image(tmp_path / "elsewhere" / "b.jpg")
    (root / "a_link").symlink_to(root / "real")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "real" / "up").symlink_to(root)
    (tmp_path / "elsewhere" / "round").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "whole").symlink_to(tmp_path)
    assert ids(root) == ["linked/b", "real/a"]


def test_a_linked_root_and_linked_files(tmp_path: Path) -> None:
    write_image(tmp_path / "store" / "a.jpg")
    (tmp_path / "store" / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "root").symlink_to(tmp_path / "store")
    assert ids(tmp_path / "root") == ["a", "dangling"]


def test_subfolders_are_splits(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "x" / "a.jpg")
    write_image(tmp_path / "val" / "x" / "a.jpg")
    assert FOLDER.list_samples(tmp_path, ["val", "train"]) == [
        Sample("x/a", "val", "val/x/a.jpg", None),
        Sample("x/a", "train", "train/x/a.jpg", None),
    ]
    assert ids(tmp_path) == ["train/x/a", "val/x/a"]
    for wrong in ("trian", "..", "train/x", "/", ".", ""):
        with pytest.raises(DatasetError, match="choose from all, train, val"):
            ids(tmp_path, wrong)


def test_an_empty_split_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    with pytest.raises(DatasetError, match=r"no images below .*val: .*\.jpg"):
        ids(tmp_path, "val")


def test_labels_pair_by_relative_path_never_by_bare_stem(tmp_path: Path) -> None:
    root, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("x/a.jpg", "y/a.jpg", "b.png", "c.jpg", "t.jpg", "t.png"):
        write_image(root / name)
    for name in ("x/a.png", "b.png", "c.jpg.png", "t.png"):
        write_label(labels / name, [[0, 3, 255]])
    samples = FOLDER.list_samples(root, ["all"], labels)
    assert {s.id: s.label for s in samples} == {
        "b": "b.png",
        "c": "c.jpg.png",
        "t.jpg": None,
        "t.png": "t.png",
        "x/a": "x/a.png",
        "y/a": None,
    }
    path = labels / (samples[0].label or "")
    assert path is not None and FOLDER.read_label(path).tolist() == [[0, 3, 255]]
    assert samples[-1].label is None


def test_labels_of_a_split_lie_below_its_name(tmp_path: Path) -> None:
    root, labels = tmp_path / "images", tmp_path / "labels"
    write_image(root / "val" / "a.jpg")
    write_label(labels / "val" / "a.png", [[0]])
    assert FOLDER.list_samples(root, ["val"], labels)[0].label == "val/a.png"


def test_labels_below_the_root_are_no_images(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "images" / "a.png", [[0]])
    (tmp_path / "again").symlink_to(tmp_path / "labels" / "images")
    assert ids(tmp_path, labels=tmp_path / "labels") == ["images/a"]


def test_excluded_folders_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "run" / "labels" / "all" / "a.png")
    assert ids(tmp_path, exclude=[tmp_path / "run"]) == ["a"]
    assert ids(tmp_path) == ["a", "run/labels/all/a"]


def test_labels_that_cannot_be(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_image(root / "a.jpg")
    with pytest.raises(DatasetError, match="no folder of label maps"):
        ids(root, labels=tmp_path / "missing")
    for holder in (root, tmp_path):
        with pytest.raises(UsageError, match="holds the images too"):
            ids(root, labels=holder)
    write_label(tmp_path / "labels" / "other.png", [[0]])
    with pytest.raises(DatasetError, match=r"a\.jpg in .* wants a\.png"):
        ids(root, labels=tmp_path / "labels")


def test_class_names_come_from_the_labels_folder(tmp_path: Path) -> None:
    assert FOLDER.class_names() == FOLDER.class_names(tmp_path) == ()
    (tmp_path / "classes.txt").write_text("sky\n\ntree \n", encoding="utf-8")
    assert FOLDER.class_names(tmp_path) == ("sky", "class 1", "tree")
    (tmp_path / "classes.txt").write_text("x\n" * 256)
    with pytest.raises(DatasetError, match="names 256 classes"):
        FOLDER.class_names(tmp_path)


def test_a_name_that_is_no_text_is_listed_with_the_reason(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    odd, fine = FOLDER.list_samples(tmp_path, ["all"])
    assert (odd.image, odd.reason) == ("\\xff.jpg", "a file whose name is not UTF-8: rename it")
    assert fine.id == "a" and fine.reason is None


def test_a_label_map_of_two_images_is_taken_for_neither(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("c.jpg", "c.jpg.png", "d.jpg", "d.jpg.png"):
        write_image(root / name)
    for name in ("c.jpg.png", "d.jpg.png", "d.jpg.png.png"):
        write_label(labels / name, [[0]])
    samples = FOLDER.list_samples(root, ["all"], labels)
    assert {s.image: s.label for s in samples} == {
        "c.jpg": None,
        "c.jpg.png": None,
        "d.jpg": "d.jpg.png",
        "d.jpg.png": "d.jpg.png.png",
    }
    assert "c.jpg.png" in caplog.text and "d.jpg.png" not in caplog.text


def test_names_that_leave_no_room_for_a_label_map(tmp_path: Path) -> None:
    for stem, suffixes in (("f" * 251, [".jpg"]), ("t" * 251, [".jpg", ".png"])):
        for suffix in suffixes:
            write_image(tmp_path / f"{stem}{suffix}")
    single, *twins = FOLDER.list_samples(tmp_path, ["all"])
    assert single.reason is None
    assert all("too long for its label map's (255 bytes + .png)" in str(t.reason) for t in twins)


def test_another_run_below_the_root_holds_no_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "old run" / "labels" / "all" / "a.png")
    (tmp_path / "old run" / "run.yaml").touch()
    (tmp_path / "old run" / "state").mkdir()
    assert ids(tmp_path) == ["a"]


def test_the_protocol_of_a_folder() -> None:
    assert FOLDER.default_frame == "whole" and FOLDER.default_splits == ("all",)
    assert len(FOLDER.palette) == 255
