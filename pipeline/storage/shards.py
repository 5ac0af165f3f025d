"""Rows of sharded zarr arrays, read from the shard files straight into one array.

zarr copies every chunk several times on its way through an event loop, and reaches a fifth of what
the memory can do. What the shards of this project hold is simple enough to read without it: chunks
of whole rows, each with its checksum, then an index of where each chunk lies. The files are zarr's,
unchanged; an array of another layout is left to zarr.

Local copies of objects, for readers that come back to them.

A fit reads every window once an epoch, in another order each time. From an object store that would
be a request for each; here a shard is fetched once, whole, and then read from disk as a local one
is. An object that has been written anew is fetched anew: :meth:`Spool.doubt` is called whenever an
array is opened.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.storage import FsspecStore, LocalStore

from pipeline.errors import RunError
from pipeline.storage.objects import read_object
from pipeline.storage.places import is_remote, parse_place

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
    """A folder of copies, which is removed when the process ends."""

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
        """Open the local copy of an object, fetched if need be."""
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


_CHECKSUM_BYTES = 4
_ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Layout:
    """How the shards of an array lie on disk."""

    folder: Path
    rows: int
    chunk: int
    compressed: bool

    def file(self, shard: int, axes: int) -> Path:
        """Return the file of a shard."""
        return self.folder.joinpath(str(shard), *["0"] * (axes - 1))


@dataclass(frozen=True)
class Index:
    """Where the chunks of one shard file lie."""

    places: NDArray[np.uint64]
    checked: NDArray[np.bool_]


def find_layout(array: zarr.Array) -> Layout | None:
    """Find how an array's shards lie on disk; None where it is not as this module reads it."""
    if not isinstance(array, zarr.Array):
        return None
    metadata: Any = array.metadata
    root = _find_root(array.store_path.store)
    sharding = metadata.codecs[0] if len(metadata.codecs) == 1 else None
    keys = metadata.chunk_key_encoding
    if (
        root is None
        or not isinstance(sharding, ShardingCodec)
        or not (isinstance(keys, DefaultChunkKeyEncoding) and keys.separator == "/")
        or sharding.index_location.value != "end"
        or [type(codec) for codec in sharding.index_codecs] != [BytesCodec, Crc32cCodec]
        or sharding.chunk_shape[1:] != array.shape[1:]
        or array.shards is None
        or array.shards[1:] != array.shape[1:]
    ):
        return None
    first, *others = sharding.codecs
    kinds = [type(codec) for codec in others]
    if not isinstance(first, BytesCodec) or kinds not in ([Crc32cCodec], [BloscCodec, Crc32cCodec]):
        return None
    native = array.dtype.newbyteorder("=")
    if first.endian is not None and native.newbyteorder(first.endian.value) != native:
        return None
    if is_remote(root) and not _fits_spool(array, compressed=BloscCodec in kinds):
        return None
    return Layout(
        folder=root / array.path / "c",
        rows=array.shards[0],
        chunk=sharding.chunk_shape[0],
        compressed=BloscCodec in kinds,
    )


def _find_root(store: Any) -> Path | None:
    if isinstance(store, LocalStore):
        return store.root
    if isinstance(store, FsspecStore) and "s3" in store.fs.protocol:
        return parse_place(f"s3://{store.path}")
    return None


def _fits_spool(array: zarr.Array, *, compressed: bool) -> bool:

    # id maps shrink more than that
    return current_spool().takes(array.nbytes // (10 if compressed else 1))


def _open_file(path: Path) -> tuple[FileIO, Path]:
    """Open a shard's file, or the local copy of one in an object store; say which."""
    if is_remote(path):
        return current_spool().open(path)
    return path.open("rb", buffering=0), path


def read_shards(
    array: zarr.Array, layout: Layout, start: int, stop: int, rows: NDArray[Any]
) -> None:
    """Read some rows into an array.

    A chunk's checksum is verified the first time that this process reads it from a file; the index
    likewise. As long as the file is the same, so are its bytes.
    """
    at = start
    while at < stop:
        shard = at // layout.rows
        end = min(stop, (shard + 1) * layout.rows)
        first = at - shard * layout.rows
        _read_shard(array, layout, shard, first, rows[at - start : end - start])
        at = end


def gather_rows(
    array: zarr.Array, layout: Layout, numbers: NDArray[np.int64], rows: NDArray[Any]
) -> None:
    """Read rows from anywhere into an array; every shard's file is opened once."""
    shards, chunks = np.divmod(numbers, layout.rows)
    for shard in np.unique(shards).tolist():
        places = np.flatnonzero(shards == shard)
        path = layout.file(shard, array.ndim)
        file, path = _open_shard(path)
        with file:
            index = _open_index(file, path, layout)
            inside = chunks[places]
            # What was checked before and is as long as a row goes straight to its place.
            plain = index.checked[inside] & (not layout.compressed)
            plain &= index.places[inside, 1] == rows[0].nbytes + _CHECKSUM_BYTES
            offsets = index.places[inside, 0].tolist()
            for place, chunk, offset, quick in zip(
                places.tolist(), inside.tolist(), offsets, plain.tolist(), strict=True
            ):
                row = rows[place]
                if not quick or os.preadv(file.fileno(), [row], offset) != row.nbytes:
                    _read_row(layout, file, index, chunk, row)


def _open_shard(path: Path) -> tuple[FileIO, Path]:
    # every shard is written whole, empty chunks too: what is not there is lost, and not empty
    try:
        return _open_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is gone or was never written") from None


def _read_row(layout: Layout, file: FileIO, index: Index, chunk: int, row: NDArray[Any]) -> None:
    """Read a chunk that is one row."""
    if layout.compressed:
        blosc.decompress(_read_chunk(file, index, chunk, None), row)
    else:
        _read_chunk(file, index, chunk, row)


def _read_shard(
    array: zarr.Array, layout: Layout, shard: int, first: int, rows: NDArray[Any]
) -> None:
    path = layout.file(shard, array.ndim)
    file, path = _open_shard(path)
    with file:
        index = _open_index(file, path, layout)
        for chunk, inside, outside in _cut(first, len(rows), layout.chunk):
            whole = inside == slice(0, layout.chunk)
            shape = (layout.chunk, *rows.shape[1:])
            target = rows[outside] if whole else np.empty(shape, rows.dtype)
            stored = None if layout.compressed else target
            content = _read_chunk(file, index, chunk, stored)
            if layout.compressed:
                blosc.decompress(content, target)
            if not whole:
                rows[outside] = target[inside]


def _cut(first: int, count: int, chunk: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield each chunk that holds some of the rows: its number, the rows in it, the rows' place."""
    for number in range(first // chunk, math.ceil((first + count) / chunk)):
        low, high = number * chunk, (number + 1) * chunk
        begin, end = max(first, low), min(first + count, high)
        yield number, slice(begin - low, end - low), slice(begin - first, end - first)


def _open_index(file: FileIO, path: Path, layout: Layout) -> Index:
    status = os.fstat(file.fileno())
    stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
    return _read_index(path, layout.rows // layout.chunk, stamp)


@lru_cache(maxsize=4096)
def _read_index(path: Path, chunks: int, stamp: tuple[int, int, int]) -> Index:
    # the stamp is part of the key: a file that was written anew is checked anew
    size = 16 * chunks
    if stamp[1] < size + _CHECKSUM_BYTES:
        raise ValueError(f"{path} ends early")
    with path.open("rb") as file:
        file.seek(-(size + _CHECKSUM_BYTES), os.SEEK_END)
        content = file.read()
    places = np.frombuffer(content, "<u8", 2 * chunks).astype(np.uint64).reshape(chunks, 2)
    _compare(np.frombuffer(content, np.uint8, size), content[size:], f"the index of {path}")
    return Index(places, np.zeros(chunks, np.bool_))


def _read_chunk(
    file: FileIO, index: Index, chunk: int, target: NDArray[Any] | None
) -> NDArray[np.uint8]:
    """Read the bytes of a chunk, into the target where there is one, and check them if need be."""
    if index.places[chunk, 0] == _ABSENT:
        raise ValueError(f"chunk {chunk} was never written")
    offset, size = (int(number) for number in index.places[chunk])
    size -= _CHECKSUM_BYTES
    content = np.empty(size, np.uint8) if target is None else target.reshape(-1).view(np.uint8)
    if content.nbytes != size:
        raise ValueError(f"chunk {chunk} has {size} bytes, not {content.nbytes}")
    file.seek(offset)
    _fill(file, content)
    if not index.checked[chunk]:
        checksum = np.empty(_CHECKSUM_BYTES, np.uint8)
        _fill(file, checksum)
        _compare(content, checksum.tobytes(), f"chunk {chunk}")
        index.checked[chunk] = True
    return content


def find_damaged(content: bytes, chunks: int) -> list[int]:
    """Find the chunks of a shard whose bytes are not those that were written."""
    size = 16 * chunks
    index = content[len(content) - size - _CHECKSUM_BYTES :]
    stored = int.from_bytes(index[size:], "little")
    if len(index) != size + _CHECKSUM_BYTES or google_crc32c.value(index[:size]) != stored:
        return list(range(chunks))
    places = np.frombuffer(index, "<u8", 2 * chunks).reshape(chunks, 2)
    damaged = []
    for number, (offset, length) in enumerate(places.tolist()):
        if offset == int(_ABSENT):
            continue
        chunk = content[offset : offset + length]
        stored = int.from_bytes(chunk[-_CHECKSUM_BYTES:], "little")
        if len(chunk) != length or google_crc32c.value(chunk[:-_CHECKSUM_BYTES]) != stored:
            damaged.append(number)
    return damaged or list(range(chunks))


def _fill(file: FileIO, content: NDArray[np.uint8]) -> None:
    done = 0
    while done < content.nbytes:
        count = file.readinto(content.data[done:])
        if not count:
            raise ValueError("the file ends early")
        done += count


def _compare(content: NDArray[np.uint8], checksum: bytes, what: str) -> None:
    stored = int.from_bytes(checksum, "little")
    found = google_crc32c.value(content)
    if stored != found:
        raise ValueError(
            f"the stored checksum of {what} is {stored:08x}, that of its bytes {found:08x}"
        )
