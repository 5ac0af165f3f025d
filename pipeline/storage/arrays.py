"""Sharded zarr arrays: preallocated, written in whole shards, readable by any zarr reader.

The metadata of zarr groups and arrays, each with a checksum of itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec
from zarr.core.buffer import Buffer, cpu
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pipeline.errors import DamageError, RunError
from pipeline.storage.files import fingerprint, remove_file, remove_tree, write_bytes, write_changed
from pipeline.storage.places import copy_here, find_files, is_remote, open_zarr
from pipeline.storage.shards import find_layout, gather_rows, read_shards

METADATA = "zarr.json"
CHECKSUM = "checksum"
"""The name, among a node's attributes, of the checksum of its metadata."""


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


# Measured (benchmarks/storage.py): float16 features shrink by a tenth at most and are then read ten
# times slower; id maps shrink 35-fold, and of the codecs that do so LZ4HC is read fastest by far.
# A chunk is one window, because the EM reads windows from anywhere.
_COMPRESSORS = {
    True: [BloscCodec(cname="lz4hc", clevel=5, shuffle=BloscShuffle.shuffle)],
    False: [],
}


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


def open_arrays(store: Path, names: Sequence[str]) -> dict[str, zarr.Array]:
    """Open some arrays of a group for reading."""
    if is_remote(store):
        from pipeline.storage.shards import current_spool

        current_spool().doubt(store)
    try:
        for name in names:
            check_metadata(store / name)
        group = zarr.open_group(
            open_zarr(store, read_only=True), mode="r", zarr_format=3, use_consolidated=False
        )
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
