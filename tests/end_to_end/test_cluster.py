"""Several processes: the same bytes as one, whichever of them are killed, and none left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import LocalCluster

from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree

ARTEFACTS = ("features.zarr", "masks.zarr", "em.zarr", "labels")


@pytest.fixture
def workers() -> Iterator[LocalCluster]:
    """Two worker processes that are restarted when they die, as a cluster of somebody else's."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address=":0",
        silence_logs="CRITICAL",
    ) as cluster:
        yield cluster


def kill_workers(cluster: LocalCluster, count: int) -> None:
    """Kill worker processes as the kernel does."""
    for nanny in list(cluster.workers.values())[:count]:
        if nanny.pid is not None:
            os.kill(nanny.pid, signal.SIGKILL)


class Saboteur(threading.Thread):
    """Does one thing whenever a file has come or changed, as long as another is not there.

    Attributes
    ----------
    in_time
        How many things were done before that.
    """

    def __init__(self, file: Path, actions: list[Callable[[], None]], end: Path) -> None:
        super().__init__()
        self.file, self.actions, self.end = file, actions, end
        self.in_time = 0

    def run(self) -> None:
        """Watch."""
        seen = None
        for action in self.actions:
            now = seen
            while now == seen and not self.end.exists():
                time.sleep(0.002)
                now = self.file.stat().st_mtime_ns if self.file.exists() else seen
            seen = now
            action()
            self.in_time += not self.end.exists()


def assert_same(run: Path, other: Path) -> None:
    for artefact in ARTEFACTS:
        assert hash_tree(run / artefact) == hash_tree(other / artefact), artefact
    assert (run / "report/metrics.json").read_bytes() == (
        other / "report/metrics.json"
    ).read_bytes()


def test_workers_that_are_killed_and_come_change_no_byte(
    finished: Path,
    invoke: Invoke,
    extract_options: list[object],
    workers: LocalCluster,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    there = ("--scheduler", workers.scheduler_address)
    state = run / "state/extract"
    one = [lambda: kill_workers(workers, 1)]
    saboteur = Saboteur(state / "stage.json", one, state / "shards/000002.json")
    saboteur.start()
    invoke("extract", run, *extract_options, *there)
    saboteur.join()
    assert saboteur.in_time == 1
    invoke("masks", run, "--no-progress", *there)
    several = [
        lambda: kill_workers(workers, 1),
        lambda: kill_workers(workers, 2),
        lambda: workers.scale(3),
    ]
    fit = run / "state/em/default"
    saboteur = Saboteur(fit / "fit.npz", several, fit / "shards/000000.json")
    saboteur.start()
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress", *there)
    saboteur.join()
    assert saboteur.in_time == len(several)
    invoke("evaluate", run, "--no-progress", *there)
    assert_same(run, finished)


DEADLY = """
import os, signal
from stages.masks.stage import Masks

compute = Masks.compute

def die(self, run, settings, shard):
    if shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, run, settings, shard)

def dask_setup(worker):
    Masks.compute = die
"""


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *map(str, arguments), "--no-progress"],
        env={**os.environ, **environment},
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_shard_that_kills_its_worker_every_time_fails_alone(
    copied: Path, finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    script = tmp_path / "deadly.py"
    script.write_text(DEADLY)
    preload = f'["{script}"]'
    process = start(
        "masks", copied, "--force", "--workers", 2, DASK_DISTRIBUTED__WORKER__PRELOAD=preload
    )
    output = " ".join(process.communicate(timeout=120)[0].split())
    assert process.returncode == 1, output
    assert "the worker process of shard 1 was killed; once more, alone" in output
    assert "1 of 3 shards failed, the others are kept" in output
    assert "the worker process that computed shard 1 was killed twice" in output
    assert "(out of memory?)" in output
    assert "Traceback" not in output
    records = sorted(path.name for path in (copied / "state/masks/shards").iterdir())
    assert records == ["000000.json", "000002.json"]
    output = invoke("masks", copied, "--no-progress").output
    assert "1 of 3 shards to compute" in output
    assert hash_tree(copied / "masks.zarr") == hash_tree(finished / "masks.zarr")


def send_kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def send_terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def press_ctrl_c(pid: int) -> None:
    # a terminal tells the whole group
    os.killpg(pid, signal.SIGINT)


def list_words(process: Any) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("end", [send_kill, send_terminate, press_ctrl_c])
def test_no_worker_outlives_its_command(end: Callable[[int], None], copied: Path) -> None:
    process = start("masks", copied, "--force", "--workers", 2)
    family: list[Any] = []
    limit = time.monotonic() + 120
    while len([child for child in family if "spawn_main" in " ".join(list_words(child))]) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.01)
        family = psutil.Process(process.pid).children(recursive=True)
    end(process.pid)
    process.communicate(timeout=30)
    _, left = psutil.wait_procs(family, timeout=15)
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []
