"""Sharded zarr arrays: preallocated, written in whole shards, readable by any zarr reader.

Every node's metadata carries a checksum of itself, every chunk one of its bytes.

Shards are read past zarr, which copies every chunk several times on its way through an event loop:
they are chunks of whole rows, each with its checksum, then an index of where each chunk lies. An
array of another layout is left to zarr. A fit reads every window once an epoch, in another order
each time; of an object store that would be a request for each, so a shard is fetched once, whole,
and read from a copy on disk.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

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

from pipeline.errors import DamageError, RunError, UsageError
from pipeline.storage.files import fingerprint, remove_file, remove_tree, write_bytes, write_changed
from pipeline.storage.places import (
    STORES,
    UNLIMITED,
    ObjectPath,
    find_files,
    is_remote,
    list_names,
    map_requests,
)

if TYPE_CHECKING:
    import xarray

METADATA = "zarr.json"
# the name, among a node's attributes, of the checksum of its metadata
CHECKSUM = "checksum"
# share of what is free on the disk at first that copies may take
SHARE_OF_DISK = 0.5
# the latest copies are kept, however large: a reader may be about to open one
KEPT = 16
_CHECKSUM_BYTES = 4
_ABSENT = 2**64 - 1
_PREFIX = "primaps-spool-"
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
    return decode_metadata(_read_node(node))


def _read_node(node: Path) -> bytes:
    try:
        return (node / METADATA).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _require_metadata(content: bytes, file: Path) -> None:
    """Refuse metadata that is not what was written."""
    if decode_metadata(content) is None:
        raise DamageError(
            f"{file} is not as it was written; `primaps-pipe verify --repair` puts it right."
        )


def list_nodes(store: Path) -> dict[str, bytes]:
    """List the groups and arrays below a group: path inside it -> content of its metadata.

    Every file is read once: what another process removes meanwhile is left out.
    """
    nodes: dict[str, bytes] = {}
    for name, _ in list_names(store):
        content = _read_node(store / name)
        metadata = decode_metadata(content)
        if metadata is None:
            continue
        nodes[name] = content
        if metadata["node_type"] == "group":
            below = list_nodes(store / name)
            nodes |= {f"{name}/{inner}": content for inner, content in below.items()}
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
    content = _read_node(store)
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
            for path, _ in list_names(store / name / "c"):
                if path.isdigit() and int(path) * shard >= length:
                    remove_tree(store / name / "c" / path)
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


def _shard_key(shard: int, axes: int) -> str:
    """Return where a shard lies below its array, which has so many axes."""
    return "/".join(["c", str(shard), *["0"] * (axes - 1)])


def write_shard(store: Path, blocks: Mapping[str, np.ndarray], shard: int, rows: int) -> None:
    """Write one whole shard of several arrays."""
    for name, block in blocks.items():
        content = _encode_shard(store / name, block, shard, rows)
        write_bytes(store / name / _shard_key(shard, block.ndim), content)


def _encode_shard(array: Path, block: np.ndarray, shard: int, rows: int) -> bytes:
    # in memory, so that the file is written at once, whole, and its checksum is known
    content = (array / METADATA).read_bytes()
    _require_metadata(content, array / METADATA)
    files: dict[str, Buffer] = {METADATA: cpu.Buffer.from_bytes(content)}
    # an array keeps the setting that it was opened under; every shard is to be a file
    with zarr.config.set({"array.write_empty_chunks": True}):
        target = zarr.open_array(MemoryStore(files), mode="r+", zarr_format=3)
    start = shard * rows
    stop = min(start + rows, target.shape[0])
    if len(block) != stop - start:
        raise ValueError(f"{array.name}: shard {shard} has {stop - start} rows, got {len(block)}")
    target[start:stop] = block
    return files[_shard_key(shard, block.ndim)].to_bytes()


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


def read_group(
    store: Path, group: str, *, leave_out: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`write_group` wrote: its arrays and its attributes.

    Arrays whose names begin with one of ``leave_out`` are not read.
    """
    try:
        files = _read_files(store / group, leave_out)
        for name, content in files.items():
            if name.rpartition("/")[2] == METADATA:
                _require_metadata(content.to_bytes(), store / group / name)
        source = zarr.open_group(
            MemoryStore(files), mode="r", zarr_format=3, use_consolidated=False
        )
        arrays = {}
        for name, array in source.arrays():
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


def _read_files(folder: Path, leave_out: tuple[str, ...]) -> dict[str, Buffer]:
    # what begins with a dot is being written
    paths = [path for path in find_files(folder) if not path.name.startswith(".")]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    files = {name: path for name, path in files.items() if not name.startswith(leave_out)}
    contents = map_requests(folder, lambda path: path.read_bytes(), list(files.values()))
    return {
        name: cpu.Buffer.from_bytes(content) for name, content in zip(files, contents, strict=True)
    }


def open_arrays(store: Path, names: Sequence[str]) -> dict[str, zarr.Array]:
    """Open some arrays of a group for reading."""
    if is_remote(store):
        current_spool().doubt(store)
    arrays: dict[str, zarr.Array] = {}
    try:
        for name in names:
            file = store / name / METADATA
            _require_metadata(file.read_bytes(), file)
        source = store.store.open_zarr(store) if is_remote(store) else store
        group = zarr.open_group(source, mode="r", zarr_format=3, use_consolidated=False)
        for name in names:
            array = group[name]
            if not isinstance(array, zarr.Array):
                raise ValueError(f"{name} is a group")
            arrays[name] = array
    except (FileNotFoundError, NotADirectoryError, KeyError) as error:
        raise RunError(
            f"{store} lacks {', '.join(names)} ({error}); run the stage that writes it again."
        ) from error
    except (ValueError, TypeError) as error:
        # what zarr does not know, such as another codec, nobody here has written
        reason = " ".join(str(error).split())
        raise DamageError(
            f"the metadata of {', '.join(names)} in {store} cannot be read ({reason}); "
            "`primaps-pipe verify --repair` puts it right."
        ) from error
    return arrays


def read_rows(
    array: zarr.Array, start: int, stop: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Read some rows of an array (see :func:`take_rows`)."""
    if out is None:
        out = np.empty((stop - start, *array.shape[1:]), array.dtype)
    take_rows(array, np.arange(start, stop), out)
    return out


def take_rows(array: zarr.Array, numbers: NDArray[np.int64], out: np.ndarray) -> None:
    """Read rows from anywhere in an array; every chunk is checked, once per process and file."""
    if not len(numbers):
        return
    layout = find_layout(array)
    try:
        if layout is not None and out.flags.c_contiguous:
            _gather_rows(array, layout, numbers, out)
        else:
            _require_shards(array, numbers)
            # zarr asks an object store for many rows at once
            out[:] = array.oindex[numbers]
    except (ValueError, RuntimeError) as error:
        raise DamageError(
            f"{_describe_rows(array, numbers)} are damaged ({' '.join(str(error).split())}); "
            "`primaps-pipe verify --repair` makes them again."
        ) from error
    except OSError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{_describe_rows(array, numbers)} cannot be read: {reason}.") from error


def _describe_rows(array: zarr.Array, numbers: NDArray[np.int64]) -> str:
    first, last = numbers.min(), numbers.max()
    if last + 1 - first == len(numbers):
        return f"rows {first} to {last + 1} of {array.store_path}"
    return f"some of the rows {first} to {last} of {array.store_path}"


def _require_shards(array: zarr.Array, numbers: NDArray[np.int64]) -> None:
    """Refuse rows of shards that are not there, which zarr takes for shards of nothing."""
    if not isinstance(array, zarr.Array) or array.shards is None:
        return
    place = array.store_path
    for shard in np.unique(numbers // array.shards[0]).tolist():
        chunk = array.metadata.encode_chunk_key((shard, *[0] * (array.ndim - 1)))
        key = f"{place.path}/{chunk}".lstrip("/")
        if not sync(place.store.exists(key)):
            raise ValueError(f"{key} is gone or was never written")


@dataclass(frozen=True)
class Layout:
    """How the shards of an array lie on disk."""

    folder: Path
    rows: int
    chunk: int
    compressed: bool


@dataclass(frozen=True)
class Index:
    """Where the chunks of one shard file lie, and which of them were checked."""

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
    # were copies of it, and of two more like it, to go and come again all the time, single rows
    # would better be asked for; id maps shrink more than that
    if is_remote(root) and 3 * array.nbytes // (10 if compressed else 1) > current_spool().limit:
        return None
    return Layout(root / array.path, array.shards[0], sharding.chunk_shape[0], compressed)


def _find_root(store: Any) -> Path | None:
    if isinstance(store, LocalStore):
        return store.root
    if isinstance(store, FsspecStore):
        protocols = [store.fs.protocol] if isinstance(store.fs.protocol, str) else store.fs.protocol
        for scheme in protocols:
            if scheme in STORES:
                return ObjectPath(f"{scheme}://{store.path}")
    return None


def _gather_rows(
    array: zarr.Array, layout: Layout, numbers: NDArray[np.int64], rows: NDArray[Any]
) -> None:
    """Read rows into an array; every shard's file is opened once."""
    shards = numbers // layout.rows
    for shard in np.unique(shards).tolist():
        places = np.flatnonzero(shards == shard)
        block = np.empty((layout.chunk, *rows.shape[1:]), rows.dtype)
        held = -1
        with _open_shard(layout.folder / _shard_key(shard, array.ndim)) as (file, path):
            status = os.fstat(file.fileno())
            # as long as the file is the same, so are its bytes: one written anew is checked anew
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            index = _read_index(path, layout.rows // layout.chunk, stamp)
            inside = numbers[places] - shard * layout.rows
            for place, number in zip(places.tolist(), inside.tolist(), strict=True):
                chunk, row = divmod(number, layout.chunk)
                if layout.chunk == 1:
                    _read_chunk(file, index, chunk, layout.compressed, rows[place : place + 1])
                    continue
                if chunk != held:
                    _read_chunk(file, index, chunk, layout.compressed, block)
                    held = chunk
                rows[place] = block[row]


@contextmanager
def _open_shard(path: Path) -> Iterator[tuple[FileIO, Path]]:
    """Open a shard's file, or the local copy of one in an object store; say which."""
    # every shard is written whole, empty chunks too: what is not there is lost, and not empty
    try:
        file, path = current_spool().open(path) if is_remote(path) else (FileIO(path), path)
    except FileNotFoundError:
        raise ValueError(f"{path} is gone or was never written") from None
    with file:
        yield file, path


@lru_cache(maxsize=4096)
def _read_index(path: Path, chunks: int, stamp: tuple[int, int, int]) -> Index:
    with path.open("rb") as file:
        file.seek(max(0, stamp[1] - 16 * chunks - _CHECKSUM_BYTES))
        return Index(_decode_index(file.read(), chunks, str(path)), np.zeros(chunks, np.bool_))


def _decode_index(content: bytes, chunks: int, path: str) -> NDArray[np.uint64]:
    """Return where the chunks lie, offset and size of each, by the end of a shard's file."""
    size = 16 * chunks
    content = content[-(size + _CHECKSUM_BYTES) :]
    if len(content) < size + _CHECKSUM_BYTES:
        raise ValueError(f"{path} ends early")
    _compare(np.frombuffer(content, np.uint8, size), content[size:], f"the index of {path}")
    return np.frombuffer(content, "<u8", 2 * chunks).astype(np.uint64).reshape(chunks, 2)


def _read_chunk(
    file: FileIO, index: Index, chunk: int, compressed: bool, target: NDArray[Any]
) -> None:
    """Read a chunk into an array, and check its bytes if this process has not yet."""
    offset, size = index.places[chunk].tolist()
    if offset == _ABSENT:
        raise ValueError(f"chunk {chunk} was never written")
    size -= _CHECKSUM_BYTES
    plain = target.reshape(-1).view(np.uint8)
    content = np.empty(size, np.uint8) if compressed else plain
    if content.nbytes != size:
        raise ValueError(f"chunk {chunk} has {size} bytes, not {content.nbytes}")
    _fill(file, offset, content)
    if not index.checked[chunk]:
        checksum = np.empty(_CHECKSUM_BYTES, np.uint8)
        _fill(file, offset + size, checksum)
        _compare(content, checksum.tobytes(), f"chunk {chunk}")
        index.checked[chunk] = True
    if compressed:
        blosc.decompress(content, plain)


def _fill(file: FileIO, offset: int, content: NDArray[np.uint8]) -> None:
    done = 0
    while done < content.nbytes:
        count = os.preadv(file.fileno(), [content.data[done:]], offset + done)
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
    everything = list(range(chunks))
    try:
        places = _decode_index(content, chunks, "the shard")
    except ValueError:
        return everything
    damaged = []
    for number, (offset, size) in enumerate(places.tolist()):
        if offset == _ABSENT:
            continue
        chunk = content[offset : offset + size]
        stored = int.from_bytes(chunk[-_CHECKSUM_BYTES:], "little")
        if len(chunk) != size or google_crc32c.value(chunk[:-_CHECKSUM_BYTES]) != stored:
            damaged.append(number)
    return damaged or everything


@dataclass
class _Copy:
    """One object's local copy."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    file: Path | None = None
    etag: str = ""
    bytes: int = 0
    doubted: bool = False

    def drop(self) -> None:
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        self.file, self.bytes = None, 0


class Spool:
    """A folder of copies, which is removed when the process ends."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self.limit = limit
        self._guard = threading.Lock()
        self._copies: OrderedDict[str, _Copy] = OrderedDict()

    def doubt(self, prefix: Any) -> None:
        """Ask the store again before a copy of an object below a prefix is read the next time."""
        start = f"{prefix}/"
        with self._guard:
            for url, copy in self._copies.items():
                copy.doubted = copy.doubted or url.startswith(start)

    def open(self, path: Any) -> tuple[FileIO, Path]:
        """Open the local copy of an object, fetched if need be."""
        with self._guard:
            copy = self._copies.setdefault(str(path), _Copy())
            self._copies.move_to_end(str(path))
        # one thread fetches, the others that want the same wait for it
        with copy.turn:
            try:
                if copy.doubted and path.stat().etag != copy.etag:
                    copy.drop()
                file = copy.file or self._fetch(path, copy)
            except FileNotFoundError:
                copy.drop()
                raise
            copy.doubted = False
            opened = FileIO(file), file
        self._make_room()
        return opened

    def _fetch(self, path: Any, copy: _Copy) -> Path:
        content, status = path.store.get(path, UNLIMITED)
        # never a name that was used before: indices are kept by the names of the copies
        file = self._folder / uuid4().hex
        try:
            file.write_bytes(content)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise RunError(
                f"cannot keep a copy of {path} ({len(content)} bytes) in {self._folder}: "
                f"{error.strerror or error}; free some space, or set TMPDIR to a folder with some."
            ) from error
        copy.file, copy.etag, copy.bytes = file, status.etag, len(content)
        return file

    def _make_room(self) -> None:
        with self._guard:
            kept = list(self._copies.items())
            total = sum(copy.bytes for _, copy in kept)
            for url, copy in kept[:-KEPT]:
                if total <= self.limit:
                    return
                # one that is in use is passed over; what is open stays readable when removed
                if copy.turn.acquire(blocking=False):
                    try:
                        total -= copy.bytes
                        copy.drop()
                        del self._copies[url]
                    finally:
                        copy.turn.release()


@cache
def _make_spool(pid: int) -> Spool:
    top = Path(tempfile.gettempdir())
    for folder in top.glob(f"{_PREFIX}*"):
        # of processes that were killed
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not folder.is_symlink() and not _is_running(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{pid}-", dir=top))
    atexit.register(_remove_own, folder, pid)
    return Spool(folder, int(SHARE_OF_DISK * shutil.disk_usage(folder).free))


def current_spool() -> Spool:
    """Return this process's spool, made at the first call."""
    return _make_spool(os.getpid())


def _remove_own(folder: Path, pid: int) -> None:
    # a fork inherits what is to be done at the end, and has a spool of its own
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


# A store, and the name of an array in it.
Place = tuple[Path, str]


def read_stored(place: Place, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Read some rows of a stored array."""
    array = open_arrays(place[0], [place[1]])[place[1]]
    out = np.empty((len(numbers), *array.shape[1:]), array.dtype.newbyteorder("="))
    take_rows(array, numbers, out)
    return out


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of a stored array as dask asks an array for them: indexing it reads."""

    place: Place
    numbers: NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, *others = index if isinstance(index, tuple) else (index,)
        rows = read_stored(self.place, np.atleast_1d(self.numbers[first]))
        # one row that was asked for by its number has lost its axis
        return rows[(0 if np.ndim(self.numbers[first]) == 0 else slice(None), *others)]


def label_rows(
    place: Place,
    numbers: NDArray[np.int64],
    made: str,
    coordinates: Mapping[str, Sequence[Any]],
) -> xarray.DataArray:
    """Show rows of an array as a lazy, labelled one; a chunk is what one shard holds of them.

    ``made`` is the fingerprint of what was stored, ``coordinates`` say more of every row. The rows
    are read by :func:`take_rows`: zarr itself would take a shard that is gone for one of zeros.
    """
    xarray = import_xarray()
    import dask.array

    store, name = place
    array = open_arrays(store, [name])[name]
    metadata: Any = array.metadata
    attributes = {k: v for k, v in array.attrs.asdict().items() if k != CHECKSUM}
    shape, dtype = (len(numbers), *array.shape[1:]), array.dtype.newbyteorder("=")
    shard = len(numbers) if array.shards is None else array.shards[0]
    _, counts = np.unique(numbers // max(shard, 1), return_counts=True)
    values = dask.array.from_array(
        _Rows(place, numbers, shape, dtype),
        chunks=(tuple(counts.tolist()) or (0,), *((length,) for length in shape[1:])),
        name=f"{name}-{fingerprint(str(store), made, numbers.tolist())}",
        asarray=False,
        fancy=False,
        meta=np.empty((0,) * len(shape), dtype),
    )
    dims = tuple(metadata.dimension_names)
    labels = {dims[0]: numbers} | {k: (dims[0], np.asarray(v)) for k, v in coordinates.items()}
    return xarray.DataArray(values, dims=dims, coords=labels, attrs=attributes, name=name)


def label_file(
    read: Callable[[], NDArray[np.uint8]],
    shape: tuple[int, ...],
    dims: tuple[str, ...],
    name: str,
    attributes: Mapping[str, Any],
) -> xarray.DataArray:
    """Show what a file holds as a lazy, labelled array of one chunk."""
    xarray = import_xarray()
    import dask.array
    from dask.delayed import delayed

    values = dask.array.from_delayed(delayed(read, pure=False)(), shape, dtype=np.uint8)
    return xarray.DataArray(values, dims=dims, attrs=dict(attributes), name=name)


def import_xarray() -> Any:
    """Import xarray, which an install may do without."""
    try:
        import xarray
    except ImportError as error:
        raise UsageError(
            "as_='xarray' needs xarray, which is not installed: pip install 'primaps-pipe[xarray]'."
        ) from error
    return xarray
