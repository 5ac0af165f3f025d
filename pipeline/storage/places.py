"""Places: a local folder, or a prefix of an object store, as one kind of path.

A local place is a plain ``pathlib.Path``. A place in an object store (``s3://bucket/prefix``) is an
:class:`ObjectPath`, which answers to the same methods and asks its :class:`Store`. What a store
needs is imported where the first such place is named, so local runs pay nothing for it.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, TypeVar

from pipeline.errors import RunError, UsageError
from pipeline.registry import Registry

T = TypeVar("T")
R = TypeVar("R")

REQUESTS = 16
"""Requests to an object store at a time: what they take is mostly waiting."""

UNLIMITED = 2**62

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class UnreachableError(OSError):
    """The object store gave no answer, or an error of its own: it may do so when asked again."""


@dataclass(frozen=True)
class ObjectStatus:
    """What ``stat`` says of an object, under the names that it has for a file."""

    st_mode: int
    st_size: int = 0
    st_mtime_ns: int = 0
    st_ino: int = 0
    etag: str = ""

    @classmethod
    def of(cls, etag: str | None, size: int, written: datetime | None) -> ObjectStatus:
        """Make that of an object: another content in the same second has another time."""
        tag = str(etag or "").strip('"')
        number = zlib.crc32(tag.encode())
        seconds = int(written.timestamp()) if written else 0
        # only whole microseconds, because a datetime holds no more
        nanoseconds = seconds * 10**9 + number % 10**6 * 1000
        return cls(stat.S_IFREG, size, nanoseconds, number, tag)


PREFIX = ObjectStatus(stat.S_IFDIR)


class Store(ABC):
    """One kind of object store: the only thing that speaks its protocol.

    Another one (``gs://``) is a subclass and an entry point of the group ``primaps_pipe.stores``,
    named after its scheme.  A write is whole or absent, and a reader sees the old object or the new
    one.  What is not there is a ``FileNotFoundError``; every other failure is a
    :class:`~pipeline.errors.RunError` of one sentence that shows no credentials, after as many
    attempts as make sense.
    """

    credentials: ClassVar[str]
    """Where credentials come from, in words."""

    @classmethod
    @abstractmethod
    def connect(cls) -> Store:
        """Return this process's connection to the store that the environment names."""

    @abstractmethod
    def get(self, path: ObjectPath, most: int) -> tuple[bytes | None, ObjectStatus]:
        """Read an object, unless it has more bytes than ``most``, with what is known of it."""

    @abstractmethod
    def head(self, path: ObjectPath) -> ObjectStatus:
        """Return what is known of an object."""

    @abstractmethod
    def put(self, path: ObjectPath, content: bytes) -> None:
        """Write an object."""

    @abstractmethod
    def delete(self, path: ObjectPath) -> None:
        """Remove an object, if it is there."""

    @abstractmethod
    def delete_below(self, path: ObjectPath) -> None:
        """Remove all objects below a prefix."""

    @abstractmethod
    def list(self, path: ObjectPath, *, deep: bool) -> Iterable[tuple[str, ObjectStatus]]:
        """List what is below a prefix, never from a cache, under its name relative to that.

        Deep, these are the objects at any depth; else the objects and prefixes directly below.
        """

    @abstractmethod
    def holds(self, path: ObjectPath) -> bool:
        """Whether there are objects below a prefix."""

    @abstractmethod
    def open_zarr(self, path: ObjectPath) -> Any:
        """Give what zarr reads a prefix with; best an ``FsspecStore``, whose shards we read."""

    # What locks are made of. Each asks once, for so many seconds at most, and raises an
    # UnreachableError where no answer came; the act may have been done nevertheless.

    @abstractmethod
    def get_tagged(self, path: ObjectPath, seconds: float) -> tuple[str, bytes] | None:
        """Return the tag and content of an object; None where it is not there."""

    @abstractmethod
    def put_if(
        self, path: ObjectPath, content: bytes, tag: str | None, seconds: float
    ) -> str | None:
        """Write an object that has this tag (None: is not there); return its new tag.

        None where that is not so.
        """

    @abstractmethod
    def delete_if(self, path: ObjectPath, tag: str | None, seconds: float) -> bool:
        """Remove an object if it has this tag (None: any); return whether that was so.

        A store that cannot raises an ``OSError`` with ``ENOSYS``.
        """


STORES: Registry[type[Store]] = Registry(
    "store", "primaps_pipe.stores", {"s3": "pipeline.storage.s3:S3Store"}
)


if TYPE_CHECKING:
    # a place is typed as a Path everywhere, whichever it is
    _Path = Path
else:
    _Path = PurePosixPath


class ObjectPath(_Path):
    """A path in an object store, which answers as ``pathlib.Path`` does, in few requests.

    A prefix is no folder: nothing is made before objects are put below it, and it is gone with the
    last of them. Listing a prefix that holds nothing gives nothing.
    """

    __slots__ = ()

    def __str__(self) -> str:
        text = super().__str__().replace(":/", "://", 1)
        return text + "/" if len(self.parts) == 2 else text

    @property
    def store(self) -> Store:
        """The connection of this process."""
        return STORES[self.parts[0].removesuffix(":")].connect()

    @property
    def bucket(self) -> str:
        """The first name."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """The names below the bucket, as the store knows the object."""
        return "/".join(self.parts[2:])

    @property
    def prefix(self) -> str:
        """How the keys of what is below begin."""
        return f"{self.key}/" if self.key else ""

    @property
    def parent(self) -> ObjectPath:
        """The path without its last name; above a bucket there is nothing."""
        return super().parent if len(self.parts) > 2 else self

    def relative_to(self, other: Any) -> Any:  # type: ignore[override]
        """Return the names below another path of the store."""
        if not isinstance(other, ObjectPath) or self.parts[: len(other.parts)] != other.parts:
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(*self.parts[len(other.parts) :])

    def expanduser(self) -> ObjectPath:
        """Return self: it is always in full."""
        return self

    absolute = expanduser

    def resolve(self, strict: bool = False) -> ObjectPath:
        """Return self: objects are never links."""
        return self

    def is_symlink(self) -> bool:
        """Return False: objects are never links."""
        return False

    def exists(self) -> bool:
        """Whether there is an object of this name, or any below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        try:
            self.store.head(self)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is any object below."""
        return self.store.holds(self)

    def stat(self) -> ObjectStatus:  # type: ignore[override]
        """Return what is known of an object, or that it is a prefix."""
        try:
            return self.store.head(self)
        except FileNotFoundError:
            if self.is_dir():
                return PREFIX
            raise

    def read_bytes(self) -> bytes:
        """Read the object with one request."""
        content, _ = self.store.get(self, UNLIMITED)
        return content or b""

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read the object as text, every kind of line end as a line feed."""
        text = self.read_bytes().decode(encoding or "utf-8", errors or "strict")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def open(self, mode: str = "rb") -> io.BytesIO:  # type: ignore[override]
        """Open the object's content, read with one request."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: an object is written whole")
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, data: Any) -> int:
        """Write the object with one request: whole, or not at all."""
        self.store.put(self, bytes(data))
        return len(data)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a prefix is there as soon as an object is below it."""

    def rmdir(self) -> None:
        """Do nothing: a prefix is gone with the last object below it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        self.store.delete(self)

    def iterdir(self) -> Generator[ObjectPath, None, None]:
        """Yield what is directly below, sorted."""
        for name, _ in list_names(self):
            yield self / name

    def glob(self, pattern: str) -> Generator[ObjectPath, None, None]:
        """Yield what matches a pattern of names (``*``, ``?``, ``[]`` in each, no ``**``)."""
        first, _, rest = pattern.partition("/")
        if not set("*?[") & set(first):
            below = self / first
            if rest:
                yield from below.glob(rest)
            elif below.exists():
                yield below
            return
        for name, folder in list_names(self):
            if not fnmatchcase(name, first):
                continue
            if not rest:
                yield self / name
            elif folder:
                yield from (self / name).glob(rest)

    def rglob(self, pattern: str) -> Generator[ObjectPath, None, None]:
        """Yield the objects at any depth below whose names match; no prefixes."""
        for relative, _ in find_objects(self):
            if fnmatchcase(relative.rpartition("/")[2], pattern):
                yield self / relative


def list_names(path: Path) -> list[tuple[str, bool]]:
    """List the names directly below a place, sorted, and whether each is one of others."""
    if is_remote(path):
        found = path.store.list(path, deep=False)
        return sorted({(name, stat.S_ISDIR(status.st_mode)) for name, status in found})
    try:
        with os.scandir(path) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def find_objects(path: Any) -> list[tuple[str, ObjectStatus]]:
    """List the objects at any depth below a prefix, with one request for many."""
    return sorted(path.store.list(path, deep=True), key=lambda entry: entry[0])


def parse_place(text: str | os.PathLike[str] | Path) -> Path:
    """Give the place that a text names."""
    if isinstance(text, Path | ObjectPath):
        return text
    text = os.fspath(text)
    match = _SCHEME.fullmatch(text)
    if match is None:
        if any("\udc80" <= character <= "\udcff" for character in text):
            # what stands for bytes that are no text can be stored in no table and no YAML
            raise UsageError(f"{text!a} is not UTF-8; rename it, or link to it by another name.")
        return Path(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme not in STORES:
        known = " or ".join(f"{name}://bucket/prefix" for name in STORES)
        raise UsageError(f"{scheme}:// is not read; give a local path or {known}.")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        hint = _load_store(scheme, f"{scheme}://").credentials
        raise UsageError(f"an {scheme}:// URL must not hold a user or password; {hint}.")
    if set("?#") & set(rest):
        hint = _load_store(scheme, f"{scheme}://").credentials
        raise UsageError(f"an {scheme}:// URL must have no query and no fragment; {hint}.")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{bucket!r} is no name of a bucket; give {scheme}://bucket/prefix.")
    parts = [part for part in prefix.split("/") if part]
    if {".", ".."} & set(parts) or any(ord(character) < 32 for character in prefix):
        raise UsageError(
            f"an {scheme}:// URL must hold no '.', '..' or control character; spell it out."
        )
    url = "/".join([f"{scheme}://{bucket}", *parts])
    _load_store(scheme, url)
    return ObjectPath(url)


def _load_store(scheme: str, url: str) -> type[Store]:
    try:
        return STORES[scheme]
    except ImportError as error:
        raise UsageError(
            f"{url} needs {error.name}, which is not installed: "
            f"pip install 'primaps-pipe[{scheme}]'."
        ) from error


def is_remote(path: object) -> TypeGuard[ObjectPath]:
    """Whether a place is in an object store rather than on a file system."""
    return isinstance(path, ObjectPath)


def require_local(path: Path | None, otherwise: str) -> None:
    """Refuse a place in an object store, with a sentence."""
    if is_remote(path):
        raise UsageError(otherwise)


def count_requests(place: Path, local: int = 1) -> int:
    """Say how many threads should read from a place at once, where so many do from a disk."""
    return max(local, REQUESTS) if is_remote(place) else local


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
    return path.expanduser().absolute()


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
        below = sum(status.st_size for _, status in find_objects(path))
        return below or (path.stat().st_size if path.is_file() else 0)
    total = 0
    for file in [path, *path.rglob("*")]:
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # a stage at work removes its temporary files
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
