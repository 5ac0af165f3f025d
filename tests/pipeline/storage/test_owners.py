"""Who holds a lock, and whether it still runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.storage import locks
from pipeline.storage.locks import Owner, State

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are known by /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def make_owner(pid: int) -> locks.Owner:
    start, _ = locks._read_process(pid)
    return replace(Owner.here(), pid=pid, start=start)


def test_a_record_comes_back_and_keeps_its_length() -> None:
    owner = Owner.here()
    assert Owner.decode(owner.encode()) == owner
    later = replace(owner, beat=123_456, seen=owner.seen + 999)
    assert Owner.decode(later.encode()) == later
    assert len(later.encode()) == len(owner.encode())
    assert owner.beaten().beat == 1
    assert owner.beaten().encode() != owner.encode()


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 0},
        {"pid": None},
        {"host": "a\nb"},
        {"host": "\x1b[31m"},
        {"token": "../../x"},
        {"since": "9" * 18},
        {"start": "then"},
    ],
)
def test_a_record_that_is_not_whole_names_nobody(change: dict[str, object]) -> None:
    content = Owner.here().encode()
    assert Owner.decode(content[:-9]) is None
    assert Owner.decode(b"") is None
    assert Owner.decode(b"[1]") is None
    assert Owner.decode(b"\xff\xfe") is None
    assert Owner.decode(json.dumps(json.loads(content) | change).encode()) is None


def test_the_sentence_names_process_host_and_time() -> None:
    owner = replace(Owner.here(), host="box", pid=42, since=0)
    assert str(owner) == "process 42 on box, since 1970-01-01 00:00:00 UTC"


def test_a_process_runs_until_it_is_killed(child: subprocess.Popen[bytes]) -> None:
    owner = make_owner(child.pid)
    assert owner.judge() is State.RUNNING
    os.kill(child.pid, signal.SIGSTOP)
    assert owner.judge() is State.RUNNING
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while owner.judge() is not State.ENDED and time.monotonic() < deadline:
        time.sleep(0.01)
    # a zombie, for nobody has asked for its exit code
    assert Path(f"/proc/{child.pid}").exists()
    assert owner.judge() is State.ENDED
    child.wait()
    assert owner.judge() is State.ENDED


def test_a_number_given_out_again_is_another_process(child: subprocess.Popen[bytes]) -> None:
    owner = make_owner(child.pid)
    assert owner.start is not None
    assert replace(owner, start=owner.start - 1).judge() is State.ENDED
    assert replace(owner, start=None).judge() is State.UNKNOWN


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"machine": "other"}, {"machine": ""}])
def test_nothing_is_known_of_another_machine(change: dict[str, str]) -> None:
    owner = Owner.here()
    assert owner.host == socket.gethostname()
    locks._held.add(owner.token)
    assert owner.judge() is State.RUNNING
    assert replace(owner, **change).judge() is State.UNKNOWN
    locks._held.discard(owner.token)


def test_of_this_process_only_what_it_holds_counts() -> None:
    owner = Owner.here()
    assert owner.judge() is State.ENDED
    locks._held.add(owner.token)
    assert owner.judge() is State.RUNNING
    locks._held.discard(owner.token)
    assert owner.judge() is State.ENDED
