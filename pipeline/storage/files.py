"""Files that are whole or absent: atomic writes that are noted down, checksums, fingerprints.

Also checkpoints of a long computation, tables, and the folder that is kept for all runs.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import platformdirs

from pipeline.errors import DamageError, PipelineError, RunError
from pipeline.storage.places import ObjectStatus, is_remote, resolve_inside

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
# What tells a file from a later one at its place: its number, time and size.
Stamp = tuple[int, int, int]

# what systems answer that cannot open or sync a folder
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM}
_ROOT: ContextVar[Path | None] = ContextVar("root", default=None)
_WRITTEN: ContextVar[list[Stored] | None] = ContextVar("written", default=None)
_GUARD: ContextVar[Callable[[], None] | None] = ContextVar("guard", default=None)
_FETCHING: ContextVar[bool] = ContextVar("fetching", default=True)
# threads that write one file take turns at its temporary file
_TURNS = tuple(threading.Lock() for _ in range(64))


@dataclass(frozen=True)
class Stored:
    """A file as it was written."""

    path: Path
    bytes: int
    checksum: str


@contextmanager
def _within(variable: ContextVar[Any], value: T) -> Iterator[T]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def note_writes() -> AbstractContextManager[list[Stored]]:
    """Collect what is written in this context, in the threads of :func:`map_ahead`, too."""
    return _within(_WRITTEN, [])


def confine_writes(root: Path) -> AbstractContextManager[Path]:
    """Refuse, in this context, to write or remove anything outside a folder.

    What lies in a run may come from anywhere: a link in it, or a name in one of its tables, must
    not lead out of it. The folder itself may be a link, or lie below one: that is who named it.
    """
    return _within(_ROOT, root)


def guard_writes(check: Callable[[], None]) -> AbstractContextManager[Callable[[], None]]:
    """Call a function, in this context, before anything is written or removed; it may refuse."""
    return _within(_GUARD, check)


def fetch_nothing() -> AbstractContextManager[bool]:
    """Say, in this context, that nothing may be fetched or unpacked, as on a dry run."""
    return _within(_FETCHING, False)


def may_fetch() -> bool:
    """Say whether what is not on this machine may be fetched (see :func:`fetch_nothing`)."""
    return _FETCHING.get()


def _require_permission(path: Path) -> None:
    require_inside(path)
    check = _GUARD.get()
    if check is not None:
        check()


def require_inside(path: Path) -> None:
    """Refuse a place that is outside the folder of :func:`confine_writes`, where one was named."""
    root = _ROOT.get()
    if root is None or path == root or is_remote(root):
        return
    if not path.is_relative_to(root):
        raise RunError(f"{path} lies outside {root}; nothing is written there.")
    resolve_inside(root, path.relative_to(root))


def write_bytes(path: Path, content: bytes, *, noted: bool = True) -> None:
    """Write a file so that a reader or a crash sees the old content or the new, never a part."""
    _require_permission(path)
    try:
        if is_remote(path):
            # an object is whole or absent by nature
            path.write_bytes(content)
        else:
            _replace_file(path, content)
    except OSError as error:
        raise RunError(
            f"cannot write {path} ({len(content)} bytes): {error.strerror or error}; "
            "free some space or choose a folder that may be written."
        ) from error
    _note(path, content, noted)


def write_changed(path: Path, content: bytes, *, noted: bool = True) -> None:
    """Write a file where its content has changed: times tell users what was made again.

    See :func:`write_bytes`; a file that is right already is noted, too.
    """
    try:
        same = path.read_bytes() == content
    except OSError:
        same = False
    if same:
        _note(path, content, noted)
    else:
        write_bytes(path, content, noted=noted)


def note_file(path: Path) -> None:
    """Note a file that is right already down as written (see :func:`note_writes`)."""
    _note(path, path.read_bytes(), True)


def _note(path: Path, content: bytes, noted: bool) -> None:
    written = _WRITTEN.get()
    if noted and written is not None:
        written.append(Stored(path, len(content), checksum(content)))


def _replace_file(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    # not tempfile's: its files are private, and a run directory is shared like any other output;
    # not the file's name with a suffix, which may be longer than a name can be
    name = blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    temporary = path.parent / f".{name}.part"
    with _TURNS[hash(temporary) % len(_TURNS)]:
        try:
            # left by a killed process, or a link that somebody put there
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically (see :func:`write_bytes`)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, noted: bool = True) -> None:
    """Write JSON atomically (see :func:`write_bytes`)."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"), noted=noted)


def read_json(path: Path) -> Any | None:
    """Read JSON, or None where the file is absent."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise DamageError(
            f"{path} is not JSON ({error}); delete it to compute it again."
        ) from error


_CHECKSUM = "checksum"


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object that carries a checksum of all else in it, and is noted nowhere else."""
    write_json(path, {**value, _CHECKSUM: _checksum_object(value)}, noted=False)


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """Read what :func:`write_checked_json` wrote, or None where the file is absent."""
    content = read_json(path)
    if content is None:
        return None
    value: dict[str, Any] = content if isinstance(content, dict) else {}
    if value.pop(_CHECKSUM, None) != _checksum_object(value):
        raise DamageError(
            f"{path} is not as it was written (its checksum differs); "
            "`primaps-pipe verify --repair` puts it right."
        )
    return value


def _checksum_object(value: dict[str, Any]) -> str:
    # what JSON makes of it: lists for tuples, strings for numbers that are keys
    plain = json.loads(json.dumps(value))
    return checksum(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode())


def checksum(content: bytes) -> str:
    """Return the BLAKE2b digest of some bytes, 128 bits as hexadecimal digits.

    A CRC-32C would not do: chunks that carry their own CRC-32C, as those of our arrays do, all
    have the same one, whatever is in them.
    """
    return blake2b(content, digest_size=16).hexdigest()


def stamp(path: Path) -> Stamp | None:
    """Return what tells a file from a later one at its place; None where there is none."""
    status: os.stat_result | ObjectStatus
    try:
        if is_remote(path):
            status = path.stat()
        else:
            # opened: to a mere stat network file systems say what was there seconds ago
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they survive a power loss."""
    if is_remote(folder):
        return  # a prefix is there with the first object below it
    missing = []
    at = folder
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        for each in reversed(missing):
            sync_folder(each.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there, for good: it does not come back after a power loss."""
    _require_permission(path)
    try:
        path.unlink()
    except FileNotFoundError:
        return
    if not is_remote(path):
        sync_folder(path.parent)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it; nothing happens where it is not there."""
    _require_permission(folder)
    if is_remote(folder):
        folder.store.delete_below(folder)
        return
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        if folder.exists():
            raise
        return
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder survive a power loss, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def fingerprint(*parts: Any) -> str:
    """Return a 128-bit hex digest of JSON-able values; equal values give equal digests."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return checksum(text.encode())


def fingerprint_texts(*parts: Iterable[str]) -> str:
    """Return the :func:`fingerprint` of values whose JSON comes in pieces, too long for one."""
    digest = blake2b(b"[", digest_size=16)
    for number, part in enumerate(parts):
        digest.update(b", " if number else b"")
        for text in part:
            digest.update(text.encode())
    digest.update(b"]")
    return digest.hexdigest()


_VALUES = "values"


@dataclass(frozen=True)
class Checkpoint:
    """Where a computation saves itself: killed at any instant, the last save is whole."""

    file: Path
    fingerprint: str

    def save(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Save arrays and JSON-able values."""
        content = {
            "fingerprint": self.fingerprint,
            "names": sorted(arrays),
            "values": dict(values),
        }
        members: dict[str, Any] = {**arrays, _VALUES: np.array(json.dumps(content))}
        buffer = io.BytesIO()
        np.savez(buffer, **members)
        write_bytes(self.file, buffer.getvalue(), noted=False)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return what was saved last, or None where nothing of this fingerprint is left."""
        try:
            with np.load(io.BytesIO(self.file.read_bytes())) as members:
                arrays = {name: members[name] for name in members.files}
            content = json.loads(str(arrays.pop(_VALUES)))
            if sorted(arrays) != content["names"]:
                raise KeyError("its arrays have other names")
        except FileNotFoundError:
            return None
        except PipelineError:
            raise
        except Exception as error:
            # the readers of archives and arrays raise almost anything on damaged bytes
            raise DamageError(
                f"the checkpoint {self.file} is damaged ({error}); "
                "delete it to begin the fit again."
            ) from error
        if content["fingerprint"] != self.fingerprint:
            return None
        return arrays, content["values"]

    def remove(self) -> None:
        """Forget everything."""
        remove_file(self.file)


def find_cache(name: str) -> Path:
    """Return one folder of the cache: below $PRIMAPS_CACHE_DIR, or the user's own."""
    chosen = os.environ.get("PRIMAPS_CACHE_DIR")
    root = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("primaps-pipe"))
    return root / name


def decode_table(content: bytes) -> pa.Table:
    """Decode a parquet file, in this thread alone.

    Arrow's own threads may still be at it when a process that has read enough ends, and torch, once
    it is loaded, then aborts the process rather than let it end with its exit code.
    """
    # help pages and completion do without it
    import pyarrow as pa
    import pyarrow.parquet as pq

    pool = pa.default_memory_pool()
    # Arrow's own pool keeps as much memory again as a table takes, in every process that reads it
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        file = pq.ParquetFile(
            pa.BufferReader(content), page_checksum_verification=True, pre_buffer=False
        )
        return file.read(use_threads=False)
    finally:
        pa.set_memory_pool(pool)
