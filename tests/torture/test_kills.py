"""The quick form: each stage killed here and there, and the power lost; the long form is all."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.storage.files import sync_folder
from tests.torture.faults import Faults
from tests.torture.kills import choose_points, kill_and_go_back, run_points, run_random
from tests.torture.server import Server
from tests.torture.workshop import STAGES, Trial, Workshop

SEED = 5


def check(trials: list[Trial]) -> None:
    assert all(not trial.wrong for trial in trials), [t for t in trials if t.wrong]
    assert all(not trial.lost for trial in trials), [t for t in trials if t.lost]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_any_instant_goes_on_to_the_same_bytes(
    workshop: Workshop, stage: str
) -> None:
    trials = list(run_random(workshop, stage, 3, SEED))
    assert any(trial.struck for trial in trials)
    check(trials)


@pytest.mark.parametrize("mode", ["kill", "power"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_struck_at_a_write_boundary_goes_on_to_the_same_bytes(
    workshop: Workshop, stage: str, mode: str
) -> None:
    trials = list(run_points(workshop, stage, choose_points(workshop, stage, 6, SEED), mode, SEED))
    assert all(trial.struck for trial in trials)
    check(trials)


@pytest.mark.parametrize("mode", ["kill", "power"])
def test_shards_of_two_settings_are_not_mixed(workshop: Workshop, mode: str) -> None:
    workshop.prepare(["masks-again"])
    points = choose_points(workshop, "masks-again", 6, SEED)
    trials = [kill_and_go_back(workshop, point, mode, SEED) for point in points]
    assert all(trial.struck for trial in trials)
    check(trials)


def lose_power() -> None:
    """Write in every way, synced and not, and lose the power; called in a child."""
    faults = Faults("run", mode="power", seed=int(os.environ["SEED"])).install()
    run = Path("run")
    run.mkdir()
    for name in ("first", "second", "third"):
        with (run / name).open("wb") as file:
            file.write(b"whole")
            file.flush()
            os.fsync(file.fileno())
    sync_folder(run.parent)
    sync_folder(run)
    (run / "second").rename(run / "moved")
    (run / "third").unlink()
    (run / "unsynced").write_bytes(bytes(100))
    (run / "inner").mkdir()
    with (run / "inner" / "file").open("wb") as file:
        os.fsync(file.fileno())
    sync_folder(run / "inner")
    with faults.unheard():
        faults.lose_power()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lost_power_takes_what_was_not_synced_and_nothing_else(tmp_path: Path) -> None:
    ends = set()
    with Server(tmp_path / "work") as server:
        run = tmp_path / "work" / "run"
        for seed in range(12):
            shutil.rmtree(run, ignore_errors=True)
            outcome = server.call(
                [], before=f"{__name__}:lose_power", environment={"SEED": str(seed)}
            )
            assert outcome.code == -signal.SIGKILL, outcome.said
            left = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
            assert left.pop("first") == b"whole"
            assert {left.pop(name, b"whole") for name in ("second", "moved")} == {b"whole"}
            assert left.pop("third", b"whole") == b"whole"
            assert len(left.pop("unsynced", b"")) <= 50
            assert left.pop("file", b"") == b""
            assert not left
            ends.add(frozenset(path.name for path in run.rglob("*")))
    everything = frozenset({"first", "moved", "unsynced", "inner", "file"})
    assert frozenset({"first", "second", "third"}) in ends, "nothing unsynced survives"
    assert everything in ends, "all names survive"
    assert len(ends) > 2, "some do"
