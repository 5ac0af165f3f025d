"""Potsdam's tiles, scored on three classes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import get_dataset
from pipeline.datasets.base import Sample
from pipeline.errors import DatasetError
from pipeline.images.decoding import read_rgb
from tests.pipeline.datasets.layout import write_mat

POTSDAM = get_dataset("potsdam")
TILE = np.zeros((3, 2, 4), dtype=np.uint8)


def test_train_is_the_union_of_its_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for tile in ("0_0", "1_0", "2_0", "9_9"):
        write_mat(tmp_path / "imgs" / f"{tile}.mat", "img", TILE)
    write_mat(tmp_path / "gt" / "1_0.mat", "gt", TILE[:, :, 0])
    (tmp_path / "unlabelled_train.txt").write_text("2_0\n0_0\n7_7\n")
    (tmp_path / "labelled_train.txt").write_text("1_0\n0_0\n")
    (tmp_path / "labelled_test.txt").write_text("9_9")
    with caplog.at_level(logging.WARNING):
        samples = POTSDAM.list_samples(tmp_path, ["train", "val"])
    assert samples == [
        Sample("0_0", "train", "imgs/0_0.mat", None),
        Sample("1_0", "train", "imgs/1_0.mat", "gt/1_0.mat"),
        Sample("2_0", "train", "imgs/2_0.mat", None),
        Sample("9_9", "val", "imgs/9_9.mat", None),
    ]
    assert "1 of 4 listed images are not in" in caplog.text and "imgs/7_7.mat" in caplog.text


def test_a_missing_list_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_mat(tmp_path / "imgs" / "0_0.mat", "img", TILE)
    (tmp_path / "labelled_train.txt").write_text("0_0\n")
    with caplog.at_level(logging.WARNING):
        assert len(POTSDAM.list_samples(tmp_path, ["train"])) == 1
    assert "unlabelled_train.txt is missing" in caplog.text
    with pytest.raises(DatasetError, match=r"no list of images at .*labelled_test\.txt"):
        POTSDAM.list_samples(tmp_path, ["val"])


def test_six_ids_make_three_classes(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2, 3, 4, 5, 255]], dtype=np.uint8)
    path = write_mat(tmp_path / "a.mat", "gt", ids)
    assert POTSDAM.read_label(path).tolist() == [[0, 1, 2, 2, 0, 1, 255]]
    path = write_mat(tmp_path / "b.mat", "gt", np.array([[-1, 5]], dtype=np.int8))
    assert POTSDAM.read_label(path).tolist() == [[255, 1]]
    found = POTSDAM.open_label(write_mat(tmp_path / "c.mat", "gt", ids + np.uint8(1)))
    assert found.count().unknown.keys() == {"6"}


def test_real_tiles(shared: Path) -> None:
    root = shared / "datasets" / "potsdam"
    samples = POTSDAM.list_samples(root, ["train", "val"])
    assert [(s.split, s.id) for s in samples] == [
        ("train", "0_0"),
        ("train", "0_1"),
        ("train", "1_0"),
        ("val", "1_1"),
    ]
    roof = samples[2]
    image = read_rgb(root / roof.image).astype(int)
    label = POTSDAM.read_label(root / (roof.label or ""))
    assert image.shape == (200, 200, 3) and label.shape == (200, 200)
    building = image[label == POTSDAM.class_names().index("buildings and clutter")]
    # The tile is a roof of red bricks beside a grey street: in swapped channels it would be blue.
    assert len(building) > 25000 and building[:, 0].mean() > building[:, 2].mean() + 20
