"""Objects of an S3 store as paths.

A prefix is no folder: nothing is made before objects are put below it, and it is gone with the last
of them. A write is one request, so a reader sees the old object or the new one. Listings are never
cached, because other machines write too.
"""

from __future__ import annotations

import errno
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fsspec.asyn import sync
from upath.implementations.cloud import S3Path
from upath.registry import register_implementation
from zarr.storage import FsspecStore

from pipeline.errors import RunError
from pipeline.object_client import ObjectStore, connect

_DELETE_AT_ONCE = 1000


@dataclass(frozen=True)
class ObjectStatus:
    """What ``stat`` says of an object, under the names that it has for a file.

    Attributes
    ----------
    st_mode
        That of a regular file, or of a folder for a prefix.
    st_size
        Bytes.
    st_mtime_ns
        When it was written, nanoseconds since the epoch. Stores say it in seconds; the digits below
        come from the entity tag, so that another content written in the same second differs.
    st_ino
        A number made from the entity tag.
    etag
        The store's own word for this content.
    """

    st_mode: int
    st_size: int
    st_mtime_ns: int
    st_ino: int
    etag: str

    @property
    def st_mtime(self) -> float:
        """When it was written, seconds since the epoch."""
        return self.st_mtime_ns / 1e9


def _status(info: dict[str, Any]) -> ObjectStatus:
    tag = str(info.get("ETag") or "").strip('"')
    number = zlib.crc32(tag.encode())
    written = info.get("LastModified")
    seconds = int(written.timestamp()) if written else 0
    # only whole microseconds, because a datetime holds no more
    nanoseconds = seconds * 10**9 + number % 10**6 * 1000
    folder = info.get("type") == "directory"
    mode = stat.S_IFDIR if folder else stat.S_IFREG
    return ObjectStatus(mode, int(info.get("size") or 0), nanoseconds, number, tag)


class ObjectPath(S3Path):
    """A path in an S3 store, which answers as ``pathlib.Path`` does, in as few requests as can be.

    Listing a prefix that holds nothing gives nothing.
    """

    __slots__ = ()

    @classmethod
    def _fs_factory(cls, urlpath: str, protocol: str, storage_options: Any) -> ObjectStore:
        return connect()

    @property
    def fs(self) -> ObjectStore:
        """The connection of this process."""
        return connect()

    def with_segments(self, *pathsegments: Any) -> ObjectPath:
        """Make a path of segments, without those that name no level, as ``pathlib`` does."""
        names = "/".join(str(segment) for segment in pathsegments).split("/")
        plain = "/".join(name for name in names if name not in ("", "."))
        return super().with_segments(plain)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is an object of this name, or any below it."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """Return False: objects are never links."""
        return False

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        """Return an :class:`ObjectStatus`."""
        try:
            return _status(self.fs.info(self.path))
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self)) from None

    def read_bytes(self) -> bytes:
        """Read the object with one request."""
        content: bytes = self.fs.cat_file(self.path)
        return content

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """Read the object as text, every kind of line end as a line feed."""
        text = self.read_bytes().decode(encoding or "utf-8", errors or "strict")
        return text.replace("\r\n", "\n").replace("\r", "\n") if newline is None else text

    def write_bytes(self, data: Any) -> int:
        """Write the object with one request: whole, or not at all."""
        self.fs.pipe_file(self.path, bytes(data))
        return len(data)

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Write text with one request."""
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a prefix is there as soon as an object is below it."""

    def rmdir(self, recursive: bool = False) -> None:
        """Do nothing: a prefix is gone with the last object below it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        self.fs.rm_file(self.path)

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield what is directly below, sorted."""
        for name, _ in list_names(self):
            yield self / name

    def glob(self, pattern: str, **options: Any) -> Iterator[ObjectPath]:
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

    def rglob(self, pattern: str, **options: Any) -> Iterator[ObjectPath]:
        """Yield the objects at any depth below whose names match; no prefixes."""
        for relative, _ in find_objects(self):
            if fnmatchcase(relative.rpartition("/")[2], pattern):
                yield self.joinpath(relative)


register_implementation("s3", ObjectPath, clobber=True)


def _split(path: ObjectPath) -> tuple[str, str]:
    """Return the bucket, and the prefix of what is below a path."""
    bucket, _, key = path.path.partition("/")
    return bucket, f"{key}/" if key else ""


def list_names(path: Any) -> list[tuple[str, bool]]:
    """List the names directly below a prefix, and whether each is a prefix itself."""
    store = path.fs
    bucket, prefix = _split(path)

    async def collect() -> list[tuple[str, bool]]:
        found = []
        async for page in store._list(bucket, Prefix=prefix, Delimiter="/"):
            for entry in page.get("CommonPrefixes", []):
                found.append((entry["Prefix"][len(prefix) : -1], True))
            for entry in page.get("Contents", []):
                found.append((entry["Key"][len(prefix) :], False))
        return found

    found: list[tuple[str, bool]] = sync(store.loop, collect)
    # consoles mark a "folder" by an object whose name ends in a slash
    return sorted(entry for entry in set(found) if entry[0])


def find_objects(path: Any) -> list[tuple[str, ObjectStatus]]:
    """List the objects at any depth below a prefix, with one request per thousand.

    Returns
    -------
    list of (str, ObjectStatus)
        Names relative to the prefix, ``/``-separated and sorted.
    """
    store = path.fs
    bucket, prefix = _split(path)

    async def collect() -> list[tuple[str, ObjectStatus]]:
        found = []
        async for page in store._list(bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                name = entry["Key"][len(prefix) :]
                if name and not name.endswith("/"):
                    found.append((name, _status({**entry, "size": entry["Size"]})))
        return found

    found: list[tuple[str, ObjectStatus]] = sync(store.loop, collect)
    return sorted(found, key=lambda entry: entry[0])


def read_object(path: Any, most: int) -> tuple[bytes | None, ObjectStatus]:
    """Read an object and what the store says of it, with one request.

    Parameters
    ----------
    path
        The object.
    most
        Bytes above which it is not read.

    Returns
    -------
    content : bytes or None
        None where there are more bytes than that.
    status : ObjectStatus
        Of just this content.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    RunError
        The store does not give it.
    """
    bucket, _, key = path.path.partition("/")
    store: ObjectStore = path.fs
    content, info = sync(store.loop, store._get, bucket, key, most)
    return content, _status(info)


def measure(path: Any) -> int:
    """Return the bytes of an object and of all below it; 0 where there is nothing."""
    below = sum(status.st_size for _, status in find_objects(path))
    return below or (path.stat().st_size if path.is_file() else 0)


def remove_below(path: Any) -> None:
    """Remove all objects below a prefix.

    Raises
    ------
    RunError
        The store refuses to remove one.
    """
    store: ObjectStore = path.fs
    bucket, prefix = _split(path)
    _remove(store, bucket, [prefix + name for name, _ in find_objects(path)])


def _remove(store: ObjectStore, bucket: str, keys: Iterable[str]) -> None:
    keys = list(keys)
    for start in range(0, len(keys), _DELETE_AT_ONCE):
        batch = [{"Key": key} for key in keys[start : start + _DELETE_AT_ONCE]]
        answer = sync(
            store.loop,
            store._call_s3,
            "delete_objects",
            Bucket=bucket,
            Delete={"Objects": batch, "Quiet": True},
        )
        for refusal in answer.get("Errors", []):
            raise RunError(
                f"s3://{bucket}/{refusal.get('Key')}: the store refuses to remove it "
                f"({refusal.get('Code')}); ask for the right to delete there."
            )


def open_store(path: Any, *, read_only: bool) -> FsspecStore:
    """Give zarr's store on a prefix, on this process's connection."""
    return FsspecStore(connect(asynchronous=True), read_only=read_only, path=path.path.rstrip("/"))
