"""The S3 protocol: requests, retries, time-outs, and failures in one sentence.

Nothing else of the project knows it. Credentials come from botocore's usual chain (environment,
files, instance) and are kept in no path, no pickle and no message.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

from aiohttp import ClientError as TransferError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)
from fsspec.asyn import FSTimeoutError, sync
from s3fs import S3FileSystem
from s3fs.core import _error_wrapper
from s3fs.errors import translate_boto_error
from zarr.storage import FsspecStore

from pipeline.errors import RunError
from pipeline.storage.places import PREFIX, ObjectPath, ObjectStatus, Store, UnreachableError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
TIMEOUT_VARIABLE = "PRIMAPS_S3_TIMEOUT"
ATTEMPTS = 5
_LOGIN = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws"
_DELETE_AT_ONCE = 1000

# botocore says at this level which source gave the credentials, aiobotocore what it could not close
logging.getLogger("aiobotocore").setLevel(logging.ERROR)


class S3Store(Store):
    """An S3 server, asked through s3fs."""

    credentials = "credentials come from the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID) or ~/.aws"

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    @classmethod
    def connect(cls) -> S3Store:
        """Return this process's connection to the store that the environment names."""
        return cls(_connect(asynchronous=False))

    def get(self, path: ObjectPath, most: int) -> tuple[bytes | None, ObjectStatus]:
        """Read an object and what the store says of it, with one request."""
        content, answer = sync(
            self._files.loop, self._files.get_object, path.bucket, path.key, most
        )
        return content, _status(answer, answer["ContentLength"])

    def head(self, path: ObjectPath) -> ObjectStatus:
        """Return what is known of an object."""
        if not path.key:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
        answer = self._call(path, "head_object", Key=path.key)
        return _status(answer, answer["ContentLength"])

    def put(self, path: ObjectPath, content: bytes) -> None:
        """Write an object; a large one in parts, which are joined at the end."""
        self._files.pipe_file(f"{path.bucket}/{path.key}", content)

    def delete(self, path: ObjectPath) -> None:
        """Remove an object, if it is there."""
        self._call(path, "delete_object", Key=path.key)

    def delete_below(self, path: ObjectPath) -> None:
        """Remove all objects below a prefix, with one request per thousand."""
        keys = [{"Key": path.prefix + name} for name, _ in self.list(path, deep=True)]
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            batch = {"Objects": keys[start : start + _DELETE_AT_ONCE], "Quiet": True}
            answer = self._call(path, "delete_objects", Delete=batch)
            for refusal in answer.get("Errors", []):
                raise RunError(
                    f"s3://{path.bucket}/{refusal.get('Key')}: the store refuses to remove it "
                    f"({refusal.get('Code')}); ask for the right to delete there."
                )

    def list(self, path: ObjectPath, *, deep: bool) -> list[tuple[str, ObjectStatus]]:
        """List what is below a prefix, with one request per thousand."""
        options: dict[str, Any] = {} if deep else {"Delimiter": "/"}
        begin = len(path.prefix)
        found, more = [], True
        while more:
            page = self._call(path, "list_objects_v2", Prefix=path.prefix, **options)
            for entry in page.get("CommonPrefixes", []):
                found.append((entry["Prefix"][begin:-1], PREFIX))
            for entry in page.get("Contents", []):
                found.append((entry["Key"][begin:], _status(entry, entry["Size"])))
            more = bool(page.get("IsTruncated"))
            options["ContinuationToken"] = page.get("NextContinuationToken")
        # consoles mark a "folder" by an object whose name ends in a slash
        return [entry for entry in found if entry[0] and not entry[0].endswith("/")]

    def holds(self, path: ObjectPath) -> bool:
        """Whether there are objects below a prefix."""
        answer = self._call(path, "list_objects_v2", Prefix=path.prefix, MaxKeys=1)
        return bool(answer.get("KeyCount") or answer.get("Contents"))

    def open_zarr(self, path: ObjectPath) -> FsspecStore:
        """Give what zarr reads a prefix with, on this process's connection."""
        place = f"{path.bucket}/{path.key}".rstrip("/")
        return FsspecStore(_connect(asynchronous=True), read_only=True, path=place)

    def get_tagged(self, path: ObjectPath, seconds: float) -> tuple[str, bytes] | None:
        """Return the tag and content of an object; None where it is not there."""
        try:
            answer = self._ask_once(path, seconds, "get_object")
        except FileNotFoundError:
            return None
        return answer["ETag"], answer["Body"]

    def put_if(
        self, path: ObjectPath, content: bytes, tag: str | None, seconds: float
    ) -> str | None:
        """Write an object that has this tag, or is not there; return its new tag."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            answer = self._ask_once(path, seconds, "put_object", Body=content, **condition)
        except (FileNotFoundError, FileExistsError):
            return None
        return str(answer.get("ETag", ""))

    def delete_if(self, path: ObjectPath, tag: str | None, seconds: float) -> bool:
        """Remove an object if it has this tag; return whether that was so."""
        condition = {} if tag is None else {"IfMatch": tag}
        try:
            self._ask_once(path, seconds, "delete_object", **condition)
        except (FileNotFoundError, FileExistsError):
            return False
        return True

    def _call(self, path: ObjectPath, act: str, **arguments: Any) -> Any:
        return sync(self._files.loop, self._files._call_s3, act, Bucket=path.bucket, **arguments)

    def _ask_once(self, path: ObjectPath, seconds: float, act: str, **arguments: Any) -> Any:
        # below the retries of the store's own calls: they may last longer than a lock
        async def ask(client: Any) -> Any:
            answer = await getattr(client, act)(Bucket=path.bucket, Key=path.key, **arguments)
            if "Body" in answer:
                async with answer["Body"] as body:
                    return {**answer, "Body": await body.read()}
            return answer

        async def wait() -> Any:
            await self._files.set_session()
            client = await self._files.get_s3(path.bucket)
            return await asyncio.wait_for(ask(client), seconds)

        failure: OSError
        with explaining(path.bucket, path.key):
            try:
                return sync(self._files.loop, wait)
            except ClientError as error:
                failure = _translate_once(error)
            except TimeoutError:
                reason = f"the object store gives no answer in {seconds:g} s"
                failure = UnreachableError(errno.EIO, reason)
            except (HTTPClientError, ConnectionError, TransferError) as error:
                reason = f"the object store gives no answer ({type(error).__name__})"
                failure = UnreachableError(errno.EIO, reason)
        raise failure


def _translate_once(error: ClientError) -> OSError:
    """Say what the answer to a request that is not repeated means; raise what no lock expects."""
    code = error.response.get("Error", {}).get("Code")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    # 409: two conditional writes at once, of which this is not the first
    known: dict[int, Callable[[int, str], OSError]] = {
        404: FileNotFoundError,
        409: FileExistsError,
        412: FileExistsError,
        501: lambda _, text: OSError(errno.ENOSYS, text),
    }
    if status in known and code != "NoSuchBucket":
        return known[status](status, str(code))
    if status >= 500 or code == "RequestTimeout":
        return UnreachableError(errno.EIO, f"the object store answers {code}")
    raise translate_boto_error(error) from error


def _status(answer: Any, size: int) -> ObjectStatus:
    return ObjectStatus.of(answer.get("ETag"), int(size or 0), answer.get("LastModified"))


class FileSystem(S3FileSystem):  # type: ignore[misc]
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
            whole, _answer = await self.get_object(bucket, key)
            return whole or b""
        with explaining(bucket, key):
            content: bytes = await super()._cat_file(path, start=start, end=end, **kwargs)
            return content

    async def get_object(
        self, bucket: str, key: str, most: int = 2**62
    ) -> tuple[bytes | None, dict[str, Any]]:
        """Read an object of at most so many bytes, and what the store says of it, at once."""

        async def read() -> tuple[bytes | None, dict[str, Any]]:
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return await body.read() if answer["ContentLength"] <= most else None, answer

        with explaining(bucket, key):
            # the attempts of _call_s3 end with the header
            result: tuple[bytes | None, dict[str, Any]] = await _error_wrapper(
                read, retries=self.retries
            )
            return result


@contextmanager
def explaining(bucket: str | None, key: str | None) -> Iterator[None]:
    """Turn what goes wrong between here and the store into a :class:`RunError`.

    That an object is not there, or is there already, stays what it is for a file.
    """
    try:
        yield
    except (OSError, BotoCoreError, ClientError, FSTimeoutError, TimeoutError) as error:
        _explain(error, bucket, key)


def _explain(error: BaseException, bucket: str | None, key: str | None) -> NoReturn:
    place = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    answers = [each.response for each in (error, error.__cause__) if isinstance(each, ClientError)]
    code = str(answers[0].get("Error", {}).get("Code", "")) if answers else ""
    # from None: the chain may show an address with a password in it
    if code == "NoSuchBucket":
        raise RunError(
            f"there is no bucket {bucket} (asked for {place}); make it or correct the URL."
        ) from None
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(errno.ENOENT, "no such object", place) from None
    changed = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
    if isinstance(error, FileExistsError) or code in changed:
        raise FileExistsError(errno.EEXIST, "it has been written meanwhile", place) from None
    raise RunError(f"{place}: {_reason(error, code)}.") from None


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


def _connect(*, asynchronous: bool) -> FileSystem:
    names = (
        *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"),
        *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
        *("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", TIMEOUT_VARIABLE),
    )
    # a connection belongs to the process that opened it
    return _make_files(asynchronous, os.getpid(), *[os.environ.get(name) for name in names])


@lru_cache(maxsize=8)
def _make_files(asynchronous: bool, *_: object) -> FileSystem:
    wait = _timeout()
    # what is given here would hold before the usual variables
    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    return FileSystem(
        asynchronous=asynchronous,
        use_listings_cache=False,
        config_kwargs={
            "retries": retries,
            "connect_timeout": min(wait, CONNECT_TIMEOUT_S),
            "read_timeout": wait,
            "max_pool_connections": 32,
        },
    )


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else READ_TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise RunError(f"{TIMEOUT_VARIABLE} is {text!r}; give a number of seconds, or unset it.")
    return seconds
