"""Signals that end a command: Ctrl-C, SIGTERM, a closed terminal.

The first one raises :class:`Stopped` where the program is: the shard at hand is dropped, or is
finished where it cannot be left, and whatever holds locks or processes lets go of them. The second
one ends the process there and then, which a run survives as it does a crash.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# there is no SIGHUP everywhere
_OF_TERMINALS = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}
_PROGRAMS = ("primaps-pipe", "cli")
# batch systems send a signal to the process and to its group: that is one, not two
_TOGETHER_S = 1.0


class Stopped(KeyboardInterrupt):
    """A signal has asked the command to end; like Ctrl-C, no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Watch:
    """What was received: the signal's number, or None, and when; and whether it has to wait."""

    number: int | None = None
    since: float = 0.0
    deferred: bool = False

    @property
    def code(self) -> int:
        """The exit code that shells give to a process that such a signal has ended."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def reason(self) -> str:
        """What has happened, in a word or two."""
        if self.number in (None, signal.SIGINT):
            return "interrupted"
        return f"stopped by {signal.Signals(self.number or 0).name}"


_WATCHES: list[Watch] = []


@contextmanager
def watch_signals() -> Iterator[Watch]:
    """Raise :class:`Stopped` in this context when a signal asks the command to end.

    Only the main thread can; in any other nothing changes.
    """
    watch = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if watch.number is None:
            watch.number, watch.since = number, time.monotonic()
            if watch.deferred:
                return
            # one that a library had just made, and that nobody will wait for now
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            raise Stopped(number)
        if time.monotonic() - watch.since > _TOGETHER_S:
            _leave(number, frame)

    before = _set_handlers(stop)
    complain = sys.unraisablehook

    def overhear(lost: Any) -> None:
        # one that a library's callback has lost, and check_stopped raises again
        if not isinstance(lost.exc_value, Stopped):
            complain(lost)

    sys.unraisablehook = overhear
    _WATCHES.append(watch)
    try:
        yield watch
    finally:
        _WATCHES.remove(watch)
        sys.unraisablehook = complain
        for number, handler in before.items():
            signal.signal(number, handler)


def check_stopped() -> None:
    """Raise :class:`Stopped` again where a signal was received and the first one went unheard.

    An exception that is raised in a destructor or in a library's callback gets lost.
    """
    if threading.current_thread() is threading.main_thread():
        for watch in _WATCHES:
            if watch.number is not None:
                raise Stopped(watch.number)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Let a signal wait until this context is left, for what cannot be broken off half-way.

    The processes that are started in it need not hear the terminal's signals: it is for the command
    to end them.
    """
    watch = _WATCHES[-1] if _WATCHES else Watch()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch.deferred = True
    # inherited by the threads that are started here, and by their processes
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        watch.deferred = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)
    check_stopped()


def _set_handlers(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set one handler for all signals but those that somebody (``nohup``) had ignored."""
    before: dict[int, Any] = {}
    for number in (signal.SIGTERM, *_OF_TERMINALS):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    return before


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        name = signal.Signals(number).name
        os.write(2, f"primaps-pipe: ended at once by {name}; run the command again.\n".encode())
    os._exit(128 + number)


def leave_at_once() -> None:
    """End the process on a signal without a traceback, as long as there is nothing to let go of."""
    _set_handlers(_leave)


_program = bool(sys.argv) and Path(sys.argv[0]).stem in _PROGRAMS
if _program and threading.current_thread() is threading.main_thread():
    if "--multiprocessing-fork" in sys.orig_argv:
        # a worker process, which loads the program once more and ends with the command: it leaves
        # Ctrl-C and a closed terminal, which reach the whole group, to the command itself
        for _number in _OF_TERMINALS:
            signal.signal(_number, signal.SIG_IGN)
    else:
        # while the program is still being loaded
        leave_at_once()
