"""Every shipped definition on a drawn sample of its layout, and a YAML of one's own."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import Benchmark, Sample, get_dataset, open_kept
from pipeline.errors import DatasetError, ImageError, UsageError
from tests.conftest import REPOSITORY
from tests.pipeline.datasets.layout import write_image, write_label

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
def test_ids_that_a_dataset_never_used_are_refused(name: str, wrong: int, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"does not have: {wrong}$"):
        get_dataset(name).read_label(write_label(tmp_path / "a.png", [[1, wrong]]))


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
    with pytest.raises(ImageError, match="does not have: 8, 10"):
        dataset.read_label(write_label(tmp_path / "x.png", [[8, 10, 4]]))


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
    with pytest.raises(ImageError, match="does not have: 33001"):
        dataset.read_label(tmp_path / "a.png")
