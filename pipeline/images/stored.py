"""The bytes of an image's file: in memory or, of a large TIFF, where they lie."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import AccessError, ImageError, MemoryShortError, RunError
from pipeline.images.checks import HEADS
from pipeline.images.formats import name_extra
from pipeline.images.mat import one_line
from pipeline.images.tiff import MAGICS
from pipeline.storage.places import ObjectPath, ObjectStatus, is_remote

MAX_FILE_BYTES = 2**31
"""A file above this is refused unread: the whole file is held in memory once."""

LARGE_BYTES = 2**26
"""A TIFF above this, on a file system, is read piece by piece."""

MAX_TIFF_BYTES = 2**36
"""Such a TIFF is refused above this."""

_MAT_SUFFIX = ".mat"
_HEAD_BYTES = 64
_BLOCK = 2**20
# A device that opens like a file must not make the process wait; elsewhere files never do.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
# A drive, a network share or the system itself that does not answer, for now or for ever.
_UNANSWERED = {
    getattr(errno, name, -1)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EREMOTEIO"),
        *("EMFILE", "ENFILE"),
    )
}


def require_answer(path: Path, error: OSError) -> None:
    """Stop the work for an error that is no fault of the file; return for any other."""
    if error.errno == errno.ENOMEM:
        raise memory_short(path) from error
    if error.errno in _UNANSWERED:
        raise RunError(
            f"cannot read {path}: {error.strerror or error}; see to the drive that it lies on, "
            "or take the file away, and run the same command again."
        ) from error


def memory_short(path: Path) -> MemoryShortError:
    """Say that an image of a usual size finds no memory."""
    return MemoryShortError(
        f"{path} cannot be read: memory is short; free some of it, or run the same command again "
        "with fewer --workers."
    )


def is_mat(path: Path) -> bool:
    """Whether a file is of MATLAB, by its name."""
    return path.suffix.lower() == _MAT_SUFFIX


@dataclass(frozen=True)
class Stored:
    """The bytes of a file: all of them, or the first, where a decoder reads the rest by itself."""

    data: bytes
    length: int
    modified_ns: int = 0
    changed_ns: int = 0
    rest: Path | None = None
    handles: ExitStack | None = None

    @classmethod
    def of(cls, data: bytes) -> Stored:
        """Give bytes that are of no file."""
        return cls(data, len(data))

    def open(self) -> BinaryIO:
        """Open all the bytes to be read."""
        if self.rest is None or self.handles is None:
            return io.BytesIO(self.data)
        return self.handles.enter_context(self.rest.open("rb"))

    @property
    def digest(self) -> str:
        """Hash of all the bytes."""
        hashed = hashlib.blake2b(b"" if self.rest else self.data, digest_size=16)
        if self.rest is not None:
            with self.open() as file:
                while block := file.read(_BLOCK):
                    hashed.update(block)
        return hashed.hexdigest()


@contextmanager
def open_stored(path: Path) -> Iterator[Stored]:
    """Read the bytes of a file, or the first of a large TIFF, which stays open meanwhile."""
    if is_remote(path):
        yield _read_object(path)
        return
    with ExitStack() as handles:
        yield _read_file(path, handles)


def _read_file(path: Path, handles: ExitStack) -> Stored:
    try:
        # Opening a pipe or a device may block for ever, so the kind is asked first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise AccessError(kind)
        # The system's own files claim to be empty, and some of them wait for events when read.
        _check_size(status, MAX_TIFF_BYTES)
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT), "rb") as file:
            data, rest = file.read(_HEAD_BYTES), None
            if data.startswith(MAGICS) and status.st_size > LARGE_BYTES:
                rest = path
            else:
                _check_size(status)
                # A film of gigabytes under a photograph's name is not read.
                if is_mat(path) or data.startswith(HEADS) or name_extra(data):
                    file.seek(0)
                    data = file.read()
            status = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise AccessError("no such file") from error
    except MemoryError as error:
        raise memory_short(path) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            require_answer(path, error)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AccessError(f"cannot be opened: {one_line(reason).lower()}") from error
    length = len(data) if rest is None else status.st_size
    return Stored(data, length, status.st_mtime_ns, status.st_ctime_ns, rest, handles)


def _read_object(path: ObjectPath) -> Stored:
    # a store that does not answer is no fault of the image, and stops the work instead
    try:
        data, status = path.store.get(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise AccessError("no such file") from error
    _check_size(status)
    assert data is not None
    return Stored(data, len(data), status.st_mtime_ns)


def _check_size(status: os.stat_result | ObjectStatus, most: int = 0) -> None:
    most = most or MAX_FILE_BYTES
    if status.st_size > most:
        raise ImageError(f"file of {status.st_size} bytes, the limit is {most}")
    if status.st_size == 0:
        raise ImageError("empty file")
