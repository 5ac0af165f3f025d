"""What every dataset gives: its samples, its label maps as classes, its class names and colours."""

from __future__ import annotations

import difflib
import errno
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.palettes import Colour
from pipeline.errors import DatasetError, ImageError, UsageError
from pipeline.images import read_label
from pipeline.places import is_remote

if TYPE_CHECKING:
    from pipeline.objects import ObjectStatus

IGNORE = 255
"""The label of a pixel that belongs to no class and is left out of every score."""

Frame = Literal["centre", "whole"]

log = logging.getLogger(__name__)


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


class Dataset(Protocol):
    """A source of images in a known layout."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def default_frame(self) -> Frame:
        """Which part of an image the dataset's protocol looks at."""

    @property
    def default_splits(self) -> tuple[str, ...]:
        """The splits that are read when none is asked for."""

    @property
    def palette(self) -> tuple[Colour, ...]:
        """One colour per class, 0..255; 255 of them where the classes are unknown."""

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the names of the classes 0..C-1; empty where nobody has named them."""
        ...

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
        ...

    def read_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label map as classes 0..C-1 with 255 = ignore, [y, x].

        Raises
        ------
        ImageError
            The file cannot be read, or holds ids that the dataset does not have.
        """
        ...


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A published dataset with its fixed layout, splits and classes; a `Dataset`.

    Attributes
    ----------
    name : str
        What the user calls it.
    layout : str
        The files it wants below the root, for error messages.
    splits : tuple of str
        Every split it has.
    names : tuple of str
        Class names in class order.
    palette : tuple of (red, green, blue)
        Class colours in class order.
    classes : mapping of int to int
        Raw id in a label map -> class 0..C-1.
    ignored : collection of int
        Raw ids that mean ignore; -1 and 255 always do. Any other id is refused.
    list_split : callable
        (root, split) -> the split's samples in any order, empty where there are none.
    """

    name: str
    layout: str
    splits: tuple[str, ...]
    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    classes: Mapping[int, int]
    list_split: Callable[[Path, str], Iterable[Sample]]
    ignored: Collection[int] = ()
    default_frame: Frame = "centre"
    default_splits: tuple[str, ...] = ("train", "val")

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the benchmark's class names, in class order."""
        return self.names

    def list_samples(
        self,
        root: Path,
        splits: Sequence[str],
        labels: Path | None = None,
        exclude: Collection[Path] = (),
    ) -> list[Sample]:
        """List the samples of the splits, as `Dataset.list_samples` has it."""
        if labels is not None:
            raise UsageError(
                f"{self.name} reads the label maps of its own layout: leave the labels folder out,"
                " or use the dataset 'folder'"
            )
        require_splits(splits)
        forget_listings()
        require_root(root, self.layout)
        samples: list[Sample] = []
        for split in splits:
            if split not in self.splits:
                raise UsageError(unknown_name(f"split of {self.name}", split, self.splits))
            found = sorted(self.list_split(root, split), key=lambda sample: sample.id)
            if not found:
                raise DatasetError(
                    f"no images of the split '{split}' in {root}: {self.name} wants {self.layout}"
                )
            samples += found
        return samples

    def read_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label map as classes 0..C-1 with 255 = ignore, [y, x]."""
        return map_ids(read_label(path), self._table)

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        return id_table(self.classes, self.ignored)


def id_table(classes: Mapping[int, int], ignored: Collection[int] = ()) -> NDArray[np.int16]:
    """Tabulate raw ids 0..255: the class, 255 for ignore, -1 for an id that must not occur."""
    table = np.full(256, -1, dtype=np.int16)
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


@lru_cache(maxsize=2)
def list_objects(root: Path) -> Mapping[str, ObjectStatus]:
    """List the objects below a remote root: relative name -> size and time, sorted by name.

    A store answers for a thousand names as fast as for one; :func:`forget_listings` lists anew.
    """
    from pipeline.objects import find_objects

    return dict(find_objects(root))


def forget_listings() -> None:
    """Forget what remote roots hold."""
    list_objects.cache_clear()


def stamp_file(root: Path, relative: str) -> tuple[int, int, int]:
    """Return the bytes and two times, in nanoseconds, of a file below a root.

    The times are that of its content, which programs can set, and that of the last change of
    anything, which they cannot; 0 in an object store, which has one time alone. Below a remote root
    they are those that were listed (see :func:`forget_listings`).

    Raises
    ------
    OSError
        It is not there.
    """
    if is_remote(root):
        objects = list_objects(root)
        if relative not in objects:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(root / relative))
        return objects[relative].st_size, objects[relative].st_mtime_ns, 0
    status = (root / relative).stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def require_root(root: Path, layout: str) -> None:
    """Refuse a root that is no folder, saying what it should hold."""
    if is_remote(root):
        if not list_objects(root):
            raise DatasetError(f"nothing at {root}; the root must hold {layout}")
    elif not root.is_dir():
        problem = "not a folder" if root.exists() else "no such folder"
        raise DatasetError(f"{problem}: {root}; the root must hold {layout}")


def require_splits(splits: Sequence[str]) -> None:
    """Refuse a request for no split at all, or for one twice."""
    if not splits or len(set(splits)) != len(splits):
        raise UsageError(f"name each split once, at least one; got: {', '.join(splits) or 'none'}")


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, which ones exist, and which one was perhaps meant."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown {kind} '{name}'{hint}: choose from {', '.join(known)}"


def file_names(folder: Path, suffix: str) -> list[str]:
    """List the visible names in a folder that end in a suffix, sorted; none if it is missing."""
    if not folder.is_dir():
        return []
    names = _names(folder)
    return [name for name in names if name.endswith(suffix) and not name.startswith(".")]


def folder_names(folder: Path) -> list[str]:
    """List the visible folders directly in a folder, sorted; none if it is missing."""
    if is_remote(folder):
        from pipeline.objects import list_names

        return [n for n, inner in list_names(folder) if inner and not n.startswith(".")]
    if not folder.is_dir():
        return []
    return [
        name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir()
    ]


def _names(folder: Path) -> list[str]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise DatasetError(f"cannot list {folder}: {error.strerror or error}") from error
    storable = [name for name in names if is_text(name)]
    if missing := len(names) - len(storable):
        log.warning("%d names in %s are not UTF-8 and are left out: rename them", missing, folder)
    return storable


def is_text(name: str) -> bool:
    """Whether a name can be stored: file systems hold names that are no UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_lines(path: Path) -> list[str]:
    """Read a UTF-8 text file as stripped lines, the empty ones at its end left out.

    Raises
    ------
    DatasetError
        It cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DatasetError(f"cannot read the list {path}: {reason}") from error
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def read_ids(path: Path) -> list[str]:
    """Read a list of plain ids, one per line: each once, sorted, blank lines left out.

    Raises
    ------
    DatasetError
        As `read_lines`, or a line that would lead out of the dataset's folders.
    """
    ids = sorted(set(read_lines(path)) - {""})
    for name in ids:
        if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
            raise DatasetError(f"the list {path} holds '{name}', which is not a plain id")
    return ids


def existing(root: Path, relative: str) -> str | None:
    """Give back a relative path if it is there below the root, else None."""
    if is_remote(root):
        return relative if relative in list_objects(root) else None
    try:
        return relative if (root / relative).exists() else None
    except OSError:
        return None  # a name longer than names can be


def keep_present(samples: Sequence[Sample], root: Path) -> list[Sample]:
    """Keep the listed samples whose image is there, and warn of the others: a list is a promise."""
    present = [sample for sample in samples if existing(root, sample.image)]
    if missing := len(samples) - len(present):
        first = next(sample.image for sample in samples if not existing(root, sample.image))
        log.warning(
            "%d of %d listed images are not in %s and are left out (first: %s)",
            missing,
            len(samples),
            root,
            first,
        )
    return present
