"""Sharded zarr arrays: preallocated, written in whole shards, readable by any zarr reader."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from pipeline.errors import RunError
from pipeline.files import read_json, sync_file
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
    with _writing(store):
        group = zarr.open_group(store, mode="a", zarr_format=3, use_consolidated=False)
        # what is right already is not touched: modification times tell users what was recomputed
        for name, spec in specs.items():
            _prepare_array(group, store, name, spec, length, shard)
        _put_attributes(group, attributes)
        if not _is_consolidated(store, specs):
            consolidate(store)


def _prepare_array(
    group: zarr.Group, store: Path, name: str, spec: ArraySpec, length: int, shard: int
) -> None:
    if name in group and not _fits(group[name], spec, shard):
        shutil.rmtree(store / name)
    if name not in group:
        _create(group, name, spec, length, shard)
    array = group[name]
    if isinstance(array, zarr.Array) and array.shape[0] != length:
        array.resize((length, *spec.shape))
    _put_attributes(array, spec.attributes or {})


def _put_attributes(node: Any, attributes: Mapping[str, Any]) -> None:
    if node.attrs.asdict() != dict(attributes):
        node.attrs.put(dict(attributes))


def _is_consolidated(store: Path, names: Iterable[str]) -> bool:
    # asked of the files: a run killed before it consolidated leaves nothing else to do
    whole = (read_json(store / "zarr.json") or {}).get("consolidated_metadata") or {}
    known = whole.get("metadata", {})
    return all(known.get(name) == read_json(store / name / "zarr.json") for name in names)


def _create(group: zarr.Group, name: str, spec: ArraySpec, length: int, shard: int) -> None:
    group.create_array(
        name,
        shape=(length, *spec.shape),
        chunks=(1, *spec.shape),
        shards=(shard, *spec.shape),
        dtype=spec.dtype,
        dimension_names=spec.dims,
        compressors=[*_COMPRESSORS[spec.compress], Crc32cCodec()],
        fill_value=spec.fill,
    )


def _fits(array: Any, spec: ArraySpec, shard: int) -> bool:
    return (
        isinstance(array, zarr.Array)
        and array.shape[1:] == spec.shape
        and str(array.dtype) == spec.dtype
        and array.shards == (shard, *spec.shape)
        and array.fill_value == spec.fill
        and getattr(array.metadata, "dimension_names", None) == spec.dims
    )


def consolidate(store: Path) -> None:
    """Put the metadata of all members into the group, so that xarray opens it with one read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        zarr.consolidate_metadata(store)


def open_arrays(
    store: Path, names: Sequence[str], mode: Literal["r", "r+"] = "r"
) -> dict[str, zarr.Array]:
    """Open some arrays of a group.

    Raises
    ------
    RunError
        The group or one of the arrays is missing.
    """
    try:
        group = zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)
        arrays = {name: group[name] for name in names}
    except (FileNotFoundError, KeyError) as error:
        raise RunError(
            f"{store} lacks {', '.join(names)} ({error}); "
            "run the stage that writes it again with --force."
        ) from error
    return {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}


def holds_shard(store: Path, names: Sequence[str], shard: int) -> bool:
    """Whether the file of a shard is there for each of some arrays.

    Every written shard is a file, even one that holds fill values only, so a missing one was never
    written or is lost.
    """
    for name in names:
        try:
            metadata = json.loads((store / name / "zarr.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return False
        file = _shard_file(store, name, len(metadata["shape"]), shard)
        if not file.is_file() or not file.stat().st_size:
            return False
    return True


def _shard_file(store: Path, name: str, axes: int, shard: int) -> Path:
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
    # an array keeps the setting that it was opened under
    with zarr.config.set({"array.write_empty_chunks": True}):
        arrays = open_arrays(store, list(blocks), mode="r+")
    start = shard * rows
    for name, block in blocks.items():
        stop = min(start + rows, arrays[name].shape[0])
        if len(block) != stop - start:
            raise ValueError(f"{name}: shard {shard} has {stop - start} rows, got {len(block)}")
        with _writing(store / name, block.nbytes):
            file = _shard_file(store, name, block.ndim, shard)
            # zarr would read the old shard first, and a damaged one could never be replaced
            file.unlink(missing_ok=True)
            arrays[name][start:stop] = block
            sync_file(file)


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
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    for start, stop in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
        first = int(numbers[start])
        read_rows(array, first, first + stop - start, out[start:stop])


@contextmanager
def _reading(array: zarr.Array, rows: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{rows} of {array.store_path} are damaged ({reason}); "
            "run the stage that writes them again with --force."
        ) from error


@contextmanager
def _writing(path: Path, size: int | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        room = "" if size is None else f" ({size} bytes)"
        raise RunError(
            f"cannot write {path}{room}: {error.strerror or error}; "
            "free some space, or choose a folder that may be written, and run the command again."
        ) from error


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
        Path of the group inside it.
    arrays
        Array name to values and the names of their axes.
    attributes
        Attributes of the group.

    Raises
    ------
    RunError
        The directory cannot be written.
    """
    with _writing(store / group):
        zarr.open_group(store, mode="a", zarr_format=3, use_consolidated=False)
        shutil.rmtree(store / group, ignore_errors=True)
        target = zarr.open_group(store, path=group, mode="w", zarr_format=3)
        for name, (values, dims) in arrays.items():
            target.create_array(
                name,
                data=values,
                chunks=tuple(max(1, length) for length in values.shape),
                dimension_names=dims,
                compressors=[Crc32cCodec()],
            )
        target.attrs.put(dict(attributes))


def read_group(store: Path, group: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`write_group` wrote: its arrays and its attributes.

    Raises
    ------
    RunError
        There is no such group.
    """
    try:
        source = zarr.open_group(store, path=group, mode="r", zarr_format=3, use_consolidated=False)
    except FileNotFoundError:
        raise RunError(f"{store} has no group {group!r}; run the stage that writes it.") from None
    arrays = {name: np.asarray(array[...]) for name, array in source.arrays()}
    return arrays, source.attrs.asdict()
