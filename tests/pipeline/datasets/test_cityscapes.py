"""Cityscapes in its own layout, scored on 27 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.datasets import get_dataset
from pipeline.datasets.base import Sample
from pipeline.images.decoding import read_rgb
from tests.pipeline.datasets.layout import write_image, write_label

CITYSCAPES = get_dataset("cityscapes")


def test_layout(tmp_path: Path) -> None:
    image = "leftImg8bit/train/{0}/{0}_000001_000019_leftImg8bit.png"
    label = "gtFine/train/{0}/{0}_000001_000019_gtFine_labelIds.png"
    for city in ("zürich", "aachen"):
        write_image(tmp_path / image.format(city))
    write_image(tmp_path / "leftImg8bit/train/aachen/other.png")
    write_label(tmp_path / label.format("zürich"), [[7]])
    write_label(tmp_path / label.format("zürich").replace("labelIds", "color"), [[7]])
    assert CITYSCAPES.list_samples(tmp_path, ["train"]) == [
        Sample("aachen/aachen_000001_000019", "train", image.format("aachen"), None),
        Sample(
            "zürich/zürich_000001_000019",
            "train",
            image.format("zürich"),
            label.format("zürich"),
        ),
    ]


def test_ids_7_to_33_are_the_classes_and_all_others_void(tmp_path: Path) -> None:
    path = write_label(tmp_path / "a.png", [list(range(256))])
    expected = [255] * 7 + list(range(27)) + [255] * 222
    assert CITYSCAPES.read_label(path).tolist() == [expected]
    names = CITYSCAPES.class_names()
    # Label ids of the official table: 11 building, 23 sky, 24 person, 26 car, 33 bicycle.
    official = {11: "building", 21: "vegetation", 23: "sky", 24: "person", 26: "car", 33: "bicycle"}
    assert {index: names[index - 7] for index in official} == official
    assert CITYSCAPES.palette[names.index("sky")] == (70, 130, 180)
    assert CITYSCAPES.palette[names.index("bicycle")] == (119, 11, 32)


def test_real_frames(shared: Path) -> None:
    root = shared / "datasets" / "cityscapes"
    samples = CITYSCAPES.list_samples(root, ["train", "val"])
    assert [sum(s.split == split for s in samples) for split in ("train", "val")] == [6, 2]
    assert samples[0].id == "aachen/aachen_000000_000019"
    names = CITYSCAPES.class_names()
    image = read_rgb(root / samples[0].image).astype(int)
    label = CITYSCAPES.read_label(root / (samples[0].label or ""))
    assert image.shape == (1024, 2048, 3) and label.shape == (1024, 2048)
    rows = {
        name: np.nonzero(label == names.index(name))[0].mean()
        for name in ("sky", "vegetation", "car", "road")
    }
    assert rows["sky"] < rows["vegetation"] < rows["car"] < rows["road"]
    assert image[label == names.index("sky")].mean() > 1.5 * image[label == 0].mean()
