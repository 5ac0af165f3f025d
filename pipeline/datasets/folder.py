"""Any folder of images: nothing is asked of it but images, at any depth."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.base import (
    IGNORE,
    Colour,
    Dataset,
    Frame,
    Sample,
    distinct_colours,
    id_table,
    map_ids,
    require_splits,
    unknown_name,
)
from pipeline.datasets.listing import (
    MAX_ID_BYTES,
    existing,
    find_excess,
    folder_names,
    forget_listings,
    is_folder,
    is_text,
    list_objects,
    name_images,
    read_lines,
    require_root,
)
from pipeline.errors import DatasetError, UsageError
from pipeline.images.decoding import IMAGE_SUFFIXES, read_label
from pipeline.storage.places import is_remote

EVERYTHING = "all"
"""The split that is every image below the root, whether or not a subfolder has this name."""

CLASSES_FILE = "classes.txt"
"""Optional, in the labels folder: the name of class 0, 1, 2, ... one per line."""

LAYOUT = f"images ({', '.join(sorted(IMAGE_SUFFIXES))}) at any depth"

# What every run directory holds: its label maps are no photographs.
_RUN_NAMES = {"run.yaml", "state"}
_IDENTITY = id_table({index: index for index in range(IGNORE)})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder(Dataset):
    """Images below a folder, with label maps in a second folder or none.

    The split ``all`` is every image below the root. Any other split is a subfolder directly in the
    root, and its ids are relative to that subfolder. Symbolic links to folders are followed, and no
    folder is listed twice in a split. Hidden files and folders are left out, and so are the labels
    folder and run directories that lie below the root. What cannot be used because of its path (a
    name that is not UTF-8 or too long, a folder that cannot be listed) is a sample with the reason.

    A label map has its image's path relative to the root, with another suffix: ``a/b.jpg`` has
    ``a/b.jpg.png``, or ``a/b.png``, or the image's own name where that can hold ids. It holds the
    class ids themselves, 0..254, and 255 = ignore. A label map that two images could mean
    (``b.jpg.png``, of ``b.jpg`` and of a photograph with that name) is taken for neither.
    """

    name: str = "folder"
    layout: str = LAYOUT
    default_frame: Frame = "whole"
    default_splits: tuple[str, ...] = (EVERYTHING,)

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Colours for as many classes as a label map can hold."""
        return distinct_colours(IGNORE)

    def class_names(self, labels: Path | None = None) -> tuple[str, ...]:
        """Give the names in the labels folder's ``classes.txt``; without it none are known."""
        return () if labels is None else read_class_names(labels)

    def list_samples(
        self,
        root: Path,
        splits: Sequence[str],
        labels: Path | None = None,
        exclude: Collection[Path] = (),
    ) -> list[Sample]:
        """List the samples of the splits, as `Dataset.list_samples` has it."""
        require_splits(splits)
        forget_listings()
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


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Read the names of the classes 0, 1, ... in a folder's ``classes.txt``; none without it."""
    file = folder / CLASSES_FILE
    if not file.is_file():
        return ()
    lines = read_lines(file)
    if len(lines) > IGNORE:
        raise DatasetError(f"{file} names {len(lines)} classes: a label map holds {IGNORE}")
    return tuple(line or f"class {index}" for index, line in enumerate(lines))


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
    odd: dict[PurePosixPath, str] = {}
    images = sorted(
        path for path in _walk(root / top, exclude, odd) if path.suffix.lower() in IMAGE_SUFFIXES
    )
    stems = [str(path.with_suffix("")) for path in images]
    counts = Counter(stems)
    samples = [
        Sample(str(path), split, str(PurePosixPath(top) / path), None, reason)
        for path, reason in odd.items()
    ]
    names = name_images([str(path) for path in images])
    for path, stem, name in zip(images, stems, names, strict=True):
        image = PurePosixPath(top) / path
        label = None if labels is None else _label(labels, image, counts[stem] == 1)
        samples.append(Sample(name, split, str(image), label, find_excess(name)))
    return sorted(_part_shared_labels(samples), key=lambda sample: sample.id)


def _part_shared_labels(samples: Sequence[Sample]) -> list[Sample]:
    claims = Counter(sample.label for sample in samples if sample.label is not None)
    shared = {label for label, count in claims.items() if count > 1}
    if shared:
        log.warning(
            "%d label maps may be of two images and are taken for neither (first: %s): append "
            ".png to the whole name of the image",
            len(shared),
            min(shared),
        )
    return [replace(s, label=None) if s.label in shared else s for s in samples]


def _label(labels: Path, image: PurePosixPath, alone: bool) -> str | None:
    candidates = [f"{image}.png", str(image)]
    if alone:
        candidates.insert(1, str(image.with_suffix(".png")))
    return next((name for name in candidates if _is_label(labels, name)), None)


def _is_label(labels: Path, name: str) -> bool:
    if is_remote(labels):
        return existing(labels, name) is not None
    # asked of every image, and a path takes longer to make than to look up
    return os.path.isfile(f"{labels}/{name}")  # noqa: PTH113


def _walk(
    top: Path, exclude: Collection[Path], odd: dict[PurePosixPath, str]
) -> Iterator[PurePosixPath]:
    """Yield every visible file below a folder, relative to it; each real folder once.

    Links to folders wait until the real folders are done, so that an image keeps the path it is
    stored under, and so that links in a circle end. What cannot be used goes to ``odd``.
    """
    if is_remote(top):
        yield from _select_objects(top, exclude, odd)
        return
    local = [path for path in exclude if not is_remote(path) and path.exists()]
    excluded = {path.resolve() for path in local}
    # By number, not by name: to resolve every name of a deep tree takes hours.
    seen = {_identify(path) for path in local}
    folders, links = [PurePosixPath()], list[PurePosixPath]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        place, is_top = top / folder, folder == PurePosixPath()
        try:
            number = _identify(place)
            if not is_top and (number in seen or _leads_into(place, excluded)):
                continue
            seen.add(number)
            entries = _entries(place)
        except OSError as error:
            reason = error.strerror or str(error)
            if is_top:
                raise DatasetError(f"cannot list {top}: {reason}") from error
            odd[folder] = f"a folder that cannot be listed: {reason}"
            continue
        if not is_top and _RUN_NAMES.issubset(entry.name for entry in entries):
            continue
        for entry in entries:
            path = folder / entry.name
            inner = is_folder(entry)
            if (trouble := _unusable(path, inner)) is not None:
                odd[PurePosixPath(_printable(str(path)))] = trouble
            elif not inner:
                yield path
            elif entry.is_symlink():
                links.append(path)
                links.sort()
            else:
                folders.append(path)


def _leads_into(place: Path, excluded: Collection[Path]) -> bool:
    return place.is_symlink() and any(parent in excluded for parent in place.resolve().parents)


def _identify(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _unusable(path: PurePosixPath, inner: bool) -> str | None:
    """Say why a folder or an image cannot be used because of its path, or None."""
    if not inner and path.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    kind = "folder" if inner else "file"
    if not is_text(path.name):
        return f"a {kind} whose name is not UTF-8: rename it"
    if inner and len(os.fsencode(path)) > MAX_ID_BYTES:
        return f"a folder too deep to be looked into (a path of more than {MAX_ID_BYTES} bytes)"
    return None


def _select_objects(
    top: Path, exclude: Collection[Path], odd: dict[PurePosixPath, str]
) -> Iterator[PurePosixPath]:
    """Yield the visible objects below a prefix, relative to it."""
    objects = list_objects(top)
    inside = [path.relative_to(top).as_posix() + "/" for path in exclude if _is_below(path, top)]
    inside += _find_runs(objects)
    for name in objects:
        parts = name.split("/")
        strange = bool({"", ".", ".."} & set(parts))
        if any(part.startswith(".") for part in parts) and not strange:
            continue
        if name.startswith(tuple(inside)):
            continue
        path = PurePosixPath(name)
        if not strange:
            yield path
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            # not under its own name, which a label map could follow out of its folder
            odd[PurePosixPath(*(part for part in parts if part.strip(".")))] = (
                f"an object whose name {name!r} is no path: rename it"
            )


def _find_runs(objects: Collection[str]) -> list[str]:
    """List the prefixes of run directories, which hold ``run.yaml`` and ``state``."""
    tops = {name.removesuffix("run.yaml") for name in objects if name.endswith("/run.yaml")}
    states = {name.partition("/state/")[0] + "/" for name in objects if "/state/" in name}
    return sorted(tops & states)


def _is_below(path: Path, top: Path) -> bool:
    return is_remote(path) and path != top and path.is_relative_to(top)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


FOLDER = Folder()
