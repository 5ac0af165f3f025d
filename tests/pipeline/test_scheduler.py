"""Inline or in processes: the same results, the same announcements."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import scheduler
from pipeline.errors import ImageError, UsageError
from pipeline.scheduler import Done, Execution, announce, compute_shards

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
    execution = Execution(scheduler="tcp://somewhere:1")
    with (
        pytest.raises(ValueError, match="of my own"),
        scheduler._connect(execution, 1) as client,
    ):
        assert client.address == "tcp://somewhere:1"
        raise ValueError("of my own")
