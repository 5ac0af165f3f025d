"""The job behind `correct`: find the images that files are of, read, and merge image by image."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, RunError, UsageError, count_of, list_some
from pipeline.progress import Screen
from pipeline.run.corrections import Corrections, Point, Prefer
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.evaluation import Part, format_part
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.label_maps import ImageFinder
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.storage.files import confine_writes, remove_file
from pipeline.storage.places import count_requests
from workflows.correct import FORMATS
from workflows.export.job import name_images, name_splits

AUTO = "auto"
# Seconds of merging before others may write corrections, too.
_HOLD_S = 5.0
# What a cluster is called that nobody has named.
UNNAMED = re.compile(r"cluster \d+")
T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """What a file says of one image.

    Attributes
    ----------
    image
        The image, as :meth:`Source.find` gives it.
    map
        uint8 [y, x] of the photograph's size: number of one of ``names``, 255 = ignore, 254 = not
        said; None where only points are said.
    names
        Names of the classes in the map; ``ignore`` is 255.
    points
        Clicks and boxes.
    moved
        A label map of the run itself, to be made anew once what it says is among the corrections.
    """

    image: Image
    map: NDArray[np.uint8] | None = None
    names: Sequence[str] = ()
    points: Sequence[Point] = ()
    moved: Path | None = None


@dataclass(frozen=True)
class Named:
    """Names of clusters of the fit or head of a title."""

    title: str
    names: Mapping[Part, str]


class Format(Protocol):
    """A module that reads one format, also an entry point ``primaps_pipe.correction_formats``."""

    def recognise(self, place: Path) -> bool:
        """Whether a file or folder is of the format: a look, in which nothing heavy is loaded."""

    def read(self, source: Source) -> Iterator[Said | Named]:
        """Read what is said, image by image, as many of them in memory as ``source.map`` holds."""


@dataclass
class Source:
    """What a format reads, and of which images.

    Attributes
    ----------
    place
        The file or folder.
    run
        The run whose images it is of.
    em, head
        The fit or head whose numbers label maps hold, if one was named.
    classes
        A file with the names of the numbers, if one was given.
    screen
        Where progress is shown.
    strays
        Files, or names, of no image of the run: counted and told.
    faults
        What cannot be taken, a sentence each.
    unnamed
        Labels that are numbers of clusters, which say nothing.
    """

    place: Path
    run: RunDirectory
    em: str | None
    head: str | None
    classes: Path | None
    screen: Screen
    strays: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unnamed: set[str] = field(default_factory=set)

    @cached_property
    def manifest(self) -> Manifest:
        """The images of the run."""
        return read_manifest(self.run)

    @property
    def subjects(self) -> list[Subject]:
        """The fits and heads of the run."""
        fits = [Subject("em", name) for name in self.run.names("em")]
        return fits + [Subject("head", name) for name in self.run.names("head")]

    @cached_property
    def _finder(self) -> ImageFinder:
        return ImageFinder(self.manifest, self._list_exported())

    def _list_exported(self) -> Iterator[tuple[int, str]]:
        """List rows of images with the names that `export` gives to their files."""
        images = self.manifest.images
        for split, folder in name_splits(self.manifest.splits).items():
            chosen = images.among("split", [split]) & images.among("state", ["ok"])
            rows = np.flatnonzero(chosen)
            ids = images.choose(rows).column("id").to_pylist()
            for nested in (False, True):
                names = name_images(ids, nested=nested)
                for row, id in zip(rows.tolist(), ids, strict=True):
                    yield row, f"{folder}/{names[id]}"
                    yield row, names[id]

    def find(self, name: str) -> Image | None:
        """Find the image that a file is named after; None, which is counted, where there is none.

        Its name in an export counts beside those of :class:`ImageFinder`.
        """
        found = self._finder.find(name)
        if isinstance(found, Image):
            return found
        self.strays.append(found)
        return None

    def map(self, function: Callable[[T], Said | None], items: Iterable[T]) -> Iterator[Said]:
        """Read items in threads, a few ahead; what raises an ImageError is told, and left out."""

        def read(item: T) -> Said | str | None:
            try:
                return function(item)
            except ImageError as error:
                return str(error)

        listed = list(items)
        threads = count_requests(self.place, count_threads())
        with self.screen.count("correct", len(listed), "images") as counter:
            for said in map_ahead(read, listed, threads, 2 * threads):
                counter.advance()
                if isinstance(said, str):
                    self.faults.append(said)
                elif said is not None:
                    yield said


@dataclass
class Outcome:
    """What was taken up, and what was not.

    Attributes
    ----------
    images, pixels, points, names
        How many images have something new; how many pixels, points and names of clusters are new.
    conflicts
        What is said otherwise here, a line each; nothing of it was written.
    faults
        What could not be taken, a sentence each.
    strays
        Files of no image of the run.
    moved
        Label maps of the run whose corrections were taken up.
    """

    images: int = 0
    pixels: int = 0
    points: int = 0
    names: int = 0
    conflicts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    moved: int = 0


def correct_run(
    run: RunDirectory,
    place: Path,
    format: str = AUTO,
    *,
    classes: Path | None = None,
    em: str | None = None,
    head: str | None = None,
    prefer: Prefer | None = None,
    dry_run: bool = False,
    screen: Screen,
) -> Outcome:
    """Take up corrections of a run's label maps that were made elsewhere.

    Parameters
    ----------
    run
        The run.
    place
        A file or folder.
    format
        One of ``FORMATS``; ``auto``: the first that recognises the place.
    classes
        A file that names the numbers in label maps; see :mod:`workflows.correct.png`.
    em, head
        The fit or head whose numbers label maps hold; the run's only one, or ``default``, when
        neither is given.
    prefer
        Whose word counts where both say something of the same pixel, point or cluster: ``ours`` is
        what is in the run. Conflicts are listed, and nothing of them is written, when None.
    dry_run
        Whether to count, and write nothing.
    screen
        Where progress is shown.

    Raises
    ------
    UsageError
        The place is not there, or of no format.
    PipelineError
        A file on which the others rest is not what it should be.
    """
    run.require()
    if not place.exists():
        raise UsageError(f"--from {place}: there is no such file or folder.")
    name = _choose_format(place) if format == AUTO else format
    source = Source(place, run, em, head, classes, screen)
    items = iter(cast(Format, FORMATS[name]).read(source))
    outcome = Outcome(faults=source.faults, strays=source.strays)
    corrections = Corrections(run)
    # the first is read before the lock is held
    for first in items:
        until = monotonic() + _HOLD_S
        with nullcontext() if dry_run else corrections.hold():
            for item in chain([first], items):
                _take(item, corrections, prefer, dry_run, outcome)
                if monotonic() > until:
                    break
    if source.unnamed:
        screen.warn(
            f"correct: {list_some(sorted(source.unnamed))} are numbers of clusters, and no names: "
            "what has these labels is not said."
        )
    return outcome


def _choose_format(place: Path) -> str:
    for name in FORMATS:
        if cast(Format, FORMATS[name]).recognise(place):
            return name
    raise UsageError(
        f"--from {place} is of no format that is known; say which with --format: "
        f"{', '.join(FORMATS)}."
    )


def _take(
    item: Said | Named,
    corrections: Corrections,
    prefer: Prefer | None,
    dry_run: bool,
    outcome: Outcome,
) -> None:
    write = not dry_run
    if isinstance(item, Named):
        count, clusters = corrections.merge_names(item.title, item.names, prefer, write=write)
        outcome.names += count
        outcome.conflicts += [
            f"{item.title}: cluster {format_part(cluster)} is {ours} here and {theirs} there"
            for cluster, ours, theirs in clusters
        ]
        return
    image = item.image
    where, before = f"{image.split}/{image.id}", len(outcome.conflicts)
    pixels = points = 0
    if item.map is not None:
        try:
            pixels, maps = corrections.merge_map(image, item.map, item.names, prefer, write=write)
        except ImageError as error:
            outcome.faults.append(str(error))
            return
        outcome.conflicts += [
            f"{where}: {count_of(count, 'pixels')}: {ours} here and {theirs} there"
            for (ours, theirs), count in maps.items()
        ]
    if item.points:
        points, pairs = corrections.merge_points(image, item.points, prefer, write=write)
        outcome.conflicts += [
            f"{where}: the {'click on' if p.x1 is None else 'box at'} {p.x},{p.y}: {p.name} here "
            f"and {other.name} there"
            for p, other in pairs
        ]
    outcome.pixels += pixels
    outcome.points += points
    outcome.images += bool(pixels or points)
    if item.moved is not None and len(outcome.conflicts) == before:
        outcome.moved += 1
        if write:
            with confine_writes(corrections.run.path):
                remove_file(item.moved)


def describe_outcome(outcome: Outcome, run: RunDirectory, *, dry_run: bool) -> list[str]:
    """Say what was taken up, and of what files there are no images."""
    said = ((outcome.pixels, "pixels"), (outcome.points, "points"))
    parts = [count_of(number, unit) for number, unit in said if number]
    taken = [f"{' and '.join(parts)} of {count_of(outcome.images, 'images')}"] if parts else []
    if outcome.names:
        taken.append(f"{count_of(outcome.names, 'names')} of clusters")
    does = "would take up" if dry_run else "took up"
    lines = [f"correct: {does} {' and '.join(taken) or 'nothing new'}, into {run.corrections}"]
    if outcome.moved:
        lines.append(
            f"correct: {count_of(outcome.moved, 'label maps')} changed by hand; what they say is "
            f"{'to be ' if dry_run else ''}among the corrections, and evaluate makes them anew"
        )
    if outcome.strays:
        lines.append(
            f"correct: {count_of(len(outcome.strays), 'files')} of no image of the run: "
            f"{list_some(outcome.strays)}"
        )
    if taken and not dry_run:
        lines.append(f"correct: `primaps-pipe evaluate {run.quoted}` shows it")
    return lines


def require_complete(outcome: Outcome) -> None:
    """Refuse to call it done where something was not taken up."""
    conflicts, faults = count_of(len(outcome.conflicts), "conflicts"), len(outcome.faults)
    if outcome.conflicts:
        raise RunError(
            f"{conflicts}, listed above, of which nothing was taken up; give --prefer ours to keep "
            "what the run says, or --prefer theirs to take the other."
        )
    if faults:
        raise RunError(
            f"{count_of(faults, 'files')}, named above, could not be taken up; all others were."
        )
