"""Images without a definition: any folder of them, and lists of them as CSV."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import pickle
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset_names import complete_dataset_name
from pipeline.datasets import get_dataset, open_kept
from pipeline.datasets.base import Sample
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
    with pytest.raises(UsageError, match="holds the images too"):
        ids(root, labels=tmp_path)
    with pytest.raises(DatasetError, match=r"a\.jpg in .* wants a\.png"):
        ids(root, labels=root)
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
    assert FOLDER.definition.frame == "whole" and FOLDER.default_splits == ("all",)
    assert len(FOLDER.palette) == 255


def write_list(folder: Path, text: str, encoding: str = "utf-8") -> str:
    """Write a list; return the dataset's name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all.csv").write_bytes(text.encode(encoding))
    return f"list:{folder / 'all.csv'}"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b c.jpg", "d/e.png", 'f,"g.jpg'):
        write_image(tmp_path / "set" / name)
    write_label(tmp_path / "set" / "l" / "a.png", [[0, 7, 255]])
    return tmp_path / "set"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_list_by_hand(photographs: Path, separator: str, mark: str, end: str) -> None:
    rows = [
        ["Image", "label", " split ", "remark"],
        ["d/e.png", "", "val", '"of, ""me"""'],
        [],
        ["b c.jpg", "l/none.png", "train"],
        ["./a.jpg", str(photographs / "l" / "a.png"), "train", ""],
        ['"f,""g.jpg"', "", "train"],
    ]
    text = mark + end.join(separator.join(row) for row in rows)
    dataset = get_dataset(write_list(photographs, text))
    assert dataset.default_splits == ("val", "train")
    assert dataset.definition.frame == "whole"
    root = dataset.find_root(None)
    assert root == photographs
    assert dataset.list_samples(root, ("train", "val")) == [
        Sample("a", "train", "a.jpg", "l/a.png"),
        Sample("b c", "train", "b c.jpg", None),
        Sample('f,"g', "train", 'f,"g.jpg', None),
        Sample("d/e", "val", "d/e.png", None),
    ]
    assert dataset.read_label(photographs / "l" / "a.png").tolist() == [[0, 7, 255]]
    assert dataset.class_names() == () and len(dataset.palette) == 255


def test_names_of_classes_and_one_column(photographs: Path) -> None:
    (photographs / "classes.txt").write_text("sky\nroad\n")
    name = write_list(photographs, "image\na.jpg\n")
    dataset = get_dataset(name)
    assert dataset.class_names() == ("sky", "road") and len(dataset.palette) == 2
    assert dataset.default_splits == ("all",)
    kept = open_kept(name, json.loads(json.dumps(dataset.content)))
    (photographs / "classes.txt").unlink()
    assert kept.class_names() == ("sky", "road")
    assert kept.name == name
    assert kept.list_samples(photographs, ["all"]) == dataset.list_samples(photographs, ["all"])
    (photographs / "all.csv").unlink()
    again = open_kept(name, kept.content)
    assert again.class_names() == ("sky", "road")
    with pytest.raises(DatasetError, match="cannot read the list"):
        again.list_samples(photographs, ["all"])


def test_another_root(photographs: Path, tmp_path: Path) -> None:
    dataset = get_dataset(write_list(tmp_path / "lists", "image,label\nset/a.jpg,set/l/a.png\n"))
    assert dataset.find_root(None) == tmp_path / "lists"
    (sample,) = dataset.list_samples(tmp_path, ["all"])
    assert (sample.image, sample.label, sample.id) == ("set/a.jpg", "set/l/a.png", "set/a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no image"),
        ("image,label\n", "lists no image"),
        ("imagge,label\na.jpg,\n", r"no column 'image' \(did you mean 'image'\?\)"),
        ("a.jpg\nb c.jpg\n", "no column 'image'"),
        ("image,image\na.jpg,\n", "the column 'image' twice"),
        ("image,label\na.jpg,b,c\n", "line 2 of .* has 3 values for 2 columns"),
        ("image,label\n,l/a.png\n", "line 2 of .* names no image"),
        ('image\n"a.jpg', "line 2 of .* is not CSV"),
        ("image\n../a.jpg\n", r"line 2 of .*'\.\./a\.jpg' does not lie below"),
        ("image\nd/../../a.jpg\n", "does not lie below"),
        ("image\n/etc/passwd\n", "does not lie below"),
        ("image\ns3://bucket/a.jpg\n", "does not lie below"),
        ("image,label\na.jpg,../l/a.png\n", "does not lie below"),
        ("image\n.\n", "does not lie below"),
        ("image\nd\\e.png\n", "backslash"),
        ("image,split\na.jpg,../x\n", "is no name of a split"),
        ("image,split\na.jpg,a/b\n", "is no name of a split"),
        ("image,label\na.jpg,l/a.png\na.jpg,\n", "line 3 .* another label map than line 2"),
    ],
)
def test_wrong_lists(photographs: Path, text: str, said: str) -> None:
    name = write_list(photographs, text)
    with pytest.raises(DatasetError, match=said) as caught:
        dataset = get_dataset(name)
        dataset.list_samples(photographs, dataset.default_splits)
    assert str(photographs) in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals(photographs: Path) -> None:
    with pytest.raises(DatasetError, match="not UTF-8"):
        dataset = get_dataset(write_list(photographs, "image\nä.jpg\n", "latin-1"))
        dataset.list_samples(photographs, ["all"])
    dataset = get_dataset(write_list(photographs, "image,split\na.jpg,train\n"))
    with pytest.raises(UsageError, match=r"unknown split .*did you mean 'train'"):
        dataset.list_samples(photographs, ["trian"])
    with pytest.raises(UsageError, match="leave the labels folder out"):
        dataset.list_samples(photographs, ["train"], labels=photographs)
    with pytest.raises(DatasetError, match="there is no list"):
        get_dataset("list:nowhere.csv")
    with pytest.raises(UsageError, match="give the path of the CSV file"):
        get_dataset("list:")


def test_images_that_are_there_twice(photographs: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "image,split\na.jpg,train\n./a.jpg,train\nd//e.png,train\nd/e.png,val\n"
    dataset = get_dataset(write_list(photographs, text))
    with caplog.at_level(logging.WARNING):
        samples = dataset.list_samples(photographs, ["train", "val"])
    assert [(s.split, s.image) for s in samples] == [
        ("train", "a.jpg"),
        ("train", "d/e.png"),
        ("val", "d/e.png"),
    ]
    assert "1 lines of" in caplog.text and "1 images of" in caplog.text


def test_names_that_would_clash_are_whole(photographs: Path) -> None:
    write_image(photographs / "a.png")
    dataset = get_dataset(write_list(photographs, "image\na.jpg\na.png\nb c.jpg\n"))
    assert [s.id for s in dataset.list_samples(photographs, ["all"])] == ["a.jpg", "a.png", "b c"]


def test_paths_are_remembered_in_full(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_list(photographs, "image\na.jpg\n")
    monkeypatch.chdir(photographs.parent)
    name = complete_dataset_name(f"list:set{os.sep}all.csv")
    assert name == f"list:{photographs / 'all.csv'}"
    copy = pickle.loads(pickle.dumps(get_dataset(name)))
    assert [s.id for s in copy.list_samples(photographs, ["all"])] == ["a"]


def test_a_space_behind_a_comma_is_no_part_of_a_name(photographs: Path) -> None:
    (photographs / "l.png").touch()
    dataset = get_dataset(write_list(photographs, "image, label, split\na.jpg, l.png, train\n"))
    (sample,) = dataset.list_samples(photographs, ["train"])
    assert (sample.image, sample.label) == ("a.jpg", "l.png")


NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1)
PATH = st.lists(NAME.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3)
SPLIT = st.sampled_from(["train", "val", "tést-2"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(PATH.map("/".join), SPLIT, min_size=1, max_size=6), st.sampled_from(",;\t"))
def test_whatever_csv_writes_is_read_back(rows: dict[str, str], separator: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([["image", "split", "label"], *([*row, ""] for row in rows.items())])
    with tempfile.TemporaryDirectory() as folder:
        dataset = get_dataset(write_list(Path(folder), text.getvalue()))
        samples = dataset.list_samples(Path(folder), dataset.default_splits)
    assert {sample.image: sample.split for sample in samples} == rows
    assert len({(sample.split, sample.id) for sample in samples}) == len(rows)
