"""Lists of images as CSV: what they may say, and what is said of those that are wrong."""

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

from pipeline.datasets import Sample, complete_dataset_name, get_dataset, open_kept
from pipeline.errors import DatasetError, UsageError
from tests.pipeline.datasets.layout import write_image, write_label


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
    assert dataset.default_frame == "whole"
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
