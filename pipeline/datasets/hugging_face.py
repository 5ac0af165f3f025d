"""A dataset of the Hugging Face library in a local folder, its images unpacked once.

The folder is what ``save_to_disk`` wrote, or it holds parquet files. Nothing in it is run: arrow
and parquet files hold plain values, scripts beside them are not looked at, and nothing is fetched.
The package ``datasets`` is needed to read it, and not any more once it is unpacked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.cache import find_cache
from pipeline.datasets.base import Say
from pipeline.datasets.benchmark import Benchmark
from pipeline.datasets.definition import Definition
from pipeline.datasets.embedded import (
    IMAGE_SUFFIXES,
    Columns,
    Rows,
    encode_label,
    find_classes,
    name_row,
    open_rows,
    sniff_suffix,
)
from pipeline.errors import DatasetError, UsageError
from pipeline.files import fingerprint
from pipeline.places import is_remote

_PREFIX = "huggingface-"
_DATA = (".arrow", ".parquet", ".json")


@dataclass(frozen=True, eq=False)
class HuggingFace(Benchmark):
    """The images of a Hugging Face dataset, unpacked from its rows; a `Dataset`.

    Image and label map are columns of the feature ``Image``, or a label map is a table of ids.
    Classes have the names of the label column's ``ClassLabel``, or of ``id2label.json``, and the
    colours of the first label map's palette; without names, ids are classes.

    Attributes
    ----------
    folder : Path
        The dataset's folder.
    stamp : str
        Fingerprint of its files, by name, size and time.
    """

    folder: Path
    stamp: str

    @classmethod
    def open(cls, folder: Path) -> HuggingFace:
        """Give the dataset of a folder, reading no more than a row of it.

        Raises
        ------
        UsageError
            The package ``datasets`` is not installed, or the folder is in an object store.
        DatasetError
            The folder is none, or holds no images and label maps.
        """
        if is_remote(folder):
            raise UsageError(f"huggingface:{folder} must be a local folder: copy it there first")
        if not folder.is_dir():
            raise DatasetError(
                f"no folder of a dataset at {folder}: nothing is downloaded, give a local folder"
            )
        parts = open_rows(folder)
        splits = [part.split for part in parts]
        definition = Definition(
            "huggingface",
            images=tuple(f"images/{{split}}/*{suffix}" for suffix in IMAGE_SUFFIXES),
            labels=("labels/{split}/*.png",),
            splits={split: split for split in splits},
            default_splits=tuple(splits),
            classes=find_classes(folder, parts),
        )
        return cls(definition, folder, _stamp(folder))

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"huggingface:{self.folder}"

    def find_root(self, given: Path | None) -> Path:
        """Give the folder that the images are unpacked into: in the cache, or below the given."""
        if is_remote(given):
            raise UsageError(f"{self.name} is unpacked into a local folder, and not into {given}")
        top = given or find_cache("datasets").absolute()
        # what a run remembers of an earlier time is such a folder already
        top = top.parent if top.name.startswith(_PREFIX) else top
        return top / f"{_PREFIX}{self.stamp}"

    def fetch(self, root: Path, say: Say) -> None:
        """Unpack the images and label maps, where that has not been done."""
        if root.is_dir():
            return
        say(f"{self.name}: images are unpacked into {root}, where the run will read them")
        # it takes its name when it is whole; the loser of a race is removed
        part = root.with_name(f"{root.name}.part-{uuid4().hex[:8]}")
        try:
            count, lost = _unpack(open_rows(self.folder), part)
            if not count:
                raise DatasetError(
                    f"no row of {self.folder} holds the bytes of an image: save it with them"
                )
            with suppress(FileExistsError):
                _take_name(part, root)
        except OSError as error:
            raise DatasetError(
                f"cannot unpack {self.folder} into {root}: {error.strerror or error}; --root or "
                "$PRIMAPS_CACHE_DIR names another place."
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        say(f"{self.name}: {count} images" + (f", {lost} rows without one" if lost else ""))


def _take_name(part: Path, root: Path) -> None:
    if not root.is_dir():
        part.rename(root)


def _stamp(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.suffix in _DATA)
    stamps = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return fingerprint(str(folder), [(n, s.st_size, s.st_mtime_ns) for n, s in stamps])[:20]


def _unpack(parts: Sequence[Rows], top: Path) -> tuple[int, int]:
    """Write the images and label maps of all rows; return how many there were, and were not."""
    count = lost = 0
    for part in parts:
        for kind in ("images", "labels"):
            (top / kind / part.split).mkdir(parents=True)
        for row, image, label in _read_rows(part):
            data = image.get("bytes") if isinstance(image, dict) else None
            if not data:
                lost += 1
                continue
            name = name_row(row, image.get("path"))
            (top / "images" / part.split / f"{name}{sniff_suffix(data)}").write_bytes(data)
            ids = encode_label(label, f"row {row} of {part.split}")
            if ids is not None:
                (top / "labels" / part.split / f"{name}.png").write_bytes(ids)
            count += 1
    return count, lost


def _read_rows(part: Rows) -> Iterator[tuple[int, Any, Any]]:
    columns: Columns = part.columns
    row = 0
    for table in part.read_tables():
        images = table.column(columns.image).to_pylist()
        labels: list[Any] = [None] * len(images)
        if columns.label is not None:
            labels = table.column(columns.label).to_pylist()
        for image, label in zip(images, labels, strict=True):
            yield row, image, label
            row += 1
