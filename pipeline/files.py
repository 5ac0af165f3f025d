"""Files that are whole or absent: atomic writes, and content fingerprints."""

from __future__ import annotations

import errno
import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.errors import RunError

# what systems answer that cannot open or sync a folder
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Raises
    ------
    RunError
        The disk is full, read-only, or the folder may not be written.
    """
    # not tempfile's: its files are private, and a run directory is shared like any other output
    temporary = path.parent / f".{uuid4().hex}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {path} ({len(content)} bytes): {error.strerror or error}; "
            "free some space or choose a folder that may be written."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically (see :func:`write_bytes`)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically (see :func:`write_bytes`)."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """Read JSON, or None where the file is absent.

    Raises
    ------
    RunError
        The file is there but cannot be read, or holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); delete it to compute it again.") from error


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder survive a power loss, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def sync_file(path: Path) -> None:
    """Make a file that somebody else wrote survive a power loss."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)


def fingerprint(*parts: Any) -> str:
    """Return a 128-bit hex digest of JSON-able values; equal values give equal digests."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()
