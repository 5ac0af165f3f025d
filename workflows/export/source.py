"""What is exported: the label maps of one fit or head, under the numbers that were asked for.

The files are named so that every file system takes them, and never two images alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE, Colour, Dataset, png_palette
from pipeline.errors import UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import Evaluation, open_evaluation
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.manifest import Image, Manifest
from pipeline.storage.files import fingerprint
from pipeline.wording import did_you_mean
from stages import SETTINGS
from workflows.export.folder import Folder, export_photograph

EVERYTHING = "all"
# A file system allows 255 bytes; formats append suffixes of up to 40.
_LONGEST = 160
_UNSAFE = re.compile(r"[^\w.-]+")
# What Windows takes for a device, whatever suffix follows.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def make_safe(text: str) -> str:
    """Make one part of a path safe: letters, digits, ``.``, ``_`` and ``-``, not too long.

    Letters of any script are kept. What is hidden on Unix or a device on Windows gets a ``_`` in
    front; a name that is too long ends in a digest of the whole.
    """
    plain = unicodedata.normalize("NFC", text)
    name = _UNSAFE.sub("_", plain).rstrip(".")
    if not name or name[0] in ".-" or _DEVICES.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) > _LONGEST:
        start = name.encode()[: _LONGEST - 17].decode(errors="ignore")
        name = f"{start}-{digest(text)}"
    return name


def name_images(ids: Sequence[str], *, nested: bool) -> dict[str, str]:
    """Name the files of the images of one split."""
    names = {}
    for image in ids:
        parts = [make_safe(part) for part in image.split("/")]
        name = "/".join(parts) if nested else "__".join(parts)
        if not nested and len(name.encode()) > _LONGEST:
            name = make_safe(name)
        names[image] = name
    claims = Counter(name.casefold() for name in names.values())
    return {
        image: name if claims[name.casefold()] == 1 else f"{name}-{digest(image)}"
        for image, name in names.items()
    }


def name_splits(splits: Sequence[str]) -> dict[str, str]:
    """Name the splits: the ``all`` of a folder, which is no split, is what is trained on."""
    renamed = {s: "train" if s == EVERYTHING and "train" not in splits else s for s in splits}
    safe = {split: re.sub(r"\W+", "_", name) or "_" for split, name in renamed.items()}
    claims = Counter(name.casefold() for name in safe.values())
    return {
        split: name if claims[name.casefold()] == 1 else f"{name}_{digest(split)}"
        for split, name in safe.items()
    }


def make_unique(names: Iterable[str]) -> list[str]:
    """Give names that occur again a number: ``road``, ``road (2)``."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name} ({number})"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


R = TypeVar("R")


@dataclass(frozen=True)
class ExportClass:
    """A number of the label maps: its name and its colour."""

    name: str
    colour: Colour


@dataclass(frozen=True)
class Item:
    """One image of an export."""

    image: Image
    split: str
    name: str


@dataclass(frozen=True)
class Source:
    """The label maps of one fit or head."""

    evaluation: Evaluation
    manifest: Manifest
    dataset: Dataset
    ids: str
    classes: tuple[ExportClass, ...]
    table: NDArray[np.uint8]
    splits: dict[str, str]

    @property
    def dataset_name(self) -> str:
        """Name of the dataset, without the folder that a file of one's own lies in."""
        return self.manifest.dataset.replace("\\", "/").rpartition("/")[2]

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [each.name for each in self.classes]

    @property
    def colours(self) -> list[Colour]:
        """Colours of the classes."""
        return [each.colour for each in self.classes]

    @property
    def palette(self) -> bytes:
        """The classes' colours as the palette of an indexed PNG."""
        return png_palette(self.colours)

    def list_items(self, *, nested: bool) -> list[Item]:
        """List the images, split by split, in the order of the manifest."""
        items = []
        for split, shown in self.splits.items():
            images = [i for i in self.manifest.images if i.ok and i.split == split]
            names = name_images([image.id for image in images], nested=nested)
            items += [Item(image, shown, names[image.id]) for image in images]
        return items

    def read_labels(self, image: Image) -> NDArray[np.uint8]:
        """Read the label map of an image, uint8 [y, x], 255 = ignore."""
        return self.table[self.evaluation.read_labels(image)]

    def describe(self) -> dict[str, Any]:
        """Describe the export, but for the format, as JSON: who gets the same gets one folder."""
        return {
            "run": self.evaluation.run.path.name,
            "subject": self.evaluation.subject.key,
            "dataset": self.dataset_name,
            "labels": self.evaluation.record.digest,
            "images_listed": self.manifest.fingerprint,
            "ids": self.ids,
            "splits": self.splits,
            "classes": [[each.name, list(each.colour)] for each in self.classes],
            "table": fingerprint(self.table.tolist()),
        }


def open_source(
    run: RunDirectory,
    *,
    em: str | None,
    head: str | None,
    splits: Sequence[str],
    ids: str,
) -> Source:
    """Open what is exported; parameters and errors as in ``job.export_run``."""
    evaluation = open_evaluation(run, em, head, SETTINGS)
    ids, table = _choose_ids(evaluation, ids)
    return Source(
        evaluation=evaluation,
        manifest=evaluation.manifest,
        dataset=evaluation.dataset,
        ids=ids,
        classes=_list_classes(evaluation, ids),
        table=table,
        splits=name_splits(_choose_splits(evaluation, splits)),
    )


def _choose_splits(evaluation: Evaluation, given: Sequence[str]) -> list[str]:
    labelled = list(evaluation.record.settings["splits"])
    for split in given:
        if split not in labelled:
            raise UsageError(
                f"--split {split!r}: {evaluation.subject.key} was evaluated on "
                f"{', '.join(labelled)}{did_you_mean(split, labelled)}; "
                f"{evaluation.command[:-1]} --split NAME` labels others."
            )
    return list(dict.fromkeys(given)) or labelled


def _choose_ids(evaluation: Evaluation, ids: str) -> tuple[str, NDArray[np.uint8]]:
    """Choose what the numbers stand for, and tabulate them, uint8 [256], by cluster."""
    assignment, _ = evaluation.match()
    matched = assignment is not None and any(label is not None for label in assignment)
    if ids == "auto":
        ids = "classes" if matched else "clusters"
    if ids == "classes" and not matched:
        raise UsageError(
            f"--ids classes: the clusters of {evaluation.subject.key} are matched to no classes, "
            "for the images have no label maps; take --ids clusters."
        )
    clusters = range(evaluation.clusters)
    if ids == "clusters" or assignment is None:
        assignment = list(clusters)
    table = np.full(256, IGNORE, np.uint8)
    table[clusters] = [IGNORE if label is None else label for label in assignment]
    return ids, table


def _list_classes(evaluation: Evaluation, ids: str) -> tuple[ExportClass, ...]:
    names: Sequence[str]
    colours: Sequence[Colour]
    if ids == "clusters":
        look = evaluation.look()
        names, colours = look.names, look.colours
    else:
        names = evaluation.match()[1]
        colours = evaluation.dataset.palette[: len(names)]
    # lists of names have a line for each
    lines = make_unique(" ".join(name.split()) for name in names)
    return tuple(map(ExportClass, lines, colours))


def describe_ids(source: Source) -> str:
    """Say in one sentence what the numbers of the label maps stand for."""
    count, key = len(source.classes), source.evaluation.subject.key
    if source.ids == "clusters":
        return f"export: label maps hold the {count} clusters of {key}; 255 = ignore"
    unmatched = [k for k in range(source.evaluation.clusters) if source.table[k] == IGNORE]
    line = (
        f"export: label maps hold the {count} classes of {source.dataset_name}, to which the "
        f"clusters of {key} are matched on {source.evaluation.metrics.get('split', '')}; "
        "255 = ignore"
    )
    if unmatched:
        line += f", among it the clusters without a class ({', '.join(map(str, unmatched))})"
    return line


@dataclass(frozen=True)
class Export:
    """What a format writes, and where.

    Attributes
    ----------
    source
        Gives label maps, uint8 [y, x], 255 = ignore, and names and colours of the classes.
    items
        The images, with their names in the export.
    folder
        What files are written into; a file that is there is kept.
    images
        ``copy``, ``link`` or ``none``: what becomes of the photographs.
    screen
        Where progress is shown.
    """

    source: Source
    items: Sequence[Item]
    folder: Folder
    images: str
    screen: Screen

    def map(self, function: Callable[[Item], R]) -> Iterator[R]:
        """Apply a function to every image, in threads, a few ahead; show progress."""
        threads = count_threads()
        title = f"export {self.source.evaluation.subject.key}"
        with self.screen.count(title, len(self.items), "images") as counter:
            for result in map_ahead(function, self.items, threads, 2 * threads):
                counter.advance()
                yield result

    def write_photograph(self, item: Item, name: str) -> None:
        """Bring the photograph of an image along under a name."""
        export_photograph(self.source.manifest.root, item.image, self.folder, name, self.images)

    def write_pairs(
        self,
        place: Callable[[Item], tuple[str, str]],
        write_labels: Callable[[str, NDArray[np.uint8]], None],
    ) -> list[tuple[str, str]]:
        """Write photograph and label map of every image to their places, which are returned."""

        def write(item: Item) -> tuple[str, str]:
            image, label = place(item)
            self.write_photograph(item, image)
            if not self.folder.has(label):
                write_labels(label, self.source.read_labels(item.image))
            return image, label

        return list(self.map(write))
