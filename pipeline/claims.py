"""How a lock stands written: as files of a folder, or as one object of an object store.

Both know the same five acts. None of them waits, and none removes or overwrites what another
owner wrote, but :meth:`take` what it was told is stale, and only if nothing has changed since.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.owners import Owner, decode

REQUEST_S = 15.0
"""Seconds after which a request to an object store counts as lost."""

_T = TypeVar("_T")

# the file is gone; over NFS, what was opened as it went
_GONE = {errno.ENOENT, errno.ESTALE}
_PART = ".part"


class UnreachableError(OSError):
    """The object store gave no answer, or an error of its own: it may do so when asked again."""


@dataclass(frozen=True)
class Sight:
    """A lock as seen once.

    Parameters
    ----------
    version
        Differs as soon as anything about the lock does.
    owners
        Those that claim the lock; None for one whose record is not whole.
    """

    version: Hashable
    owners: tuple[Owner | None, ...]


class Claims(Protocol):
    """The writing and reading of one lock; every act raises OSError where it cannot be done."""

    #: Whether an answer, or a request, may be lost on the way.
    remote: bool

    def look(self) -> Sight | None:
        """Return what stands written, None if nothing does."""

    def take(self, owner: Owner, stale: Sight | None) -> bool:
        """Claim the lock if nothing but what was seen as stale stands written."""

    def renew(self, owner: Owner) -> bool:
        """Write a sign of life; false if the claim is gone."""

    def holds(self, owner: Owner) -> bool:
        """Whether the claim still stands."""

    def release(self, owner: Owner) -> None:
        """Remove the claim, if it still stands."""


class FolderClaims:
    """A lock as files of one folder, one for each claim, named after its token.

    Whoever wants the lock writes a claim of its own and then lists the folder; it has the lock if
    no other claim stands there but stale ones, and withdraws otherwise. Of two that come at once
    each has written before it lists, so at least one sees the other. This needs no locking by the
    system, no exclusive creation and no hard links, only that a rename is seen by a listing that
    begins after it, which network file systems promise to the client that renamed. As names are
    never used twice, nobody can remove a claim other than the one that it means.
    """

    remote = False

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._stem = file.name + "~"

    def look(self) -> Sight | None:
        """See :class:`Claims`."""
        found = self._read_claims()
        if not found:
            return None
        return Sight(frozenset(found.items()), tuple(map(decode, found.values())))

    def take(self, owner: Owner, stale: Sight | None) -> bool:
        """See :class:`Claims`."""
        known: frozenset[tuple[str, bytes]] = stale.version if stale else frozenset()  # type: ignore[assignment]
        claim = self._path(owner)
        part = claim.with_name(claim.name + _PART)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(owner.encode())
                file.flush()
                # an empty claim, after a power loss, would name nobody that is known to be dead
                os.fsync(file.fileno())
            part.rename(claim)
        except FileNotFoundError:
            return False  # cleared away by the one that got the lock, or with an unused run
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        try:
            others = {item for item in self._read_claims().items() if item[0] != claim.name}
            if not others <= known:
                claim.unlink(missing_ok=True)
                return False
            # before the lock counts as taken: an owner that still finds its claim still holds it
            for name, _ in others:
                (self._folder / name).unlink(missing_ok=True)
        except BaseException:
            claim.unlink(missing_ok=True)
            raise
        self._remove_parts()
        return True

    def renew(self, owner: Owner) -> bool:
        """See :class:`Claims`."""
        try:
            # in place: what another has removed is not made anew
            with self._path(owner).open("r+b", buffering=0) as file:
                file.write(owner.encode())
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return True

    def holds(self, owner: Owner) -> bool:
        """See :class:`Claims`."""
        try:
            # opened, for network file systems ask their server then, and may not for a stat
            self._path(owner).open("rb").close()
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return True

    def release(self, owner: Owner) -> None:
        """See :class:`Claims`."""
        self._path(owner).unlink(missing_ok=True)

    def _path(self, owner: Owner) -> Path:
        return self._folder / (self._stem + owner.token)

    def _list(self) -> list[str]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        return [name for name in names if name.startswith(self._stem)]

    def _read_claims(self) -> dict[str, bytes]:
        found = {}
        for name in self._list():
            if name.endswith(_PART):
                continue
            try:
                found[name] = (self._folder / name).read_bytes()
            except OSError as error:
                if error.errno not in _GONE:
                    raise
        return found

    def _remove_parts(self) -> None:
        # of processes that were killed while they wrote; one that is at it will try again
        for name in self._list():
            if name.endswith(_PART):
                with suppress(OSError):
                    (self._folder / name).unlink(missing_ok=True)


class ObjectClaim:
    """A lock as one object of an S3 store, changed by conditional requests only.

    An answer may be lost, so the object is read back after every write that was not answered with
    a plain yes: the token in it says whose it is.

    Parameters
    ----------
    path
        The object, as a path of an object store (:func:`pipeline.places.parse_place`).
    """

    remote = True

    def __init__(self, path: Any) -> None:
        self._store = path.fs
        self._bucket, _, self._key = path.path.partition("/")
        self._etag = ""

    def look(self) -> Sight | None:
        """See :class:`Claims`."""
        found = self._read()
        return None if found is None else Sight(found, (decode(found[1]),))

    def take(self, owner: Owner, stale: Sight | None) -> bool:
        """See :class:`Claims`."""
        condition = {"IfMatch": stale.version[0]} if stale else {"IfNoneMatch": "*"}  # type: ignore[index]
        with suppress(UnreachableError):
            self._change("put_object", Body=owner.encode(), **condition)
        # even after a yes: of a store that knows no conditions, all but the last writer learn it so
        return self.holds(owner)

    def renew(self, owner: Owner) -> bool:
        """See :class:`Claims`."""
        try:
            etag = self._change("put_object", Body=owner.encode(), IfMatch=self._etag)
        except UnreachableError:
            etag = None
        if etag is None:
            return self.holds(owner)
        self._etag = etag
        return True

    def holds(self, owner: Owner) -> bool:
        """See :class:`Claims`."""
        found = self._read()
        current = None if found is None else decode(found[1])
        if found is None or current is None or current.token != owner.token:
            return False
        self._etag = found[0]
        return True

    def release(self, owner: Owner) -> None:
        """See :class:`Claims`."""
        given_up = time.monotonic() + REQUEST_S
        # the tag is not known after a lost answer, and not right after that of a sign of life
        for known in (bool(self._etag), False):
            try:
                if not known and not self.holds(owner):
                    return
                if self._change("delete_object", IfMatch=self._etag) is not None:
                    return
            except UnreachableError:
                # not for long: it is the last act, and the lock of an ended process falls anyway
                if time.monotonic() > given_up - REQUEST_S / 2:
                    raise
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                # a store without conditional removal
                if self.holds(owner):
                    self._change("delete_object")
                return
        if self.holds(owner):
            raise UnreachableError(errno.EIO, "the object store does not remove it")

    def _read(self) -> tuple[str, bytes] | None:
        async def read(client: Any) -> tuple[str, bytes]:
            response = await client.get_object(Bucket=self._bucket, Key=self._key)
            async with response["Body"] as body:
                return response["ETag"], await body.read()

        try:
            return self._ask(read)
        except FileNotFoundError:
            return None

    def _change(self, act: str, **arguments: Any) -> str | None:
        """Write or remove the object; return its new tag, None where a condition did not hold."""

        async def change(client: Any) -> str:
            response = await getattr(client, act)(Bucket=self._bucket, Key=self._key, **arguments)
            return str(response.get("ETag", ""))

        try:
            return self._ask(change)
        except (FileNotFoundError, FileExistsError):
            return None

    def _ask(self, question: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        # below the retries of the store's own calls: they may last longer than a lock
        from aiohttp import ClientError as TransferError
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError
        from fsspec.asyn import sync
        from s3fs.errors import translate_boto_error

        from pipeline.object_client import explaining

        async def answer() -> _T:
            await self._store.set_session()
            client = await self._store.get_s3(self._bucket)
            return await asyncio.wait_for(question(client), REQUEST_S)

        with explaining(self._bucket, self._key):
            try:
                answered: _T = sync(self._store.loop, answer)
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
                known = _KNOWN.get(status)
                if known is not None and code != "NoSuchBucket":
                    failure: OSError = known(status, str(code))
                elif status >= 500 or code == "RequestTimeout":
                    failure = UnreachableError(errno.EIO, f"the object store answers {code}")
                else:
                    raise translate_boto_error(error) from error
            except TimeoutError:
                reason = f"the object store gives no answer in {REQUEST_S:g} s"
                failure = UnreachableError(errno.EIO, reason)
            except (HTTPClientError, ConnectionError, TransferError) as error:
                name = type(error).__name__
                failure = UnreachableError(errno.EIO, f"the object store gives no answer ({name})")
            else:
                return answered
        raise failure


def _not_implemented(status: int, code: str) -> OSError:
    return OSError(errno.ENOSYS, code)


# 409: two conditional writes at once, of which this is not the first
_KNOWN: dict[int, Callable[[int, str], OSError]] = {
    404: FileNotFoundError,
    409: FileExistsError,
    412: FileExistsError,
    501: _not_implemented,
}
