"""What every dataset shares: the registry, the mapping of ids, refusals in one sentence.

What differs between two definitions is said in words.

Palettes: distinct, stable, and laid out with 255 as ignore.
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import (
    DATASET_NAMES,
    IGNORE,
    IGNORE_COLOUR,
    Benchmark,
    describe_difference,
    distinct_colours,
    get_dataset,
    png_palette,
)
from pipeline.datasets.base import id_table, map_ids
from pipeline.datasets.definition import parse_definition
from pipeline.datasets.listing import read_ids, read_lines
from pipeline.errors import DatasetError, ImageError, UsageError

BENCHMARKS = {
    "ade20k": 150,
    "camvid": 11,
    "cityscapes": 27,
    "coco-stuff-171": 171,
    "cocostuff": 27,
    "kitti": 19,
    "mapillary": 65,
    "potsdam": 3,
    "voc": 21,
}


def test_names() -> None:
    assert set(DATASET_NAMES) == {"folder", *BENCHMARKS}
    assert [get_dataset(name).name for name in DATASET_NAMES] == list(DATASET_NAMES)


def test_unknown_name_lists_the_known_and_guesses() -> None:
    with pytest.raises(UsageError) as caught:
        get_dataset("CityScape")
    message = str(caught.value)
    assert "did you mean 'cityscapes'?" in message
    assert all(name in message for name in DATASET_NAMES)
    with pytest.raises(UsageError) as caught:
        get_dataset("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(("name", "count"), BENCHMARKS.items())
def test_a_benchmark_is_complete(name: str, count: int) -> None:
    dataset = get_dataset(name)
    assert isinstance(dataset, Benchmark)
    names = dataset.class_names()
    assert len(names) == len(set(names)) == count == len(dataset.palette)
    assert set(dataset.definition.class_of.values()) == set(range(count))
    assert not set(dataset.definition.ignored) & set(dataset.definition.class_of)
    wanted = ("train",) if name == "kitti" else ("train", "val")
    assert dataset.default_frame == "centre" and dataset.default_splits == wanted
    assert all(0 <= value <= 255 for colour in dataset.palette for value in colour)


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_a_dataset_travels_to_a_worker(name: str, tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(get_dataset(name)))
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[255, 255]], dtype=np.uint8)).save(path)
    assert copy.name == name and copy.read_label(path).tolist() == [[255, 255]]


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_missing_root_and_empty_root(name: str, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    nowhere = tmp_path / "no where"
    with pytest.raises(DatasetError, match=r"no such folder: .*no where; the root must hold"):
        dataset.list_samples(nowhere, dataset.default_splits)
    with pytest.raises(DatasetError) as caught:
        dataset.list_samples(tmp_path, dataset.default_splits)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="not a folder"):
        dataset.list_samples(tmp_path / "file", dataset.default_splits)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_splits_and_labels_that_cannot_be(name: str, tmp_path: Path) -> None:
    dataset = get_dataset(name)
    with pytest.raises(UsageError, match=r"unknown split of .*'trian' \(did you mean 'train'\?\)"):
        dataset.list_samples(tmp_path, ["trian"])
    with pytest.raises(UsageError, match="own layout"):
        dataset.list_samples(tmp_path, ["train"], labels=tmp_path)
    for splits in ([], ["train", "train"]):
        with pytest.raises(UsageError, match="each split once"):
            dataset.list_samples(tmp_path, splits)


def test_map_ids_by_hand() -> None:
    table = id_table({0: 0, 7: 1}, ignored=[3])
    for kind in (np.uint8, np.uint16, np.int64):
        mapped = map_ids(np.array([[0, 7], [3, 255]], dtype=kind), table)
        assert mapped.dtype == np.uint8 and mapped.tolist() == [[0, 1], [IGNORE, IGNORE]]
    assert map_ids(np.array([[-1, 7]], dtype=np.int16), table).tolist() == [[IGNORE, 1]]


@pytest.mark.parametrize("wrong", [1, 256, 65535, -2])
def test_ids_that_the_dataset_lacks_are_refused(wrong: int) -> None:
    with pytest.raises(ImageError, match=f"does not have: {wrong}$"):
        map_ids(np.array([[0, wrong]]), id_table({0: 0}))


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffb\r\n\r\na\nb\n\n".encode())
    assert read_ids(path) == ["a", "b"]
    assert read_lines(path) == ["b", "", "a", "b"]
    path.write_text("")
    assert read_ids(path) == read_lines(path) == []
    for escape in ("../x", "/etc/passwd", "a/b", ".hidden"):
        path.write_text(escape)
        with pytest.raises(DatasetError, match="not a plain id"):
            read_ids(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_ids(path)


PLAIN: dict[str, Any] = {
    "name": "mine",
    "images": "{split}/*.jpg",
    "splits": ["train", "val"],
    "classes": ["a", {"name": "b", "ids": ["3-5", 9]}],
}


def test_differences_are_told() -> None:
    old = parse_definition(PLAIN, "x").describe()
    assert describe_difference(old, {**old, "about": {"title": "other"}}) == ""
    other = parse_definition({**PLAIN, "classes": ["a", {"name": "c", "ids": 3}]}, "x").describe()
    told = describe_difference(old, other)
    assert "name of class 1 b -> c" in told and "ids of class 1 [3, 4, 5, 9] -> [3]" in told
    fewer = parse_definition({**PLAIN, "classes": ["a"]}, "x").describe()
    assert describe_difference(old, fewer) == "2 -> 1 classes"
    assert describe_difference(None, None) == ""
    many = {f"c{index}": f"{index}" for index in range(5)}
    assert describe_difference({}, many).endswith("c2 none -> 2, 2 more")
    moved = {**old, "images": ["x/{split}/*.jpg"]}
    assert describe_difference(old, moved) == "images [{split}/*.jpg] -> [x/{split}/*.jpg]"


def test_distinct_colours_are_distinct_and_stable() -> None:
    colours = distinct_colours(255)
    assert len(set(colours)) == 255 and IGNORE_COLOUR not in colours
    assert distinct_colours(12) == colours[:12] and distinct_colours(0) == ()
    steps = [np.abs(np.subtract(a, b)).max() for a, b in pairwise(colours)]
    assert min(steps) >= 60


def test_png_palette_lays_out_256_entries() -> None:
    camvid = get_dataset("camvid").palette
    entries = np.frombuffer(png_palette(camvid), dtype=np.uint8).reshape(256, 3)
    assert tuple(map(tuple, entries[:11].tolist())) == camvid
    assert tuple(map(tuple, entries[11:255].tolist())) == distinct_colours(255)[11:]
    assert tuple(entries[255].tolist()) == IGNORE_COLOUR


def test_more_classes_than_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 255"):
        distinct_colours(256)
    with pytest.raises(ValueError, match="at most 255"):
        png_palette([(0, 0, 0)] * 256)
