"""Images that need no definition: any folder of them, or those that a CSV file lists."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

from pipeline.datasets.base import EVERY, Dataset, Sample, Wanted, unknown_split
from pipeline.datasets.definition import EVERYTHING, IGNORE, Definition, name_classes
from pipeline.datasets.listing import (
    MAX_LIST_BYTES,
    exists,
    find_excess,
    find_first,
    join_path,
    list_visible,
    name_images,
    read_lines,
    read_text,
    walk,
)
from pipeline.datasets.masks import find_masks
from pipeline.errors import DatasetError, UsageError, did_you_mean
from pipeline.images.formats import describe_others, list_suffixes

CLASSES_FILE = "classes.txt"
"""Optional, in the labels folder or beside the list: the name of class 0, 1, ... one per line."""

COLUMNS = ("image", "label", "split")

_SPLIT = re.compile(r"\w[\w.-]{0,63}")

log = logging.getLogger(__name__)


class Folder(Dataset):
    """Images below a folder, with label maps in a second folder or none.

    The split ``all`` is every image below the root, any other a subfolder directly in it, and its
    ids are relative to that. Links to folders are followed, and no folder is listed twice in a
    split. Hidden files, the labels folder and run directories below the root are left out; what
    cannot be used because of its path is a sample with the reason.

    Where the labels folder is the root itself, the label maps lie among the images and are told
    from them by names and values (:func:`find_masks`). Else a label map has its image's path
    relative to the root, with another suffix: ``a/b.jpg`` has ``a/b.jpg.png``, or ``a/b.png``, or
    the image's own name where that can hold ids. One that two images could mean (``b.jpg.png``, of
    ``b.jpg`` and of a photograph with that name) is taken for neither. It holds the class ids
    themselves, 0..254 or those that ``classes.txt`` names, and 255 = ignore.
    """

    takes_labels: ClassVar[bool] = True

    @property
    def layout(self) -> str:
        """The files that the root must hold."""
        return f"images ({', '.join(sorted(list_suffixes()))}) at any depth"

    @property
    def content(self) -> None:
        """Nothing: the name says it all."""

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the names in the labels folder's ``classes.txt``; without it none are known."""
        return () if labels is None else read_class_names(labels)

    def know_labels(self, labels: Path | None) -> Folder:
        """Give the dataset with the classes that the labels folder names."""
        return Folder(name_classes(self.definition, dict(enumerate(self.class_names(labels)))))

    def _list_samples(self, wanted: Wanted) -> list[Sample]:
        root, splits, labels, exclude, globs = wanted
        if labels is not None:
            if not labels.is_dir():
                raise DatasetError(f"no folder of label maps at {labels}")
            if labels.resolve() in root.resolve().parents:
                raise UsageError(
                    f"the labels folder {labels} holds the images too: keep label maps in their "
                    "own folder, or among the images with --labels and --root alike"
                )
            # label maps among the images are told from them
            if not _is_same(root, labels):
                wanted = wanted._replace(exclude=[*exclude, labels])
        samples: list[Sample] = []
        for split in splits:
            if split != EVERYTHING:
                known = [EVERYTHING, *(each.name for each in list_visible(root) if each.is_folder)]
                if split not in known:
                    raise DatasetError(unknown_split(root, split, known))
            found = _find_images(wanted, split)
            if not found:
                place = root if split == EVERYTHING else root / split
                if globs != EVERY:
                    raise DatasetError(f"--include and --exclude leave no images below {place}")
                raise DatasetError(f"no images below {place}: the folder must hold {self.layout}")
            samples += found
        if labels is not None and globs == EVERY and EVERYTHING in splits:
            _tell_others(root, labels, samples)
        if labels is not None and not any(sample.label for sample in samples):
            example = PurePosixPath(samples[0].image).with_suffix(".png")
            others: Counter[str] = Counter()
            there = min(walk(labels, "", (), {}, others), default="")
            raise DatasetError(
                f"no label map in {labels} has the path of an image: {samples[0].image} in {root}"
                f" wants {example}, and what lies there is "
                f"{there or ', '.join(sorted(others)) or 'nothing'}"
            )
        return samples


def _is_same(root: Path, labels: Path) -> bool:
    return root.resolve() == labels.resolve()


def _tell_others(root: Path, labels: Path, samples: Sequence[Sample]) -> None:
    """Count the files among the label maps that are those of no image."""
    if _is_same(root, labels):
        return  # those among the images are told by themselves
    used = {sample.label for sample in samples}
    unused = [path for path in walk(labels, "", (), {}, Counter()) if path not in used]
    if unused and used != {None}:
        text = "files in %s that are the label maps of no image: %d (first: %s)"
        log.warning(text, labels, len(unused), min(unused))


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Read the names of the classes 0, 1, ... in a folder's ``classes.txt``; none without it."""
    file = folder / CLASSES_FILE
    if not file.is_file():
        return ()
    lines = read_lines(file)
    if len(lines) > IGNORE:
        raise DatasetError(f"{file} names {len(lines)} classes: a label map holds {IGNORE}")
    return tuple(line or f"class {index}" for index, line in enumerate(lines))


def _find_images(wanted: Wanted, split: str) -> list[Sample]:
    """List the images of a split, each with the label map that can be of no other."""
    root, _, labels, exclude, globs = wanted
    above = "" if split == EVERYTHING else split
    odd: dict[str, str] = {}
    others: Counter[str] = Counter()
    found = sorted(walk(root, above, exclude, odd, others))
    if others:
        log.warning("%s in %s", describe_others(others), root / above)
    paths = [path for path in found if globs.take(join_path(above, path))]
    among = labels is not None and _is_same(root, labels)
    maybe = [path for path in paths if not globs.names(path)]
    masks = find_masks(root / above, maybe, used=among)
    label_of = {photograph: mask for mask, photograph in masks.items()}
    paths = [path for path in paths if path not in masks]
    samples = [
        Sample(path, split, join_path(above, path), None, reason) for path, reason in odd.items()
    ]
    stems = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    counts = Counter(stems)
    for path, stem, name in zip(paths, stems, name_images(paths), strict=True):
        image = join_path(above, path)
        label = None
        if among and path in label_of:
            label = join_path(above, label_of[path])
        elif labels is not None and not among:
            candidates = [f"{image}.png", image]
            if counts[stem] == 1:
                candidates.insert(1, join_path(above, f"{stem}.png"))
            label = find_first(labels, candidates, file=True)
        samples.append(Sample(name, split, image, label, find_excess(name)))
    claims = Counter(sample.label for sample in samples if sample.label is not None)
    shared = {label for label, count in claims.items() if count > 1}
    if shared:
        log.warning(
            "%d label maps may be of two images and are taken for neither (first: %s): append "
            ".png to the whole name of the image",
            len(shared),
            min(shared),
        )
    samples = [replace(s, label=None) if s.label in shared else s for s in samples]
    return sorted(samples, key=lambda sample: sample.id)


@dataclass(frozen=True, eq=False)
class Listed(Dataset):
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
        names = dict(enumerate(read_class_names(file.parent)))
        return cls(name_classes(Definition(name="list"), names), file)

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"list:{self.file}"

    @property
    def layout(self) -> str:
        """The files that the root must hold."""
        return f"the images that {self.file} lists"

    @property
    def default_splits(self) -> tuple[str, ...]:
        """Every split of the list, in the order in which they occur."""
        return tuple(dict.fromkeys(row.split for row in self._rows))

    def find_root(self, given: Path | None) -> Path:
        """Give the root, or the folder of the CSV."""
        return given or self.file.parent

    def _list_samples(self, wanted: Wanted) -> list[Sample]:
        root, splits, _, _, globs = wanted
        rows = self._find_labels(root)
        known = tuple(dict.fromkeys(split for split, _ in rows))
        for split in splits:
            if split not in known:
                raise UsageError(unknown_split(self.file, split, known))
        samples: list[Sample] = []
        lost = []
        for split in splits:
            images = [image for each, image in rows if each == split and globs.take(image)]
            found = []
            for image, name in zip(images, name_images(images), strict=True):
                label = rows[split, image]
                if label and not exists(root, label):
                    lost.append(label)
                    label = None
                found.append(Sample(name, split, image, label, find_excess(name)))
            samples += sorted(found, key=lambda sample: sample.id)
        if lost:
            text = "%d label maps that %s lists are not in %s (first: %s)"
            log.warning(text, len(lost), self.file, root, lost[0])
        return samples

    def _find_labels(self, root: Path) -> dict[tuple[str, str], str | None]:
        """Find split and image -> label map, in paths relative to the root."""
        found: dict[tuple[str, str], str | None] = {}
        lines: dict[tuple[str, str], int] = {}
        for row in self._rows:
            where = f"line {row.line} of {self.file}"
            if not row.image:
                raise DatasetError(f"{where} names no image")
            image = _relative(where, root, row.image)
            label = _relative(where, root, row.label) if row.label else None
            first = lines.setdefault((row.split, image), row.line)
            if found.setdefault((row.split, image), label) != label:
                raise DatasetError(
                    f"{where} gives the image {image} another label map than line {first}:"
                    " remove one of them"
                )
        if twice := len(self._rows) - len(found):
            log.warning("%d lines of %s repeat an image of their split", twice, self.file)
        if shared := len(found) - len({image for _, image in found}):
            log.warning("%d images of %s are in more than one split", shared, self.file)
        return found

    @cached_property
    def _rows(self) -> list[_Row]:
        text = read_text(self.file, "the list", MAX_LIST_BYTES, ": save it as CSV UTF-8")
        rows = list(_parse(self.file, text))
        if not rows:
            raise DatasetError(f"{self.file} lists no image")
        return rows


class _Row(NamedTuple):
    line: int
    image: str
    label: str
    split: str


def _parse(file: Path, text: str) -> Iterator[_Row]:
    # people write a space behind a comma; a name that begins with one stands in quotes
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=max(",;\t", key=text.lstrip().partition("\n")[0].count),
        skipinitialspace=True,
        strict=True,
    )
    filled = (fields for fields in reader if any(field.strip() for field in fields))
    try:
        header = [field.strip().lower() for field in next(filled, ["image"])]
        _check_header(file, header)
        for fields in filled:
            line = reader.line_num
            if len(fields) > len(header):
                raise DatasetError(
                    f"line {line} of {file} has {len(fields)} values for {len(header)} columns: "
                    "put values with a separator in them in quotes"
                )
            values = dict(zip(header, fields, strict=False))
            split = values.get("split", "").strip() or EVERYTHING
            if not _SPLIT.fullmatch(split):
                raise DatasetError(f"line {line} of {file}: {split!r} is no name of a split")
            yield _Row(line, values.get("image", ""), values.get("label", ""), split)
    except csv.Error as error:
        raise DatasetError(f"line {reader.line_num} of {file} is not CSV: {error}") from error


def _check_header(file: Path, header: Sequence[str]) -> None:
    if "image" not in header:
        hints = [did_you_mean(name, COLUMNS) for name in header if name]
        raise DatasetError(
            f"{file} has no column 'image'{next(filter(None, hints), '')}: its first line must "
            f"name the columns, {', '.join(COLUMNS)}"
        )
    for name in COLUMNS:
        if header.count(name) > 1:
            raise DatasetError(f"{file} has the column '{name}' twice")


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
