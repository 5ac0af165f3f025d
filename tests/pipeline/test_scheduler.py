"""Inline or in processes: the same results, the same announcements."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import cluster
from pipeline.errors import ImageError, UsageError, WorkerLostError
from pipeline.scheduler import Done, Execution, announce, compute_shards
from pipeline.team import INLINE, current_team

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
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
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
    monkeypatch.setattr(cluster, "_check_scheduler", lambda address: None)
    with (
        pytest.raises(ValueError, match="of my own"),
        cluster.open_remote("tcp://somewhere:1") as client,
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
    with cluster.open_local(1, "cpu", failures=0) as client:
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
