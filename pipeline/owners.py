"""Who holds a lock: a process, told apart from every other, and whether it still runs."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from pathlib import Path
from uuid import getnode, uuid4

# every content of one owner has the same length: a renewal overwrites it in place
_COUNT = "10d"
_TIME = "14.3f"
_TOKEN = re.compile(r"[0-9a-f]{32}")

# tokens of the locks that this process holds or is about to: `exec` keeps pid and start,
# so these alone do not say that a lock is still in somebody's hands
_held: set[str] = set()


class State(Enum):
    """What can be known of an owner from here."""

    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Owner:
    """One process that holds one lock.

    Parameters
    ----------
    host
        Name of the machine, for people.
    machine
        Digest-like name of the running system and process namespace in which ``pid`` counts;
        empty where the system does not tell.
    pid, start
        Process number, and its start in clock ticks since the system's, where known: numbers are
        given out again.
    since
        When the lock was taken, seconds since 1970, by the owner's clock.
    token
        32 hexadecimal digits of this one holding of this lock.
    beat
        Counts the signs of life.
    seen
        When the last sign of life was given, seconds since 1970, by the owner's clock.
    """

    host: str
    machine: str
    pid: int
    start: int | None
    since: int
    token: str
    beat: int
    seen: float

    def beaten(self) -> Owner:
        """Return self with one more sign of life."""
        return replace(self, beat=self.beat + 1, seen=round(time.time(), 3))

    def encode(self) -> bytes:
        """Return the content of the lock file: one line of JSON, equally long at every beat."""
        record = asdict(self) | {
            "beat": f"{self.beat:{_COUNT}}",
            "seen": f"{self.seen:{_TIME}}",
        }
        return (json.dumps(record) + "\n").encode("ascii")

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"


def decode(content: bytes) -> Owner | None:
    """Return the owner that a lock file names; None where the content is not whole."""
    try:
        record = json.loads(content)
        start = record["start"]
        owner = Owner(
            host=str(record["host"]),
            machine=str(record["machine"]),
            pid=int(record["pid"]),
            start=None if start is None else int(start),
            since=int(record["since"]),
            token=str(record["token"]),
            beat=int(record["beat"]),
            seen=float(record["seen"]),
        )
        str(owner)  # a year that no calendar has
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None
    # the name is printed, and the token names files
    whole = owner.host.isprintable() and owner.pid > 0 and _TOKEN.fullmatch(owner.token)
    return owner if whole else None


def name_self() -> Owner:
    """Return this process as the owner of a new lock."""
    now = round(time.time(), 3)
    pid = os.getpid()
    start, _ = _read_process(pid)
    return Owner(
        host=socket.gethostname(),
        machine=name_machine(),
        pid=pid,
        start=start,
        since=int(now),
        token=uuid4().hex,
        beat=0,
        seen=now,
    )


def remember(token: str) -> None:
    """Note that this process holds a lock, or is taking it."""
    _held.add(token)


def forget(token: str) -> None:
    """Note that this process holds a lock no longer."""
    _held.discard(token)


def judge(owner: Owner) -> State:
    """Say whether an owner still runs, as far as can be known from this machine."""
    if not owner.machine or (owner.machine, owner.host) != (name_machine(), socket.gethostname()):
        return State.UNKNOWN
    start, gone = _read_process(owner.pid)
    if gone or (None not in (start, owner.start) and start != owner.start):
        return State.ENDED
    if owner.pid == os.getpid():
        return State.RUNNING if owner.token in _held else State.ENDED
    # a number alone may have been given out again
    return State.UNKNOWN if start is None or owner.start is None else State.RUNNING


@cache
def name_machine() -> str:
    """Name the running system and the namespace of its process numbers; empty if unknown."""
    if sys.platform == "win32":
        return ""  # a process cannot be probed by its number there without harm
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except (OSError, UnicodeDecodeError):
        return "" if sys.platform == "linux" else f"{getnode():x}"


def _read_process(pid: int) -> tuple[int | None, bool]:
    """Return the start of a process in ticks, if the system tells, and whether it has ended."""
    if sys.platform == "win32":
        return None, False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None, True
    except (PermissionError, OverflowError):
        pass  # somebody else's
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None, False  # hidden, or a system without /proc
    # the name in brackets may hold spaces and brackets: count from the last one
    fields = text.rpartition(")")[2].split()
    state, threads, start = fields[0], int(fields[17]), int(fields[19])
    # a zombie with threads is being killed: these may still be in a write
    return start, state in "ZX" and threads <= 1
