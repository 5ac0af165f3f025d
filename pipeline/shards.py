"""Rows of sharded zarr arrays, read from the shard files straight into one array.

zarr copies every chunk several times on its way through an event loop, and reaches a fifth of what
the memory can do. What the shards of this project hold is simple enough to read without it: chunks
of whole rows, each with its checksum, then an index of where each chunk lies. The files are zarr's,
unchanged; an array of another layout is left to zarr.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
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

from pipeline.places import is_remote, parse_place

_CHECKSUM_BYTES = 4
_ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Layout:
    """How the shards of an array lie on disk.

    Attributes
    ----------
    folder : Path
        Holds one file per shard.
    rows, chunk : int
        Rows of a shard and of a chunk.
    compressed : bool
        Whether the chunks are Blosc's; else they are the values as they are in memory.
    """

    folder: Path
    rows: int
    chunk: int
    compressed: bool

    def file(self, shard: int, axes: int) -> Path:
        """Return the file of a shard."""
        return self.folder.joinpath(str(shard), *["0"] * (axes - 1))


@dataclass(frozen=True)
class Index:
    """Where the chunks of one shard file lie.

    Attributes
    ----------
    places : uint64 [chunk, 2]
        First byte and number of bytes, the checksum included; both 2^64 - 1 where none was written.
    checked : bool [chunk]
        The chunks that this process has found to be as they were written.
    """

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
    from pipeline.spool import current_spool

    # id maps shrink more than that
    return current_spool().takes(array.nbytes // (10 if compressed else 1))


def _open_file(path: Path) -> tuple[FileIO, Path]:
    """Open a shard's file, or the local copy of one in an object store; say which."""
    if is_remote(path):
        from pipeline.spool import current_spool

        return current_spool().open(path)
    return path.open("rb", buffering=0), path


def read_shards(
    array: zarr.Array, layout: Layout, start: int, stop: int, rows: NDArray[Any]
) -> None:
    """Read some rows into an array.

    A chunk's checksum is verified the first time that this process reads it from a file; the index
    likewise. As long as the file is the same, so are its bytes.

    Parameters
    ----------
    array : zarr.Array
        The array.
    layout : Layout
        What :func:`find_layout` found.
    start, stop : int
        The rows, within the array.
    rows : array [row, ...]
        Where they go, contiguous and of the array's type.

    Raises
    ------
    ValueError
        A checksum is not that of the bytes, or a shard is gone or was never written.
    OSError
        A file cannot be read.
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
    """Read rows from anywhere into an array; every shard's file is opened once.

    Parameters
    ----------
    array : zarr.Array
        The array.
    layout : Layout
        What :func:`find_layout` found; a chunk is one row.
    numbers : int64 [row]
        The rows, within the array.
    rows : array [row, ...]
        As in :func:`read_shards`.

    Raises
    ------
    ValueError, OSError
        As :func:`read_shards` does.
    """
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
    """Find the chunks of a shard whose bytes are not those that were written.

    Parameters
    ----------
    content
        The shard's file; nothing where it is gone.
    chunks
        How many chunks a shard has.

    Returns
    -------
    list of int
        Ascending; all of them where the index is damaged, or where no chunk is.
    """
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
