"""CamVid in SegNet's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import get_dataset
from pipeline.datasets.base import Sample
from pipeline.errors import DatasetError
from pipeline.images.decoding import read_rgb
from tests.pipeline.datasets.layout import write_image, write_label

CAMVID = get_dataset("camvid")


def test_layout(tmp_path: Path) -> None:
    root = tmp_path / "Cam Vid ü"
    write_image(root / "val" / "b.png")
    write_image(root / "train" / "z.png")
    write_image(root / "train" / "a b.png")
    write_image(root / "train" / "._a.png")
    (root / "train" / "notes.txt").write_text("")
    write_label(root / "trainannot" / "a b.png", [[0, 10, 11]])
    assert CAMVID.list_samples(root, ["val", "train"]) == [
        Sample("b", "val", "val/b.png", None),
        Sample("a b", "train", "train/a b.png", "trainannot/a b.png"),
        Sample("z", "train", "train/z.png", None),
    ]
    assert CAMVID.read_label(root / "trainannot" / "a b.png").tolist() == [[0, 10, 255]]


def test_a_missing_split_says_what_is_wanted(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.png")
    with pytest.raises(DatasetError, match=r"split 'val' in .*camvid wants <split>/\*\.png"):
        CAMVID.list_samples(tmp_path, ["train", "val"])


def test_the_32_class_labels_are_refused(tmp_path: Path) -> None:
    found = CAMVID.open_label(write_label(tmp_path / "a.png", [[0, 12, 31]]))
    assert found.count().unknown == {"12": 1, "31": 1}


def test_real_frames(shared: Path) -> None:
    root = shared / "datasets" / "camvid"
    samples = CAMVID.list_samples(root, ["train", "val"])
    assert [sum(s.split == split for s in samples) for split in ("train", "val")] == [92, 34]
    assert all(sample.label for sample in samples)
    names = CAMVID.class_names()
    sky, road = names.index("sky"), names.index("road")
    rows: dict[int, list[float]] = {sky: [], road: []}
    brightness: dict[int, list[float]] = {sky: [], road: []}
    for sample in samples[::10]:
        image = read_rgb(root / sample.image)
        label = CAMVID.read_label(root / (sample.label or ""))
        assert image.shape == (360, 480, 3) and label.shape == (360, 480)
        assert set(np.unique(label)) <= {*range(11), 255}
        for index in rows:
            rows[index].append(float(np.nonzero(label == index)[0].mean()))
            brightness[index].append(float(image[label == index].mean()))
    assert max(rows[sky]) < 180 < min(rows[road])
    assert np.mean(brightness[sky]) > np.mean(brightness[road]) + 50
