"""Sharded zarr arrays: preallocated, written in whole shards, readable by any zarr reader.

Every node's metadata carries a checksum of itself, every chunk one of its bytes.

Shards are read past zarr, which copies every chunk several times on its way through an event loop,
and reaches a fifth of what the memory can do. They are simple enough for that: chunks of whole
rows, each with its checksum, then an index of where each chunk lies. An array of another layout is
left to zarr. A fit reads every window once an epoch, in another order each time; of an object store
that would be a request for each, so a shard is fetched once, whole, and read from a copy on disk.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from zarr.codecs import BloscCodec, BloscShuffle, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer, cpu
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from pipeline.errors import DamageError, RunError
from pipeline.storage.files import fingerprint, remove_file, remove_tree, write_bytes, write_changed
from pipeline.storage.places import (
    STORES,
    UNLIMITED,
    ObjectPath,
    copy_here,
    find_files,
    is_remote,
)

METADATA = "zarr.json"
CHECKSUM = "checksum"
"""The name, among a node's attributes, of the checksum of its metadata."""

SHARE_OF_DISK = 0.5
"""Share of what is free on the disk at first that copies may take."""

KEPT = 16
"""The latest copies are kept, however large: a reader may be about to open one."""

_CHECKSUM_BYTES = 4
_ABSENT = np.uint64(2**64 - 1)
_PREFIX = "primaps-spool-"
_NAME = re.compile(re.escape(_PREFIX) + r"(\d+)-.*")
# Measured (benchmarks/storage.py): float16 features shrink by a tenth at most and are then read ten
# times slower; id maps shrink 35-fold, and of the codecs that do so LZ4HC is read fastest by far.
# A chunk is one window, because the EM reads windows from anywhere.
_COMPRESSORS = {
    True: [BloscCodec(cname="lz4hc", clevel=5, shuffle=BloscShuffle.shuffle)],
    False: [],
}


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Encode the metadata of a node, with a checksum of it among its attributes."""
    attributes = {k: v for k, v in metadata.get("attributes", {}).items() if k != CHECKSUM}
    plain = {**metadata, "attributes": attributes}
    sealed = {**plain, "attributes": {**attributes, CHECKSUM: fingerprint(plain)}}
    return (json.dumps(sealed, indent=1, ensure_ascii=False) + "\n").encode()


def decode_metadata(content: bytes) -> dict[str, Any] | None:
    """Decode the metadata of a node, without its checksum; None where it is damaged."""
    try:
        sealed = json.loads(content)
        attributes = dict(sealed["attributes"])
        stored = attributes.pop(CHECKSUM)
    except (ValueError, KeyError, TypeError):
        return None
    plain = {**sealed, "attributes": attributes}
    return plain if fingerprint(plain) == stored else None


def read_metadata(node: Path) -> dict[str, Any] | None:
    """Read the metadata of a node, without its checksum; None where it is gone or damaged."""
    try:
        return decode_metadata((node / METADATA).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_metadata(node: Path, source: Path | None = None) -> None:
    """Refuse a group or array whose metadata is not what was written."""
    if decode_metadata((node / METADATA).read_bytes()) is None:
        raise DamageError(
            f"{(source or node) / METADATA} is not as it was written; "
            "`primaps-pipe verify --repair` puts it right."
        )


def list_nodes(store: Path) -> dict[str, bytes]:
    """List the groups and arrays below a group: path inside it -> content of its metadata.

    Every file is read once: what another process removes meanwhile is left out.
    """
    nodes: dict[str, bytes] = {}
    try:
        folders = sorted(store.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return nodes
    for folder in folders:
        try:
            content = (folder / METADATA).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        metadata = decode_metadata(content)
        if metadata is None:
            continue
        nodes[folder.name] = content
        if metadata["node_type"] == "group":
            inner = list_nodes(folder)
            nodes |= {f"{folder.name}/{name}": below for name, below in inner.items()}
    return nodes


def consolidate(store: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Put the metadata of all members into the group, so that xarray opens it with one read."""
    write_changed(store / METADATA, _describe_group(store, attributes), noted=False)


def _describe_group(store: Path, attributes: Mapping[str, Any] | None) -> bytes:
    if attributes is None:
        attributes = (read_metadata(store) or {}).get("attributes", {})
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files), zarr_format=3, attributes=dict(attributes))
    for name, content in list_nodes(store).items():
        files[f"{name}/{METADATA}"] = cpu.Buffer.from_bytes(content)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        zarr.consolidate_metadata(MemoryStore(files), zarr_format=3)
    return encode_metadata(json.loads(files[METADATA].to_bytes()))


def is_consolidated(store: Path) -> bool:
    """Whether a group's metadata is as it was written, and that of its members as they are."""
    try:
        content = (store / METADATA).read_bytes()
    except FileNotFoundError:
        return False
    return decode_metadata(content) is not None and content == _describe_group(store, None)


def is_damaged(store: Path) -> bool:
    """Whether a group has metadata, and not as it was written, whatever its members are."""
    return (store / METADATA).is_file() and read_metadata(store) is None


@dataclass(frozen=True)
class ArraySpec:
    """What an array is: its axes after the first, and how it is stored."""

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    compress: bool
    fill: float = 0
    attributes: Mapping[str, Any] | None = None


def prepare_arrays(
    store: Path,
    specs: Mapping[str, ArraySpec],
    length: int,
    shard: int,
    attributes: Mapping[str, Any],
) -> None:
    """Make a zarr v3 group, an array per spec, keeping the shards of arrays that fit already."""
    for name, spec in specs.items():
        metadata = _describe_array(spec, length, shard)
        old = read_metadata(store / name)
        if old is not None and _list_layout(old) != _list_layout(metadata):
            remove_tree(store / name)
        elif old is not None and old["shape"][0] > length:
            _remove_outside(store / name, -(-length // shard))
        write_changed(store / name / METADATA, encode_metadata(metadata))
    consolidate(store, attributes)


def _describe_array(spec: ArraySpec, length: int, shard: int) -> dict[str, Any]:
    files: dict[str, Buffer] = {}
    zarr.create_array(
        MemoryStore(files),
        shape=(length, *spec.shape),
        chunks=(1, *spec.shape),
        shards=(shard, *spec.shape),
        dtype=spec.dtype,
        dimension_names=spec.dims,
        compressors=[*_COMPRESSORS[spec.compress], Crc32cCodec()],
        fill_value=spec.fill,
        attributes=dict(spec.attributes or {}),
        zarr_format=3,
    )
    return dict(json.loads(files[METADATA].to_bytes()))


def _list_layout(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return of an array's metadata what tells whether its shards can stay."""
    return {**metadata, "shape": metadata["shape"][1:], "attributes": None}


def _remove_outside(array: Path, shards: int) -> None:
    """Remove the files of all shards but the first ones."""
    if (array / "c").is_dir():
        for path in (array / "c").iterdir():
            if path.name.isdigit() and int(path.name) >= shards:
                remove_tree(path)


def shard_file(store: Path, name: str, axes: int, shard: int) -> Path:
    """Return the file of a shard of an array with so many axes."""
    return store.joinpath(name, "c", str(shard), *["0"] * (axes - 1))


def write_shard(store: Path, blocks: Mapping[str, np.ndarray], shard: int, rows: int) -> None:
    """Write one whole shard of several arrays."""
    for name, block in blocks.items():
        content = _encode_shard(store / name, block, shard, rows)
        write_bytes(shard_file(store, name, block.ndim, shard), content)


def _encode_shard(array: Path, block: np.ndarray, shard: int, rows: int) -> bytes:
    # in memory, so that the file is written at once, whole, and its checksum is known
    check_metadata(array)
    content = (array / METADATA).read_bytes()
    files: dict[str, Buffer] = {METADATA: cpu.Buffer.from_bytes(content)}
    # an array keeps the setting that it was opened under; every shard is to be a file
    with zarr.config.set({"array.write_empty_chunks": True}):
        target = zarr.open_array(MemoryStore(files), mode="r+", zarr_format=3)
    start = shard * rows
    stop = min(start + rows, target.shape[0])
    if len(block) != stop - start:
        raise ValueError(f"{array.name}: shard {shard} has {stop - start} rows, got {len(block)}")
    target[start:stop] = block
    return files["/".join(["c", str(shard), *["0"] * (block.ndim - 1)])].to_bytes()


def write_group(
    store: Path,
    group: str,
    arrays: Mapping[str, tuple[np.ndarray, tuple[str, ...]]],
    attributes: Mapping[str, Any],
) -> None:
    """Write a group of small arrays, replacing the one that is there."""
    files: dict[str, Buffer] = {}
    target = zarr.create_group(MemoryStore(files), zarr_format=3, attributes=dict(attributes))
    for name, (values, dims) in arrays.items():
        target.create_array(
            name,
            data=values,
            chunks=tuple(max(1, length) for length in values.shape),
            dimension_names=dims,
            compressors=[Crc32cCodec()],
            # a chunk that is not there is lost, and not zeros
            config={"write_empty_chunks": True},
        )
    folder = store / group
    for name in list_nodes(folder):
        if f"{name}/{METADATA}" not in files:
            remove_tree(folder / name)
    for old in list(find_files(folder)):
        if old.relative_to(folder).as_posix() not in files:
            remove_file(old)
    for name, buffer in files.items():
        content = buffer.to_bytes()
        if name.rpartition("/")[2] == METADATA:
            content = encode_metadata(json.loads(content))
        write_bytes(folder / name, content)


def read_group(store: Path, group: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`write_group` wrote: its arrays and its attributes."""
    try:
        with copy_here(store / group) as folder:
            check_metadata(folder, store / group)
            source = zarr.open_group(folder, mode="r", zarr_format=3, use_consolidated=False)
            arrays = {}
            for name, array in source.arrays():
                check_metadata(folder / name, store / group / name)
                if array.nchunks_initialized != array.nchunks:
                    raise ValueError(f"{name} has lost a chunk")
                arrays[name] = np.asarray(array[...])
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{store} has no group {group!r}; run the stage that writes it.") from None
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DamageError(
            f"the group {group!r} of {store} is damaged ({reason}); "
            "`primaps-pipe verify --repair` makes it again."
        ) from error
    attributes = source.attrs.asdict()
    return arrays, {name: value for name, value in attributes.items() if name != CHECKSUM}


def open_arrays(store: Path, names: Sequence[str]) -> dict[str, zarr.Array]:
    """Open some arrays of a group for reading."""
    if is_remote(store):
        current_spool().doubt(store)
    try:
        for name in names:
            check_metadata(store / name)
        source = store.store.open_zarr(store) if is_remote(store) else store
        group = zarr.open_group(source, mode="r", zarr_format=3, use_consolidated=False)
        arrays = {name: group[name] for name in names}
    except (FileNotFoundError, NotADirectoryError, KeyError) as error:
        raise RunError(
            f"{store} lacks {', '.join(names)} ({error}); run the stage that writes it again."
        ) from error
    except (ValueError, TypeError) as error:
        raise _not_arrays(store, names, error) from error
    found = {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}
    if len(found) < len(arrays):
        raise _not_arrays(store, names, "some are groups")
    return found


def _not_arrays(store: Path, names: Sequence[str], reason: object) -> DamageError:
    # what zarr does not know, such as another codec, nobody here has written
    text = " ".join(str(reason).split())
    return DamageError(
        f"the metadata of {', '.join(names)} in {store} cannot be read ({text}); "
        "`primaps-pipe verify --repair` puts it right."
    )


def read_rows(
    array: zarr.Array, start: int, stop: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Read some rows of an array.

    Every chunk is checked against its checksum, once per process and file.
    """
    layout = find_layout(array)
    if out is None and layout is not None:
        out = np.empty((stop - start, *array.shape[1:]), array.dtype)
    with _reading(array, f"rows {start} to {stop}"):
        if layout is not None and out is not None and out.flags.c_contiguous:
            read_shards(array, layout, start, stop, out)
            return out
        _require_shards(array, np.arange(start, stop))
        rows = np.asarray(array[start:stop])
    if out is None:
        return rows
    out[:] = rows
    return out


def take_rows(array: zarr.Array, numbers: np.ndarray, out: np.ndarray) -> None:
    """Read rows from anywhere in an array."""
    layout = find_layout(array)
    if layout is not None and layout.chunk == 1:
        with _reading(array, f"some of the rows {numbers.min()} to {numbers.max()}"):
            gather_rows(array, layout, numbers, out)
        return
    with _reading(array, f"some of the rows {numbers.min()} to {numbers.max()}"):
        _require_shards(array, numbers)
        # zarr asks an object store for many rows at once
        out[:] = array.oindex[numbers]


def _require_shards(array: zarr.Array, numbers: np.ndarray) -> None:
    """Refuse rows of shards that are not there, which zarr takes for shards of nothing."""
    if not isinstance(array, zarr.Array) or array.shards is None:
        return
    place = array.store_path
    for shard in np.unique(numbers // array.shards[0]).tolist():
        chunk = array.metadata.encode_chunk_key((shard, *[0] * (array.ndim - 1)))
        key = f"{place.path}/{chunk}".lstrip("/")
        if not sync(place.store.exists(key)):
            raise ValueError(f"{key} is gone or was never written")


@contextmanager
def _reading(array: zarr.Array, rows: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DamageError(
            f"{rows} of {array.store_path} are damaged ({reason}); "
            "`primaps-pipe verify --repair` makes them again."
        ) from error
    except OSError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{rows} of {array.store_path} cannot be read: {reason}.") from error


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
    compressed = BloscCodec in kinds
    # id maps shrink more than that
    if is_remote(root) and not current_spool().takes(array.nbytes // (10 if compressed else 1)):
        return None
    return Layout(root / array.path / "c", array.shards[0], sharding.chunk_shape[0], compressed)


def _find_root(store: Any) -> Path | None:
    if isinstance(store, LocalStore):
        return store.root
    if isinstance(store, FsspecStore):
        protocols = [store.fs.protocol] if isinstance(store.fs.protocol, str) else store.fs.protocol
        for scheme in protocols:
            if scheme in STORES:
                return ObjectPath(f"{scheme}://{store.path}")
    return None


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
        file, path = _open_shard(layout.file(shard, array.ndim))
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
    """Open a shard's file, or the local copy of one in an object store; say which."""
    # every shard is written whole, empty chunks too: what is not there is lost, and not empty
    try:
        if is_remote(path):
            return current_spool().open(path)
        return FileIO(path), path
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
    file, path = _open_shard(layout.file(shard, array.ndim))
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
        content, status = path.store.get(path, UNLIMITED)
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
