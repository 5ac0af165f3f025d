"""What a dataset is by its YAML: its globs, its classes with their ids, names and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.datasets.base import IGNORE, Frame
from pipeline.datasets.palettes import Colour, distinct_colours
from pipeline.datasets.patterns import SPLIT

EVERYTHING = "all"
"""The one split of a dataset that names none."""

OTHERS = "others"
"""What stands for every id that no class has."""


@dataclass(frozen=True)
class DatasetClass:
    """One class: its name, the raw ids that mean it in label maps, and its colour."""

    name: str
    ids: tuple[int, ...]
    colour: Colour


@dataclass(frozen=True)
class Definition:
    """What a dataset's YAML says.

    Attributes
    ----------
    name
        What the user calls it: letters, digits, ``.``, ``_`` and ``-``.
    images, labels
        Patterns of the images and of their label maps (see :mod:`pipeline.datasets.patterns`); a
        label map is the first that is there.
    splits
        Name of a split -> what stands for ``{split}`` in the patterns.
    default_splits
        The splits that are read when none is asked for.
    lists
        Split -> files of image ids, whose union is the split; none: every image is in it.
    lists_optional
        Whether the split is every image where none of its lists is there.
    frame
        Which part of an image the dataset's protocol looks at.
    ignore
        Raw ids that mean ignore; -1 and 255 always do.
    ignore_others
        Whether every id below 256 that no class has means ignore, rather than being refused.
    classes
        In class order; None where a label map holds the classes themselves, which have no names.
    about
        Title, source, licence and whatever else a reader should know; not read by the program.
    """

    name: str
    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=lambda: {EVERYTHING: EVERYTHING})
    default_splits: tuple[str, ...] = (EVERYTHING,)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lists_optional: bool = False
    frame: Frame = "whole"
    ignore: tuple[int, ...] = ()
    ignore_others: bool = False
    classes: tuple[DatasetClass, ...] | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in class order; empty where they are unknown."""
        return tuple(each.name for each in self.classes or ())

    @cached_property
    def palette(self) -> tuple[Colour, ...]:
        """Class colours in class order; 255 of them where the classes are unknown."""
        if self.classes is None:
            return distinct_colours(IGNORE)
        return tuple(each.colour for each in self.classes)

    @cached_property
    def class_of(self) -> dict[int, int]:
        """Raw id in a label map -> class."""
        if self.classes is None:
            return {index: index for index in range(IGNORE)}
        return {raw: index for index, each in enumerate(self.classes) for raw in each.ids}

    @cached_property
    def ignored(self) -> tuple[int, ...]:
        """Raw ids that mean ignore, in rising order."""
        others = [i for i in range(IGNORE) if i not in self.class_of] if self.ignore_others else []
        return tuple(sorted({*self.ignore, *others}))

    @property
    def layout(self) -> str:
        """The files that the root must hold, for error messages."""
        text = " or ".join(self.images)
        if self.labels:
            text += f" with label maps {' or '.join(self.labels)}"
        if self.lists:
            files = dict.fromkeys(file for each in self.lists.values() for file in each)
            text += f", and the lists {', '.join(files)}"
        named = [name if name == to else f"{name} in {to}" for name, to in self.splits.items()]
        return text.replace(SPLIT, "<split>") + f" (splits {', '.join(named)})"

    def describe(self) -> dict[str, Any]:
        """Return plain values that `pipeline.datasets.parsing` makes this definition of."""
        values: dict[str, Any] = {
            "name": self.name,
            "about": dict(self.about),
            "images": list(self.images),
            "labels": list(self.labels),
            "splits": dict(self.splits),
            "default_splits": list(self.default_splits),
            "lists": {split: list(files) for split, files in self.lists.items()},
            "lists_optional": self.lists_optional,
            "frame": self.frame,
            "ignore": [*self.ignore, *([OTHERS] if self.ignore_others else [])],
        }
        if self.classes is not None:
            values["classes"] = [
                {"name": each.name, "ids": list(each.ids), "colour": list(each.colour)}
                for each in self.classes
            ]
        return {key: value for key, value in values.items() if value not in ({}, [], False)}


def name_classes(definition: Definition, names: Sequence[str]) -> Definition:
    """Give names to classes that are ids themselves; no names leave them unnamed."""
    if not names:
        return replace(definition, classes=None)
    colours = distinct_colours(len(names))
    classes = [DatasetClass(name, (i,), colours[i]) for i, name in enumerate(names)]
    return replace(definition, classes=tuple(classes))
