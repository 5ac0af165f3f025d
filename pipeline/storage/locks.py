"""Locks that hold between processes, machines and object stores, and outlive no owner.

A lock is a record of its owner in the run directory: files of a folder (:class:`_FolderClaims`), or
one object of a store (:class:`_ObjectClaim`). On the owner's machine the system says whether it
still runs. From elsewhere its signs of life do: it renews the record every :data:`BEAT_S`, and who
has seen the same record for :data:`LEASE_S`, by a clock of its own, takes the lock over. No two
clocks are compared, and nothing relies on the locks of a file system.

An owner that stood still for longer than that (a suspended machine) may have lost its lock. It
asks with :meth:`Permit.check` before it commits anything.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import re
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from uuid import getnode, uuid4

from pydantic import TypeAdapter

from pipeline.errors import RunError
from pipeline.storage.places import ObjectPath, UnreachableError, is_remote, list_names

# seconds between two signs of life
BEAT_S = 5.0
# seconds without one after which an owner on another machine counts as ended
LEASE_S = 60.0
# seconds of waiting after which it is said: most locks are held for milliseconds
SAY_AFTER_S = 1.0
# seconds between two looks, at first and at most
PAUSES_S = (0.005, 0.5)
REMOTE_PAUSES_S = (0.1, 2.0)
# seconds for which who works for the owner takes the last answer: writes come in thousands
ASK_S = 1.0
# seconds after which a request to an object store counts as lost
REQUEST_S = 15.0
# seconds that a release waits for a sign of life that is on its way
RELEASE_S = 15.0
# how often in a row an object store may fail to answer before the lock is given up
TRIES = 6
# what a claim takes of a disk: a block, for its few hundred bytes
CLAIM_BYTES = 4096

Say = Callable[[str], None]

_TOKEN = re.compile(r"[0-9a-f]{32}")
_PART = ".part"
# of no object that holds anything
_NO_TAG = f'"{32 * "0"}"'
# the file is gone; over NFS, what was opened as it went
_GONE = {errno.ENOENT, errno.ESTALE}
# a RunError: what an object store refuses for good
_FAILURES = (OSError, RunError)

# tokens of the locks that this process holds or is about to: `exec` keeps pid and start,
# so these alone do not say that a lock is still in somebody's hands
_held: set[str] = set()
# when a lock was last asked for and found to be held, by its owner's token
_confirmed: dict[str, float] = {}

_log = logging.getLogger(__name__)


class State(Enum):
    """What can be known of an owner from here."""

    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Owner:
    """One process that holds one lock."""

    host: str
    machine: str
    pid: int
    start: int | None
    since: int
    token: str
    beat: int
    seen: float

    @classmethod
    def here(cls) -> Owner:
        """Return this process as the owner of a new lock."""
        now, pid = round(time.time(), 3), os.getpid()
        start, _ = _read_process(pid)
        host, token = socket.gethostname(), uuid4().hex
        return cls(host, name_machine(), pid, start, int(now), token, 0, now)

    @classmethod
    def decode(cls, content: bytes) -> Owner | None:
        """Return the owner that a record names; None where the content is not whole."""
        try:
            owner = _RECORD.validate_json(content)
            str(owner)  # a year that no calendar has
        except (ValueError, OverflowError, OSError):
            return None
        # the name is printed, and the token names files
        whole = owner.host.isprintable() and owner.pid > 0 and _TOKEN.fullmatch(owner.token)
        return owner if whole else None

    def encode(self) -> bytes:
        """Return the record: one line of JSON, as long at every beat, which overwrites it."""
        record = asdict(self) | {"beat": f"{self.beat:10d}", "seen": f"{self.seen:14.3f}"}
        return (json.dumps(record) + "\n").encode("ascii")

    def beaten(self) -> Owner:
        """Return self with one more sign of life."""
        return replace(self, beat=self.beat + 1, seen=round(time.time(), 3))

    def judge(self) -> State:
        """Say whether the process still runs, as far as can be known from this machine."""
        here = (name_machine(), socket.gethostname())
        if not self.machine or (self.machine, self.host) != here:
            return State.UNKNOWN
        start, gone = _read_process(self.pid)
        if gone or (None not in (start, self.start) and start != self.start):
            return State.ENDED
        if self.pid == os.getpid():
            return State.RUNNING if self.token in _held else State.ENDED
        # a number alone may have been given out again
        return State.UNKNOWN if start is None or self.start is None else State.RUNNING

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"process {self.pid} on {self.host}, since {since}"


_RECORD = TypeAdapter(Owner)


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


@dataclass(frozen=True)
class Sight:
    """A lock as seen once."""

    version: Any
    owners: tuple[Owner | None, ...]


class Claims(ABC):
    """How one lock stands written.

    No act waits, and none removes or overwrites what another owner wrote, but :meth:`take` what it
    was told is stale, and only if nothing has changed since. Each raises ``OSError`` where it
    cannot be done.
    """

    remote: ClassVar[bool]
    """Whether an answer, or a request, may be lost or late on the way."""

    @abstractmethod
    def look(self) -> Sight | None:
        """Return what stands written, None if nothing does."""

    @abstractmethod
    def take(self, owner: Owner, stale: Sight | None) -> bool:
        """Claim the lock if nothing but what was seen as stale stands written."""

    @abstractmethod
    def renew(self, owner: Owner) -> bool:
        """Write a sign of life; false if the claim is gone."""

    @abstractmethod
    def holds(self, owner: Owner) -> bool:
        """Whether the claim still stands."""

    @abstractmethod
    def release(self, owner: Owner) -> None:
        """Remove the claim, if it still stands."""


def open_claims(file: Path) -> Claims:
    """Say how the lock of this file stands written."""
    return _ObjectClaim(file) if is_remote(file) else _FolderClaims(file)


class _FolderClaims(Claims):
    """A lock as files of one folder, one for each claim, named after its token.

    Whoever wants the lock writes a claim of its own and then lists the folder; it has the lock if
    no other claim stands there but stale ones, and withdraws otherwise. Of two that come at once
    each has written before it lists, so at least one sees the other. This needs no locking by the
    system, no exclusive creation and no hard links, only that a rename is seen by a listing that
    begins after it, which network file systems promise to the client that renamed. As names are
    never used twice, nobody can remove a claim other than the one that it means.
    """

    remote = False

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._stem = file.name + "~"

    def look(self) -> Sight | None:
        found = self._read_claims()
        if not found:
            return None
        return Sight(frozenset(found.items()), tuple(map(Owner.decode, found.values())))

    def take(self, owner: Owner, stale: Sight | None) -> bool:
        known = stale.version if stale else frozenset()
        claim = self._path(owner)
        part = claim.with_name(claim.name + _PART)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(owner.encode())
                file.flush()
                # an empty claim, after a power loss, would name nobody that is known to be dead
                os.fsync(file.fileno())
            part.rename(claim)
            others = {item for item in self._read_claims().items() if item[0] != claim.name}
            if not others <= known:
                claim.unlink(missing_ok=True)
                return False
            # before the lock counts as taken: an owner that still finds its claim still holds it
            for name, _ in others:
                (self._folder / name).unlink(missing_ok=True)
            # of processes that were killed while they wrote; one that is at it will try again
            for name in self._list():
                if name.endswith(_PART):
                    with suppress(OSError):
                        (self._folder / name).unlink(missing_ok=True)
        except FileNotFoundError:
            return False  # cleared away by the one that got the lock, or with an unused run
        except BaseException:
            part.unlink(missing_ok=True)
            claim.unlink(missing_ok=True)
            raise
        return True

    def renew(self, owner: Owner) -> bool:
        # in place: what another has removed is not made anew
        return self._open(owner, "r+b", owner.encode())

    def holds(self, owner: Owner) -> bool:
        # opened, for network file systems ask their server then, and may not for a stat
        return self._open(owner, "rb", b"")

    def _open(self, owner: Owner, mode: str, content: bytes) -> bool:
        try:
            with self._path(owner).open(mode, buffering=0) as file:
                if content:
                    file.write(content)
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return True

    def release(self, owner: Owner) -> None:
        self._path(owner).unlink(missing_ok=True)

    def _path(self, owner: Owner) -> Path:
        return self._folder / (self._stem + owner.token)

    def _list(self) -> list[str]:
        return [name for name, _ in list_names(self._folder) if name.startswith(self._stem)]

    def _read_claims(self) -> dict[str, bytes]:
        found = {}
        for name in self._list():
            if name.endswith(_PART):
                continue
            try:
                found[name] = (self._folder / name).read_bytes()
            except OSError as error:
                if error.errno not in _GONE:
                    raise
        return found


class _ObjectClaim(Claims):
    """A lock as one object of a store, changed by conditional requests only.

    An answer may be lost, so the object is read back after every write that was not answered with
    a plain yes: the token in it says whose it is.
    """

    remote = True

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._tag = ""

    def look(self) -> Sight | None:
        found = self._path.store.get_tagged(self._path, REQUEST_S)
        return None if found is None else Sight(found, (Owner.decode(found[1]),))

    def take(self, owner: Owner, stale: Sight | None) -> bool:
        tag = stale.version[0] if stale else None
        with suppress(UnreachableError):
            self._path.store.put_if(self._path, owner.encode(), tag, REQUEST_S)
        # even after a yes: of a store that knows no conditions, all but the last writer learn it so
        return self.holds(owner)

    def renew(self, owner: Owner) -> bool:
        tag = None
        with suppress(UnreachableError):
            tag = self._path.store.put_if(self._path, owner.encode(), self._tag, REQUEST_S)
        if tag is None:
            return self.holds(owner)
        self._tag = tag
        return True

    def holds(self, owner: Owner) -> bool:
        found = self._path.store.get_tagged(self._path, REQUEST_S)
        current = None if found is None else Owner.decode(found[1])
        if found is not None and current is None:
            # a store that overwrites in place shows a part of a record; the next look is whole
            raise UnreachableError(errno.EIO, "the object store gives a part of the lock's record")
        if found is None or current is None or current.token != owner.token:
            return False
        self._tag = found[0]
        return True

    def release(self, owner: Owner) -> None:
        given_up = time.monotonic() + REQUEST_S / 2
        # the tag is not known after a lost answer, and not right after that of a sign of life
        for known in (bool(self._tag), False):
            try:
                if not known and not self.holds(owner):
                    return
                if self._path.store.delete_if(self._path, self._tag, REQUEST_S):
                    return
            except UnreachableError:
                # not for long: it is the last act, and the lock of an ended process falls anyway
                if time.monotonic() > given_up:
                    raise
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                # a store without conditional removal
                if self.holds(owner):
                    self._path.store.delete_if(self._path, None, REQUEST_S)
                return
        if self.holds(owner):
            raise UnreachableError(errno.EIO, "the object store does not remove it")


def probe_conditions(folder: ObjectPath) -> bool | None:
    """Whether the store of a folder honours the conditions of writes; None where it did not say."""
    for _ in range(TRIES):
        probe = folder / f"probe-{uuid4().hex}"
        try:
            # none: a lost answer, and the request that repeated it found the object there
            if probe.store.put_if(probe, b"probe", None, REQUEST_S) is not None:
                put = [probe.store.put_if(probe, b"", tag, REQUEST_S) for tag in (None, _NO_TAG)]
                return put == [None, None]
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return False
            if not isinstance(error, UnreachableError):
                raise
        finally:
            with suppress(*_FAILURES):
                probe.store.delete(probe)
    return None


@dataclass(frozen=True)
class Permit:
    """With what another process, which works for the owner of a lock, asks whether it is held."""

    file: Path
    owner: Owner
    what: str

    def check(self) -> None:
        """Return if the lock is still held; asked for at most every :data:`ASK_S`."""
        if _now() - _confirmed.get(self.owner.token, -math.inf) >= ASK_S:
            self.ask()

    def holds(self) -> bool:
        """Whether this process sees the lock held."""
        return open_claims(self.file).holds(self.owner)

    def ask(self) -> None:
        """Return if the lock is still held, asked for now."""
        begun = _now()
        try:
            held = self.holds()
        except _FAILURES as error:
            if begun - _confirmed.get(self.owner.token, -math.inf) <= LEASE_S / 2:
                return  # nobody can have taken it over yet
            raise RunError(
                f"whether this process still holds the lock on {self.what} cannot "
                f"be known ({_describe(error)}); run the same command again."
            ) from error
        if not held:
            raise RunError(
                f"another process has taken over {self.what}, as this one gave no sign of life "
                f"for {LEASE_S:g} s; run the same command again when that one has ended."
            )
        _confirmed[self.owner.token] = begun


class Lock:
    """A lock in the hands of this process (made by :func:`hold_lock`)."""

    def __init__(self, claims: Claims, owner: Owner, what: str, file: Path) -> None:
        # who asks with it may have another working folder
        self.permit = Permit(file.absolute(), owner, what)
        self.lost = False
        self._claims = claims
        self._owner = owner
        self._what = what
        # one request at a time: each knows the version that the one before it left
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._pid = os.getpid()
        _confirmed[owner.token] = _now()
        threading.Thread(target=self._beat, name=f"lock {what}", daemon=True).start()

    def check(self) -> None:
        """Return if the lock is still held."""
        with self._turn:
            self.permit.ask()

    def _beat(self) -> None:
        while not self.lost and not self._ended.wait(BEAT_S):
            with self._turn:
                if self._ended.is_set():
                    return
                self._owner = self._owner.beaten()
                begun = _now()
                try:
                    self.lost = not self._claims.renew(self._owner)
                except _FAILURES as error:
                    # the next one may get through; if none does, others see it and so does check
                    _log.debug("no sign of life for %s: %s", self._what, error)
                    continue
                if not self.lost:
                    _confirmed[self._owner.token] = begun

    def _release(self) -> None:
        if os.getpid() != self._pid:
            return  # a fork: the lock is its parent's
        self._ended.set()
        # not for ever: a beat may hang in a dead network
        mine = self._turn.acquire(timeout=RELEASE_S)
        try:
            if not mine:
                raise UnreachableError(errno.EIO, "a request is still waiting for an answer")
            self._claims.release(self._owner)
        except _FAILURES as error:
            _log.warning(
                "the lock on %s could not be released (%s); others may wait for %g s.",
                self._what,
                _describe(error),
                LEASE_S,
            )
        finally:
            _held.discard(self._owner.token)
            _confirmed.pop(self._owner.token, None)
            if mine:
                self._turn.release()


@contextmanager
def hold_lock(file: Path, *, what: str, wait: bool, say: Say | None = None) -> Iterator[Lock]:
    """Keep every other process, on any machine, and every other thread out."""
    lock = _Attempt(file, what, wait, say or _log.warning).acquire()
    try:
        yield lock
    finally:
        lock._release()


class _Attempt:
    """One try to get a lock, and what it has seen so far."""

    def __init__(self, file: Path, what: str, wait: bool, say: Say) -> None:
        self._file, self._what, self._wait, self._say = file, what, wait, say
        self._claims = open_claims(file)
        self._begun = self._looked = time.monotonic()
        self._said = False
        self._sight: Sight | None = None
        self._moved = False
        # seconds for which the same thing has been seen
        self._watched = 0.0

    def acquire(self) -> Lock:
        pause, longest = REMOTE_PAUSES_S if self._claims.remote else PAUSES_S
        failures = 0
        while True:
            try:
                lock = self._try_once()
                failures = 0
            except OSError as error:
                lock = None
                failures += 1
                if failures >= TRIES or not isinstance(error, UnreachableError):
                    raise self._fail(error) from error
            if lock is not None:
                return lock
            # drawn, so that two that met do not meet again; no result depends on it
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(1.5 * pause, longest)

    def _try_once(self) -> Lock | None:
        sight = self._look()
        if sight is not None:
            states = [self._judge(owner) for owner in sight.owners]
            if any(state is not State.ENDED for state in states):
                self._stay_out(sight, states)
                return None
        owner = Owner.here()
        _held.add(owner.token)
        try:
            if self._claims.take(owner, sight):
                if sight is not None:
                    how = (
                        f"gave no sign of life for {LEASE_S:g} s"
                        if self._watched >= LEASE_S
                        else "ended without releasing it"
                    )
                    self._say(f"took over {self._what} from {_name(sight)}, which {how}.")
                return Lock(self._claims, owner, self._what, self._file)
        except BaseException:
            with suppress(*_FAILURES):
                self._claims.release(owner)
            _held.discard(owner.token)
            raise
        _held.discard(owner.token)
        return None

    def _look(self) -> Sight | None:
        before = time.monotonic()
        sight = self._claims.look()
        if sight is None or self._sight is None or sight.version != self._sight.version:
            self._moved = self._sight is not None
            self._watched = 0.0
        else:
            # a pause of this process, or of the store, is no silence of the owner
            self._watched += min(before - self._looked, BEAT_S)
        self._sight = sight
        self._looked = time.monotonic()
        return sight

    def _judge(self, owner: Owner | None) -> State:
        """Say of an owner whether it still runs, as far as is known after so long."""
        if owner is None:
            # power failed as it was written: who is at it now will be done by then
            patience = min(2 * BEAT_S, LEASE_S)
            return State.ENDED if self._watched >= patience else State.UNKNOWN
        state = owner.judge()
        if state is State.RUNNING and self._claims.remote:
            # a request that was on its way for long may have written the lock after its release
            state = State.UNKNOWN
        return State.ENDED if state is State.UNKNOWN and self._watched >= LEASE_S else state

    def _stay_out(self, sight: Sight, states: Sequence[State]) -> None:
        # clocks that differ cost some seconds of watching, nothing else
        alive = self._moved or any(
            state is State.RUNNING
            or (state is State.UNKNOWN and owner and abs(time.time() - owner.seen) < LEASE_S)
            for owner, state in zip(sight.owners, states, strict=True)
        )
        if alive and not self._wait:
            raise RunError(
                f"another process is computing {self._what}: {_name(sight)}; "
                "wait until it has ended."
            )
        if self._said or (self._wait and time.monotonic() - self._begun < SAY_AFTER_S):
            return
        self._said = True
        if self._wait:
            self._say(f"waiting for {self._what}: {_name(sight)}, holds it.")
        else:
            self._say(
                f"{self._what} is locked by {_name(sight)}, which may have ended; "
                f"watching it for {LEASE_S:g} s."
            )

    def _fail(self, error: OSError) -> RunError:
        advice = (
            "run the same command again later"
            if isinstance(error, UnreachableError)
            else "choose a folder that may be written, with space left"
        )
        return RunError(
            f"cannot lock {self._what}: {_describe(error)} ({self._file.parent}, "
            f"{CLAIM_BYTES} bytes); {advice}."
        )


def _name(sight: Sight) -> str:
    known = [owner for owner in sight.owners if owner is not None]
    return str(max(known, key=lambda owner: owner.seen)) if known else "an unknown process"


def _describe(error: OSError | RunError) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).rstrip(".")


def _now() -> float:
    # goes on while the machine sleeps, as the others' clocks do
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)
