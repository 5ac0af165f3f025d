"""What every dataset gives: its samples, its label maps as classes, its class names and colours."""

from __future__ import annotations

import colorsys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, UsageError
from pipeline.wording import did_you_mean

Colour = tuple[int, int, int]

IGNORE_COLOUR: Colour = (0, 0, 0)
"""Colour of index 255, the pixels that belong to no class."""


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Give colours for classes that nobody has named, each unlike its neighbours in the list."""
    if not 0 <= count <= 255:
        raise ValueError(f"an indexed label map holds at most 255 classes, not {count}")
    # Hues a golden section apart never come close to the last few, however many are drawn.
    return tuple(_colour(index * 0.6180339887498949 % 1.0, index) for index in range(count))


def _colour(hue: float, index: int) -> Colour:
    saturation = (0.85, 0.55, 0.95)[index % 3]
    value = (0.95, 0.80, 0.60)[index // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def png_palette(colours: Sequence[Colour]) -> bytes:
    """Lay colours out as the palette of an indexed PNG whose index 255 means ignore."""
    if len(colours) > 255:
        raise ValueError(f"an indexed label map holds at most 255 classes, not {len(colours)}")
    entries = [*colours, *distinct_colours(255)[len(colours) :], IGNORE_COLOUR]
    return bytes(value for colour in entries for value in colour)


IGNORE = 255
"""The label of a pixel that belongs to no class and is left out of every score."""

Frame = Literal["centre", "whole"]

Say = Callable[[str], None]
"""Shows a line to whoever waits."""


@dataclass(frozen=True)
class Sample:
    """One image of a split.

    Attributes
    ----------
    id : str
        Relative path without suffix, '/'-separated, unique within the split; never absolute, never
        with '..', so that it may name a file below any folder.
    split : str
        The split it belongs to.
    image : str
        Path of the image relative to the root, '/'-separated.
    label : str or None
        Path of the label map, '/'-separated, or None: relative to the labels folder where one was
        given, and to the root otherwise. `label_path` resolves it.
    reason : str or None
        Why the image cannot be used, where its path alone says so.
    """

    id: str
    split: str
    image: str
    label: str | None
    reason: str | None = None

    def image_path(self, root: Path) -> Path:
        """Give the image's path below the root."""
        return root / self.image

    def label_path(self, root: Path, labels: Path | None = None) -> Path | None:
        """Give the label map's path below the labels folder, or below the root without one."""
        return None if self.label is None else (labels or root) / self.label


class Dataset(ABC):
    """A source of images in a known layout: the class to derive another one from."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the user calls it."""

    @property
    @abstractmethod
    def layout(self) -> str:
        """The files that the root must hold, for error messages."""

    @property
    @abstractmethod
    def default_frame(self) -> Frame:
        """Which part of an image the dataset's protocol looks at."""

    @property
    @abstractmethod
    def default_splits(self) -> tuple[str, ...]:
        """The splits that are read when none is asked for."""

    @property
    @abstractmethod
    def palette(self) -> tuple[Colour, ...]:
        """One colour per class, 0..255; 255 of them where the classes are unknown."""

    @property
    def content(self) -> dict[str, Any] | None:
        """What a run keeps of the dataset, JSON-able (`pipeline.datasets.open_kept` reads it).

        None where the name alone says it all.
        """
        return None

    def find_root(self, given: Path | None) -> Path:
        """Give the folder that the images' paths start from.

        Raises
        ------
        UsageError
            It has to be given, and was not.
        """
        if given is None:
            raise UsageError(
                f"extract needs --root (setting extract.root): the folder that holds {self.layout}"
            )
        return given

    def fetch(self, root: Path, say: Say) -> None:  # noqa: B027  # most have nothing to fetch
        """Put the images below the root, where they are not there and can be had."""

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the names of the classes 0..C-1; empty where nobody has named them."""
        return ()

    @abstractmethod
    def list_samples(
        self,
        root: Path,
        splits: Sequence[str],
        labels: Path | None = None,
        exclude: Collection[Path] = (),
    ) -> list[Sample]:
        """List the samples of the splits, in the order of the splits and then of the ids.

        Parameters
        ----------
        root : Path
            Folder that holds the dataset.
        splits : sequence of str
            Names of the splits, each once.
        labels : Path, optional
            Folder of label maps, for a dataset that has none of its own.
        exclude : collection of Path
            Folders to leave out, such as a run directory that lies below the root.

        Raises
        ------
        DatasetError
            The root does not hold what the layout asks for.
        UsageError
            A split or a labels folder that this dataset cannot have.
        """

    @abstractmethod
    def read_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label map as classes 0..C-1 with 255 = ignore, [y, x].

        Raises
        ------
        ImageError
            The file cannot be read, or holds ids that the dataset does not have.
        """


def id_table(classes: Mapping[int, int], ignored: Collection[int] = ()) -> NDArray[np.int16]:
    """Tabulate raw ids, 0..255 at least: the class, 255 = ignore, -1 for one that must not be."""
    table = np.full(max([IGNORE, *classes, *ignored]) + 1, -1, dtype=np.int16)
    table[list(classes)] = list(classes.values())
    table[[*ignored, IGNORE]] = IGNORE
    return table


def map_ids(ids: NDArray[np.integer[Any]], table: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Map raw ids to classes.

    Parameters
    ----------
    ids : array of integers, [y, x]
        Raw ids; -1 means ignore, as 255 does.
    table : array of int16, [id]
        From `id_table`.

    Returns
    -------
    array of uint8, [y, x]
        Classes 0..C-1, 255 = ignore.

    Raises
    ------
    ImageError
        An id that the table does not allow.
    """
    mapped: NDArray[np.int16]
    if ids.dtype == np.uint8:
        mapped = table[ids]
    else:
        wide = ids.astype(np.int64)
        wide[wide == -1] = IGNORE
        outside = (wide < 0) | (wide >= len(table))
        mapped = np.where(outside, -1, table[np.where(outside, 0, wide)])
    if mapped.min(initial=0) < 0:
        found = np.unique(ids[mapped < 0])
        shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise ImageError(f"a label map with ids that the dataset does not have: {shown}")
    return mapped.astype(np.uint8)


def require_splits(splits: Sequence[str]) -> None:
    """Refuse a request for no split at all, or for one twice."""
    if not splits or len(set(splits)) != len(splits):
        raise UsageError(f"name each split once, at least one; got: {', '.join(splits) or 'none'}")


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, which ones exist, and which one was perhaps meant."""
    hint = did_you_mean(name.lower(), known)
    return f"unknown {kind} '{name}'{hint}: choose from {', '.join(known)}"


CLASS_KEYS = frozenset({"classes", "ignore"})
"""The keys of a definition that say what label maps mean."""

MOST = 3
"""So many changes are told; the others are counted."""


def describe_difference(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """Say what differs between two definitions, as `Dataset.content` gives them.

    Parameters
    ----------
    old, new
        The definitions; None for none.

    Returns
    -------
    str
        A few words on each change, joined by commas; nothing where they say the same. What
        ``about`` says changes nothing.
    """
    before, after = dict(old or {}), dict(new or {})
    for values in (before, after):
        values.pop("about", None)
    names = [*after, *(key for key in before if key not in after)]
    told = [
        f"{key} {_show(before.get(key))} -> {_show(after.get(key))}"
        for key in names
        if key != "classes" and before.get(key) != after.get(key)
    ]
    told += _compare_classes(before.get("classes") or [], after.get("classes") or [])
    more = [f"{len(told) - MOST} more"] if len(told) > MOST else []
    return ", ".join([*told[:MOST], *more])


def _compare_classes(old: list[Any], new: list[Any]) -> list[str]:
    if len(old) != len(new):
        return [f"{len(old)} -> {len(new)} classes"]
    told = []
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        for key in ("name", "ids", "colour"):
            if before[key] != after[key]:
                words = f"{_show(before[key])} -> {_show(after[key])}"
                told.append(f"{key} of class {index} {words}")
    return told


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]" if len(value) < 9 else f"{len(value)} values"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} in {_show(to)}" for key, to in value.items())
    return "none" if value is None else str(value)
