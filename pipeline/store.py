"""Sharded zarr arrays: preallocated, written in whole shards, readable by any zarr reader."""

from __future__ import annotations

import json
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
from pipeline.files import remove_file, remove_tree, write_bytes, write_changed
from pipeline.metadata import (
    CHECKSUM,
    METADATA,
    check_metadata,
    consolidate,
    encode_metadata,
    list_nodes,
    read_metadata,
)
from pipeline.places import copy_here, find_files, is_remote, open_zarr
from pipeline.shards import find_layout, gather_rows, read_shards

# Measured (benchmarks/storage.py): float16 features shrink by a tenth at most and are then read ten
# times slower; id maps shrink 35-fold, and of the codecs that do so LZ4HC is read fastest by far.
# A chunk is one window, because the EM reads windows from anywhere.
_COMPRESSORS = {
    True: [BloscCodec(cname="lz4hc", clevel=5, shuffle=BloscShuffle.shuffle)],
    False: [],
}


@dataclass(frozen=True)
class ArraySpec:
    """What an array is: its axes after the first, and how it is stored.

    Attributes
    ----------
    shape
        Lengths of all axes but the first.
    dims
        Names of all axes, the first included.
    dtype
        Any NumPy dtype name.
    compress
        Whether compression pays.
    fill
        What an unwritten element reads as.
    attributes
        Units and meaning, for whoever opens the array without this project.
    """

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
    """Make a zarr v3 group with one array per spec, keeping the shards of arrays that fit already.

    Parameters
    ----------
    store
        Directory of the group.
    specs
        Array name to spec.
    length
        Length of the first axis of every array.
    shard
        Rows per shard file; a chunk inside is one row.
    attributes
        Attributes of the group.

    Raises
    ------
    RunError
        The directory cannot be written.
    """
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
    """Open some arrays of a group for reading.

    Raises
    ------
    RunError
        The group or one of the arrays is missing, or its metadata is damaged.
    """
    if is_remote(store):
        from pipeline.spool import current_spool

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
    """Write one whole shard of several arrays.

    Parameters
    ----------
    store
        Directory of the group.
    blocks
        Array name to values [row, ...]; all rows of the shard, or of the array's end.
    shard
        Number of the shard.
    rows
        Rows per shard.

    Raises
    ------
    RunError
        The disk is full or may not be written.
    """
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

    Parameters
    ----------
    array
        As :func:`open_arrays` gives it.
    start, stop
        The rows, within the array.
    out
        Where they go: contiguous, of their shape and type; a new array where there is none.

    Returns
    -------
    numpy.ndarray
        ``out``, or the new array [row, ...].

    Raises
    ------
    RunError
        The bytes on disk are not those that were written.
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
    """Read rows from anywhere in an array.

    Parameters
    ----------
    array
        As :func:`open_arrays` gives it.
    numbers
        The rows, int64 [row].
    out
        Where they go: contiguous, of their shape and type.

    Raises
    ------
    RunError
        The bytes on disk are not those that were written.
    """
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
    """Write a group of small arrays, replacing the one that is there.

    Parameters
    ----------
    store
        Directory of the zarr store.
    group
        Name of the group inside it.
    arrays
        Array name to values and the names of their axes.
    attributes
        Attributes of the group.

    Raises
    ------
    RunError
        The directory cannot be written.
    """
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
    """Read what :func:`write_group` wrote: its arrays and its attributes.

    Raises
    ------
    RunError
        There is no such group, or it is damaged.
    """
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
