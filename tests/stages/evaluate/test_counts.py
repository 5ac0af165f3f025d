"""Counts of single images: written, read back, and scored by the matching of their split.

The tables of single images on disk: scored split by split, and damage is told.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pipeline.errors import DamageError, RunError
from pipeline.run.directory import RunDirectory, name_subject
from pipeline.run.manifest import Image
from stages.evaluate.metrics import (
    Tally,
    count_image,
    count_matched,
    counts_file,
    decode_counts,
    encode_counts,
    encode_table,
    read_counts,
    remove_other_counts,
    score_counts,
    score_images,
    summarise,
    tally_images,
)
from stages.labelling import Labelling
from stages.scores import UNMATCHED, count_confusion, score_assignment
from tests.stages.evaluate.made_up import count, make_row

ROWS = {str(row): row for row in range(10)}


def make_counts(image: int, confusion: list[list[int]] | None, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": str(image),
        "split": "val",
        "pixels": 200,
        "usage": [100, 50, 0],
        "predicted": 8,
        "confidence": 6.0,
    }
    if confusion is not None:
        row |= list_pairs(confusion)
    return row | changes


def list_pairs(confusion: Any, kind: str = "plain") -> dict[str, list[int]]:
    places = [(k, c) for k, row in enumerate(confusion) for c, n in enumerate(row) if n]
    return {
        f"pairs_{kind}": [255 * k + c for k, c in places],
        f"counts_{kind}": [int(confusion[k][c]) for k, c in places],
    }


def test_how_sure_labels_are_adds_up_over_shards() -> None:
    # labels 0 0 1, of true class 0 1 1: one right label of 0.9 and one of 0.6, a wrong one of 0.6
    sure = torch.tensor([[[0.91, 0.61, 0.39]], [[0.09, 0.39, 0.61]]])

    def row(truth: list[int]) -> dict[str, Any]:
        plain = np.array([[0, 0, 1]], np.uint8)
        labelling = Labelling(plain, torch.zeros(0), 0.0, calibrated=sure)
        image = Image(0, "a", "val", "", None, 3, 1, 1, 0, "")
        return count_image(image, plain, labelling, 2, np.array([truth], np.uint8))

    shards = [decode_counts(encode_counts([row(truth)])) for truth in ([0, 1, 1], [0, 255, 255])]
    block = summarise(tally_images(shards, ["val"], 2)["val"], ["zero", "one"])
    found = {
        (n, *(block["levels"][name][n] for name in ("pixels", "labelled", "right")))
        for n in np.flatnonzero(block["levels"]["pixels"])
    }
    assert found == {(36, 2, 2, 2), (24, 4, 2, 1)}
    # the middles of the levels: 0.9125 and 0.6125
    assert block["noise"]["expected"] == [23.75, 38.75]
    assert block["noise"]["true"] == [33.33, 0.0]
    plain = tally_images([decode_counts(encode_counts([make_counts(0, [[1]])]))], ["val"], 3)
    assert "levels" not in summarise(plain["val"], ["zero"])


def score(rows: list[dict[str, Any]], *assignments: list[int | None] | None) -> pa.Table:
    block = dict(zip(("assignment", "assignment_crf"), assignments, strict=True))
    table = decode_counts(encode_counts(rows))
    return score_counts(table, count_matched(table, block), ROWS)


def read(scores: pa.Table, name: str) -> Any:
    return scores[name].to_numpy()


def test_an_image_scored_by_hand() -> None:
    # cluster 0 is class 1, cluster 1 is class 0, cluster 2 is none
    images = [
        make_counts(3, [[1, 4], [2, 0], [0, 3]]),
        make_counts(5, None),
        make_counts(9, [[0, 0], [0, 0], [0, 2]]),
    ]
    scores = score(images, [1, 0, None], None)
    assert read(scores, "image").tolist() == [3, 5, 9]
    assert_allclose(read(scores, "accuracy"), [60, np.nan, 0])
    # class 0: 2 of 3; class 1: 4 of 4 + 1 + 3
    assert_allclose(read(scores, "miou"), [100 * (2 / 3 + 4 / 8) / 2, np.nan, 0])
    assert np.isnan(read(scores, "accuracy_crf")).all()
    assert_allclose(read(scores, "coverage"), [75, 75, 75])
    assert_allclose(read(scores, "confidence"), [75, 75, 75])
    assert read(scores, "labelled_pixels").tolist() == [10, 0, 2]
    assert scores["accuracy"].to_pylist()[1] is None


def test_labels_with_crf_have_scores_of_their_own() -> None:
    image = make_counts(0, [[0, 1], [1, 0]], **list_pairs(np.eye(2), "crf"))
    scores = score([image], [0, 1], [0, 1])
    assert read(scores, "accuracy").tolist() == [0]
    assert read(scores, "accuracy_crf").tolist() == read(scores, "miou_crf").tolist() == [100]


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
        counts.append(make_row(labels, truth, id=str(image), clusters=5))
        expected.append(score_assignment(confusion, assignment) if confusion.sum() else None)
    scores = score(counts, [None if k < 0 else int(k) for k in assignment], None)
    for image, found in enumerate(expected):
        want = (np.nan, np.nan) if found is None else (found.accuracy, found.miou)
        assert_allclose(
            [read(scores, "accuracy")[image] / 100, read(scores, "miou")[image] / 100], want
        )


def test_what_is_written_is_read_back() -> None:
    counts = [make_counts(1, [[1, 2]]), make_counts(2, None, split="ünï")]
    content = encode_counts(counts)
    assert content == encode_counts(counts)
    found = decode_counts(content).to_pylist()
    assert [{name: row.get(name) for name in found[0]} for row in counts] == found
    assert all(row.keys() <= found[0].keys() for row in counts)
    assert decode_counts(encode_counts([])).to_pylist() == []


def test_damage_is_noticed() -> None:
    content = encode_counts([make_counts(i, [[i, 2], [3, 4]]) for i in range(50)])
    same = 0
    for position in range(4, len(content), 40):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        try:
            # what nothing is read from may be anything
            assert decode_counts(bytes(damaged)).equals(decode_counts(content))
            same += 1
        except ValueError as error:
            assert "\n" not in str(error)
    assert same < len(content) / 40 / 2
    with pytest.raises(ValueError):
        decode_counts(b"")
    with pytest.raises(ValueError):
        decode_counts(encode_table(score([], None, None)))


def test_the_table_of_all_images() -> None:
    first = [make_counts(0, [[4, 0], [1, 5]]), make_counts(1, None, split="train")]
    shards = [decode_counts(encode_counts(rows)) for rows in (first, [make_counts(2, None)])]
    images = [
        Image(row, str(row), split, "", None, 1, 1, 1, 0, "")
        for row, split in enumerate(("val", "train", "val"))
    ]
    content = encode_table(score_images(shards, BLOCKS | {"val": BLOCKS["train"]}, images))
    table = pq.read_table(io.BytesIO(content))
    rows = table.to_pylist()
    assert [(r["image"], r["id"], r["split"]) for r in rows] == [
        (0, "0", "val"),
        (2, "2", "val"),
        (1, "1", "train"),
    ]
    assert [r["accuracy"] for r in rows] == [90.0, None, None]
    assert [r["coverage"] for r in rows] == [75.0] * 3
    assert rows[0]["accuracy_crf"] is None
    assert rows[0]["labelled_pixels"] == 10
    assert table.schema.field("accuracy").metadata == {b"units": b"%"}
    assert encode_table(score_images([], BLOCKS, [])) == encode_table(score([], None, None))


SUBJECT = name_subject("default", None)
BLOCKS: dict[str, Any] = {
    "val": {"assignment": [1, 0], "assignment_crf": None},
    "train": {"assignment": [0, 1], "assignment_crf": None},
    "bare": {"assignment": None, "assignment_crf": None},
}


def write_shard(run: RunDirectory, shard: int, splits: dict[int, str]) -> None:
    # three pixels of cluster 0 in class 0, one in class 1
    counts = [make_counts(i, [[3, 1]], split=split) for i, split in splits.items()]
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


def list_images(scores: pa.Table) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row in scores.to_pylist():
        rows.setdefault(row["split"], []).append(row["image"])
    return rows


def test_rows_that_have_moved_are_found_by_their_ids(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_shard(run, 0, {0: "val", 1: "train"})
    moved = score_images(read_counts(run, SUBJECT, [0]), BLOCKS, make_images(2, first=5))
    assert list_images(moved) == {"val": [5], "train": [8]}


def test_every_split_is_scored_by_its_own_matching(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_shard(run, 0, {0: "val", 1: "train"})
    write_shard(run, 1, {4: "train"})
    write_shard(run, 10, {7: "val"})
    write_shard(run, 2, {9: "val"})
    remove_other_counts(run, SUBJECT, [10, 0, 1])
    scores = score_images(read_counts(run, SUBJECT, [10, 0, 1]), BLOCKS, make_images(10))
    assert list_images(scores) == {"val": [0, 14], "train": [3, 9]}
    assert read(scores, "accuracy").tolist() == [25, 25, 75, 75]
    assert not counts_file(run, SUBJECT, 2).exists(), "of an earlier evaluation"


def test_a_table_that_is_gone_or_damaged_is_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(RunError, match="cannot read"):
        list(read_counts(run, SUBJECT, [0]))
    write_shard(run, 0, {0: "val"})
    counts_file(run, SUBJECT, 0).write_bytes(b"PAR1")
    with pytest.raises(DamageError, match=r"verify .* --repair"):
        list(read_counts(run, SUBJECT, [0]))


CLUSTERS = 4


def draw_row(seed: int, *, truth: bool = True, crf: bool = True) -> dict[str, Any]:
    """Count one made-up image of 6 x 7 pixels."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([0, 1, 2, 3, 255], size=(9, 11)).astype(np.uint8)
    plain, refined = generator.integers(0, CLUSTERS, size=(2, 6, 7)).astype(np.uint8)
    # a multiple of 1/8, so that sums are exact in any order
    confidence = float(generator.integers(100, 300)) / 8
    known = generator.choice([0, 1, 2, 255], size=(6, 7)).astype(np.uint8)
    others = {"linear_probe": known.clip(0, 2), "running_prototypes": plain[::-1]}
    return make_row(
        plain,
        known if truth else None,
        refined if crf else None,
        labels=labels,
        confidence=confidence,
        clusters=CLUSTERS,
        **(others if truth and seed % 5 else {}),
    )


@given(groups=st.lists(st.lists(st.integers(0, 10**6), max_size=4), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_adding_is_counting_everything_at_once(groups: list[list[int]]) -> None:
    rows = [[draw_row(n, truth=n % 3 > 0, crf=n % 2 > 0) for n in group] for group in groups]
    total = Tally(CLUSTERS)
    for group in rows:
        total.add(decode_counts(encode_counts(group)))
    whole = vars(count(*(row for group in rows for row in group), clusters=CLUSTERS))
    found = vars(total)
    assert whole.keys() == found.keys()
    for counted in ("confusions", "rest"):
        assert whole[counted].keys() == found[counted].keys()
        for kind, confusion in whole.pop(counted).items():
            assert_array_equal(found[counted][kind], confusion, err_msg=kind)
    for name, value in whole.items():
        assert_array_equal(found[name], value, err_msg=name)


def test_what_is_counted_by_hand() -> None:
    plain, labels = [[0, 1, 1], [0, 0, 1]], [[0, 255], [1, 0]]
    truth, refined = [[5, 5, 255], [5, 254, 5]], [[1, 1, 1], [1, 1, 0]]
    tally = count(
        make_row(plain, truth, refined, labels=labels, confidence=2.5, running_prototypes=refined),
        make_row(plain, labels=labels, confidence=0.5),
    )
    assert (tally.images, tally.labelled, tally.pixels, tally.predicted) == (2, 1, 8, 12)
    assert tally.confidence == 3.0
    assert tally.usage.tolist() == [4, 2]
    assert tally.confusions.keys() == {"plain", "crf", "running_prototypes"}
    assert tally.confusions["plain"].dtype == np.int64
    assert tally.confusions["plain"][:2, [5, 254]].tolist() == [[2, 1], [2, 0]]
    assert tally.confusions["crf"][:2, [5, 254]].tolist() == [[1, 0], [3, 1]]
    assert tally.confusions["plain"].sum() == tally.confusions["crf"].sum() == 5


def test_splits_are_added_up_on_their_own() -> None:
    rows = [make_row([0, 1], [0, 0], split=split) for split in ("val", "train", "val")]
    tallies = tally_images([decode_counts(encode_counts(rows))] * 2, ["train", "val", "test"], 2)
    assert {split: tally.images for split, tally in tallies.items()} == {
        "train": 2,
        "val": 4,
        "test": 0,
    }
