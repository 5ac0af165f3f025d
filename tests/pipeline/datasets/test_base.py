"""What every dataset shares, and every shipped definition on a drawn sample of its layout."""

from __future__ import annotations

import logging
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset_names import DATASET_NAMES
from pipeline.datasets import get_dataset, open_kept
from pipeline.datasets.base import Benchmark, Sample
from pipeline.datasets.definition import (
    IGNORE_COLOUR,
    describe_difference,
    distinct_colours,
    parse_definition,
    png_palette,
)
from pipeline.datasets.listing import read_ids, read_lines
from pipeline.errors import DatasetError, UsageError
from tests.conftest import REPOSITORY
from tests.pipeline.datasets.layout import write_image, write_label

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
    assert dataset.definition.frame == "centre" and dataset.default_splits == wanted
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


EXAMPLE = REPOSITORY / "docs" / "examples" / "my-dataset.yaml"

# dataset: split, image, label map, id of the image, raw ids, the classes that they mean
LAYOUTS = {
    "ade20k": (
        *("train", "images/training/ADE_train_00000001.jpg"),
        *("annotations/training/ADE_train_00000001.png", "ADE_train_00000001"),
        *([0, 1, 150, 255], [255, 0, 149, 255]),
    ),
    "camvid": (
        *("val", "val/0016E5_07959.png", "valannot/0016E5_07959.png", "0016E5_07959"),
        *([0, 10, 11], [0, 10, 255]),
    ),
    "cityscapes": (
        *("val", "leftImg8bit/val/ulm/ulm_0_1_leftImg8bit.png"),
        *("gtFine/val/ulm/ulm_0_1_gtFine_labelIds.png", "ulm/ulm_0_1"),
        *([0, 6, 7, 33, 34], [255, 255, 0, 26, 255]),
    ),
    "coco-stuff-171": (
        *("val", "images/val2017/000000000139.jpg", "annotations/val2017/000000000139.png"),
        *("000000000139", [0, 10, 12, 89, 91, 181, 255], [0, 10, 11, 79, 80, 170, 255]),
    ),
    "cocostuff": (
        *("val", "images/val2017/000000000139.jpg", "annotations/val2017/000000000139.png"),
        *("000000000139", [0, 71, 119, 255], [9, 0, 26, 255]),
    ),
    "kitti": (
        *("train", "training/image_2/000000_10.png", "training/semantic/000000_10.png"),
        *("000000_10", [0, 7, 9, 11, 33], [255, 0, 255, 2, 18]),
    ),
    "mapillary": (
        *("val", "validation/images/aB-_x.jpg", "validation/v1.2/labels/aB-_x.png", "aB-_x"),
        *([0, 13, 64, 65], [0, 13, 64, 255]),
    ),
    "voc": (
        *("trainval", "JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png"),
        *("2007_000032", [0, 1, 20, 255], [0, 1, 20, 255]),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sample_of_every_layout(name: str, tmp_path: Path) -> None:
    split, image, label, wanted, ids, classes = LAYOUTS[name]
    write_image(tmp_path / image)
    write_label(tmp_path / label, [ids])
    if name == "voc":
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / f"{split}.txt").write_text(f"{wanted}\n")
        write_image(tmp_path / "JPEGImages" / "2007_000001.jpg")  # of detection alone
    dataset = get_dataset(name)
    assert dataset.list_samples(tmp_path, [split]) == [Sample(wanted, split, image, label)]
    assert dataset.read_label(tmp_path / label).tolist() == [classes]
    kept = open_kept(name, dataset.content)
    assert kept.list_samples(tmp_path, [split]) == dataset.list_samples(tmp_path, [split])
    assert kept.read_label(tmp_path / label).tolist() == [classes]


@pytest.mark.parametrize(
    ("name", "wrong"), [("ade20k", 151), ("coco-stuff-171", 11), ("mapillary", 66), ("voc", 21)]
)
def test_ids_that_a_dataset_never_used_are_told(name: str, wrong: int, tmp_path: Path) -> None:
    found = get_dataset(name).open_label(write_label(tmp_path / "a.png", [[1, wrong]]))
    assert found.count().unknown == {str(wrong): 1}


@pytest.mark.parametrize(
    ("name", "index", "class_name", "colour"),
    [
        ("ade20k", 0, "wall", (120, 120, 120)),
        ("ade20k", 12, "person", (150, 5, 61)),
        ("ade20k", 149, "flag", (92, 0, 255)),
        ("coco-stuff-171", 11, "stop sign", None),
        ("coco-stuff-171", 79, "toothbrush", None),
        ("coco-stuff-171", 80, "banner", None),
        ("coco-stuff-171", 170, "wood", None),
        ("kitti", 0, "road", (128, 64, 128)),
        ("kitti", 18, "bicycle", (119, 11, 32)),
        ("mapillary", 13, "Road", (128, 64, 128)),
        ("mapillary", 27, "Sky", (70, 130, 180)),
        ("mapillary", 64, "Ego Vehicle", (120, 10, 10)),
        ("voc", 15, "person", (192, 128, 128)),
        ("voc", 20, "tv/monitor", (0, 64, 128)),
    ],
)
def test_names_and_colours(
    name: str, index: int, class_name: str, colour: tuple[int, int, int] | None
) -> None:
    dataset = get_dataset(name)
    assert dataset.class_names()[index] == class_name
    assert colour is None or dataset.palette[index] == colour


def test_voc_needs_its_lists(tmp_path: Path) -> None:
    write_image(tmp_path / "JPEGImages" / "a.jpg")
    with pytest.raises(DatasetError, match=r"no list of images at .*Segmentation/train\.txt"):
        get_dataset("voc").list_samples(tmp_path, ["train"])


def test_voc_label_maps_are_indices_and_not_colours(tmp_path: Path) -> None:
    voc = get_dataset("voc")
    image = Image.fromarray(np.array([[0, 15, 255]], np.uint8), mode="P")
    image.putpalette([value for colour in voc.palette for value in colour])
    image.save(tmp_path / "a.png")
    assert voc.read_label(tmp_path / "a.png").tolist() == [[0, 15, 255]]


def test_label_maps_of_an_older_mapillary(tmp_path: Path) -> None:
    write_image(tmp_path / "training" / "images" / "a.jpg")
    write_label(tmp_path / "training" / "labels" / "a.png", [[3]])
    (sample,) = get_dataset("mapillary").list_samples(tmp_path, ["train"])
    assert sample.label == "training/labels/a.png"
    write_label(tmp_path / "training" / "v1.2" / "labels" / "a.png", [[3]])
    (sample,) = get_dataset("mapillary").list_samples(tmp_path, ["train"])
    assert sample.label == "training/v1.2/labels/a.png"


def test_real_label_maps_hold_the_171_classes(shared: Path) -> None:
    root = shared / "datasets" / "cocostuff"
    fine, coarse = get_dataset("coco-stuff-171"), get_dataset("cocostuff")
    samples = fine.list_samples(root, ["train", "val"])
    assert [(s.id, s.label) for s in samples] == [
        (s.id, s.label) for s in coarse.list_samples(root, ["train", "val"])
    ]
    names, groups = fine.class_names(), coarse.class_names()
    for sample in samples[::20]:
        path = root / (sample.label or "")
        ids, group = fine.read_label(path), coarse.read_label(path)
        assert ((ids == 255) == (group == 255)).all()
        pairs = {
            (names[a], groups[b]) for a, b in {*zip(ids.flat, group.flat, strict=True)} if a != 255
        }
        assert {b for a, b in pairs if a == "person"} <= {"person"}
        assert {b for a, b in pairs if a in ("car", "bus", "boat")} <= {"vehicle"}
        assert {b for a, b in pairs if a in ("tree", "grass", "bush")} <= {"plant"}


def draw_orchard(root: Path) -> None:
    for split, name in (("train", "b"), ("train", "a 1"), ("val", "c")):
        write_image(root / split / "photographs" / f"{name}.jpg")
        write_label(root / split / "masks" / f"{name}.png", [[0, 1, 3, 7, 9, 200, 255]])


def test_the_documented_example(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 15
    draw_orchard(tmp_path)
    (tmp_path / "train" / "masks" / "b.png").unlink()
    dataset = get_dataset(str(EXAMPLE))
    assert dataset.name == "orchard"
    assert dataset.class_names() == ("grass", "tree", "fruit", "path")
    assert dataset.palette[:3] == ((120, 200, 80), (30, 110, 40), (208, 32, 42))
    samples = dataset.list_samples(tmp_path, dataset.default_splits)
    assert [(s.split, s.id) for s in samples] == [("train", "a 1"), ("train", "b"), ("val", "c")]
    assert [sample.label is None for sample in samples] == [False, True, False]
    path = tmp_path / (samples[0].label or "")
    assert path and dataset.read_label(path).tolist() == [[255, 0, 1, 2, 3, 255, 255]]
    found = dataset.open_label(write_label(tmp_path / "x.png", [[8, 10, 4]]))
    assert found.count().unknown == {"8": 1, "10": 1}


def test_one_s_own_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"mine\.yaml: there is no such file"):
        get_dataset("mine.yaml")


def write_definition(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_images_of_two_kinds_and_twins(tmp_path: Path) -> None:
    name = write_definition(tmp_path / "x.yaml", 'name: x\nimages: ["i/*.jpg", "i/*.png"]\n')
    for image in ("a.jpg", "b.png"):
        write_image(tmp_path / "i" / image)
    dataset = get_dataset(name)
    assert isinstance(dataset, Benchmark)
    assert [s.image for s in dataset.list_samples(tmp_path, ["all"])] == ["i/a.jpg", "i/b.png"]
    write_image(tmp_path / "i" / "a.png")
    with pytest.raises(DatasetError, match=r"have the id 'a', i/a\.jpg and i/a\.png"):
        dataset.list_samples(tmp_path, ["all"])


def test_lists_with_images_of_two_kinds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = 'name: x\nimages: ["i/*.jpg", "i/*.png"]\nlists: l.txt\n'
    dataset = get_dataset(write_definition(tmp_path / "x.yaml", text))
    for image in ("a.jpg", "b.png", "c.png"):
        write_image(tmp_path / "i" / image)
    (tmp_path / "l.txt").write_text("b\na\nd\n")
    with caplog.at_level(logging.WARNING):
        found = dataset.list_samples(tmp_path, ["all"])
    assert [sample.image for sample in found] == ["i/a.jpg", "i/b.png"]
    assert "1 of 3 listed images" in caplog.text
    (tmp_path / "l.txt").write_text("../a\n")
    with pytest.raises(DatasetError, match="not a plain id"):
        dataset.list_samples(tmp_path, ["all"])


def test_an_id_too_long_for_its_label_map_is_a_reason(tmp_path: Path) -> None:
    dataset = get_dataset(write_definition(tmp_path / "x.yaml", 'name: x\nimages: "i/*"\n'))
    write_image(tmp_path / "i" / f"{'a' * 250}.jpg")
    (sample,) = dataset.list_samples(tmp_path, ["all"])
    assert sample.reason and "too long" in sample.reason


def test_ids_of_sixteen_bits(tmp_path: Path) -> None:
    text = 'name: x\nimages: "*.jpg"\nignore: 0\nclasses: [{name: far, ids: 33000}]\n'
    dataset = get_dataset(write_definition(tmp_path / "x.yaml", text))
    Image.fromarray(np.array([[0, 33000]], np.uint16)).save(tmp_path / "a.png")
    assert dataset.read_label(tmp_path / "a.png").tolist() == [[255, 0]]
    Image.fromarray(np.array([[0, 33001]], np.uint16)).save(tmp_path / "a.png")
    assert dataset.open_label(tmp_path / "a.png").count().unknown == {"33001": 1}
