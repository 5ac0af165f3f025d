"""The benchmark of `select`: what the played person says is true, and both sides cost the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import selection
from benchmarks.selection import ALONE, NAMED, ONE_BY_ONE, Person, Row, Split, read_split, tabulate
from pipeline import Run
from tests.scenes import Invoke, write_split_scenes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Run:
    folder = tmp_path_factory.mktemp("selection")
    table = write_split_scenes(folder, {"train": 5, "val": 2})
    path = folder / "run"
    options = ("--backbone", "handcrafted", "--size", 64, "--frame", "centre", "--no-progress")
    invoke("extract", path, "--dataset", f"list:{table}", *options)
    invoke("masks", path, "--crf", "none", "--no-progress")
    return Run(path)


@pytest.fixture
def small() -> Split:
    """Two windows of 2 x 2 positions: two proposals of one class each, one of both, one of none."""
    return Split(
        features=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        grid=2,
        labels=torch.tensor([[0, 0, 1, 1], [0, 1, 1, 255]]),
        proposals=torch.tensor([[1, 1, 2, 2], [1, 1, 1, 3]]),
        truth=np.zeros((2, 4, 4), np.uint8),
        images=np.array([7, 9]),
        rows=np.array([3, 4]),
    )


def test_the_person_labels_what_is_true(small: Split) -> None:
    person = Person(small, 2)
    assert person.label_images([9]).count.tolist() == [1, 2]
    assert person.label_images([7, 9]).count.tolist() == [3, 4]
    # 256 x window + number: a mixed proposal is named as a whole, one without a label not at all
    assert person.unit.tolist() == [1, 2, 257, 259]
    assert person.name_proposals([0]).count.tolist() == [2, 0]
    assert person.name_proposals([2]).count.tolist() == [0, 3]
    assert person.name_proposals([3]).count.tolist() == [0, 0]
    named = person.name_clusters(0)
    assert named.count.sum() == 8
    assert np.isclose(float(named.scatter.trace()), 8 * 0.75)


def test_every_way_is_scored_at_every_cost(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selection, "IMAGES", (1, 5))
    monkeypatch.setattr(selection, "PROPOSALS", (2,))
    file = tmp_path / "values.json"
    arguments = [str(run.path), "--seeds", "2", "--json", str(file)]
    result = CliRunner().invoke(selection.main, arguments)
    assert result.exit_code == 0, result.output
    rows = [Row(**row) for row in json.loads(file.read_text())]
    ways = {(row.way, row.count) for row in rows}
    assert ways == {(ALONE, 1), (ALONE, 5), (NAMED, 1), (NAMED, 5), (ONE_BY_ONE, 2)}
    assert all(0 <= value <= 100 for row in rows for value in (*row.random, *row.select))
    for row in rows:
        assert len(row.random) == 2
        if row.count == 5:  # all that there are
            assert row.random == pytest.approx(row.select * (2 // len(row.select)))


def test_positions_are_those_of_the_windows(run: Run) -> None:
    split = read_split(run, "train")
    assert split.features.shape[:2] == split.labels.shape == split.proposals.shape
    assert set(split.labels.flatten().tolist()) <= {0, 1, 2}
    assert len(split.truth) == 5


def test_the_table_says_how_often_it_is_better() -> None:
    rows = [Row("b", ALONE, 4, [1.0, 3.0], [2.0]), Row("a", NAMED, 4, [1.0, 2.0], [2.0, 3.0])]
    lines = tabulate(rows).splitlines()
    assert lines[2] == f"| a | {NAMED} | 4 | 1.5 (1.0 – 2.0) | 2.5 (2.0 – 3.0) | 2 of 2 |"
    assert lines[3] == f"| b | {ALONE} | 4 | 2.0 (1.0 – 3.0) | 2.0 | 1 of 2 |"
