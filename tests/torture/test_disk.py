"""Disk full, read-only, no permission, quota: the quick form."""

from __future__ import annotations

import os

import pytest

from tests.torture.disk import (
    can_mount,
    fill_disk,
    forbid,
    limit_files,
    make_read_only,
    run_refusals,
)
from tests.torture.kills import choose_points
from tests.torture.workshop import STAGES, Trial, Workshop

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
mounts = pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")


def check(*trials: Trial) -> None:
    assert not [trial for trial in trials if trial.wrong]


@pytest.mark.parametrize("stage", STAGES)
def test_a_write_that_fails_anywhere_gets_a_sentence(workshop: Workshop, stage: str) -> None:
    trials = list(run_refusals(workshop, stage, choose_points(workshop, stage, 6, seed=1), seed=1))
    assert any(trial.struck for trial in trials)
    check(*trials)


@mounts
@pytest.mark.parametrize(
    ("stage", "free"),
    [("extract", 40_000), ("masks", 30_000), ("em", 16_384), ("evaluate", 60_000)],
)
def test_a_full_disk_keeps_what_is_finished(workshop: Workshop, stage: str, free: int) -> None:
    trial = fill_disk(workshop, stage, free)
    assert trial.struck
    check(trial)


@mounts
@pytest.mark.parametrize("stage", STAGES)
def test_a_read_only_disk_gets_a_sentence(workshop: Workshop, stage: str) -> None:
    check(make_read_only(workshop, stage))


@pytest.mark.parametrize(("stage", "size"), [("extract", 8192), ("evaluate", 4096)])
def test_a_file_that_may_not_grow_gets_a_sentence(
    workshop: Workshop, stage: str, size: int
) -> None:
    trial = limit_files(workshop, stage, size)
    assert trial.struck
    check(trial)


@root
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_of_somebody_else_gets_a_sentence(workshop: Workshop, stage: str) -> None:
    check(forbid(workshop, stage))
