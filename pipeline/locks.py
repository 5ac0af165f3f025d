"""Locks that hold between processes, machines and object stores, and outlive no owner.

A lock is a record of its owner (:mod:`pipeline.owners`) in the run directory
(:mod:`pipeline.claims`). On the owner's machine the system says whether it still runs. From
elsewhere its signs of life do: it renews the record every :data:`BEAT_S`, and who has seen the
same record for :data:`LEASE_S`, by a clock of its own, takes the lock over. No two clocks are
compared, and nothing relies on the locks of a file system.

An owner that stood still for longer than that (a suspended machine) may have lost its lock. It
asks with :meth:`Lock.check` before it commits anything.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.claims import Claims, FolderClaims, ObjectClaim, Sight, UnreachableError
from pipeline.errors import RunError
from pipeline.owners import Owner, State, forget, judge, name_self, remember
from pipeline.places import is_remote

CLAIM_BYTES = 4096
"""What a claim takes of a disk: a block, for its few hundred bytes."""

BEAT_S = 5.0
"""Seconds between two signs of life."""

LEASE_S = 60.0
"""Seconds without one after which an owner on another machine counts as ended."""

SAY_AFTER_S = 1.0
"""Seconds of waiting after which it is said: most locks are held for milliseconds."""

PAUSES_S = (0.005, 0.5)
REMOTE_PAUSES_S = (0.1, 2.0)
"""Seconds between two looks, at first and at most."""

ASK_S = 1.0
"""Seconds for which who works for the owner takes the last answer: writes come in thousands."""

TRIES = 6
"""How often in a row an object store may fail to answer before the lock is given up."""

Say = Callable[[str], None]

# when a lock was last found to be held, by its owner's token
_asked: dict[str, float] = {}

# a RunError: what an object store refuses for good
_FAILURES = (OSError, RunError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Permit:
    """With what another process, which works for the owner of a lock, asks whether it is held.

    Attributes
    ----------
    file
        Path of the lock.
    owner
        As it claimed the lock.
    what
        What is locked.
    """

    file: Path
    owner: Owner
    what: str

    def check(self) -> None:
        """Return if the lock is still held; asked for at most every :data:`ASK_S`.

        Raises
        ------
        RunError
            Another process has taken it over.
        """
        if _now() - _asked.get(self.owner.token, -ASK_S) < ASK_S:
            return
        if not _open_claims(self.file).holds(self.owner):
            raise _lost(self.what)
        _asked[self.owner.token] = _now()


def _open_claims(file: Path) -> Claims:
    return ObjectClaim(file) if is_remote(file) else FolderClaims(file)


def _lost(what: str) -> RunError:
    return RunError(
        f"another process has taken over {what}, as this one gave no sign of life "
        f"for {LEASE_S:g} s; run the same command again when that one has ended."
    )


class Lock:
    """A lock in the hands of this process (made by :func:`hold_lock`)."""

    def __init__(self, claims: Claims, owner: Owner, what: str, file: Path) -> None:
        self.permit = Permit(file, owner, what)
        self._claims = claims
        self._owner = owner
        self._what = what
        self._lost = False
        self._confirmed = _now()
        # one request at a time: each knows the version that the one before it left
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._pid = os.getpid()
        threading.Thread(target=self._beat, name=f"lock {what}", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether another process has been seen to have taken the lock over."""
        return self._lost

    def check(self) -> None:
        """Return if the lock is still held.

        Raises
        ------
        RunError
            Another process has taken it over, or the object store has not answered for so long
            that one may have.
        """
        with self._turn:
            if not self._lost:
                try:
                    self._note(self._claims.holds(self._owner))
                except _FAILURES as error:
                    if _now() - self._confirmed > LEASE_S / 2:
                        raise RunError(
                            f"whether this process still holds the lock on {self._what} cannot "
                            f"be known ({_describe(error)}); run the same command again."
                        ) from error
        if self._lost:
            raise _lost(self._what)

    def _note(self, held: bool) -> None:
        if held:
            self._confirmed = _now()
        else:
            self._lost = True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with self._turn:
                if self._ended.is_set() or self._lost:
                    return
                self._owner = self._owner.beaten()
                try:
                    self._note(self._claims.renew(self._owner))
                except _FAILURES as error:
                    # the next one may get through; if none does, others see it and so does check
                    _log.debug("no sign of life for %s: %s", self._what, error)

    def _release(self) -> None:
        if os.getpid() != self._pid:
            return  # a fork: the lock is its parent's
        self._ended.set()
        # not for ever: a beat may hang in a dead network
        mine = self._turn.acquire(timeout=LEASE_S / 4)
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
            forget(self._owner.token)
            if mine:
                self._turn.release()


@contextmanager
def hold_lock(file: Path, *, what: str, wait: bool, say: Say | None = None) -> Iterator[Lock]:
    """Keep every other process, on any machine, and every other thread out.

    Parameters
    ----------
    file
        Path of the lock, local, on a network file system, or in an S3 store; its folder is made.
        Every process that is to be kept out names the same one.
    what
        What is locked, as messages name it (``em/k12 in /runs/a``).
    wait
        Whether to wait for an owner that runs. An owner that may have ended on another machine is
        watched for :data:`LEASE_S` in any case.
    say
        Takes one line when waiting begins, and one when a lock is taken over; by default they are
        logged as warnings.

    Yields
    ------
    Lock
        To :meth:`~Lock.check` before each commit.

    Raises
    ------
    RunError
        Another process holds it and ``wait`` is false, or the lock cannot be written.
    """
    claims = _open_claims(file)
    lock = _Attempt(claims, file, what, wait, say or _log.warning).acquire()
    try:
        yield lock
    finally:
        lock._release()


class _Attempt:
    """One try to get a lock, and what it has seen so far."""

    def __init__(self, claims: Claims, file: Path, what: str, wait: bool, say: Say) -> None:
        self._claims = claims
        self._file = file
        self._what = what
        self._wait = wait
        self._say = say
        self._begun = time.monotonic()
        self._said = False
        self._sight: Sight | None = None
        self._looked = 0.0
        # seconds for which the same thing has been seen
        self._watched = 0.0
        self._moved = False

    def acquire(self) -> Lock:
        pause, longest = REMOTE_PAUSES_S if self._claims.remote else PAUSES_S
        failures = 0
        while True:
            try:
                lock = self._try_once()
                failures = 0
            except UnreachableError as error:
                failures += 1
                if failures >= TRIES:
                    raise self._fail(error) from error
                lock = None
            except OSError as error:
                raise self._fail(error) from error
            if lock is not None:
                return lock
            # drawn, so that two that met do not meet again; no result depends on it
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(1.5 * pause, longest)

    def _try_once(self) -> Lock | None:
        self._look()
        ended = self._sight is not None and self._are_ended(self._sight)
        if self._sight is not None and not ended:
            self._stay_out(self._sight)
            return None
        owner = name_self()
        remember(owner.token)
        try:
            if not self._claims.take(owner, self._sight):
                forget(owner.token)
                return None
            if self._sight is not None:
                self._say(f"took over {self._what} from {_name(self._sight)}, which {self._how()}.")
            return Lock(self._claims, owner, self._what, self._file)
        except BaseException:
            try:
                self._claims.release(owner)
            except _FAILURES as error:
                _log.debug("a lock not wanted any more stays: %s", error)
            forget(owner.token)
            raise

    def _look(self) -> None:
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

    def _are_ended(self, sight: Sight) -> bool:
        return all(self._is_ended(owner) for owner in sight.owners)

    def _is_ended(self, owner: Owner | None) -> bool:
        if owner is None:
            # power failed as it was written: who is at it now will be done by then
            return self._watched >= min(2 * BEAT_S, LEASE_S)
        state = self._judge(owner)
        return state is State.ENDED or (state is State.UNKNOWN and self._watched >= LEASE_S)

    def _judge(self, owner: Owner) -> State:
        state = judge(owner)
        # a request that was on its way for long may have written the lock after its release
        return State.UNKNOWN if self._claims.remote and state is State.RUNNING else state

    def _stay_out(self, sight: Sight) -> None:
        if not self._wait and (self._moved or any(map(self._is_alive, sight.owners))):
            raise RunError(
                f"another process is computing {self._what}: {_name(sight)}; "
                "wait until it has ended."
            )
        waited = time.monotonic() - self._begun
        if self._said or (self._wait and waited < SAY_AFTER_S):
            return
        self._said = True
        if self._wait:
            self._say(f"waiting for {self._what}: {_name(sight)}, holds it.")
        else:
            self._say(
                f"{self._what} is locked by {_name(sight)}, which may have ended; "
                f"watching it for {LEASE_S:g} s."
            )

    def _is_alive(self, owner: Owner | None) -> bool:
        if owner is None:
            return False
        state = self._judge(owner)
        # clocks that differ cost some seconds of watching, nothing else
        recent = abs(time.time() - owner.seen) < LEASE_S
        return state is State.RUNNING or (state is State.UNKNOWN and recent)

    def _how(self) -> str:
        if self._watched >= LEASE_S:
            return f"gave no sign of life for {LEASE_S:g} s"
        return "ended without releasing it"

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
