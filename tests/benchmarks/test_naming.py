"""The person who names clusters: what is named first, what is split, a whole round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.naming import (
    FLAT,
    FULL,
    K_ONLY,
    PAINTED,
    Bench,
    Person,
    Score,
    Shown,
    average_present,
    run_seed,
    summarise,
    tabulate,
)
from benchmarks.quality import list_materials
from pipeline.datasets.definition import read_definition
from pipeline.run.corrections import Corrections
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import read_part_names
from stages.parts import Tree
from tests.end_to_end.conftest import Invoke
from tests.scenes import write_scenes

# units 0..3 are a cluster of two halves, 4 is one that is unlike it, 5 one that is alike
MERGES = np.array([[0, 1], [2, 3], [6, 7], [8, 5], [9, 4]])
CLUSTERS = np.array([0, 0, 0, 0, 1, 2])
MEANS = np.array([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [-1, 0], [1, 0.15]])


def make_shown(positions: list[float]) -> Shown:
    numbers = np.stack([np.arange(6), np.ones(6, np.int64)], axis=1)
    return Shown(Tree(MERGES, CLUSTERS), numbers, np.arange(6), np.array(positions), MEANS)


def test_the_large_are_named_first_and_then_what_is_unlike_them() -> None:
    person = Person(make_shown([9, 9, 9, 9, 4, 5]), np.zeros(6, np.int64))
    named = []
    for count in (1, 2, 3):
        assert person.go_on(count)
        named.append(set(person.names))
    assert named == [{(0,)}, {(0,), (1,)}, {(0,), (1,), (2,)}]
    # cut-outs that are all alike are not looked into: nothing is left
    assert not person.go_on(4)


def test_a_mixed_cluster_is_split_into_its_halves() -> None:
    person = Person(make_shown([9, 9, 9, 9, 1, 1]), np.array([0, 0, 1, 1, 2, -1]))
    person.go_on(3)
    assert person.names == {(0, 0): 0, (0, 1): 1, (1,): 2}
    assert person.go_on(4) and person.names[(2,)] == -1
    flat = Person(make_shown([9, 9, 9, 9, 1, 1]), np.array([0, 0, 1, 1, 2, -1]), pure=0)
    assert not flat.go_on(6) and set(flat.names) == {(0,), (1,), (2,)}


def test_at_most_two_cut_outs_of_an_image_are_shown() -> None:
    shown = make_shown([1] * 6)
    same = Shown(shown.tree, shown.proposals, np.zeros(6, np.int64), shown.positions, MEANS)
    assert len(same.choose((0,))) == 2 and len(shown.choose((0,))) == 4


@pytest.fixture
def bench(invoke: Invoke, tmp_path: Path) -> Bench:
    """A run of drawn scenes with a train and a val split."""
    for split in ("train", "val"):
        write_scenes(tmp_path / split, 6)
    definition = tmp_path / "scenes.yaml"
    definition.write_text(
        "name: scenes\nsplits: [train, val]\nimages: '{split}/photographs/**/*.png'\n"
        "labels: '{split}/labels/**/*.png'\nframe: centre\nclasses:\n"
        "  - {name: sky, ids: 0}\n  - {name: field, ids: 1}\n  - {name: road, ids: 2}\n"
    )
    run = tmp_path / "run"
    options = ("--dataset", definition, "--root", tmp_path, "--backbone", "handcrafted")
    invoke("extract", run, *options, "--size", 64, "--no-progress")
    invoke("masks", run, "--no-progress")
    return Bench(RunDirectory(run), ("sky", "field", "road"), 3, 14)


def test_a_round_names_scores_and_paints(bench: Bench) -> None:
    scores: dict[str, Score] = {}
    run_seed(bench, 0, scores)
    assert {K_ONLY, FLAT, FULL, PAINTED} < scores.keys()
    named = read_part_names(bench.run, "named-0")
    assert named and set(named.values()) <= {"sky", "field", "road"}
    assert len(named) <= scores[FULL].names[0] <= 14
    assert scores[FULL].accuracy[0] > scores[K_ONLY].accuracy[0] - 10
    # of all classes that are predicted, and of those alone that the labels have
    assert scores[FULL].miou == pytest.approx(scores[FULL].miou_all, abs=0.01)
    assert not Corrections(bench.run).images() and bench.run.names_file("named-0").exists()
    found = summarise({"scenes": scores})["scenes"]
    assert {"names", "accuracy", "miou", "seconds"} < found.keys()
    again: dict[str, Score] = {}
    run_seed(bench, 0, again)
    assert [s.miou for s in again.values()] == [s.miou for s in scores.values()]
    rows = tabulate({"scenes": scores, "others": {FULL: scores[FULL]}}).splitlines()
    assert len({row.count("|") for row in rows}) == 1 and "- | - | -" in rows[2]


def test_a_class_that_the_labels_lack_is_not_averaged() -> None:
    metrics = {
        "confusion": [[9, 0, 1], [0, 0, 0], [1, 0, 9]],
        "per_class": [{"iou": 80.0}, {"iou": 0.0}, {"iou": 60.0}],
    }
    assert average_present(metrics) == 70.0


def test_the_definition_of_msrc_is_one() -> None:
    definition = read_definition(Path(list_materials(Path())["msrc"].dataset))
    assert len(definition.classes) == 23
