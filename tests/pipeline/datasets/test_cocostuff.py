"""COCO-Stuff in STEGO's layout, scored on 27 coarse classes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import get_dataset
from pipeline.datasets.base import Benchmark, Sample
from pipeline.errors import DatasetError
from pipeline.images.decoding import read_rgb
from tests.pipeline.datasets.layout import write_image, write_label

COCOSTUFF = get_dataset("cocostuff")
CURATED = "Coco164kFull_Stuff_Coarse_7.txt"


def write_samples(root: Path) -> None:
    for name in ("000000000009", "000000000025", "000000000030"):
        write_image(root / "images" / "train2017" / f"{name}.jpg")
    write_label(root / "annotations" / "train2017" / "000000000025.png", [[0]])


def test_the_curated_list_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_samples(tmp_path)
    curated = tmp_path / "curated" / "train2017" / CURATED
    curated.parent.mkdir(parents=True)
    curated.write_text("000000000030\n000000000025\n000000000099\n")
    with caplog.at_level(logging.WARNING):
        samples = COCOSTUFF.list_samples(tmp_path, ["train"])
    assert samples == [
        Sample(
            "000000000025",
            "train",
            "images/train2017/000000000025.jpg",
            "annotations/train2017/000000000025.png",
        ),
        Sample("000000000030", "train", "images/train2017/000000000030.jpg", None),
    ]
    assert "1 of 3 listed images" in caplog.text and "000000000099.jpg" in caplog.text


def test_without_the_list_every_image_counts_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_samples(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(COCOSTUFF.list_samples(tmp_path, ["train"])) == 3
    assert "no list at" in caplog.text and "all 3 images" in caplog.text
    with pytest.raises(DatasetError, match="no images of the split 'val'"):
        COCOSTUFF.list_samples(tmp_path, ["val"])


def test_every_fine_id_has_one_class() -> None:
    assert isinstance(COCOSTUFF, Benchmark)
    assert sorted(COCOSTUFF.definition.class_of) == list(range(182))
    things = {fine for fine, index in COCOSTUFF.definition.class_of.items() if index < 12}
    assert things == set(range(91))


@pytest.mark.parametrize(
    ("fine", "name"),
    [
        (0, "person"),
        (2, "vehicle"),
        (9, "outdoor"),
        (16, "animal"),
        (31, "accessory"),
        (36, "sports"),
        (46, "kitchen"),
        (52, "food"),
        (61, "furniture"),
        (71, "electronic"),
        (81, "appliance"),
        (83, "indoor"),
        (96, "plant"),
        (105, "sky"),
        (119, "water"),
        (148, "ground"),
        (156, "sky"),
        (168, "plant"),
        (176, "wall"),
        (181, "solid"),
    ],
)
def test_fine_ids_of_the_label_hierarchy(tmp_path: Path, fine: int, name: str) -> None:
    label = COCOSTUFF.read_label(write_label(tmp_path / "a.png", [[fine, 255]]))
    assert label.tolist() == [[COCOSTUFF.class_names().index(name), 255]]


def test_ids_beyond_the_hierarchy_are_refused(tmp_path: Path) -> None:
    found = COCOSTUFF.open_label(write_label(tmp_path / "a.png", [[0, 182]]))
    assert found.count().unknown == {"182": 1}


def test_real_images(shared: Path) -> None:
    root = shared / "datasets" / "cocostuff"
    samples = COCOSTUFF.list_samples(root, ["train", "val"])
    assert [sum(s.split == split for s in samples) for split in ("train", "val")] == [100, 100]
    names = COCOSTUFF.class_names()
    rows: dict[str, list[float]] = {"sky": [], "ground": []}
    channels: dict[str, list[np.ndarray]] = {"sky": [], "plant": []}
    for sample in samples[::4]:
        image = read_rgb(root / sample.image)
        label = COCOSTUFF.read_label(root / (sample.label or ""))
        assert image.shape[:2] == label.shape
        for name in ("sky", "ground", "plant"):
            where = label == names.index(name)
            if where.mean() > 0.1 and name in rows:
                rows[name].append(float(np.nonzero(where)[0].mean() / len(label)))
            if where.mean() > 0.1 and name in channels:
                channels[name].append(image[where].mean(axis=0))
    assert np.mean(rows["sky"]) < 0.35 < 0.6 < np.mean(rows["ground"])
    sky, plant = np.mean(channels["sky"], axis=0), np.mean(channels["plant"], axis=0)
    assert sky[2] > sky[0] and plant[1] > plant[2] and sky.mean() > plant.mean() + 40


def test_real_dog_on_a_beach(shared: Path) -> None:
    root = shared / "datasets" / "cocostuff"
    sample = COCOSTUFF.list_samples(root, ["train"])[0]
    label = COCOSTUFF.read_label(root / (sample.label or ""))
    found = {COCOSTUFF.class_names()[i] for i in np.unique(label) if i != 255}
    assert sample.id == "000000010005"
    assert {"person", "animal", "sports", "plant"} <= found and "vehicle" not in found
