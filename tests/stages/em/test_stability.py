"""Stability: what two halves agree on, by hand, and that the halves are fits of the method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.run.directory import RunDirectory
from pipeline.storage.arrays import read_group
from stages.em.stability import compare_halves
from tests.scenes import Invoke, write_scenes


def test_halves_that_agree_are_stable_whatever_their_numbers() -> None:
    """The halves number the clusters of the fit otherwise: 1 0 2, and 2 0 1."""
    first = np.array([[0, 40, 0], [30, 0, 0], [0, 0, 30]])
    second = np.array([[0, 0, 40], [30, 0, 0], [0, 30, 0]])
    both = np.array([[30, 0, 0], [0, 0, 40], [0, 30, 0]])
    found = compare_halves(first, second, both)
    assert found.agreement == 1
    assert found.clusters == (1, 1, 1)


def test_a_cluster_that_one_half_splits_comes_and_goes() -> None:
    first = np.diag([50, 30, 20])
    # the second half gives half of cluster 0 to cluster 2
    second = np.array([[26, 0, 24], [0, 30, 0], [0, 0, 20]])
    found = compare_halves(first, second, second)
    assert found.clusters == (0.52, 1, round(20 / 44, 4))
    observed, chance = 0.76, 0.5 * 0.26 + 0.3 * 0.3 + 0.2 * 0.44
    assert found.agreement == pytest.approx((observed - chance) / (1 - chance), abs=1e-4)


def test_one_cluster_for_all_is_no_division_by_nothing() -> None:
    alone = np.array([[9, 0], [0, 0]])
    found = compare_halves(alone, alone, alone)
    assert found == (1, (1, 0))
    assert found.describe() == {"stability": 1, "cluster_stability": [1, 0]}


def test_a_fit_keeps_its_stability_and_stays_what_it_is(tmp_path: Path, invoke: Invoke) -> None:
    write_scenes(tmp_path / "scenes", 8)
    run, quiet = tmp_path / "run", "--no-progress"
    options = ("--backbone", "handcrafted", "--size", 64, "--frame", "centre", quiet)
    invoke(
        "extract",
        run,
        "--dataset",
        "folder",
        "--root",
        tmp_path / "scenes" / "photographs",
        *options,
    )
    invoke("masks", run, "--crf", "none", quiet)
    fit = ("em", run, "--classes", 3, "--method", "robust", quiet)
    invoke(*fit, "--name", "plain")
    invoke(*fit, "--name", "told", "--stability")
    plain, told = (read_group(RunDirectory(run).em, name) for name in ("plain", "told"))
    np.testing.assert_array_equal(plain[0]["momentum_prototypes"], told[0]["momentum_prototypes"])
    assert "stability" not in plain[1]
    assert told[1]["stability"] > 0.5
    assert len(told[1]["cluster_stability"]) == 3
    said = invoke("em", run, "--classes", 3, "--method", "kmeans", "--stability", quiet, code=None)
    assert "--stability" in said.output
