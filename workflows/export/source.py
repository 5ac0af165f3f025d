"""What is exported: the label maps of one fit or head, under the numbers that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.cluster_names import read_matching
from pipeline.datasets import IGNORE, Dataset
from pipeline.datasets.palettes import Colour, png_palette
from pipeline.errors import DamageError, ImageError, UsageError
from pipeline.files import fingerprint, read_json
from pipeline.frames import count_threads, map_ahead
from pipeline.images import read_label
from pipeline.ledger import StageRecord
from pipeline.manifest import Image, Manifest, read_manifest
from pipeline.places import resolve_inside
from pipeline.progress import Screen
from pipeline.run_directory import RunDirectory
from pipeline.subject import Subject, require_evaluated
from pipeline.wording import did_you_mean
from stages import VERSIONS
from stages.evaluate.report.names import describe_clusters
from workflows.export.names import make_unique, name_images, name_splits

R = TypeVar("R")


@dataclass(frozen=True)
class ExportClass:
    """A number of the label maps: its name and its colour."""

    name: str
    colour: Colour


@dataclass(frozen=True)
class Item:
    """One image of an export.

    Attributes
    ----------
    image
        Row of the manifest.
    split, name
        As the export calls them; the name has no suffix.
    """

    image: Image
    split: str
    name: str


@dataclass(frozen=True)
class Source:
    """The label maps of one fit or head.

    Attributes
    ----------
    run, subject, manifest, dataset
        Where they come from.
    record
        Of the evaluation.
    ids
        ``classes`` or ``clusters``: what the numbers stand for.
    classes
        Number -> name and colour.
    clusters
        Number of clusters.
    table
        uint8 [256]: cluster -> number, 255 = ignore.
    splits
        Split -> its name in the export.
    matched_on
        The split whose labels clusters were matched by: one matching holds for all that is
        exported.
    """

    run: RunDirectory
    subject: Subject
    manifest: Manifest
    dataset: Dataset
    record: StageRecord
    ids: str
    classes: tuple[ExportClass, ...]
    clusters: int
    table: NDArray[np.uint8]
    splits: dict[str, str]
    matched_on: str

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
        """List the images, split by split, in the order of the manifest.

        Parameters
        ----------
        nested
            Whether names keep the folders of the ids.
        """
        items = []
        for split, shown in self.splits.items():
            images = [i for i in self.manifest.images if i.ok and i.split == split]
            names = name_images([image.id for image in images], nested=nested)
            items += [Item(image, shown, names[image.id]) for image in images]
        return items

    def read_labels(self, image: Image) -> NDArray[np.uint8]:
        """Read the label map of an image, uint8 [y, x], 255 = ignore.

        Raises
        ------
        DamageError
            It is not as it was written.
        """
        file = resolve_inside(self.run.labels(self.subject.title), f"{image.split}/{image.id}.png")
        try:
            clusters = read_label(file)
        except ImageError as error:
            raise self._damaged(file, str(error)) from error
        if clusters.shape != (image.height, image.width) or clusters.dtype != np.uint8:
            raise self._damaged(file, "it is not of its image's size")
        labels = self.table[clusters]
        unknown = (clusters >= self.clusters) & (clusters != IGNORE)
        if unknown.any():
            raise self._damaged(file, f"it holds cluster {int(clusters[unknown].max())}")
        return labels

    def describe(self) -> dict[str, Any]:
        """Describe the export, but for the format, as JSON: who gets the same gets one folder."""
        return {
            "run": self.run.path.name,
            "subject": self.subject.key,
            "dataset": self.dataset_name,
            "labels": self.record.digest,
            "images_listed": self.manifest.fingerprint,
            "ids": self.ids,
            "splits": self.splits,
            "classes": [[each.name, list(each.colour)] for each in self.classes],
            "table": fingerprint(self.table.tolist()),
        }

    def _damaged(self, file: Path, reason: str) -> DamageError:
        return DamageError(
            f"{file} is damaged ({reason}); "
            f"`primaps-pipe verify {self.run.quoted} --repair` makes it again."
        )


def open_source(
    run: RunDirectory,
    *,
    em: str | None,
    head: str | None,
    splits: Sequence[str],
    ids: str,
) -> Source:
    """Open what is exported; parameters and errors as in :func:`workflows.export.export_run`."""
    subject, record = require_evaluated(run, em, head, VERSIONS)
    manifest = read_manifest(run)
    dataset = manifest.open_dataset()
    ids, table = _choose_ids(run, subject, ids)
    return Source(
        run=run,
        subject=subject,
        manifest=manifest,
        dataset=dataset,
        record=record,
        ids=ids,
        classes=_list_classes(run, subject, dataset, ids),
        clusters=read_matching(run, subject.title)[0],
        table=table,
        splits=name_splits(_choose_splits(run, subject, record, splits)),
        matched_on=_read_main_split(run, subject),
    )


def _choose_splits(
    run: RunDirectory, subject: Subject, record: StageRecord, given: Sequence[str]
) -> list[str]:
    labelled = list(record.settings["splits"])
    for split in given:
        if split not in labelled:
            raise UsageError(
                f"--split {split!r}: {subject.key} was evaluated on {', '.join(labelled)}"
                f"{did_you_mean(split, labelled)}; `primaps-pipe evaluate {run.quoted}"
                f"{subject.options} --split NAME` labels others."
            )
    return list(dict.fromkeys(given)) or labelled


def _choose_ids(run: RunDirectory, subject: Subject, ids: str) -> tuple[str, NDArray[np.uint8]]:
    clusters, assignment, _ = read_matching(run, subject.title)
    matched = assignment is not None and any(label is not None for label in assignment)
    if ids == "auto":
        ids = "classes" if matched else "clusters"
    if ids == "classes" and not matched:
        raise UsageError(
            f"--ids classes: the clusters of {subject.key} are matched to no classes, for the "
            "images have no label maps; take --ids clusters."
        )
    table = np.full(256, IGNORE, np.uint8)
    if ids == "clusters" or assignment is None:
        table[:clusters] = np.arange(clusters)
    else:
        table[:clusters] = [IGNORE if label is None else label for label in assignment]
    return ids, table


def _read_main_split(run: RunDirectory, subject: Subject) -> str:
    """Read which split's matching :func:`read_matching` gives."""
    metrics = read_json(run.report(subject.title) / "metrics.json") or {}
    return str(metrics.get("split", ""))


def _list_classes(
    run: RunDirectory, subject: Subject, dataset: Dataset, ids: str
) -> tuple[ExportClass, ...]:
    if ids == "clusters":
        described = describe_clusters(run, subject)
        names = [each.name for each in described]
        colours = [each.colour for each in described]
    else:
        names = read_matching(run, subject.title)[2]
        colours = list(dataset.palette[: len(names)])
    # lists of names have a line for each
    lines = make_unique(" ".join(name.split()) for name in names)
    return tuple(map(ExportClass, lines, colours))


def describe_ids(source: Source) -> str:
    """Say in one sentence what the numbers of the label maps stand for."""
    count = len(source.classes)
    if source.ids == "clusters":
        return f"export: label maps hold the {count} clusters of {source.subject.key}; 255 = ignore"
    unmatched = [k for k in range(source.clusters) if source.table[k] == IGNORE]
    line = (
        f"export: label maps hold the {count} classes of {source.dataset_name}, to which the "
        f"clusters of {source.subject.key} are matched on {source.matched_on}; 255 = ignore"
    )
    if unmatched:
        line += f", among it the clusters without a class ({', '.join(map(str, unmatched))})"
    return line


def map_items(
    source: Source, items: Sequence[Item], function: Callable[[Item], R], screen: Screen
) -> Iterator[R]:
    """Apply a function to every image, in threads, a few ahead of the consumer; show progress.

    Yields
    ------
    R
        The results in the order of the items.
    """
    threads = count_threads()
    title = f"export {source.subject.key}"
    with screen.count(title, len(items), "images") as counter:
        for result in map_ahead(function, items, threads, 2 * threads):
            counter.advance()
            yield result
