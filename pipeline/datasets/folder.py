"""Any folder of images: nothing is asked of it but images, at any depth."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.base import (
    IGNORE,
    Frame,
    Sample,
    folder_names,
    id_table,
    map_ids,
    read_lines,
    require_root,
    require_splits,
    unknown_name,
)
from pipeline.datasets.palettes import Colour, distinct_colours
from pipeline.errors import DatasetError, UsageError
from pipeline.images import IMAGE_SUFFIXES, read_label

EVERYTHING = "all"
"""The split that is every image below the root, whether or not a subfolder has this name."""

CLASSES_FILE = "classes.txt"
"""Optional, in the labels folder: the name of class 0, 1, 2, ... one per line."""

LAYOUT = f"images ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth"

_IDENTITY = id_table({index: index for index in range(IGNORE)})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """Images below a folder, with label maps in a second folder or none; a `Dataset`.

    The split ``all`` is every image below the root. Any other split is a subfolder directly in the
    root, and its ids are relative to that subfolder. Symbolic links to folders are followed, and no
    folder is listed twice in a split. Hidden files and folders are left out, and so is the labels
    folder where it lies below the root.

    A label map has its image's path relative to the root, with another suffix: ``a/b.jpg`` has
    ``a/b.jpg.png``, or ``a/b.png``, or the image's own name where that can hold ids. It holds the
    class ids themselves, 0..254, and 255 = ignore.
    """

    name: str = "folder"
    default_frame: Frame = "whole"
    default_splits: tuple[str, ...] = (EVERYTHING,)

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Colours for as many classes as a label map can hold."""
        return distinct_colours(IGNORE)

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the names in the labels folder's ``classes.txt``; without it none are known."""
        if labels is None or not (labels / CLASSES_FILE).is_file():
            return ()
        lines = read_lines(labels / CLASSES_FILE)
        if len(lines) > IGNORE:
            raise DatasetError(
                f"{labels / CLASSES_FILE} names {len(lines)} classes: a label map holds {IGNORE}"
            )
        return tuple(line or f"class {index}" for index, line in enumerate(lines))

    def list_samples(
        self,
        root: Path,
        splits: Sequence[str],
        labels: Path | None = None,
        exclude: Collection[Path] = (),
    ) -> list[Sample]:
        """List the samples of the splits, as `Dataset.list_samples` has it."""
        require_splits(splits)
        require_root(root, LAYOUT)
        if labels is not None:
            _require_labels(labels, root)
            exclude = [*exclude, labels]
        samples: list[Sample] = []
        for split in splits:
            top = _split_folder(root, split)
            found = _samples(root, top, split, labels, exclude)
            if not found:
                raise DatasetError(f"no images below {root / top}: the folder must hold {LAYOUT}")
            samples += found
        if labels is not None and not any(sample.label for sample in samples):
            example = PurePosixPath(samples[0].image).with_suffix(".png")
            raise DatasetError(
                f"no label map in {labels} has the path of an image: {samples[0].image} in {root}"
                f" wants {example}"
            )
        return samples

    def read_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label map of ids 0..254 with 255 = ignore, [y, x]."""
        return map_ids(read_label(path), _IDENTITY)


def _require_labels(labels: Path, root: Path) -> None:
    if not labels.is_dir():
        raise DatasetError(f"no folder of label maps at {labels}")
    if labels.resolve() in (root.resolve(), *root.resolve().parents):
        raise UsageError(
            f"the labels folder {labels} holds the images too: keep label maps in their own folder"
        )


def _split_folder(root: Path, split: str) -> str:
    """Give a split's folder relative to the root: '.' for everything."""
    if split == EVERYTHING:
        return "."
    if split not in folder_names(root):
        known = [EVERYTHING, *folder_names(root)]
        raise DatasetError(unknown_name(f"split of {root}", split, known))
    return split


def _samples(
    root: Path, top: str, split: str, labels: Path | None, exclude: Collection[Path]
) -> list[Sample]:
    images = sorted(
        path for path in _walk(root / top, exclude) if path.suffix.lower() in IMAGE_SUFFIXES
    )
    stems = Counter(str(path.with_suffix("")) for path in images)
    names = {str(path) for path in images}
    samples = []
    for path in images:
        stem = str(path.with_suffix(""))
        # 'a.jpg' beside 'a.png' or beside 'a.jpg.png': only whole names tell such files apart.
        alone = stems[stem] == 1 and stem not in names
        image = PurePosixPath(top) / path
        label = None if labels is None else _label(labels, image, stems[stem] == 1)
        samples.append(
            Sample(id=stem if alone else str(path), split=split, image=str(image), label=label)
        )
    return sorted(samples, key=lambda sample: sample.id)


def _label(labels: Path, image: PurePosixPath, alone: bool) -> str | None:
    candidates = [image.with_name(image.name + ".png"), image]
    if alone:
        candidates.insert(1, image.with_suffix(".png"))
    return next((str(path) for path in candidates if (labels / path).is_file()), None)


def _walk(top: Path, exclude: Collection[Path]) -> Iterator[PurePosixPath]:
    """Yield every visible file below a folder, relative to it; each real folder once.

    Links to folders wait until the real folders are done, so that an image keeps the path it is
    stored under, and so that links in a circle end.
    """
    excluded = {path.resolve() for path in exclude}
    seen = {top.resolve()} | excluded
    folders, links = [PurePosixPath()], list[PurePosixPath]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if folder != PurePosixPath() and (top / folder).is_symlink():
            real = (top / folder).resolve()
            if real in seen or any(parent in excluded for parent in real.parents):
                continue
            seen.add(real)
        for entry in _entries(top / folder):
            path = folder / entry.name
            # Not entry.is_dir(), which raises on a link to itself instead of saying no.
            if not (top / path).is_dir():
                yield path
            elif entry.is_symlink():
                links.append(path)
                links.sort()
            else:
                real = (top / path).resolve()
                if real not in seen:
                    seen.add(real)
                    folders.append(path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"cannot list {folder}: {error.strerror or error}") from error
    visible = [entry for entry in found if not entry.name.startswith(".")]
    storable = [entry for entry in visible if _is_text(entry.name)]
    if len(storable) < len(visible):
        log.warning(
            "%d names in %s are not UTF-8 and are left out: rename them",
            len(visible) - len(storable),
            folder,
        )
    return storable


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


FOLDER = Folder()
