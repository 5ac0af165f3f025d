"""Faults at the write boundaries of a real process: a kill, a power loss, a disk that is full.

Every call that changes files below one folder is a boundary: opening for writing, each write (and
its middle), closing, syncing, renaming, linking, removing, making a folder. Between two calls lies
one instant, so the point before a call is the one after the call before it.

A power loss is a kill after which only what was synced is sure to be there. A file's bytes that
were not synced since they were written are cut off; a name that was made, moved or removed in a
folder that was not synced since is as it was before. What a real disk keeps of the rest is chance,
so the seed chooses: all names undone, all names kept (with the bytes behind them gone), or in every
folder the last few undone.
"""

# The system's own calls are meant, in its own terms.
# ruff: noqa: PTH100, PTH103, PTH112, PTH113, PTH114, PTH115, PTH117, PTH118, PTH120

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import random
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

Mode = Literal["count", "kill", "power", "error"]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# what asks the disk for room; the rest is let through when it is full
_GREEDY = frozenset({"open", "write", "mkdir", "link", "symlink", "truncate"})


@dataclass
class _Change:
    """A change of names in one folder that the folder's next sync makes durable."""

    folder: str
    path: str
    undo: Callable[[], None]


@dataclass
class Faults:
    """Counts the write boundaries below a folder and, at one of them, strikes.

    Attributes
    ----------
    root
        The folder; it need not exist yet.
    mode
        ``count`` only counts; ``kill`` and ``power`` end the process; ``error`` lets every call
        from then on fail.
    at
        Number of the boundary to strike at, from 1; 0 for none.
    seed
        Chooses what a power loss leaves.
    code
        The ``errno`` of ``error``.
    log
        Where every boundary is written down, one a line.
    report
        Where a power loss writes down, as JSON, the size of each file that it took although both
        the file and its folder had been synced: a folder above was not.
    """

    root: str
    mode: Mode = "count"
    at: int = 0
    seed: int = 0
    code: int = errno.ENOSPC
    log: str | Path | None = None
    report: str | Path | None = None
    count: int = 0
    changes: list[_Change] = field(default_factory=list)
    durable: dict[int, int] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)
    inside: Any = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.root = os.path.realpath(self.root)
        self.stash = f"{self.root}.stash-{os.getpid()}"
        self.real = {name: getattr(os, name) for name in _WRAPPED}
        self.real_open = io.open
        self.lines = self.real_open(self.log, "w", buffering=1) if self.log else None
        self.stashed = 0

    # -- points

    def covers(self, path: str | None) -> bool:
        """Whether a path is the folder or below it, and this thread not in a counted call."""
        if path is None or getattr(self.inside, "depth", 0):
            return False
        return path == self.root or path.startswith(self.root + os.sep)

    def point(self, what: str, path: str) -> None:
        """Count a boundary, the instant before ``what`` is done; strike if it is the one."""
        self.count += 1
        if self.lines is not None:
            self.lines.write(f"{self.count} {what} {os.path.relpath(path, self.root)}\n")
        if not self.at or self.count < self.at:
            return
        if self.mode == "error":
            kind = what.partition(" ")[0]
            if kind in _GREEDY or self.code not in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(self.code, os.strerror(self.code), path)
        elif self.count == self.at and self.mode in ("kill", "power"):
            if self.mode == "power":
                with self.unheard():
                    self.lose_power()
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def step(self, what: str, path: str) -> Iterator[None]:
        """Count a boundary and keep the other threads' changes out until the step is done."""
        with self.lock:
            self.point(what, path)
            with self.unheard():
                yield

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Keep this thread's calls from being counted once more by the audit hook."""
        self.inside.depth = getattr(self.inside, "depth", 0) + 1
        try:
            yield
        finally:
            self.inside.depth -= 1

    # -- what a power loss takes

    def note_created(self, path: str) -> None:
        """Remember that a name is new."""

        def undo() -> None:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.lexists(path):
                self.real["unlink"](path)

        self._note(path, undo)

    def note_removed(self, path: str) -> None:
        """Remember that a name is about to go; its file is kept by a second name outside."""
        kept = self.keep(path)

        def undo() -> None:
            if kept is None:
                self.real["mkdir"](path)
            else:
                self.real["link"](kept, path)

        self._note(path, undo)

    def note_renamed(self, source: str, target: str) -> None:
        """Remember that a name is about to move, over another one perhaps."""
        if os.path.isdir(source):
            raise AssertionError(f"a folder below the run is renamed: {source}")
        kept = self.keep(target) if os.path.lexists(target) else None

        def undo() -> None:
            self.real["rename"](target, source)
            if kept is not None:
                self.real["link"](kept, target)

        self._note(target, undo)

    def _note(self, path: str, undo: Callable[[], None]) -> None:
        if self.mode == "power":
            self.changes.append(_Change(os.path.dirname(path), path, undo))

    def keep(self, path: str) -> str | None:
        """Give a file a second name outside the folder; None for a folder."""
        if self.mode != "power" or (os.path.isdir(path) and not os.path.islink(path)):
            return None
        os.makedirs(self.stash, exist_ok=True)
        self.stashed += 1
        kept = f"{self.stash}/{self.stashed}"
        self.real["link"](path, kept, follow_symlinks=False)
        return kept

    def note_written(self, descriptor: int, length: int | None = None) -> None:
        """Remember that a file's bytes from some length on are not synced."""
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            size = status.st_size if length is None else length
            self.durable[status.st_ino] = min(size, self.durable.get(status.st_ino, size))

    def note_synced(self, descriptor: int, path: str) -> None:
        """Remember that a file's bytes, or a folder's names, are durable."""
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.changes = [change for change in self.changes if change.folder != path]
        else:
            self.durable.pop(status.st_ino, None)

    def lose_power(self) -> None:
        """Leave what a disk may hold after the power went."""
        chance = random.Random(f"{self.seed} {self.at}")
        kind = chance.choice(("undone", "kept", "mixed"))
        first: dict[str, int] = {}
        for folder in sorted({change.folder for change in self.changes}):
            total = sum(change.folder == folder for change in self.changes)
            first[folder] = {"undone": 0, "kept": total}.get(kind, chance.randint(0, total))
        order: dict[str, int] = {}
        doomed = []
        for change in self.changes:
            order[change.folder] = order.get(change.folder, 0) + 1
            if order[change.folder] > first[change.folder]:
                doomed.append(change)
        sure = self.list_durable()
        for change in reversed(doomed):
            # its folder may have gone with a folder above it
            if os.path.isdir(change.folder):
                change.undo()
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if status.st_ino in self.durable and stat.S_ISREG(status.st_mode):
                    whole = self.durable[status.st_ino]
                    rest = max(status.st_size - whole, 0)
                    self.real["truncate"](path, whole + chance.choice((0, rest // 2)))
        shutil.rmtree(self.stash, ignore_errors=True)
        if self.report is not None:
            taken = {path: size for path, size in sure.items() if not os.path.isfile(path)}
            with self.real_open(self.report, "w") as file:
                json.dump(taken, file)

    def list_durable(self) -> dict[str, int]:
        """Give the size of every file that was synced, and its name, too."""
        doubtful = {change.path for change in self.changes}
        sizes = {}
        for folder, _, names in os.walk(self.root):
            for path in (os.path.join(folder, name) for name in names):
                status = os.lstat(path)
                if path not in doubtful and status.st_ino not in self.durable:
                    sizes[path] = status.st_size
        return sizes

    # -- the calls

    def install(self) -> Faults:
        """Take the place of the calls that change files, in this process."""
        for name in _WRAPPED:
            if name not in ("truncate",):
                setattr(os, name, getattr(self, f"_{name}", None) or self._named(name))
        os.truncate = self._truncate  # type: ignore[assignment]
        io.open = builtins.open = self._open_file  # type: ignore[assignment]
        sys.addaudithook(self._audit)
        return self

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a change that took another way than the calls below."""
        if event not in _AUDITED:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
            return
        path = self._locate(arguments[0])
        if self.covers(path):
            with self.lock:
                self.point(f"unseen {event}", str(path))

    def _locate(self, path: Any, folder: int | None = None) -> str | None:
        """Return the absolute path that a call means, links in its folder resolved."""
        if isinstance(path, int):
            try:
                return os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        name = os.fsdecode(path)
        if folder is not None and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        head, tail = os.path.split(os.path.abspath(name))
        return os.path.join(os.path.realpath(head), tail)

    def _named(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            place = self._locate(path, options.get("dir_fd"))
            if not self.covers(place):
                return real(path, *arguments, **options)
            if name == "mkdir" and os.path.isdir(str(place)):
                # it is asked for again and again, which changes nothing
                with self.unheard():
                    return real(path, *arguments, **options)
            assert place is not None
            with self.step(name, place):
                if name in ("unlink", "remove", "rmdir") and os.path.lexists(place):
                    gone = len(self.changes)
                    self.note_removed(place)
                    try:
                        return real(path, *arguments, **options)
                    except OSError:
                        del self.changes[gone:]
                        raise
                result = real(path, *arguments, **options)
                if name in ("mkdir",):
                    self.note_created(place)
                return result

        return call

    def _move(self, name: str) -> Callable[..., None]:
        real = self.real[name]

        def call(source: Any, target: Any, **options: Any) -> None:
            old = self._locate(source, options.get("src_dir_fd"))
            new = self._locate(target, options.get("dst_dir_fd"))
            if not self.covers(new):
                return real(source, target, **options)
            assert old is not None and new is not None
            with self.step(name, new):
                before = len(self.changes)
                if name in ("rename", "replace"):
                    self.note_renamed(old, new)
                try:
                    real(source, target, **options)
                except OSError:
                    del self.changes[before:]
                    raise
                if name in ("link", "symlink"):
                    self.note_created(new)

        return call

    @property
    def _rename(self) -> Callable[..., None]:
        return self._move("rename")

    @property
    def _replace(self) -> Callable[..., None]:
        return self._move("replace")

    @property
    def _link(self) -> Callable[..., None]:
        return self._move("link")

    @property
    def _symlink(self) -> Callable[..., None]:
        return self._move("symlink")

    def _sync(self, name: str) -> Callable[[Any], None]:
        real = self.real[name]

        def call(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            place = self._locate(descriptor)
            if place == os.path.dirname(self.root):
                # it makes the name of the folder itself durable
                real(file)
                return self.note_synced(descriptor, place)
            if not self.covers(place):
                return real(file)
            assert place is not None
            with self.step(name, place):
                real(file)
                self.note_synced(descriptor, place)

        return call

    @property
    def _fsync(self) -> Callable[[Any], None]:
        return self._sync("fsync")

    @property
    def _fdatasync(self) -> Callable[[Any], None]:
        return self._sync("fdatasync")

    def _truncate(self, path: Any, length: int) -> None:
        place = self._locate(path)
        if not self.covers(place):
            return self.real["truncate"](path, length)
        assert place is not None
        with self.step("truncate", place):
            self.real["truncate"](path, length)
            with self.real_open(place, "rb") as file:
                self.note_written(file.fileno(), length)

    def _ftruncate(self, descriptor: int, length: int) -> None:
        self._truncate(descriptor, length)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._locate(path, dir_fd)
        if not flags & _WRITING or not self.covers(place):
            return self.real["open"](path, flags, mode, dir_fd=dir_fd)
        assert place is not None
        with self.step("open", place):
            known = os.path.lexists(place)
            descriptor = self.real["open"](path, flags, mode, dir_fd=dir_fd)
            if not known:
                self.note_created(place)
            if flags & os.O_TRUNC and known:
                self.note_written(descriptor, 0)
            return descriptor

    def _write(self, descriptor: int, content: Any) -> int:
        place = self._locate(descriptor)
        if not self.covers(place):
            return self.real["write"](descriptor, content)
        assert place is not None
        return self._write_halves(
            lambda part: self.real["write"](descriptor, part), descriptor, place, content
        )

    def _write_halves(
        self, write: Callable[[Any], int], descriptor: int, place: str, content: Any
    ) -> int:
        view = memoryview(content).cast("B")
        middle = len(view) // 2
        done = 0
        for what, part in (("write", view[:middle]), ("write rest", view[middle:])):
            with self.step(what, place):
                self.note_written(descriptor)
                done += write(part)
            if done < (middle if what == "write" else len(view)):
                break
        return done

    def _open_file(self, file: Any, mode: str = "r", buffering: int = -1, *a: Any, **k: Any) -> Any:
        place = None if isinstance(file, int) else self._locate(file)
        if not set(mode) & set("wax+") or not self.covers(place):
            return self.real_open(file, mode, buffering, *a, **k)
        return self._open_counted(str(place), file, mode, buffering, *a, **k)

    def _open_counted(
        self,
        place: str,
        file: Any,
        mode: str,
        buffering: int,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: None = None,
    ) -> IO[Any]:
        faults = self

        class Raw(io.FileIO):
            def write(self, content: Any) -> int:
                return faults._write_halves(super().write, self.fileno(), place, content)

            def close(self) -> None:
                if self.closed:
                    return
                with faults.step("close", place):
                    super().close()

            def truncate(self, size: int | None = None) -> int:
                with faults.step("truncate", place):
                    length = super().truncate(size)
                    faults.note_written(self.fileno(), length)
                    return length

        plain = mode.replace("b", "").replace("t", "")
        with self.step("open", place):
            known = os.path.lexists(place)
            raw = Raw(file, plain)
            if not known:
                self.note_created(place)
            elif "w" in mode:
                self.note_written(raw.fileno(), 0)
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline)


_WRAPPED = (
    *("open", "write", "truncate", "ftruncate", "fsync", "fdatasync"),
    *("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir"),
)
_AUDITED = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
)


def find_run(arguments: list[str]) -> str:
    """Return the run directory that a command line names: its first argument after the verb."""
    return next(argument for argument in arguments[1:] if not argument.startswith("-"))


def main() -> None:
    """Run the command line with a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.faults", description=__doc__)
    parser.add_argument("--at", type=int, default=0, help="number of the boundary to strike at")
    parser.add_argument("--mode", choices=("count", "kill", "power", "error"), default="count")
    parser.add_argument("--error", default="ENOSPC", help="what `error` answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="write every boundary into this file")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- extract RUN ...")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    code = getattr(errno, given.error)
    faults = Faults(find_run(command), given.mode, given.at, given.seed, code, given.log).install()

    from cli import main as run_command

    try:
        run_command(command, prog_name="primaps-pipe")
    finally:
        faults.point("exit", faults.root)
        if given.mode == "count":
            print(f"{faults.count} write boundaries", file=sys.stderr)


if __name__ == "__main__":
    main()
