"""Clusters: a GPU per worker, a share of the cores per worker, and patience with empty ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from distributed import Client, LocalCluster

from pipeline.compute import scheduler
from pipeline.compute.scheduler import (
    Execution,
    Patience,
    choose_gpus,
    compute_shards,
    count_neighbours,
    open_local,
    share_cores,
)
from pipeline.errors import RunError, UsageError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_every_worker_has_a_gpu_of_its_own() -> None:
    assert choose_gpus(1, "cuda") == [0]
    assert choose_gpus(2, "auto") == [0, 1]
    assert choose_gpus(7, "cpu") == []
    with pytest.raises(UsageError, match=r"^--workers 3: this machine has 2 GPUs, one per worker"):
        choose_gpus(3, "auto")
    with pytest.raises(UsageError, match=r"^--device cuda:1 names one GPU, .* use --device cuda"):
        choose_gpus(1, "cuda:1")


def test_without_gpus_workers_are_processes() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert choose_gpus(3, "auto") == []
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_gpus(1, "cuda")


@pytest.mark.usefixtures("two_gpus")
def test_the_cluster_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class FakeCluster:
        """Notes down how it is made."""

        def __init__(self, **options: Any) -> None:
            made.append(options)

    module = ModuleType("dask_cuda")
    module.__dict__["LocalCUDACluster"] = FakeCluster
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    assert isinstance(scheduler._make_cluster(2, "cuda"), FakeCluster)
    assert made[0]["CUDA_VISIBLE_DEVICES"] == [0, 1]
    assert made[0]["threads_per_worker"] == 1


@pytest.mark.usefixtures("two_gpus")
def test_gpus_need_dask_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    message = r"^--workers on GPUs needs dask-cuda; install `primaps-pipe\[cuda\]`"
    with pytest.raises(UsageError, match=message), open_local(2, "cuda"):
        pass


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.CPU_COUNT", 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [share_cores(workers) for workers in (1, 3, 16, 40)] == [16, 5, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert [share_cores(workers) for workers in (1, 8)] == [4, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert share_cores(2) == 8


def tell_threads(_: int) -> tuple[list[str | None], int]:
    return [os.environ.get(name) for name in scheduler._THREADS], torch.get_num_threads()


def test_local_workers_are_told_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    names = [name for name in os.environ if name.endswith("_NUM_THREADS")]
    for name in names:
        monkeypatch.delenv(name)
    ends = compute_shards(tell_threads, [(0,), (1,)], Execution(workers=2), print)
    assert [end.value for end in ends] == [(["3"] * 4, 3)] * 2
    # and this process keeps all cores to itself again
    assert not [name for name in os.environ if name.endswith("_NUM_THREADS")]


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """Two workers of two threads each, which nobody told how many cores to use."""
    import dask

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": ""}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs="CRITICAL",
        ) as workers,
    ):
        yield workers


def test_workers_of_others_share_the_cores_of_their_host(
    untold: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(untold) as client:
        assert count_neighbours(client) == {"127.0.0.1": 4}
    # as the workers count the cores of this machine
    share = share_cores(4)
    execution = Execution(scheduler=untold.scheduler_address)
    ends = compute_shards(tell_threads, [(number,) for number in range(4)], execution, print)
    assert [end.value for end in ends] == [([str(share)] * 4, share)] * 4


class FakeClient:
    """A cluster whose workers are a number."""

    def __init__(self, workers: int, own: Any = None) -> None:
        self.workers, self.cluster = workers, own
        self.scheduler = SimpleNamespace(address="tcp://there:1")

    def nthreads(self) -> dict[str, int]:
        return {str(number): 1 for number in range(self.workers)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_patience_with_a_scheduler_that_has_no_workers(clock: list[float]) -> None:
    told: list[Any] = []
    client: Any = FakeClient(1)
    patience = Patience(client, told.append)
    clock[0] = 2000.0
    patience.look()
    client.workers = 0
    for clock[0] in (2001.0, 2010.0, 2020.0, 2000.0 + scheduler.WORKERLESS_S):
        patience.look()
    assert told == [{"warn": "the dask scheduler at tcp://there:1 has no workers; waiting."}]
    clock[0] += scheduler.LOOK_S
    with pytest.raises(RunError, match=r"has had no worker for 15 minutes; start some with `dask"):
        patience.look()


def test_a_worker_that_comes_starts_the_wait_anew(clock: list[float]) -> None:
    told: list[Any] = []
    client: Any = FakeClient(0)
    patience = Patience(client, told.append)
    for workers in (0, 1, 0):
        client.workers = workers
        clock[0] += 0.9 * scheduler.WORKERLESS_S
        patience.look()
    assert len(told) == 2
    clock[0] += 0.9 * scheduler.WORKERLESS_S
    with pytest.raises(RunError):
        patience.look()


def test_own_workers_that_do_not_come_back_are_made_anew(clock: list[float]) -> None:
    scaled: list[int] = []
    own = SimpleNamespace(worker_spec={0: None, 1: None}, scale=scaled.append)
    client: Any = FakeClient(0, own)
    patience = Patience(client, print)
    clock[0] = scheduler.RENEW_S - 1
    patience.look()
    assert scaled == []
    clock[0] = scheduler.RENEW_S + 9
    patience.look()
    assert scaled == [0, 2]
