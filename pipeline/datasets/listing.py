"""What lies below a root, on a file system or in an object store.

Patterns are paths below a root: ``leftImg8bit/train/*/*_leftImg8bit.png``. A part of a path holds
at most one ``*``, which stands for one character or more; a part ``**`` stands for any number of
folders, none included. What the stars stand for is the image's id, and puts the path of its label
map together, so that nothing but a star can differ between the two.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.errors import DatasetError
from pipeline.images.formats import find_suffix, list_suffixes
from pipeline.storage.places import ObjectStatus, find_objects, is_remote

MAX_ID_BYTES = 2000
"""A longer path below the root is refused: systems end at 4096 bytes, run directory included."""

MAX_NAME_BYTES = 255 - len(".png")
"""A longer name leaves no room for that of its label map in common file systems."""

MAX_LIST_BYTES = 2**30
"""A larger list is refused unread."""

SPLIT = "{split}"
"""What stands for the folder of a split in a pattern."""

Match = tuple[str, tuple[str, ...]]
"""A path below the root, '/'-separated, and what each star stands for."""


class Entry(NamedTuple):
    """What is directly in a folder: its name, whether it is a folder itself, and whether a link."""

    name: str
    is_folder: bool
    is_link: bool


_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst"}
# What every run directory holds: its label maps are no photographs.
_RUN_NAMES = {"run.yaml", "state"}
_DOTS = {"", ".", ".."}

log = logging.getLogger(__name__)


@lru_cache(maxsize=2)
def list_objects(root: Path) -> Mapping[str, ObjectStatus]:
    """List the objects below a remote root: relative name -> size and time, sorted by name.

    A store answers for a thousand names as fast as for one; :func:`forget_listings` lists anew.
    """
    return dict(find_objects(root))


@lru_cache(maxsize=2)
def _index_objects(root: Path) -> Mapping[tuple[str, ...], set[Entry]]:
    """Sort the objects below a remote root into the folders that they would be in on a disk."""
    folders: dict[tuple[str, ...], set[Entry]] = {}
    for path in list_objects(root):
        parts = tuple(path.split("/"))
        for depth, name in enumerate(parts):
            inner = depth + 1 < len(parts)
            folders.setdefault(parts[:depth], set()).add(Entry(name, inner, is_link=False))
    return folders


def forget_listings() -> None:
    """Forget what remote roots hold."""
    list_objects.cache_clear()
    _index_objects.cache_clear()


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
        raise DatasetError(f"{problem}: {root}; the root must hold {layout}; {_advise(root)}")


def _advise(root: Path) -> str:
    table = "a table of them, --dataset list:FILE.csv, chooses files from anywhere below one"
    if root.suffix.lower() in _ARCHIVES:
        return f"unpack the archive, and give its folder; {table}"
    if set("*?[") & set(root.name):
        return f"give the folder itself, and --include {root.name!r}; {table}"
    return f"give one folder that holds the images; {table}"


def find_first(root: Path, paths: Iterable[str], *, file: bool = False) -> str | None:
    """Give the first of some paths that is there, or is a file, below a root."""
    return next((path for path in paths if exists(root, path, file=file)), None)


def exists(root: Path, relative: str, *, file: bool = False) -> bool:
    """Whether anything of this path, or a file, is below a root."""
    if is_remote(root):
        return relative in list_objects(root)
    # asked of every image: a path takes longer to make than to look up, and one too long is none
    ask = os.path.isfile if file else os.path.exists
    return ask(f"{root}/{relative}")


def list_visible(root: Path, below: str = "") -> list[Entry]:
    """List what is directly in a folder below a root and not hidden, sorted.

    Nothing if the folder is missing; names that are no text are left out with a warning.
    """
    folder = root / below
    if not is_remote(root) and not folder.is_dir():
        return []
    try:
        entries = _list_folder(root, tuple(below.split("/")) if below else ())
    except OSError as error:
        raise DatasetError(f"cannot list {folder}: {error.strerror or error}") from error
    named = [entry for entry in entries if _is_text(entry.name)]
    if missing := len(entries) - len(named):
        log.warning("%d names in %s are not UTF-8 and are left out: rename them", missing, folder)
    return [entry for entry in named if entry.name not in _DOTS]


def _list_folder(root: Path, parts: tuple[str, ...]) -> list[Entry]:
    """List a folder below a root: all but what is hidden, names that lead elsewhere included."""
    if is_remote(root):
        found = _index_objects(root).get(parts, set())
        shown = [entry for entry in found if entry.name in _DOTS or entry.name[0] != "."]
    else:
        with os.scandir(root.joinpath(*parts)) as entries:
            shown = [
                Entry(entry.name, _is_folder(entry), entry.is_symlink())
                for entry in entries
                if entry.name[0] != "."
            ]
    return sorted(shown)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one that may be seen."""
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle, or to what may not be seen


def _is_text(name: str) -> bool:
    """Whether a name can be stored: file systems hold names that are no UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def find_fault(pattern: str) -> str | None:
    """Say why a text is no pattern, or None."""
    parts = pattern.replace(SPLIT, "split").split("/")
    if "\\" in pattern or "\0" in pattern:
        return "holds a backslash or a zero byte: write / between folders"
    if _DOTS & set(parts):
        return "must be a plain path below the root, without '..' and not absolute"
    if any(set("?{}") & set(part) for part in parts):
        return f"holds ?, {{ or }}: only *, ** and {SPLIT} stand for something else"
    if any(part.count("*") > 1 and part != "**" for part in parts) or parts[-1] == "**":
        return "may hold one * in each part of the path, and ** for folders alone"
    return None


def list_stars(pattern: str) -> list[str]:
    """List the stars of a pattern, ``*`` and ``**``, in their order."""
    return re.findall(r"\*+", pattern)


def fill_stars(pattern: str, values: Sequence[str]) -> str:
    """Put values in the place of a pattern's stars; an empty one takes its part away."""
    rest = iter(values)
    filled = re.sub(r"\*+", lambda _: next(rest), pattern)
    return "/".join(part for part in filled.split("/") if part)


def find_paths(root: Path, pattern: str) -> list[Match]:
    """Find the visible files that a pattern means, below a local or a remote root.

    Links are followed where one ``*`` means a folder, and not below ``**``, where they could lead
    in a circle.
    """
    found: list[Match] = [("", ())]
    *folders, file = pattern.split("/")
    for part in folders:
        found = [new for old in found for new in _step(root, old, part, folder=True)]
    found = [new for old in found for new in _step(root, old, file, folder=False)]
    # a star may also stand for the dots in 'x...png', which lead elsewhere as a part of an id
    return [match for match in found if not {".", ".."} & set(match[1])]


def _step(root: Path, match: Match, part: str, *, folder: bool) -> Iterator[Match]:
    above, values = match
    if part == "**":
        yield from ((path, (*values, inner)) for path, inner in _descend(root, above))
    elif "*" not in part:
        path = join_path(above, part)
        if folder or exists(root, path, file=True):
            yield path, values
    else:
        before, after = part.split("*")
        for name, is_folder, _ in list_visible(root, above):
            star = name[len(before) : len(name) - len(after)]
            if star and is_folder is folder and name == before + star + after:
                yield join_path(above, name), (*values, star)


def _descend(root: Path, top: str) -> Iterator[tuple[str, str]]:
    """Yield a folder and those below it, each with its path below the first."""
    waiting = [""]
    while waiting:
        place = waiting.pop()
        path = join_path(top, place)
        yield path, place
        for entry in list_visible(root, path):
            if entry.is_folder and not entry.is_link:
                waiting.append(join_path(place, entry.name))


def join_path(folder: str, name: str) -> str:
    """Join two paths, either of which may be empty."""
    return f"{folder}/{name}" if folder and name else folder or name


@dataclass(frozen=True)
class Globs:
    """Which files are taken: of names, or of paths below the root; of a folder, all that is in it.

    ``*`` stands for any letters, ``/`` too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def take(self, path: str) -> bool:
        """Whether a file is taken."""
        return (not self.include or self.names(path)) and not _matches(path, self.exclude)

    def names(self, path: str) -> bool:
        """Whether a file is expressly to be taken."""
        return _matches(path, self.include)


def _matches(path: str, globs: Iterable[str]) -> bool:
    parts = path.split("/")
    return any(
        fnmatchcase(place, glob.rstrip("/"))
        for glob in globs
        for end, part in enumerate(parts, 1)
        for place in (part, "/".join(parts[:end]))
    )


def walk(
    root: Path, top: str, exclude: Collection[Path], odd: dict[str, str], others: Counter[str]
) -> Iterator[str]:
    """Yield every visible image below a folder of a root, relative to it; each real folder once.

    Run directories and what is to be left out are not entered. Links to folders wait until the real
    folders are done, so that an image keeps the path it is stored under, and so that links in a
    circle end. What cannot be used goes to ``odd``, with the reason; files that are no images are
    counted by their suffix in ``others``.
    """
    base, remote = root / top, is_remote(root)
    start = (top,) if top else ()
    suffixes = list_suffixes()
    known, left_out = _identify_all(base, exclude)
    folders: list[tuple[str, ...]] = [()]
    links: list[tuple[str, ...]] = []
    while folders or links:
        is_link = not folders
        folder = links.pop(0) if is_link else folders.pop()
        place = base.joinpath(*folder)
        try:
            number = folder if remote else _identify(place)
            if folder and (number in known or (is_link and _leads_into(place, left_out))):
                continue
            known.add(number)
            entries = _list_folder(root, start + folder)
        except OSError as error:
            reason = error.strerror or str(error)
            if not folder:
                raise DatasetError(f"cannot list {place}: {reason}") from error
            odd["/".join(folder)] = f"a folder that cannot be listed: {reason}"
            continue
        if folder and _RUN_NAMES.issubset(entry.name for entry in entries):
            continue
        for entry in entries:
            parts = (*folder, entry.name)
            path = "/".join(parts)
            if not entry.is_folder and (suffix := find_suffix(entry.name)) not in suffixes:
                others[suffix] += 1
                continue
            if not _is_text(entry.name):
                kind = "folder" if entry.is_folder else "file"
                shown = os.fsencode(path).decode("utf-8", errors="backslashreplace")
                odd[shown] = f"a {kind} whose name is not UTF-8: rename it"
            elif not entry.is_folder and _DOTS & set(parts):
                # not under its own name, which a label map could follow out of its folder
                shown = "/".join(part for part in parts if part.strip("."))
                odd[shown] = f"an object whose name {path!r} is no path: rename it"
            elif not entry.is_folder:
                yield path
            elif len(os.fsencode(path)) > MAX_ID_BYTES:
                limit = f"a path of more than {MAX_ID_BYTES} bytes"
                odd[path] = f"a folder too deep to be looked into ({limit})"
            elif entry.is_link:
                links.append(parts)
                links.sort()
            else:
                folders.append(parts)


def _identify_all(base: Path, exclude: Collection[Path]) -> tuple[set[Any], set[Path]]:
    """Identify the folders to leave out of a walk, and resolve those that links may lead into."""
    if is_remote(base):
        inner = [path for path in exclude if is_remote(path) and path.is_relative_to(base)]
        return {path.relative_to(base).parts for path in inner}, set()
    local = [path for path in exclude if not is_remote(path) and path.exists()]
    return {_identify(path) for path in local}, {path.resolve() for path in local}


def _identify(path: Path) -> tuple[int, int]:
    # by number, not by name: to resolve every name of a deep tree takes hours
    status = path.stat()
    return status.st_dev, status.st_ino


def _leads_into(link: Path, left_out: Collection[Path]) -> bool:
    return any(parent in left_out for parent in link.resolve().parents)


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


def read_text(path: Path, what: str, most: int, hint: str = "", end: str = "") -> str:
    """Read UTF-8 text, on a file system or in an object store, unless it has more bytes."""
    try:
        if path.stat().st_size > most:
            raise DatasetError(f"{what} {path} has more than {most} bytes{end}")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DatasetError(f"cannot read {what} {path}: {reason}{end}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{what} {path} is not UTF-8 text{hint}{end}") from error


def read_lines(path: Path) -> list[str]:
    """Read a text file as stripped lines, the empty ones at its end left out."""
    text = read_text(path, "the list", MAX_LIST_BYTES).rstrip()
    return [line.strip() for line in re.split(r"\r\n?|\n", text)] if text else []


def read_ids(path: Path) -> list[str]:
    """Read a list of plain ids, one per line: each once, sorted, blank lines left out."""
    ids = sorted(set(read_lines(path)) - {""})
    for name in ids:
        if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
            raise DatasetError(f"the list {path} holds '{name}', which is not a plain id")
    return ids
