"""What every dataset gives: its samples, its label maps as classes, its class names and colours."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE, Colour, Definition, show_colour
from pipeline.datasets.labels import LabelMap, map_values, pack_colours
from pipeline.datasets.listing import (
    SPLIT,
    Globs,
    Match,
    exists,
    fill_stars,
    find_excess,
    find_first,
    find_paths,
    forget_listings,
    read_ids,
    require_root,
)
from pipeline.errors import DatasetError, ImageError, UsageError, did_you_mean
from pipeline.images.decoding import read_label

EVERY = Globs()

Say = Callable[[str], None]
"""Shows a line to whoever waits."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image of a split, and its label map; paths are '/'-separated."""

    # path without suffix, unique within the split; never absolute, never with '..', so that it may
    # name a file below any folder
    id: str
    split: str
    # relative to the root
    image: str
    # relative to the labels folder where one was given, and to the root otherwise
    label: str | None
    # why the image cannot be used, where its path alone says so
    reason: str | None = None


class Wanted(NamedTuple):
    """Which samples are to be listed: the parameters of :meth:`Dataset.list_samples`."""

    root: Path
    splits: Sequence[str]
    labels: Path | None
    exclude: Collection[Path]
    globs: Globs


@dataclass(frozen=True, eq=False)
class Dataset(ABC):
    """A source of images, and what its definition says of it: the class to derive another from."""

    definition: Definition

    takes_labels: ClassVar[bool] = False
    """Whether its label maps may lie in a folder of their own."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.definition.name

    @property
    def layout(self) -> str:
        """The files that the root must hold, for error messages."""
        return self.definition.layout

    @property
    def default_splits(self) -> tuple[str, ...]:
        """The splits that are read when none is asked for."""
        return self.definition.default_splits

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Class colours in class order; 255 of them where the classes are unknown."""
        return self.definition.palette

    @property
    def content(self) -> dict[str, Any] | None:
        """What a run keeps of the dataset, JSON-able; None where the name alone says it all."""
        return self.definition.describe()

    def find_root(self, given: Path | None) -> Path:
        """Give the folder that the images' paths start from; a UsageError where it is needed."""
        if given is None:
            raise UsageError(
                f"extract needs --root (setting extract.root): the folder that holds {self.layout}"
            )
        return given

    def fetch(self, root: Path, say: Say) -> None:  # noqa: B027  # most have nothing to fetch
        """Put the images below the root, where they are not there and can be had."""

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the names of the classes 0..C-1; empty where nobody has named them."""
        return self.definition.names

    def list_samples(
        self,
        root: Path,
        splits: Sequence[str],
        labels: Path | None = None,
        exclude: Collection[Path] = (),
        globs: Globs = EVERY,
    ) -> list[Sample]:
        """List the samples of the splits, in the order of the splits and then of the ids.

        Parameters
        ----------
        root, splits
            Folder that holds the dataset, and names of its splits, each once.
        labels : Path, optional
            Folder of label maps, for a dataset that has none of its own.
        exclude : collection of Path
            Folders to leave out, such as a run directory that lies below the root.
        globs : Globs
            Which files are taken, by their names.

        Raises
        ------
        DatasetError
            The root does not hold what the layout asks for.
        UsageError
            A split or a labels folder that this dataset cannot have.
        """
        if labels is not None and not self.takes_labels:
            raise UsageError(
                f"{self.name} reads the label maps of its own layout: leave the labels folder out,"
                " or use the dataset 'folder'"
            )
        if not splits or len(set(splits)) != len(splits):
            raise UsageError(
                f"name each split once, at least one; got: {', '.join(splits) or 'none'}"
            )
        forget_listings()
        require_root(root, self.layout)
        return self._list_samples(Wanted(root, splits, labels, exclude, globs))

    @abstractmethod
    def _list_samples(self, wanted: Wanted) -> list[Sample]:
        """List the samples, of a root that is there and splits that are named once."""

    def read_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label map as classes 0..C-1, [y, x]; 255 = ignore, or a value that no class has.

        An ImageError says that it cannot be read.
        """
        return self.open_label(path).classes

    def open_label(self, path: Path) -> LabelMap:
        """Read a label map as :meth:`read_label` does, with the values that it is stored in."""
        return self.map_label(read_label(path))

    def map_label(self, raw: NDArray[np.integer[Any]]) -> LabelMap:
        """Say what the values of a label map mean: ids [y, x], or colours [y, x, rgb]."""
        told = self.definition
        if raw.ndim == 2:
            ignored = (*told.ignored, -1, IGNORE)
            return map_values(raw, told.class_of, ignored, others=told.ignores_others)
        packed = pack_colours(raw)
        if told.classes is None:
            found = [show_colour(colour) for colour in np.unique(packed)[:3].tolist()]
            classes = ", ".join(f'{{name: ..., colour: "{colour}"}}' for colour in found)
            raise ImageError(
                "a label map of colours, not of class ids: say which colour each class has in a "
                f"dataset YAML, `classes: [{classes}, ...]`, or save one channel of ids as a "
                "greyscale or palette PNG"
            )
        if len(told.class_of_colour) < len(told.classes):
            raise ImageError("a label map of colours, and two classes of one colour: change one")
        return map_values(
            packed,
            told.class_of_colour,
            told.ignored_colours,
            others=told.ignores_others,
            coloured=True,
        )

    def know_labels(self, labels: Path | None) -> Dataset:
        """Give the dataset with the classes that a folder of label maps names, where it does."""
        return self


def unknown_split(whose: object, name: str, known: Sequence[str]) -> str:
    """Say that a split is unknown, which ones exist, and which one was perhaps meant."""
    hint = did_you_mean(name.lower(), known)
    return f"unknown split of {whose} '{name}'{hint}: choose from {', '.join(known)}"


class Benchmark(Dataset):
    """A dataset whose images and label maps lie where patterns say.

    A split is what its lists name, in any of its images' patterns, or every image of the patterns
    where it has no lists. The id of an image is what the stars of its pattern stand for.
    """

    def _list_samples(self, wanted: Wanted) -> list[Sample]:
        root = wanted.root
        samples: list[Sample] = []
        for split in wanted.splits:
            if split not in self.definition.splits:
                raise UsageError(unknown_split(self.name, split, tuple(self.definition.splits)))
            listed = (s for s in self._list_split(root, split) if wanted.globs.take(s.image))
            found = sorted(listed, key=lambda sample: sample.id)
            if not found:
                raise DatasetError(
                    f"no images of the split '{split}' in {root}: {self.name} wants {self.layout}"
                )
            for first, second in pairwise(found):
                if first.id == second.id and first.image != second.image:
                    raise DatasetError(
                        f"two images of the split '{split}' of {self.name} have the id "
                        f"'{first.id}', {first.image} and {second.image}: rename one of them"
                    )
            samples += found
        return samples

    def _list_split(self, root: Path, split: str) -> list[Sample]:
        folder = self.definition.splits[split]
        images, labels = (
            [pattern.replace(SPLIT, folder) for pattern in patterns]
            for patterns in (self.definition.images, self.definition.labels)
        )
        ids = self._read_lists(root, split)
        if ids is not None:
            found = _find_listed(root, images, ids)
        else:
            found = [match for pattern in images for match in find_paths(root, pattern)]
            if found and split in self.definition.lists:
                log.warning(
                    "no list at %s: using all %d images of %s, whose scores do not compare with"
                    " published ones",
                    " or ".join(str(root / file) for file in self.definition.lists[split]),
                    len(found),
                    " or ".join(str(root / pattern) for pattern in images),
                )
        samples = []
        for image, values in found:
            label = find_first(root, [fill_stars(pattern, values) for pattern in labels])
            name = "/".join(value for value in values if value)
            samples.append(Sample(name, split, image, label, find_excess(name)))
        return samples

    def _read_lists(self, root: Path, split: str) -> list[str] | None:
        """Read the ids of a split; None where it has no lists, or does without them."""
        files = self.definition.lists.get(split, ())
        present = [file for file in files if exists(root, file)]
        if not present:
            if files and not self.definition.lists_optional:
                raise DatasetError(
                    f"no list of images at {' or '.join(str(root / file) for file in files)}: "
                    f"{self.name} wants {self.layout}"
                )
            return None
        for file in files:
            if file not in present:
                log.warning(
                    "the list %s is missing: the split '%s' does without it", root / file, split
                )
        return sorted({name for file in present for name in read_ids(root / file)})


def _find_listed(root: Path, patterns: Sequence[str], ids: Sequence[str]) -> list[Match]:
    """Find the images of a list, and warn of those that are not there: a list is a promise."""
    found: list[Match] = []
    lost = []
    for name in ids:
        paths = [fill_stars(pattern, [name]) for pattern in patterns]
        path = find_first(root, paths)
        if path is None:
            lost.append(paths[0])
        else:
            found.append((path, (name,)))
    if lost:
        log.warning(
            "%d of %d listed images are not in %s and are left out (first: %s)",
            len(lost),
            len(ids),
            root,
            lost[0],
        )
    return found
