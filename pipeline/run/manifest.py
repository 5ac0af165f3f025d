"""The manifest: one row per image, one row per window, as two parquet files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.datasets import Dataset, open_kept
from pipeline.errors import DamageError, RunError, UsageError
from pipeline.images.windows import Window
from pipeline.run.directory import RunDirectory
from pipeline.settings import did_you_mean
from pipeline.storage.files import decode_table, fingerprint, stamp, write_changed
from pipeline.storage.places import parse_place

_IMAGE_SCHEMA = pa.schema(
    [
        ("image", pa.int64()),
        ("id", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("digest", pa.string()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("changed_ns", pa.int64()),
    ]
)
# The name, in a file's metadata, of the checksum of its rows and its other metadata.
_CHECKSUM = b"checksum"
# Absolute, empty, with a zero byte, or with ``..`` as one of its parts.
_OUTSIDE = re.compile(r"\A/|\A\Z|\0|(?:\A|/)\.\.(?:/|\Z)")
_WINDOW_SCHEMA = pa.schema([(f.name, pa.int64()) for f in fields(Window)])


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


@dataclass(frozen=True)
class Manifest:
    """All images and windows of a run, and where they come from."""

    dataset: str
    root: Path
    labels: Path | None
    images: tuple[Image, ...]
    windows: tuple[Window, ...]
    definition: Mapping[str, Any] | None = None

    def open_dataset(self) -> Dataset:
        """Give the dataset as it was when it was listed."""
        return self._opened

    @cached_property
    def _opened(self) -> Dataset:
        return open_kept(self.dataset, self.definition)

    @cached_property
    def _windows_of(self) -> dict[int, list[Window]]:
        table: dict[int, list[Window]] = {}
        for window in self.windows:
            table.setdefault(window.image, []).append(window)
        return table

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that occur, in the order of the rows."""
        return tuple(dict.fromkeys(image.split for image in self.images))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the rows of both tables, but for times and which images are rejected."""
        same = {"state": "ok", "reason": None, "modified_ns": 0, "changed_ns": 0}
        rows = [replace(image, **same) for image in self.images]  # type: ignore[arg-type]
        return fingerprint([astuple(row) for row in rows], [astuple(w) for w in self.windows])

    @property
    def rejected(self) -> list[Image]:
        """The images that later stages skip."""
        return [image for image in self.images if not image.ok]

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
        return self._windows_of.get(image.image, [])

    def label_path(self, image: Image) -> Path | None:
        """Return where the label map of an image lies, or None if it has none."""
        return None if image.label is None else (self.labels or self.root) / image.label

    def images_starting_in(self, start: int, stop: int, splits: Sequence[str]) -> list[Image]:
        """Return the usable images of some splits whose first window is in ``[start, stop)``."""
        return [
            self.images[window.image]
            for window in self.usable_windows(start, stop, splits)
            if self._windows_of[window.image][0] is window
        ]

    def usable_windows(
        self, start: int = 0, stop: int | None = None, splits: Sequence[str] | None = None
    ) -> list[Window]:
        """Return the windows in ``[start, stop)`` of images that are ``ok``, in ``splits``."""
        return [
            window
            for window in self.windows[start:stop]
            if self.images[window.image].ok
            and (splits is None or self.images[window.image].split in splits)
        ]

    def reject(self, reasons: dict[int, str]) -> Manifest:
        """Return a manifest in which the images of ``reasons`` (row -> reason) are rejected."""
        images = [
            replace(image, state="rejected", reason=reasons[image.image])
            if image.image in reasons
            else image
            for image in self.images
        ]
        return replace(self, images=tuple(images))

    def write(self, run: RunDirectory) -> None:
        """Write both files, where their content has changed."""
        source = {"dataset": self.dataset, "root": str(self.root)}
        if self.labels is not None:
            source["labels"] = str(self.labels)
        if self.definition is not None:
            source["definition"] = json.dumps(self.definition, ensure_ascii=False)
        _write_table(run.manifest_file, _IMAGE_SCHEMA.with_metadata(source), self.images)
        _write_table(run.windows_file, _WINDOW_SCHEMA, self.windows)


def read_manifest(run: RunDirectory) -> Manifest:
    """Read both files of a run; at once where they are those read last in this process."""
    return _read_manifest(run, stamp(run.manifest_file), stamp(run.windows_file))


@lru_cache(maxsize=1)
def _read_manifest(run: RunDirectory, *_stamps: tuple[int, int, int] | None) -> Manifest:
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
        images=tuple(images),
        windows=tuple(windows),
        definition=definition,
    )


def _write_table(path: Path, schema: pa.Schema, rows: Sequence[Any]) -> None:
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(_seal(table), buffer)
    write_changed(path, buffer.getvalue().to_pybytes())


def _seal(table: pa.Table) -> pa.Table:
    """Put a checksum of a table's rows and metadata into its metadata."""
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != _CHECKSUM}
    named = {k.decode(): v.decode() for k, v in metadata.items()}
    print_ = fingerprint(named, table.to_pydict())
    return table.replace_schema_metadata({**metadata, _CHECKSUM: print_.encode()})


def _read_table(path: Path, row: type[Any]) -> tuple[list[Any], dict[str, str]]:
    try:
        table = decode_table(path.read_bytes())
        rows = [row(**values) for values in table.to_pylist()]
        source = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if source.pop(_CHECKSUM.decode(), None) != _seal(table).schema.metadata[_CHECKSUM].decode():
            raise ValueError("its checksum differs")
    except FileNotFoundError:
        raise RunError(f"{path} is missing; run {_command(path)}.") from None
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    return rows, source


def _check_names(path: Path, images: Sequence[Image]) -> None:
    """Refuse names that lead elsewhere: no listing has one, and files are named after them."""
    for image in images:
        for name in (image.id, image.split, image.path, image.label):
            if name is not None and _OUTSIDE.search(name):
                raise RunError(
                    f"{path} names {name!r} in row {image.image}, which leads out of its folder; "
                    f"that was not written here: delete the file and run {_command(path)}."
                )


def _unreadable(path: Path, reason: object) -> DamageError:
    text = " ".join(str(reason).split())
    return DamageError(f"{path} cannot be read ({text}); delete it and run {_command(path)}.")


def _command(path: Path) -> str:
    return f"`primaps-pipe extract {RunDirectory(path.parent).quoted}`"
