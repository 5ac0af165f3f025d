"""Places: a local folder, or a prefix of an object store, as one kind of path.

A local place is a plain ``pathlib.Path``. A place in an object store (``s3://bucket/prefix``) is an
:class:`storage.objects.ObjectPath`, which answers to the same methods. What is needed for object
stores is imported where the first such place is named, so local runs pay nothing for it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import RunError, UsageError

if TYPE_CHECKING:
    from zarr.storage import FsspecStore

T = TypeVar("T")
R = TypeVar("R")

REQUESTS = 16
"""Requests to an object store at a time: what they take is mostly waiting."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CREDENTIALS = "credentials come from the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID) or ~/.aws"


def parse_place(text: str | os.PathLike[str] | Path) -> Path:
    """Give the place that a text names."""
    if isinstance(text, Path) or is_remote(text):
        return text  # type: ignore[return-value]
    text = os.fspath(text)
    match = _SCHEME.fullmatch(text)
    if match is None:
        if any("\udc80" <= character <= "\udcff" for character in text):
            # what stands for bytes that are no text can be stored in no table and no YAML
            raise UsageError(f"{text!a} is not UTF-8; rename it, or link to it by another name.")
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme != "s3":
        raise UsageError(f"{scheme}:// is not read; give a local path or s3://bucket/prefix.")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise UsageError(f"an s3:// URL must not hold a user or password; {_CREDENTIALS}.")
    if set("?#") & set(rest):
        raise UsageError(f"an s3:// URL must have no query and no fragment; {_CREDENTIALS}.")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{bucket!r} is no name of a bucket; give s3://bucket/prefix.")
    parts = [part for part in prefix.split("/") if part]
    if {".", ".."} & set(parts) or any(ord(character) < 32 for character in prefix):
        raise UsageError("an s3:// URL must hold no '.', '..' or control character; spell it out.")
    return _open_path("/".join([f"s3://{bucket}", *parts]))


def _open_path(url: str) -> Path:
    try:
        from pipeline.storage.objects import ObjectPath
    except ImportError as error:
        raise UsageError(
            f"{url} needs {error.name}, which is not installed: pip install 'primaps-pipe[s3]'."
        ) from error
    return ObjectPath(url)  # type: ignore[return-value]


def is_remote(path: object) -> bool:
    """Whether a place is in an object store rather than on a file system."""
    # asked without importing the class: where nobody has, no such path can be
    return not isinstance(path, str | Path) and hasattr(path, "joinuri")


def open_zarr(path: Path, *, read_only: bool = False) -> Path | FsspecStore:
    """Give what ``zarr.open_group`` takes for a place."""
    if not is_remote(path):
        return path
    from pipeline.storage.objects import open_store

    return open_store(path, read_only=read_only)


def resolve_inside(root: Path, relative: str | os.PathLike[str]) -> Path:
    """Join a relative path to a root that it must not leave."""
    text = os.fspath(relative)
    parts = PurePosixPath(text).parts
    bad = not parts or text.startswith("/") or ".." in parts or "\0" in text
    if os.sep != "/":
        bad = bad or Path(text).is_absolute() or ".." in Path(text).parts
    if not bad and not is_remote(root):
        real = os.path.realpath(root)
        inside = os.path.realpath(root / text)
        bad = inside != real and not inside.startswith(real.rstrip(os.sep) + os.sep)
    if bad:
        raise RunError(f"{text!r} leads out of {root}; nothing is read or written there.")
    return root / text


def make_absolute(path: Path) -> Path:
    """Give a local path in full; a place in an object store is always in full."""
    return path if is_remote(path) else path.expanduser().absolute()


def find_files(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth below a folder, none where it is not there."""
    if is_remote(folder):
        yield from folder.rglob("*")
        return
    yield from (path for path in folder.rglob("*") if path.is_file())


def map_requests(place: Path, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a function that asks a place once or twice to items: in threads where it is far."""
    if not is_remote(place):
        return [function(item) for item in items]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(function, items))


def measure(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 where there is nothing."""
    if is_remote(path):
        from pipeline.storage.objects import measure as measure_objects

        return measure_objects(path)
    total = 0
    for file in [path, *path.rglob("*")]:
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # a stage at work removes its temporary files
        total += status.st_size if S_ISREG(status.st_mode) else 0
    return total


@contextmanager
def copy_here(folder: Path) -> Iterator[Path]:
    """Give a folder of small files as a local one: itself, or a copy that goes with the context."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="primaps-") as scratch:
        copy = Path(scratch) / folder.name

        def fetch(path: Path) -> None:
            target = resolve_inside(copy, path.relative_to(folder).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())

        map_requests(folder, fetch, find_files(folder))
        yield copy
