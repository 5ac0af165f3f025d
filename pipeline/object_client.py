"""The client of an S3 store: retries, time-outs, and failures in one sentence.

Credentials come from botocore's usual chain (environment, files, instance) and are kept in no path,
no pickle and no message.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
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
from fsspec.asyn import FSTimeoutError
from s3fs import S3FileSystem
from s3fs.core import _error_wrapper

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
    """Return this process's connection to the store that the environment names.

    Parameters
    ----------
    asynchronous
        Whether it is used from inside coroutines, as zarr does, rather than from plain calls.
    """
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
