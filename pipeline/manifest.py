"""The manifest: one row per image, one row per window, as two parquet files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RunError, UsageError
from pipeline.files import write_bytes
from pipeline.run import Run
from pipeline.settings import did_you_mean
from pipeline.windows import Window

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
    ]
)
_WINDOW_SCHEMA = pa.schema([(f.name, pa.int64()) for f in fields(Window)])


@dataclass(frozen=True)
class Image:
    """One row of ``manifest.parquet``.

    Attributes
    ----------
    image
        Row number.
    id
        Relative path without suffix, ``/`` between folders; names the label PNG.
    split
        Split of the dataset.
    path, label
        Image and label map, relative to the root and, where one was given, the labels folder.
    width, height
        After EXIF orientation, pixels; 0 where the image was rejected unseen.
    bytes, modified_ns, digest
        Size, modification time and content digest of the file when it was listed.
    state
        ``ok`` or ``rejected``.
    reason
        Why it was rejected.
    """

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

    @property
    def ok(self) -> bool:
        """Whether later stages use the image."""
        return self.state == "ok"


@dataclass(frozen=True)
class Manifest:
    """All images and windows of a run, and where they come from.

    Attributes
    ----------
    dataset
        Name of the dataset's layout.
    root
        Folder that the images' paths start from.
    labels
        Folder of the label maps of a ``folder`` dataset.
    images, windows
        The rows of the two files.
    """

    dataset: str
    root: Path
    labels: Path | None
    images: tuple[Image, ...]
    windows: tuple[Window, ...]

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
    def rejected(self) -> list[Image]:
        """The images that later stages skip."""
        return [image for image in self.images if not image.ok]

    def check_splits(self, splits: Sequence[str]) -> None:
        """Refuse a split that no image is in.

        Raises
        ------
        UsageError
            There is one.
        """
        for split in splits:
            if split not in self.splits:
                raise UsageError(
                    f"--split {split!r}: the run has {', '.join(self.splits)}"
                    f"{did_you_mean(split, self.splits)}."
                )

    def choose_splits(self, given: Sequence[str]) -> tuple[str, ...]:
        """Return the splits to fit on: those given, or train where there is one, or all.

        Raises
        ------
        UsageError
            No image is in one that is given.
        """
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

    def write(self, run: Run) -> None:
        """Write both files, where their content has changed."""
        source = {"dataset": self.dataset, "root": os.fspath(self.root)}
        if self.labels is not None:
            source["labels"] = os.fspath(self.labels)
        _write_table(run.manifest_file, _IMAGE_SCHEMA.with_metadata(source), self.images)
        _write_table(run.windows_file, _WINDOW_SCHEMA, self.windows)


def read_manifest(run: Run) -> Manifest:
    """Read both files of a run; at once where they are those read last in this process.

    Raises
    ------
    RunError
        They are absent or not what this version writes.
    """
    return _read_manifest(run, _stamp(run.manifest_file), _stamp(run.windows_file))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def _read_manifest(run: Run, *_stamps: tuple[int, int, int] | None) -> Manifest:
    # every shard asks for the manifest, and reading it takes as long as there are images
    images, source = _read_table(run.manifest_file, Image)
    windows, _ = _read_table(run.windows_file, Window)
    for name in ("dataset", "root"):
        if name not in source:
            raise _unreadable(run.manifest_file, f"it does not say its {name}")
    return Manifest(
        dataset=source["dataset"],
        root=Path(source["root"]),
        labels=Path(source["labels"]) if "labels" in source else None,
        images=tuple(images),
        windows=tuple(windows),
    )


def _write_table(path: Path, schema: pa.Schema, rows: Sequence[Any]) -> None:
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    content = buffer.getvalue().to_pybytes()
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)


def _read_table(path: Path, row: type[Any]) -> tuple[list[Any], dict[str, str]]:
    try:
        table = pq.read_table(path)
        rows = [row(**values) for values in table.to_pylist()]
        source = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    except FileNotFoundError:
        raise RunError(f"{path} is missing; run {_command(path)}.") from None
    except (pa.ArrowException, OSError, TypeError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    return rows, source


def _unreadable(path: Path, reason: object) -> RunError:
    text = " ".join(str(reason).split())
    return RunError(f"{path} cannot be read ({text}); delete it and run {_command(path)}.")


def _command(path: Path) -> str:
    return f"`primaps-pipe extract {Run(path.parent).quoted}`"
