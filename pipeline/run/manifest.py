"""The manifest: one row per image, one row per window, as two parquet files.

In memory they are Arrow tables, a few hundred bytes an image in every process: an image or a window
is an object only while somebody looks at it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import islice
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.datasets import open_kept
from pipeline.datasets.base import Dataset
from pipeline.errors import DamageError, RunError, UsageError, did_you_mean
from pipeline.images.windows import Window
from pipeline.run.directory import RunDirectory
from pipeline.storage.files import Stamp, decode_table, fingerprint_texts, stamp, write_changed
from pipeline.storage.places import parse_place

# The name, in a file's metadata, of the checksum of its rows and its other metadata.
_CHECKSUM = "checksum"
# Absolute, empty, with a zero byte, or with ``..`` as one of its parts.
_OUTSIDE = r"\A/|\A\z|\x00|(?:\A|/)\.\.(?:/|\z)"
# Rows that are Python objects at a time.
_BLOCK = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class Image:
    """One row of ``manifest.parquet``."""

    image: int
    id: str
    split: str
    path: str
    label: str | None
    width: int
    height: int
    bytes: int
    modified_ns: int
    digest: str
    state: str = "ok"
    reason: str | None = None
    changed_ns: int = 0

    @property
    def ok(self) -> bool:
        """Whether later stages use the image."""
        return self.state == "ok"


_SCHEMAS: dict[type[Any], pa.Schema] = {
    kind: pa.schema(
        [(f.name, pa.int64() if f.type == "int" else pa.string()) for f in fields(kind)]
    )
    for kind in (Image, Window)
}


class Rows(Sequence[T]):
    """The rows of an Arrow table as objects, each made when it is asked for."""

    def __init__(self, kind: type[T], table: pa.Table) -> None:
        self.kind = kind
        self.table = table

    @classmethod
    def gather(cls, kind: type[T], rows: Iterable[T]) -> Rows[T]:
        """Put objects into a table, a block of them at a time."""
        if isinstance(rows, Rows):
            return rows
        schema, items = _SCHEMAS[kind], iter(rows)
        batches = []
        while block := list(islice(items, _BLOCK)):
            columns = [[getattr(row, name) for row in block] for name in schema.names]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            batches.append(pa.record_batch(arrays, schema=schema))
        return cls(kind, pa.Table.from_batches(batches, schema).combine_chunks())

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column, which NumPy takes, too."""
        return self.table[name]

    def among(self, name: str, values: Collection[str]) -> NDArray[np.bool_]:
        """Say of every row whether a column has one of some values, bool [row]."""
        found = pc.is_in(self.table[name], value_set=pa.array(list(values), pa.string()))
        return np.asarray(found, dtype=bool)

    def find(self, name: str, values: Sequence[str]) -> NDArray[np.int64]:
        """Return in which row a column has each of some values, int64 [value], -1 for none."""
        known = self.table[name].combine_chunks()
        found = pc.index_in(pa.array(values, pa.string()), value_set=known)
        return np.asarray(pc.fill_null(found, -1), dtype=np.int64)

    def choose(self, chosen: NDArray[Any]) -> Rows[T]:
        """Return some rows, chosen by number or by a mask."""
        numbers = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Rows(self.kind, self.table.take(pa.array(numbers, pa.int64())))

    def replace(self, **columns: Any) -> Rows[T]:
        """Return the rows with other values in some columns."""
        table = self.table
        for name, values in columns.items():
            table = table.set_column(table.schema.names.index(name), name, values)
        return Rows(self.kind, table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Rows[T]: ...
    def __getitem__(self, index: int | slice) -> T | Rows[T]:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return self.kind(*(column[numbers].as_py() for column in self._columns))
        if numbers.step == 1:
            return Rows(self.kind, self.table.slice(numbers.start, len(numbers)))
        return self.choose(np.array(numbers))

    @cached_property
    def _columns(self) -> list[pa.ChunkedArray]:
        return list(self.table.columns)

    def __iter__(self) -> Iterator[T]:
        for batch in self.table.to_batches(max_chunksize=_BLOCK):
            yield from map(self.kind, *(column.to_pylist() for column in batch.columns))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} rows: {self.kind.__name__}>"


@dataclass(frozen=True)
class Manifest:
    """All images and windows of a run, and where they come from."""

    dataset: str
    root: Path
    labels: Path | None
    images: Rows[Image]
    windows: Rows[Window]
    definition: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", Rows.gather(Image, self.images))
        object.__setattr__(self, "windows", Rows.gather(Window, self.windows))

    def open_dataset(self) -> Dataset:
        """Give the dataset as it was when it was listed."""
        return self._opened.know_labels(self.labels)

    @cached_property
    def _opened(self) -> Dataset:
        return open_kept(self.dataset, self.definition)

    @cached_property
    def _image_of(self) -> NDArray[np.int64]:
        """Rows of the images that the windows are in, ascending, int64 [window]."""
        return np.asarray(self.windows.column("image"))

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, in the order of the rows."""
        return tuple(pc.unique(self.images.column("split")).to_pylist())

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the rows of both tables, but for times and which images are rejected."""
        same = {"state": '"ok"', "reason": "null", "modified_ns": "0", "changed_ns": "0"}
        return fingerprint_texts(_dump_rows(self.images, same), _dump_rows(self.windows, {}))

    @property
    def rejected(self) -> list[Image]:
        """The images that later stages skip."""
        return list(self.images.choose(~self.images.among("state", ["ok"])))

    def check_splits(self, splits: Sequence[str]) -> None:
        """Refuse a split that no image is in."""
        for split in splits:
            if split not in self.splits:
                raise UsageError(
                    f"--split {split!r}: the run has {', '.join(self.splits)}"
                    f"{did_you_mean(split, self.splits)}."
                )

    def choose_splits(self, given: Sequence[str]) -> tuple[str, ...]:
        """Return the splits to fit on: those given, or train where there is one, or all."""
        self.check_splits(given)
        return tuple(given) or (("train",) if "train" in self.splits else self.splits)

    def windows_of(self, image: Image) -> list[Window]:
        """Return the windows of one image."""
        low, high = np.searchsorted(self._image_of, [image.image, image.image + 1])
        return list(self.windows[low:high])

    def label_path(self, image: Image) -> Path | None:
        """Return where the label map of an image lies, or None if it has none."""
        return None if image.label is None else (self.labels or self.root) / image.label

    def images_starting_in(self, start: int, stop: int, splits: Sequence[str]) -> list[Image]:
        """Return the usable images of some splits whose first window is in ``[start, stop)``."""
        numbers = self._list_usable(start, stop, splits)
        rows = self._image_of[numbers]
        first = np.searchsorted(self._image_of, rows) == numbers
        return list(self.images.choose(rows[first]))

    def usable_windows(
        self, start: int = 0, stop: int | None = None, splits: Sequence[str] | None = None
    ) -> Rows[Window]:
        """Return the windows in ``[start, stop)`` of images that are ``ok``, in ``splits``."""
        return self.windows.choose(self._list_usable(start, stop, splits))

    def _list_usable(
        self, start: int, stop: int | None, splits: Sequence[str] | None
    ) -> NDArray[np.int64]:
        rows = self._image_of[start:stop]
        if not len(rows):
            return rows
        images = self.images[int(rows[0]) : int(rows[-1]) + 1]
        usable = images.among("state", ["ok"])
        if splits is not None:
            usable &= images.among("split", splits)
        return start + np.flatnonzero(usable[rows - rows[0]])

    def reject(self, reasons: Mapping[int, str]) -> Manifest:
        """Return a manifest in which the images of ``reasons`` (row -> reason) are rejected."""
        if not reasons:
            return self
        chosen = np.isin(np.arange(len(self.images)), list(reasons))
        state = pc.if_else(pa.array(chosen), "rejected", self.images.column("state"))
        texts = self.images.column("reason").to_pylist()
        for row in np.flatnonzero(chosen).tolist():
            texts[row] = reasons[row]
        reason = pa.array(texts, pa.string())
        return replace(self, images=self.images.replace(state=state, reason=reason))

    def admit_placed(self) -> Manifest:
        """Return a manifest in which no image that has windows is rejected."""
        placed = pa.array(np.isin(np.arange(len(self.images)), self._image_of))
        state, reason = self.images.column("state"), self.images.column("reason")
        images = self.images.replace(
            state=pc.if_else(placed, "ok", state),
            reason=pc.if_else(placed, pa.scalar(None, pa.string()), reason),
        )
        return replace(self, images=images)

    def write(self, run: RunDirectory) -> None:
        """Write both files, where their content has changed."""
        source = {"dataset": self.dataset, "root": str(self.root)}
        if self.labels is not None:
            source["labels"] = str(self.labels)
        if self.definition is not None:
            source["definition"] = json.dumps(self.definition, ensure_ascii=False)
        _write_table(run.manifest_file, self.images.table, source)
        _write_table(run.windows_file, self.windows.table, {})


def read_manifest(run: RunDirectory) -> Manifest:
    """Read both files of a run; at once where they are those read last in this process."""
    return _read_manifest(run, stamp(run.manifest_file), stamp(run.windows_file))


@lru_cache(maxsize=1)
def _read_manifest(run: RunDirectory, *_stamps: Stamp | None) -> Manifest:
    # every shard asks for the manifest, and reading it takes as long as there are images
    images, source = _read_table(run.manifest_file, Image)
    windows, _ = _read_table(run.windows_file, Window)
    _check_names(run.manifest_file, images)
    for name in ("dataset", "root"):
        if name not in source:
            raise _unreadable(run.manifest_file, f"it does not say its {name}")
    try:
        definition = json.loads(source["definition"]) if "definition" in source else None
    except (ValueError, RecursionError) as error:
        raise _unreadable(run.manifest_file, error) from error
    return Manifest(
        dataset=source["dataset"],
        root=parse_place(source["root"]),
        labels=parse_place(source["labels"]) if "labels" in source else None,
        images=images,
        windows=windows,
        definition=definition,
    )


def _write_table(path: Path, table: pa.Table, source: Mapping[str, str]) -> None:
    sealed = {**source, _CHECKSUM: _checksum(table, source)}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks().replace_schema_metadata(sealed), buffer)
    write_changed(path, buffer.getvalue().to_pybytes())


def _read_table(path: Path, kind: type[T]) -> tuple[Rows[T], dict[str, str]]:
    try:
        table = decode_table(path.read_bytes())
        source = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if not table.schema.equals(_SCHEMAS[kind]):
            raise ValueError("its columns are others")
        if source.pop(_CHECKSUM, None) != _checksum(table, source):
            raise ValueError("its checksum differs")
    except FileNotFoundError:
        raise RunError(f"{path} is missing; run {_command(path)}.") from None
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    return Rows(kind, table.replace_schema_metadata(None)), source


def _checksum(table: pa.Table, source: Mapping[str, str]) -> str:
    """Return the fingerprint of a table's metadata and columns, as of one JSON value."""
    return fingerprint_texts([json.dumps(source, sort_keys=True)], _dump_columns(table))


def _dump_columns(table: pa.Table) -> Iterator[str]:
    for number, name in enumerate(sorted(table.schema.names)):
        yield f"{', ' if number else '{'}{json.dumps(name)}: "
        blocks = table.select([name]).to_batches(max_chunksize=_BLOCK)
        yield from _join_blocks(_dump_values(block[0]) for block in blocks)
    yield "}"


def _dump_rows(rows: Rows[Any], same: Mapping[str, str]) -> Iterator[str]:
    """Dump rows as lists of their values; the JSON of some columns is the same in every row."""

    def dump(block: pa.RecordBatch) -> list[str]:
        columns = (
            [same[name]] * len(block) if name in same else _dump_values(column)
            for name, column in zip(block.schema.names, block.columns, strict=True)
        )
        return [f"[{', '.join(values)}]" for values in zip(*columns, strict=True)]

    return _join_blocks(map(dump, rows.table.to_batches(max_chunksize=_BLOCK)))


def _dump_values(column: pa.Array) -> list[str]:
    # many times as fast as the JSON of rows
    dump = encode_basestring_ascii if pa.types.is_string(column.type) else repr
    return ["null" if value is None else dump(value) for value in column.to_pylist()]


def _join_blocks(blocks: Iterable[list[str]]) -> Iterator[str]:
    """Join the JSON of values to that of their list, a block of them at a time."""
    begin = "["
    for block in blocks:
        if block:
            yield begin + ", ".join(block)
            begin = ", "
    yield "]" if begin == ", " else "[]"


def _check_names(path: Path, images: Rows[Image]) -> None:
    """Refuse names that lead elsewhere: no listing has one, and files are named after them."""
    for column in ("id", "split", "path", "label"):
        outside = pc.match_substring_regex(images.column(column), _OUTSIDE)
        row = pc.index(outside, True).as_py()
        if row >= 0:
            raise RunError(
                f"{path} names {images.column(column)[row].as_py()!r} in row {row}, which leads "
                "out of its folder; that was not written here: delete the file and run "
                f"{_command(path)}."
            )


def _unreadable(path: Path, reason: object) -> DamageError:
    text = " ".join(str(reason).split())
    return DamageError(f"{path} cannot be read ({text}); delete it and run {_command(path)}.")


def _command(path: Path) -> str:
    return f"`primaps-pipe extract {RunDirectory(path.parent).quoted}`"
