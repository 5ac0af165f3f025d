"""A dataset in a fixed layout, with its own splits and classes, as a definition says it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.base import (
    Colour,
    Dataset,
    Frame,
    Sample,
    id_table,
    map_ids,
    require_splits,
    unknown_name,
)
from pipeline.datasets.definition import SPLIT, Definition, Match, fill_stars, find_paths
from pipeline.datasets.listing import (
    existing,
    find_excess,
    forget_listings,
    keep_present,
    read_ids,
    require_root,
)
from pipeline.errors import DatasetError, UsageError
from pipeline.images.decoding import read_label

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Defined(Dataset):
    """What every dataset has that is made of a definition: classes, and label maps read as them."""

    definition: Definition

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.definition.name

    @property
    def layout(self) -> str:
        """The files that the root must hold."""
        return self.definition.layout

    @property
    def default_frame(self) -> Frame:
        """Which part of an image the dataset's protocol looks at."""
        return self.definition.frame

    @property
    def default_splits(self) -> tuple[str, ...]:
        """The splits that are read when none is asked for."""
        return self.definition.default_splits

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Class colours in class order; 255 of them where the classes are unknown."""
        return self.definition.palette

    @property
    def content(self) -> dict[str, Any]:
        """What a run keeps: the definition."""
        return self.definition.describe()

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the class names in class order; none where they are unknown."""
        return self.definition.names

    def read_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label map as classes 0..C-1 with 255 = ignore, [y, x]."""
        return map_ids(read_label(path), self._table)

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        return id_table(self.definition.class_of, self.definition.ignored)


@dataclass(frozen=True, eq=False)
class Benchmark(Defined):
    """A dataset whose images and label maps lie where patterns say.

    A split is what its lists name, in any of its images' patterns, or every image of the patterns
    where it has no lists. The id of an image is what the stars of its pattern stand for.
    """

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
        require_root(root, self.layout)
        samples: list[Sample] = []
        for split in splits:
            if split not in self.definition.splits:
                known = tuple(self.definition.splits)
                raise UsageError(unknown_name(f"split of {self.name}", split, known))
            found = sorted(self._list_split(root, split), key=lambda sample: sample.id)
            if not found:
                raise DatasetError(
                    f"no images of the split '{split}' in {root}: {self.name} wants {self.layout}"
                )
            self._refuse_twins(found)
            samples += found
        return samples

    def _list_split(self, root: Path, split: str) -> list[Sample]:
        folder = self.definition.splits[split]
        images = [pattern.replace(SPLIT, folder) for pattern in self.definition.images]
        labels = [pattern.replace(SPLIT, folder) for pattern in self.definition.labels]
        ids = self._read_lists(root, split)
        if ids is not None:
            listed = [_find_listed(root, images, name) for name in ids]
            return keep_present([_sample(root, split, each, labels) for each in listed], root)
        found = [match for pattern in images for match in find_paths(root, pattern)]
        if found and split in self.definition.lists:
            log.warning(
                "no list at %s: using all %d images of %s, whose scores do not compare with"
                " published ones",
                " or ".join(str(root / file) for file in self.definition.lists[split]),
                len(found),
                " or ".join(str(root / pattern) for pattern in images),
            )
        return [_sample(root, split, match, labels) for match in found]

    def _read_lists(self, root: Path, split: str) -> list[str] | None:
        """Read the ids of a split; None where it has no lists, or does without them."""
        files = self.definition.lists.get(split, ())
        present = [file for file in files if existing(root, file)]
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

    def _refuse_twins(self, samples: Sequence[Sample]) -> None:
        for first, second in pairwise(samples):
            if first.id == second.id and first.image != second.image:
                raise DatasetError(
                    f"two images of the split '{first.split}' of {self.name} have the id "
                    f"'{first.id}', {first.image} and {second.image}: rename one of them"
                )


def refuse_labels(name: str, labels: Path | None) -> None:
    """Refuse a labels folder, for a dataset that says itself where label maps are."""
    if labels is not None:
        raise UsageError(
            f"{name} reads the label maps of its own layout: leave the labels folder out,"
            " or use the dataset 'folder'"
        )


def _find_listed(root: Path, patterns: Sequence[str], name: str) -> Match:
    paths = [fill_stars(pattern, [name]) for pattern in patterns]
    return next((path for path in paths if existing(root, path)), paths[0]), (name,)


def _sample(root: Path, split: str, match: Match, labels: Sequence[str]) -> Sample:
    image, values = match
    paths = [fill_stars(pattern, values) for pattern in labels]
    label = next((path for path in paths if existing(root, path)), None)
    name = "/".join(value for value in values if value)
    return Sample(name, split, image, label, find_excess(name))
