"""Inline or in processes: the same results, the same announcements.

Teams: pieces inline and on workers, lost workers, and errors.

Clusters: a GPU per worker, a share of the cores per worker, and patience with empty ones.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from distributed import Client, LocalCluster

from pipeline.compute import scheduler
from pipeline.compute.scheduler import (
    INLINE,
    ClusterTeam,
    Done,
    Execution,
    Patience,
    Team,
    announce,
    choose_gpus,
    compute_shards,
    count_neighbours,
    current_team,
    open_local,
    share_cores,
)
from pipeline.errors import ImageError, RunError, UsageError, WorkerLostError

CALLS = [(number, "row") for number in range(4)]


def work(number: int, unit: str) -> tuple[int, str, int]:
    announce(advance=number, say=f"{unit} {number}")
    if number == 2:
        raise ImageError("row 2 is dark")
    return number**2, unit, os.getpid()


def interrupt(_: int) -> None:
    raise KeyboardInterrupt


def collect(execution: Execution) -> tuple[dict[int, Done], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    done = {end.index: end for end in compute_shards(work, CALLS, execution, events.append)}
    deadline = time.monotonic() + 5
    while len(events) < len(CALLS) and time.monotonic() < deadline:
        time.sleep(0.01)
    return done, events


@pytest.mark.parametrize("workers", [0, 2])
def test_results_errors_and_announcements(workers: int) -> None:
    done, events = collect(Execution(workers=workers))
    assert sorted(done) == [0, 1, 2, 3]
    assert {i: end.value[:2] for i, end in done.items() if end.error is None} == {
        0: (0, "row"),
        1: (1, "row"),
        3: (9, "row"),
    }
    assert isinstance(done[2].error, ImageError)
    assert str(done[2].error) == "row 2 is dark"
    assert sorted((event["advance"], event["say"]) for event in events) == [
        (number, f"row {number}") for number in range(4)
    ]
    processes = {end.value[2] for end in done.values() if end.error is None}
    assert (os.getpid() in processes) is (workers == 0)


def test_inline_calls_come_in_order_and_one_at_a_time() -> None:
    seen: list[dict[str, Any]] = []
    ends = compute_shards(work, CALLS, Execution(), seen.append)
    for number, end in enumerate(ends):
        assert end.index == number
        assert len(seen) == number + 1


def test_an_interrupt_is_not_a_failed_shard() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(compute_shards(interrupt, [(1,)], Execution(), print))


def test_announcing_to_nobody_is_silent() -> None:
    announce(advance=1)


def test_nothing_to_call_starts_nothing() -> None:
    nowhere = Execution(scheduler="tcp://127.0.0.1:1")
    assert list(compute_shards(work, [], nowhere, print)) == []


@pytest.fixture
def dead_port() -> Iterator[int]:
    # bound and not listening: nobody else can take it meanwhile
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_scheduler_that_is_not_there(dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "CONNECT_S", 0.5)
    address = f"tcp://127.0.0.1:{dead_port}"
    before = set(threading.enumerate())
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        list(compute_shards(work, CALLS, Execution(scheduler=address), print))
    assert time.monotonic() - start < 4
    assert str(caught.value).startswith(f"no dask scheduler answers at {address} (")
    assert str(caught.value).endswith("; start one with `dask scheduler`, or use --workers.")
    # a client left behind would hold the process up when it ends
    left = [t.name for t in set(threading.enumerate()) - before if "loop" in t.name.lower()]
    assert left == []


@pytest.mark.parametrize("address", ["nonsense", "foo://host:1", "tcp://127.0.0.1:port"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match=r"^no dask scheduler answers at "):
        list(compute_shards(work, CALLS, Execution(scheduler=address), print))


def test_a_caller_that_fails_is_not_taken_for_a_dead_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import distributed

    class FakeClient:
        """Connects to anything."""

        def __init__(self, address: str) -> None:
            self.address = address

        def __enter__(self) -> FakeClient:
            return self

        def __exit__(self, *exc: object) -> None:
            return None

    monkeypatch.setattr(distributed, "Client", FakeClient)
    monkeypatch.setattr(scheduler, "_check_scheduler", lambda address: None)
    with (
        pytest.raises(ValueError, match="of my own"),
        scheduler.open_remote("tcp://somewhere:1") as client,
    ):
        assert isinstance(client, FakeClient)
        assert client.address == "tcp://somewhere:1"
        raise ValueError("of my own")


ALWAYS, ONCE = 3, 1


def work_or_die(number: int, diary: Path) -> int:
    """Note down when this begins and ends; call 3 kills its process, call 1 the first time."""
    earlier = len(list(diary.glob(f"{number} begins *")))
    (diary / f"{number} begins {time.time_ns()}").touch()
    if number == ALWAYS or (number == ONCE and not earlier):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    (diary / f"{number} ends {time.time_ns()}").touch()
    return number**2


def read_diary(diary: Path) -> list[tuple[int, str]]:
    entries = [path.name.split() for path in diary.iterdir()]
    return [(int(n), what) for n, what, at in sorted(entries, key=lambda entry: int(entry[2]))]


def test_a_shard_whose_worker_is_killed_is_computed_once_more_alone(tmp_path: Path) -> None:
    calls = [(number, tmp_path) for number in range(6)]
    warnings: list[Any] = []
    names = [f"shard {10 + number}" for number in range(6)]
    ends = compute_shards(work_or_die, calls, Execution(workers=2), warnings.append, names=names)
    done = {end.index: end for end in ends}
    assert {index: end.value for index, end in done.items() if end.error is None} == {
        number: number**2 for number in range(6) if number != ALWAYS
    }
    error = done[ALWAYS].error
    assert isinstance(error, WorkerLostError)
    assert str(error).startswith("the worker process that computed shard 13 was killed twice")
    assert "(out of memory?)" in str(error)
    assert [event["warn"] for event in warnings] == [
        f"the worker process of shard {10 + number} was killed; once more, alone"
        for number in (ONCE, ALWAYS)
    ]
    # innocent shards are computed once, and the guilty ones at the end, with nothing beside them
    diary = read_diary(tmp_path)
    begun = [number for number, what in diary if what == "begins"]
    assert sorted(begun) == sorted([*range(6), ONCE, ALWAYS])
    assert diary[-3:] == [(ONCE, "begins"), (ONCE, "ends"), (ALWAYS, "begins")]


def see_the_team(number: int) -> tuple[int, int, list[int]]:
    team = current_team()
    announce(advance=number)
    return os.getpid(), number, team.map(os.getpid, [(), ()])


def test_a_shard_that_shares_its_work_is_computed_here_with_a_team() -> None:
    events: list[Any] = []
    with scheduler.open_local(1, "cpu") as client:
        elsewhere = Execution(scheduler=client.scheduler.address)
        (end,) = compute_shards(see_the_team, [(5,)], elsewhere, events.append, shares_work=True)
    here, number, there = end.value
    assert (here, number) == (os.getpid(), 5)
    assert os.getpid() not in there
    assert events == [{"advance": 5}]
    for local in (Execution(), Execution(workers=2)):
        (end,) = compute_shards(see_the_team, [(5,)], local, events.append, shares_work=True)
        assert end.value == (os.getpid(), 5, [os.getpid()] * 2)
    assert current_team() is INLINE


WARNINGS: list[dict[str, Any]] = []


@contextmanager
def open_cluster() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with open_cluster() as client:
        yield client


@pytest.fixture
def whole_client() -> Iterator[Client]:
    """Give a cluster of its own: of one that others kill workers of, one may not have come back."""
    with open_cluster() as client:
        yield client


@pytest.fixture(params=["inline", "cluster"])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    if request.param == "inline":
        yield INLINE
        return
    client = request.getfixturevalue("client")
    with ClusterTeam(lambda: nullcontext(client), WARNINGS.append) as team:
        yield team


def wait_then_square(number: int) -> int:
    # the first are the last to be done
    time.sleep(0.2 / (number + 1))
    return number**2


def make(number: int) -> dict[str, int]:
    return {"number": number, "process": os.getpid()}


def look(made: dict[str, int], factor: int) -> tuple[int, int, int]:
    return factor * made["number"], made["process"], os.getpid()


def fail(number: int) -> int:
    if number == 1:
        raise ImageError("piece 1 is dark")
    return number


def test_results_come_in_the_order_of_the_tasks(team: Team) -> None:
    assert team.map(wait_then_square, [(number,) for number in range(6)]) == [
        number**2 for number in range(6)
    ]
    assert team.map(wait_then_square, []) == []


def test_a_stream_is_in_order_and_takes_only_so_much_ahead(team: Team) -> None:
    taken: list[int] = []

    def count() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for place, result in enumerate(team.stream(wait_then_square, count())):
        assert result == place**2
        assert len(taken) <= place + 1 + 2 * 2
    assert taken == list(range(20))


def test_a_piece_is_used_where_it_is(team: Team) -> None:
    made = [team.start(make, number) for number in range(4)]
    looked = team.map(look, [(piece, 3) for piece in made])
    assert [number for number, _, _ in looked] == [0, 3, 6, 9]
    assert all(before == after for _, before, after in looked)
    assert (os.getpid() in {after for _, _, after in looked}) is not team.remote


def test_an_error_of_a_piece_is_that_of_the_call(team: Team) -> None:
    with pytest.raises(ImageError, match=r"^piece 1 is dark$"):
        team.map(fail, [(number,) for number in range(3)])
    assert team.map(fail, [(2,)]) == [2]


def test_what_a_killed_worker_held_is_made_again(client: Client) -> None:
    with ClusterTeam(lambda: nullcontext(client), WARNINGS.append) as team:
        made = [team.start(make, number) for number in range(4)]
        lost = team.map(look, [(made[0], 1)])[0][1]
        os.kill(lost, signal.SIGKILL)
        looked = team.map(look, [(piece, 3) for piece in made])
        assert [number for number, _, _ in looked] == [0, 3, 6, 9]
        assert lost not in {process for _, process, _ in looked}


def kill_at_first(number: int, diary: Path, times: int) -> int:
    """Kill the process that computes number 2, so many times."""
    if number == 2:
        earlier = len(list(diary.iterdir()))
        if earlier < times:
            (diary / str(earlier)).touch()
            # a process that has hardly started is not replaced at once
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
    return number


def add_one(number: int) -> int:
    return number + 1


# dask tries a piece four times before it gives up, and the team once more
@pytest.mark.parametrize(("times", "warned"), [(1, 0), (4, 1)])
def test_a_piece_whose_worker_is_killed_is_computed_again(
    client: Client, tmp_path: Path, times: int, warned: int
) -> None:
    warnings: list[Any] = []
    with ClusterTeam(lambda: nullcontext(client), warnings.append) as team:
        made = [team.start(kill_at_first, number, tmp_path, times) for number in range(4)]
        assert team.map(add_one, [(piece,) for piece in made]) == [1, 2, 3, 4]
    assert len(list(tmp_path.iterdir())) == times
    # the cluster blames all that a dead worker held, so another piece may have been retried, too
    retried = len([event for event in warnings if "alone" in event["warn"]])
    assert warned <= retried <= 4 * warned


def test_a_piece_that_kills_every_worker_is_given_up(client: Client, tmp_path: Path) -> None:
    with ClusterTeam(lambda: nullcontext(client), WARNINGS.append) as team:
        with pytest.raises(WorkerLostError, match=r"^the worker process .* was killed 5 times"):
            team.map(kill_at_first, [(number, tmp_path, 99) for number in range(4)])
        assert len(list(tmp_path.iterdir())) == 5
        assert team.map(add_one, [(7,)]) == [8]


def work_for_one(folder: Path, main: int) -> str:
    """Say of the first process but this one that it is blind, as soon as it is to be."""
    if os.getpid() == main or not (folder / "blind").exists():
        return ""
    with suppress(FileExistsError):
        (folder / "blind one").symlink_to(str(os.getpid()))
    return "it is blind" if (folder / "blind one").readlink() == Path(str(os.getpid())) else ""


def go_blind(number: int, folder: Path) -> tuple[int, int]:
    (folder / "blind").touch()
    if number == 1:
        raise ImageError("all are blind to piece 1")
    if work_for_one(folder, 0):
        raise RunError("there is no run here; run extract")
    return number, os.getpid()


def double(made: tuple[int, int]) -> int:
    return 2 * made[0]


def test_calls_and_pieces_of_a_worker_that_goes_blind_are_done_by_others(
    whole_client: Client, tmp_path: Path
) -> None:
    check = partial(work_for_one, tmp_path, os.getpid())
    told: list[Any] = []
    calls = [(number, tmp_path) for number in range(6)]
    names = [str(number) for number in range(6)]
    ends = scheduler._compute_distributed(whole_client, go_blind, calls, names, told.append, check)
    done = {end.index: end for end in ends}
    assert str(done.pop(1).error) == "all are blind to piece 1"
    assert [done[index].value[0] for index in sorted(done)] == [0, 2, 3, 4, 5]
    blind = int(str((tmp_path / "blind one").readlink()))
    assert blind not in {end.value[1] for end in done.values()}
    assert len(told) == 1
    assert re.fullmatch(r"left out is the worker tcp://\S+ on \S+: it is blind\.", told[0]["warn"])

    for file in tmp_path.iterdir():
        file.unlink()
    with ClusterTeam(lambda: nullcontext(whole_client), told.append, check) as team:
        made = [team.start(go_blind, number, tmp_path) for number in (2, 3, 4, 5)]
        assert team.map(double, [(piece,) for piece in made]) == [4, 6, 8, 10]
        with pytest.raises(ImageError, match=r"^all are blind to piece 1$"):
            team.map(go_blind, [(1, tmp_path)])
    assert len(told) == 2


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
