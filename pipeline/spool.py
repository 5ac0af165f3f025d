"""Local copies of objects, for readers that come back to them.

A fit reads every window once an epoch, in another order each time. From an object store that would
be a request for each; here a shard is fetched once, whole, and then read from disk as a local one
is. An object that has been written anew is fetched anew: :meth:`Spool.doubt` is called whenever an
array is opened.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.objects import read_object

SHARE_OF_DISK = 0.5
"""Share of what is free on the disk at first that copies may take."""

KEPT = 16
"""The latest copies are kept, however large: a reader may be about to open one."""

_PREFIX = "primaps-spool-"
_NAME = re.compile(re.escape(_PREFIX) + r"(\d+)-.*")
_UNLIMITED = 2**62


@dataclass
class _Copy:
    """One object's local copy."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    file: Path | None = None
    etag: str = ""
    bytes: int = 0
    doubted: bool = False


class Spool:
    """A folder of copies, which is removed when the process ends.

    Parameters
    ----------
    folder
        Where to; removed with all in it.
    limit
        Bytes that all copies may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._guard = threading.Lock()
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._made = 0

    def takes(self, size: int) -> bool:
        """Whether copies of an array of so many bytes, and of two more like it, may stay.

        Were they to go and come again all the time, single rows would better be asked for.
        """
        return 3 * size <= self._limit

    def doubt(self, prefix: Any) -> None:
        """Ask the store again before a copy of an object below a prefix is read the next time."""
        start = f"{prefix}/"
        with self._guard:
            for url, copy in self._copies.items():
                copy.doubted = copy.doubted or url.startswith(start)

    def open(self, path: Any) -> tuple[FileIO, Path]:
        """Open the local copy of an object, fetched if need be.

        Returns
        -------
        file : FileIO
            Unbuffered; the caller closes it.
        path : Path
            Of the copy; another one for every content.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        RunError
            The store does not give it, or the disk cannot take it.
        """
        url = str(path)
        with self._guard:
            copy = self._copies.setdefault(url, _Copy())
            self._copies.move_to_end(url)
        # one thread fetches, the others that want the same wait for it
        with copy.turn:
            try:
                if copy.file is not None and copy.doubted and path.stat().etag != copy.etag:
                    self._drop(copy)
                if copy.file is None:
                    self._fetch(path, copy)
            except FileNotFoundError:
                self._drop(copy)
                raise
            copy.doubted = False
            assert copy.file is not None
            opened = FileIO(copy.file), copy.file
        self._make_room()
        return opened

    def _fetch(self, path: Any, copy: _Copy) -> None:
        content, status = read_object(path, _UNLIMITED)
        assert content is not None
        with self._guard:
            self._made += 1
            file = self._folder / str(self._made)
        try:
            file.write_bytes(content)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise RunError(
                f"cannot keep a copy of {path} ({len(content)} bytes) in {self._folder}: "
                f"{error.strerror or error}; free some space, or set TMPDIR to a folder with some."
            ) from error
        copy.file, copy.etag, copy.bytes = file, status.etag, len(content)

    def _drop(self, copy: _Copy) -> None:
        if copy.file is not None:
            copy.file.unlink(missing_ok=True)
        copy.file, copy.bytes = None, 0

    def _make_room(self) -> None:
        with self._guard:
            kept = list(self._copies.items())
            total = sum(copy.bytes for _, copy in kept)
            for url, copy in kept[:-KEPT]:
                if total <= self._limit:
                    return
                # one that is in use is passed over; what is open stays readable when removed
                if copy.turn.acquire(blocking=False):
                    try:
                        total -= copy.bytes
                        self._drop(copy)
                        del self._copies[url]
                    finally:
                        copy.turn.release()


def current_spool() -> Spool:
    """Return this process's spool, made at the first call."""
    return _make_spool(os.getpid())


@lru_cache(maxsize=1)
def _make_spool(pid: int) -> Spool:
    top = Path(tempfile.gettempdir())
    _remove_abandoned(top)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{pid}-", dir=top))
    atexit.register(_remove_own, folder, pid)
    return Spool(folder, int(SHARE_OF_DISK * shutil.disk_usage(folder).free))


def _remove_own(folder: Path, pid: int) -> None:
    # a fork inherits what is to be done at the end, and has a spool of its own
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(top: Path) -> None:
    """Remove the spools of processes that were killed."""
    for folder in top.glob(f"{_PREFIX}*"):
        match = _NAME.fullmatch(folder.name)
        if match is None or folder.is_symlink() or _is_running(int(match[1])):
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
