"""The tables of single images on disk: scored split by split, and damage is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DamageError, RunError
from pipeline.manifest import Image
from pipeline.run_directory import RunDirectory
from pipeline.subject import name_subject
from stages.evaluate.image_counts import ImageCounts, encode_counts
from stages.evaluate.image_tables import counts_file, score_images

SUBJECT = name_subject("default", None)
BLOCKS: dict[str, Any] = {
    "val": {"assignment": [1, 0], "assignment_crf": None},
    "train": {"assignment": [0, 1], "assignment_crf": None},
    "bare": {"assignment": None, "assignment_crf": None},
}


def write_shard(run: RunDirectory, shard: int, splits: dict[int, str]) -> None:
    # three pixels of cluster 0 in class 0, one in class 1
    counts = [ImageCounts(str(i), s, 4, 4, 4, 2.0, [0, 1], [3, 1]) for i, s in splits.items()]
    file = counts_file(run, SUBJECT, shard)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode_counts(counts))


def make_images(count: int, *, first: int = 0) -> list[Image]:
    """Rows of a manifest: image N is in every split, for ids are unique in one alone."""
    rows = [(str(number), split) for number in range(count) for split in ("val", "train")]
    return [
        Image(first + row, id_, split, "", None, 1, 1, 1, 0, "")
        for row, (id_, split) in enumerate(rows)
    ]


def test_rows_that_have_moved_are_found_by_their_ids(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_shard(run, 0, {0: "val", 1: "train"})
    moved = score_images(run, SUBJECT, BLOCKS, [0], make_images(2, first=5))
    assert moved["val"].images.tolist() == [5]
    assert moved["train"].images.tolist() == [8]


def test_every_split_is_scored_by_its_own_matching(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_shard(run, 0, {0: "val", 1: "train"})
    write_shard(run, 1, {4: "train"})
    write_shard(run, 10, {7: "val"})
    write_shard(run, 2, {9: "val"})
    scores = score_images(run, SUBJECT, BLOCKS, [10, 0, 1], make_images(10))
    assert list(scores) == list(BLOCKS)
    assert scores["val"].images.tolist() == [0, 14]
    assert scores["train"].images.tolist() == [3, 9]
    assert scores["bare"].images.tolist() == []
    np.testing.assert_array_equal(scores["val"].accuracy, [25, 25])
    np.testing.assert_array_equal(scores["train"].accuracy, [75, 75])
    assert not counts_file(run, SUBJECT, 2).exists(), "of an earlier evaluation"


def test_a_table_that_is_gone_or_damaged_is_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(RunError, match="cannot read"):
        score_images(run, SUBJECT, BLOCKS, [0], make_images(1))
    write_shard(run, 0, {0: "val"})
    counts_file(run, SUBJECT, 0).write_bytes(b"PAR1")
    with pytest.raises(DamageError, match=r"verify .* --repair"):
        score_images(run, SUBJECT, BLOCKS, [0], make_images(1))
