"""Several processes: the same bytes as one, whichever of them are killed, and none left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

from pipeline.compute import scheduler
from pipeline.storage.arrays import read_group
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
    # sums over positions, and a codebook
    fit = "em", run, "--classes", 3, "--clusters", 6, "--method", "robust", "--codebook", 9
    invoke(*fit, "--name", "there", "--no-progress", *there)
    invoke(*fit, "--name", "here", "--no-progress")
    here, at_workers = (read_group(run / "em.zarr", name)[0] for name in ("here", "there"))
    assert here.keys() == at_workers.keys() > {"moments_unit", "held_scatter"}
    for name, values in here.items():
        np.testing.assert_array_equal(at_workers[name], values, name)


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


BLIND = """
import os, pathlib

def hide(path):
    if str(path).startswith(os.environ["HIDDEN"]):
        raise FileNotFoundError(2, "No such file or directory", str(path))

# bound here, for dask loads a preload twice
def blind_open(path, *args, real=pathlib.Path.open, **kwargs):
    hide(path)
    return real(path, *args, **kwargs)

def blind_stat(path, *args, real=pathlib.Path.stat, **kwargs):
    hide(path)
    return real(path, *args, **kwargs)

pathlib.Path.open, pathlib.Path.stat = blind_open, blind_stat
"""
OLD = """
from pipeline.compute import scheduler
scheduler.describe_package = lambda: "0.0.1, code 00000000"
"""
Join = Callable[..., str]


@pytest.fixture
def join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Start workers of a scheduler as others do, in a folder of their own; give its address."""
    monkeypatch.setattr(scheduler, "LOOK_S", 0.2)
    monkeypatch.setattr(scheduler, "GRACE_S", 0.5)
    elsewhere, root = tmp_path / "elsewhere", Path(__file__).parents[2]
    elsewhere.mkdir()
    with ExitStack() as stack:

        def run(module: str, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-m", f"distributed.cli.{module}", *map(str, arguments)]
            process = subprocess.Popen(
                [*words, "--no-dashboard"],
                cwd=elsewhere,
                env={**os.environ, "PYTHONPATH": str(root), **environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        def start(*preloads: str, **environment: str) -> str:
            file = tmp_path / "scheduler.json"
            where = ("--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)
            (tmp_path / "pid").write_text(str(run("dask_scheduler", *where).pid))
            while not file.exists():
                time.sleep(0.05)
            address = str(json.loads(file.read_text())["address"])
            for number, preload in enumerate(preloads):
                script = elsewhere / f"preload{number}.py"
                script.write_text(preload)
                alone = ("--no-nanny", "--nthreads", 1, "--preload", script)
                run("dask_worker", address, *alone, **environment)
            with Client(address) as client:
                client.wait_for_workers(len(preloads), timeout=60)
            return address

        yield start


def join_words(output: str) -> str:
    return " ".join(output.split())


def test_a_relative_run_and_workers_in_another_folder(
    finished: Path, copied: Path, join: Join, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    address = join("")
    for verb in ("masks", "em", "evaluate"):
        invoke(verb, copied.name, "--force", "--no-progress", "--scheduler", address)
    assert_same(copied, finished)


@pytest.mark.parametrize("hides", ["run", "photographs"])
def test_a_worker_that_is_blind_is_named_and_left_out(
    finished: Path, copied: Path, scenes: Path, join: Join, invoke: Invoke, hides: str
) -> None:
    hidden = copied if hides == "run" else scenes / "photographs"
    address = join(BLIND, "", HIDDEN=str(hidden))
    how = ("--force", "--no-progress", "--scheduler", address)
    output = join_words(invoke("masks", copied, *how).output)
    assert output.count("left out is the worker tcp://127.0.0.1:") == 1
    assert f"on {socket.gethostname()}: it does not see {hidden}" in output, output
    assert output.index("left out is") < output.index("proposals a window")
    # a fit reads no photographs
    output = join_words(invoke("em", copied, *how).output)
    assert output.count("left out is") == (hides == "run")
    invoke("evaluate", copied, *how)
    assert_same(copied, finished)


@pytest.mark.parametrize("verb", ["masks", "em"])
def test_workers_that_are_all_unfit_are_named(
    finished: Path, copied: Path, join: Join, invoke: Invoke, verb: str
) -> None:
    address = join(BLIND, OLD, HIDDEN=str(copied))
    how = ("--force", "--no-progress", "--scheduler", address)
    output = join_words(invoke(verb, copied, *how, code=1).output)
    assert f"no worker of the dask scheduler at {address} can do the work: the worker" in output
    assert f"it does not see {copied}" in output
    assert "it has primaps-pipe 0.0.1, code 00000000, and this process 0." in output
    assert "run the same command again to go on" in output
    assert "extract" not in output
    for each in ("masks", "em", "evaluate"):
        invoke(each, copied, "--no-progress")
    assert_same(copied, finished)


SLOW = """
import time
from stages.masks.stage import Masks

compute = Masks.compute

def dawdle(self, run, settings, shard):
    time.sleep(shard)
    return compute(self, run, settings, shard)

def dask_setup(worker):
    Masks.compute = dawdle
"""


@pytest.mark.parametrize("verb", ["masks", "em"])
def test_a_scheduler_that_is_killed_is_one_sentence(
    finished: Path, copied: Path, join: Join, invoke: Invoke, tmp_path: Path, verb: str
) -> None:
    address = join(SLOW)
    state = copied / ("state/masks" if verb == "masks" else "state/em/default")
    first = state / ("shards/000000.json" if verb == "masks" else "fit.npz")
    shutil.rmtree(state)
    pid = int((tmp_path / "pid").read_text())
    saboteur = Saboteur(first, [lambda: send_kill(pid)], state / "shards/000002.json")
    saboteur.start()
    options = ("--classes", 3, *FAST_EM) if verb == "em" else ()
    process = start(verb, copied, *options, "--scheduler", address)
    output = join_words(process.communicate(timeout=60)[0])
    saboteur.join()
    assert process.returncode == 1, output
    assert "the connection to the dask scheduler is lost; run the command again to go on" in output
    assert "Traceback" not in output
    assert "unexpected" not in output
    assert len(list((state / "shards").glob("*"))) == (verb == "masks")
    output = invoke(verb, copied, *options, "--no-progress").output
    assert verb == "em" or "2 of 3 shards to compute" in output
    assert_same(copied, finished)


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
