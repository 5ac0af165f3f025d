"""What lies below a root: names in folders, objects in a store, lists of ids, and their times."""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pipeline.datasets.base import Sample
from pipeline.errors import DatasetError
from pipeline.storage.places import ObjectStatus, find_objects, is_remote, list_names

MAX_ID_BYTES = 2000
"""A longer path below the root is refused: systems end at 4096 bytes, run directory included."""

MAX_NAME_BYTES = 255 - len(".png")
"""A longer name leaves no room for that of its label map in common file systems."""

log = logging.getLogger(__name__)


@lru_cache(maxsize=2)
def list_objects(root: Path) -> Mapping[str, ObjectStatus]:
    """List the objects below a remote root: relative name -> size and time, sorted by name.

    A store answers for a thousand names as fast as for one; :func:`forget_listings` lists anew.
    """
    return dict(find_objects(root))


def forget_listings() -> None:
    """Forget what remote roots hold."""
    list_objects.cache_clear()


def stamp_file(root: Path, relative: str) -> tuple[int, int, int]:
    """Return the bytes and two times, in nanoseconds, of a file below a root.

    The times are that of its content, which programs can set, and that of the last change of
    anything, which they cannot; 0 in an object store, which has one time alone. Below a remote root
    they are those that were listed (see :func:`forget_listings`).
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


def folder_names(folder: Path) -> list[str]:
    """List the visible folders directly in a folder, sorted; none if it is missing."""
    if is_remote(folder):
        return [n for n, inner in list_names(folder) if inner and not n.startswith(".")]
    return [name for name, inner in visible_names(folder) if inner]


def visible_names(folder: Path) -> list[tuple[str, bool]]:
    """List what is directly in a local folder and not hidden, sorted; nothing if it is missing."""
    if not folder.is_dir():
        return []
    try:
        with os.scandir(folder) as entries:
            names = sorted((e.name, is_folder(e)) for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"cannot list {folder}: {error.strerror or error}") from error
    storable = [(name, inner) for name, inner in names if is_text(name)]
    if missing := len(names) - len(storable):
        log.warning("%d names in %s are not UTF-8 and are left out: rename them", missing, folder)
    return storable


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one that may be seen."""
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle, or to what may not be seen


def is_text(name: str) -> bool:
    """Whether a name can be stored: file systems hold names that are no UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def name_images(paths: Sequence[str]) -> list[str]:
    """Name images after their paths without suffix, where that tells each from all the others.

    ``a.jpg`` beside ``a.png``, or beside ``a.jpg.png``, keeps its whole name.
    """
    stems = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    counts, names = Counter(stems), set(paths)
    alone = [counts[stem] == 1 and stem not in names for stem in stems]
    return [stem if it else path for path, stem, it in zip(paths, stems, alone, strict=True)]


def find_excess(name: str) -> str | None:
    """Say why no label map can have this id, or None."""
    if (length := len(os.fsencode(name.rpartition("/")[2]))) > MAX_NAME_BYTES:
        return f"a name too long for its label map's ({length} bytes + .png): shorten it"
    if (length := len(os.fsencode(name))) > MAX_ID_BYTES:
        return f"a path of {length} bytes, the limit is {MAX_ID_BYTES}: move it up"
    return None


def read_lines(path: Path) -> list[str]:
    """Read a UTF-8 text file as stripped lines, the empty ones at its end left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DatasetError(f"cannot read the list {path}: {reason}") from error
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def read_ids(path: Path) -> list[str]:
    """Read a list of plain ids, one per line: each once, sorted, blank lines left out."""
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
