"""Objects of an S3 store as paths.

A prefix is no folder: nothing is made before objects are put below it, and it is gone with the last
of them. A write is one request, so a reader sees the old object or the new one. Listings are never
cached, because other machines write too.

The client of an S3 store: retries, time-outs, and failures in one sentence.

Credentials come from botocore's usual chain (environment, files, instance) and are kept in no path,
no pickle and no message.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)
from fsspec.asyn import FSTimeoutError, sync
from s3fs import S3FileSystem
from s3fs.core import _error_wrapper
from upath.implementations.cloud import S3Path
from upath.registry import register_implementation
from zarr.storage import FsspecStore

from pipeline.errors import RunError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
TIMEOUT_VARIABLE = "PRIMAPS_S3_TIMEOUT"
ATTEMPTS = 5
_LOGIN = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws"

# botocore says at this level which source gave the credentials, aiobotocore what it could not close
logging.getLogger("aiobotocore").setLevel(logging.ERROR)


class ObjectStore(S3FileSystem):  # type: ignore[misc]
    """The file system of s3fs, whose failures are sentences and never "there is no such object"."""

    # on top of botocore's attempts: those do not see a body that breaks off
    retries = 3
    protocol = ("s3", "s3a")
    cachable = False

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with explaining(kwargs.get("Bucket"), kwargs.get("Key") or kwargs.get("Prefix")):
            return await super()._call_s3(method, *args, **kwargs)

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        bucket, key, _ = self.split_path(path)
        if start is None and end is None:
            # that of s3fs asks for the size first
            whole, _info = await self._get(bucket, key)
            return whole or b""
        with explaining(bucket, key):
            content: bytes = await super()._cat_file(path, start=start, end=end, **kwargs)
            return content

    async def _get(
        self, bucket: str, key: str, most: int = 2**62
    ) -> tuple[bytes | None, dict[str, Any]]:
        """Read an object of at most so many bytes, and what the store says of it, at once."""

        async def read() -> tuple[bytes | None, dict[str, Any]]:
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                content = await body.read() if answer["ContentLength"] <= most else None
            return content, {**answer, "size": answer["ContentLength"]}

        with explaining(bucket, key):
            # the attempts of _call_s3 end with the header
            result: tuple[bytes | None, dict[str, Any]] = await _error_wrapper(
                read, retries=self.retries
            )
            return result

    async def _list(self, bucket: str, **kwargs: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield the pages of a listing."""
        more = True
        while more:
            page = await self._call_s3("list_objects_v2", Bucket=bucket, **kwargs)
            yield page
            more = bool(page.get("IsTruncated"))
            kwargs["ContinuationToken"] = page.get("NextContinuationToken")

    async def _isfile(self, path: str) -> bool:
        # that of fsspec takes a server that does not answer for a file that is not there
        bucket, key, _ = self.split_path(path)
        try:
            await self._call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return False
        return True

    async def _isdir(self, path: str) -> bool:
        bucket, key, _ = self.split_path(path)
        prefix = key.rstrip("/") + "/" if key else ""
        out = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        return bool(out.get("KeyCount") or out.get("Contents"))


@contextmanager
def explaining(bucket: str | None, key: str | None) -> Iterator[None]:
    """Turn what goes wrong between here and the store into a :class:`RunError`.

    That an object is not there, or is there already, stays what it is for a file.
    """
    place = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    try:
        yield
    except (OSError, BotoCoreError, ClientError, FSTimeoutError, TimeoutError) as error:
        code = _code(error)
        if code == "NoSuchBucket":
            raise RunError(
                f"there is no bucket {bucket} (asked for {place}); make it or correct the URL."
            ) from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, "no such object", place) from None
        if isinstance(error, FileExistsError) or code in _CONDITION_CODES:
            raise FileExistsError(errno.EEXIST, "it has been written meanwhile", place) from None
        # from None: the chain may show an address with a password in it
        raise RunError(f"{place}: {_reason(error, code)}.") from None


_CONDITION_CODES = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


def _code(error: BaseException) -> str:
    for known in (error, error.__cause__):
        if isinstance(known, ClientError):
            return str(known.response.get("Error", {}).get("Code", ""))
    return ""


def _reason(error: BaseException, code: str) -> str:
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return f"no credentials were found; {_LOGIN}"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return f"the store refuses the credentials ({code}); {_LOGIN}, and run the command again"
    if isinstance(error, PermissionError):
        return (
            f"the store denies access ({code or 'AccessDenied'}); "
            "ask for the right to list, read and write there, or choose another place"
        )
    if isinstance(error, ConnectTimeoutError | EndpointConnectionError):
        return (
            "the store cannot be reached; check the network and AWS_ENDPOINT_URL, "
            "and run the command again"
        )
    if isinstance(error, ReadTimeoutError | TimeoutError | FSTimeoutError):
        return "the store did not answer in time, however often it was asked; run the command again"
    detail = f" ({code})" if code else f" ({type(error).__name__})"
    return f"the store keeps failing{detail}; run the command again"


def connect(*, asynchronous: bool = False) -> ObjectStore:
    """Return this process's connection to the store that the environment names."""
    names = (
        *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"),
        *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
        *("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", TIMEOUT_VARIABLE),
    )
    # a connection belongs to the process that opened it
    return _connect(asynchronous, os.getpid(), *[os.environ.get(name) for name in names])


@lru_cache(maxsize=8)
def _connect(asynchronous: bool, *_: object) -> ObjectStore:
    wait = _timeout()
    return ObjectStore(
        asynchronous=asynchronous,
        use_listings_cache=False,
        config_kwargs={
            "retries": _retries(),
            "connect_timeout": min(wait, CONNECT_TIMEOUT_S),
            "read_timeout": wait,
            "max_pool_connections": 32,
        },
    )


def _retries() -> dict[str, Any]:
    # what is given here would hold before the usual variables
    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    return retries


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else READ_TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise RunError(f"{TIMEOUT_VARIABLE} is {text!r}; give a number of seconds, or unset it.")
    return seconds


_DELETE_AT_ONCE = 1000


@dataclass(frozen=True)
class ObjectStatus:
    """What ``stat`` says of an object, under the names that it has for a file."""

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
    """List the objects at any depth below a prefix, with one request per thousand."""
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
    """Read an object and what the store says of it, with one request."""
    bucket, _, key = path.path.partition("/")
    store: ObjectStore = path.fs
    content, info = sync(store.loop, store._get, bucket, key, most)
    return content, _status(info)


def measure(path: Any) -> int:
    """Return the bytes of an object and of all below it; 0 where there is nothing."""
    below = sum(status.st_size for _, status in find_objects(path))
    return below or (path.stat().st_size if path.is_file() else 0)


def remove_below(path: Any) -> None:
    """Remove all objects below a prefix."""
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
