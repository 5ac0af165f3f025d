"""A list of images as a CSV file with the columns ``image``, ``label`` and ``split``."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.datasets.base import Sample, require_splits, unknown_name
from pipeline.datasets.benchmark import Defined, refuse_labels
from pipeline.datasets.definition import EVERYTHING, Definition, name_classes
from pipeline.datasets.folder import read_class_names
from pipeline.datasets.listing import (
    existing,
    find_excess,
    forget_listings,
    name_images,
    require_root,
)
from pipeline.errors import DatasetError, UsageError
from pipeline.wording import did_you_mean

COLUMNS = ("image", "label", "split")

MAX_BYTES = 2**30
"""A larger list is refused unread."""

_SPLIT = re.compile(r"\w[\w.-]{0,63}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One line of the list: paths relative to the root, '/'-separated."""

    line: int
    image: str
    label: str | None
    split: str


@dataclass(frozen=True, eq=False)
class Listed(Defined):
    """The images that a CSV file lists.

    The column ``image`` is needed; ``label`` and ``split`` are not, and others are not read. Paths
    are relative to the root, which is the CSV's folder where none is given, or absolute below it.
    An image without a split is in the split ``all``. A label map holds the class ids themselves,
    0..254, and 255 = ignore; ``classes.txt`` beside the CSV may name them, one on a line.
    """

    file: Path

    @classmethod
    def open(cls, file: Path) -> Listed:
        """Give the dataset of a CSV, without reading it."""
        if not file.is_file():
            raise DatasetError(f"there is no list {file}: give the path of a CSV file")
        return cls(name_classes(Definition(name="list"), read_class_names(file.parent)), file)

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"list:{self.file}"

    @property
    def default_splits(self) -> tuple[str, ...]:
        """Every split of the list, in the order in which they occur."""
        rows = self._records
        return tuple(dict.fromkeys(_split(self.file, line, row) for line, row in rows))

    def find_root(self, given: Path | None) -> Path:
        """Give the root, or the folder of the CSV."""
        return self.file.parent if given is None else given

    def list_samples(
        self,
        root: Path,
        splits: Sequence[str],
        labels: Path | None = None,
        exclude: Collection[Path] = (),
    ) -> list[Sample]:
        """List the samples of the splits, as `Dataset.list_samples` has it."""
        refuse_labels(self.name, labels)
        require_splits(splits)
        forget_listings()
        require_root(root, f"the images that {self.file} lists")
        rows = self._read(root)
        known = tuple(dict.fromkeys(row.split for row in rows))
        for split in splits:
            if split not in known:
                raise UsageError(unknown_name(f"split of {self.file}", split, known))
        samples = [sample for split in splits for sample in self._list_split(root, split, rows)]
        named = [row.label for row in rows if row.split in splits and row.label]
        found = {sample.label for sample in samples}
        lost = [label for label in named if label not in found]
        if lost:
            text = "%d label maps that %s lists are not in %s (first: %s)"
            log.warning(text, len(lost), self.file, root, lost[0])
        return samples

    def _list_split(self, root: Path, split: str, rows: Sequence[Row]) -> list[Sample]:
        chosen = [row for row in rows if row.split == split]
        samples = []
        for row, name in zip(chosen, name_images([row.image for row in chosen]), strict=True):
            label = row.label and existing(root, row.label)
            samples.append(Sample(name, split, row.image, label, find_excess(name)))
        return sorted(samples, key=lambda sample: sample.id)

    def _read(self, root: Path) -> list[Row]:
        """Read the rows, each image of a split once."""
        rows: dict[tuple[str, str], Row] = {}
        twice = 0
        for line, values in self._records:
            where = f"line {line} of {self.file}"
            image = values.get("image", "")
            if not image:
                raise DatasetError(f"{where} names no image")
            label = values.get("label", "")
            row = Row(
                line,
                _relative(where, root, image),
                _relative(where, root, label) if label else None,
                _split(self.file, line, values),
            )
            first = rows.setdefault((row.split, row.image), row)
            if first.label != row.label:
                raise DatasetError(
                    f"{where} gives the image {row.image} another label map than line {first.line}:"
                    " remove one of them"
                )
            twice += first is not row
        if twice:
            log.warning("%d lines of %s repeat an image of their split", twice, self.file)
        shared = len(rows) - len({row.image for row in rows.values()})
        if shared:
            log.warning("%d images of %s are in more than one split", shared, self.file)
        return list(rows.values())

    @cached_property
    def _records(self) -> list[tuple[int, Mapping[str, str]]]:
        """Line number and column -> value of every row."""
        records = list(_parse(self.file, _read_text(self.file)))
        if not records:
            raise DatasetError(f"{self.file} lists no image")
        return records


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DatasetError(f"the list {file} has more than {MAX_BYTES} bytes")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DatasetError(f"cannot read the list {file}: {reason}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"the list {file} is not UTF-8 text: save it as CSV UTF-8") from error


def _parse(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    # people write a space behind a comma; a name that begins with one stands in quotes
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=_separator(text),
        skipinitialspace=True,
        strict=True,
    )
    header: list[str] = []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if not header:
                header = _header(file, fields)
                continue
            if len(fields) > len(header):
                raise DatasetError(
                    f"line {reader.line_num} of {file} has {len(fields)} values for "
                    f"{len(header)} columns: put values with a separator in them in quotes"
                )
            yield reader.line_num, dict(zip(header, fields, strict=False))
    except csv.Error as error:
        raise DatasetError(f"line {reader.line_num} of {file} is not CSV: {error}") from error


def _header(file: Path, fields: Sequence[str]) -> list[str]:
    header = [field.strip().lower() for field in fields]
    if "image" not in header:
        hints = [did_you_mean(name, COLUMNS) for name in header if name]
        raise DatasetError(
            f"{file} has no column 'image'{next(filter(None, hints), '')}: its first line must "
            f"name the columns, {', '.join(COLUMNS)}"
        )
    for name in COLUMNS:
        if header.count(name) > 1:
            raise DatasetError(f"{file} has the column '{name}' twice")
    return header


def _separator(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    return max(",;\t", key=first.count)


def _split(file: Path, line: int, values: Mapping[str, str]) -> str:
    split = values.get("split", "").strip() or EVERYTHING
    if not _SPLIT.fullmatch(split):
        raise DatasetError(f"line {line} of {file}: {split!r} is no name of a split")
    return split


def _relative(where: str, root: Path, text: str) -> str:
    """Give a path relative to the root, and refuse one that leads out of it."""
    if "\0" in text or "\\" in text:
        raise DatasetError(f"{where}: {text!r} holds a backslash or a zero byte: write / instead")
    inside = text.removeprefix(f"{str(root).rstrip('/')}/")
    path = PurePosixPath(inside)
    if path.is_absolute() or "://" in inside or ".." in path.parts or not path.parts:
        raise DatasetError(
            f"{where}: {text!r} does not lie below {root}: give a --root that all images and label"
            " maps lie below, and paths relative to it, without '..'"
        )
    return str(path)
