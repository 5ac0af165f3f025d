"""Counts of single images: written, read back, and scored by the matching of their split.

The tables of single images on disk: scored split by split, and damage is told.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pipeline.errors import DamageError, RunError
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image
from pipeline.run.subject import name_subject
from stages.evaluate.counts import (
    ImageCounts,
    counts_file,
    decode_counts,
    decode_scores,
    encode_counts,
    encode_scores,
    join_scores,
    list_pairs,
    score_counts,
    score_images,
)
from stages.evaluate.metrics import UNMATCHED, count_confusion, score_assignment

ROWS = {str(row): row for row in range(10)}


def make_counts(image: int, confusion: list[list[int]] | None, **changes: Any) -> ImageCounts:
    values: dict[str, Any] = {
        "id": str(image),
        "split": "val",
        "pixels": 200,
        "covered": 150,
        "predicted": 8,
        "confidence": 6.0,
    }
    if confusion is not None:
        wide = np.zeros((len(confusion), 255), np.int64)
        wide[:, : len(confusion[0])] = confusion
        values["pairs"], values["counts"] = list_pairs(wide)
    return ImageCounts(**{**values, **changes})


def test_an_image_scored_by_hand() -> None:
    # cluster 0 is class 1, cluster 1 is class 0, cluster 2 is none
    images = [
        make_counts(3, [[1, 4], [2, 0], [0, 3]]),
        make_counts(5, None),
        make_counts(9, [[0, 0], [0, 0], [0, 2]]),
    ]
    scores = score_counts(images, [1, 0, None], None, ROWS)
    assert scores.images.tolist() == [3, 5, 9]
    assert_allclose(scores.accuracy, [60, np.nan, 0])
    # class 0: 2 of 3; class 1: 4 of 4 + 1 + 3
    assert_allclose(scores.miou, [100 * (2 / 3 + 4 / 8) / 2, np.nan, 0])
    assert np.isnan(scores.accuracy_crf).all()
    assert_allclose(scores.final, [60, np.nan, 0])
    assert_allclose(scores.coverage, [75, 75, 75])
    assert_allclose(scores.confidence, [75, 75, 75])
    assert scores.labelled_pixels.tolist() == [10, 0, 2]
    assert scores.read(1) == {"coverage": 75, "confidence": 75, "labelled_pixels": 0}


def test_the_final_labels_are_those_with_crf_where_there_are_some() -> None:
    pairs, counts = list_pairs(np.eye(255, dtype=np.int64)[:2])
    image = make_counts(0, [[0, 1], [1, 0]], pairs_crf=pairs, counts_crf=counts)
    scores = score_counts([image], [0, 1], [0, 1], ROWS)
    assert (scores.accuracy[0], scores.accuracy_crf[0], scores.final[0]) == (0, 100, 100)


@given(seed=st.integers(0, 10**6), images=st.integers(1, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_images_are_scored_as_a_split_of_one_would_be(seed: int, images: int) -> None:
    generator = np.random.default_rng(seed)
    assignment = generator.permutation([0, 1, 2, UNMATCHED, 7])
    counts, expected = [], []
    for image in range(images):
        truth = generator.choice([0, 1, 2, 255], size=(5, 6)).astype(np.uint8)
        labels = generator.integers(0, 5, size=(5, 6)).astype(np.uint8)
        confusion = count_confusion(labels, truth, 5, 255)
        pairs, numbers = list_pairs(confusion)
        counts.append(ImageCounts(str(image), "a", 30, 30, 30, 20.0, pairs, numbers))
        expected.append(score_assignment(confusion, assignment) if confusion.sum() else None)
    scores = score_counts(counts, [None if k < 0 else int(k) for k in assignment], None, ROWS)
    for image, found in enumerate(expected):
        want = (np.nan, np.nan) if found is None else (found.accuracy, found.miou)
        assert_allclose([scores.accuracy[image] / 100, scores.miou[image] / 100], want)


def test_what_is_written_is_read_back() -> None:
    counts = [make_counts(1, [[1, 2]]), make_counts(2, None, split="ünï")]
    content = encode_counts(counts)
    assert content == encode_counts(counts)
    assert [
        replace(c, **{n: tuple(getattr(c, n)) for n in LISTS}) for c in decode_counts(content)
    ] == [replace(c, **{n: tuple(getattr(c, n)) for n in LISTS}) for c in counts]
    assert decode_counts(encode_counts([])) == []


LISTS = ("pairs", "counts", "pairs_crf", "counts_crf")


def test_damage_is_noticed() -> None:
    content = encode_counts([make_counts(i, [[i, 2], [3, 4]]) for i in range(50)])
    same = 0
    for position in range(4, len(content), 40):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        try:
            # what nothing is read from may be anything
            assert decode_counts(bytes(damaged)) == decode_counts(content)
            same += 1
        except ValueError as error:
            assert "\n" not in str(error)
    assert same < len(content) / 40 / 2
    with pytest.raises(ValueError):
        decode_counts(b"")
    with pytest.raises(ValueError):
        decode_counts(encode_scores({}, []))


def test_the_table_of_all_images() -> None:
    first = score_counts([make_counts(0, [[4, 0], [1, 5]])], [0, 1], None, ROWS)
    second = score_counts([make_counts(2, None)], [0, 1], None, ROWS)
    other = score_counts([make_counts(1, None)], None, None, ROWS)
    scores = {"val": join_scores([first, second]), "train": other}
    content = encode_scores(scores, ["a", "b/ü", "c"])
    table = pq.read_table(io.BytesIO(content))
    rows = table.to_pylist()
    assert decode_scores(content) == rows
    with pytest.raises(ValueError, match="other columns"):
        decode_scores(encode_counts([]))
    assert [(r["image"], r["id"], r["split"]) for r in rows] == [
        (0, "a", "val"),
        (2, "c", "val"),
        (1, "b/ü", "train"),
    ]
    assert [r["accuracy"] for r in rows] == [90.0, None, None]
    assert rows[0]["accuracy_crf"] is None
    assert rows[0]["labelled_pixels"] == 10
    assert table.schema.field("accuracy").metadata == {b"units": b"%"}


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
