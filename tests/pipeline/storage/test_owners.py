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
from pipeline.storage.locks import State, decode, forget, judge, name_self, remember

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are known by /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def make_owner(pid: int) -> locks.Owner:
    start, _ = locks._read_process(pid)
    return replace(name_self(), pid=pid, start=start)


def test_a_record_comes_back_and_keeps_its_length() -> None:
    owner = name_self()
    assert decode(owner.encode()) == owner
    later = replace(owner, beat=123_456, seen=owner.seen + 999)
    assert decode(later.encode()) == later
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
    content = name_self().encode()
    assert decode(content[:-9]) is None
    assert decode(b"") is None
    assert decode(b"[1]") is None
    assert decode(b"\xff\xfe") is None
    assert decode(json.dumps(json.loads(content) | change).encode()) is None


def test_the_sentence_names_process_host_and_time() -> None:
    owner = replace(name_self(), host="box", pid=42, since=0)
    assert str(owner) == "process 42 on box, since 1970-01-01 00:00:00 UTC"


def test_a_process_runs_until_it_is_killed(child: subprocess.Popen[bytes]) -> None:
    owner = make_owner(child.pid)
    assert judge(owner) is State.RUNNING
    os.kill(child.pid, signal.SIGSTOP)
    assert judge(owner) is State.RUNNING
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while judge(owner) is not State.ENDED and time.monotonic() < deadline:
        time.sleep(0.01)
    # a zombie, for nobody has asked for its exit code
    assert Path(f"/proc/{child.pid}").exists()
    assert judge(owner) is State.ENDED
    child.wait()
    assert judge(owner) is State.ENDED


def test_a_number_given_out_again_is_another_process(child: subprocess.Popen[bytes]) -> None:
    owner = make_owner(child.pid)
    assert owner.start is not None
    assert judge(replace(owner, start=owner.start - 1)) is State.ENDED
    assert judge(replace(owner, start=None)) is State.UNKNOWN


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"machine": "other"}, {"machine": ""}])
def test_nothing_is_known_of_another_machine(change: dict[str, str]) -> None:
    owner = name_self()
    assert owner.host == socket.gethostname()
    remember(owner.token)
    assert judge(owner) is State.RUNNING
    assert judge(replace(owner, **change)) is State.UNKNOWN
    forget(owner.token)


def test_of_this_process_only_what_it_holds_counts() -> None:
    owner = name_self()
    assert judge(owner) is State.ENDED
    remember(owner.token)
    assert judge(owner) is State.RUNNING
    forget(owner.token)
    assert judge(owner) is State.ENDED
