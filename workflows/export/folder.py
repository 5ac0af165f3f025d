"""The folder of an export: known by its record, written whole file by whole file, and resumed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from pipeline.errors import DamageError, RunError, UsageError
from pipeline.storage.files import (
    confine_writes,
    fingerprint,
    make_folder,
    read_json,
    require_inside,
    sync_folder,
    write_bytes,
    write_json,
)
from pipeline.storage.locks import hold_lock
from pipeline.storage.places import require_local

RECORD = "export.json"
_LOCK = ".export.lock"


class Folder:
    """An open export.

    Files are named relative to it, with ``/``. What is there is kept: it was written whole, by the
    same export, or the folder would have been refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return os.path.lexists(self.path / name)

    def write(self, name: str, content: bytes) -> None:
        """Write a file at once, unless it is there."""
        if not self.has(name):
            write_bytes(self.path / name, content)

    def write_labels(self, name: str, labels: NDArray[np.uint8], palette: bytes | None) -> None:
        """Write an array of numbers, [y, x], or of colours, [y, x, rgb], as a PNG."""
        if self.has(name):
            return
        image = PillowImage.fromarray(np.ascontiguousarray(labels))
        if palette is not None:
            image.putpalette(palette)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=False)
        self.write(name, buffer.getvalue())

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON, unless it is there."""
        if not self.has(name):
            write_json(self.path / name, value)

    def link(self, name: str, target: Path) -> None:
        """Make a symbolic link to an absolute path, unless there is one."""
        if self.has(name):
            return
        path = self.path / name
        require_inside(path)
        make_folder(path.parent)
        try:
            path.symlink_to(target)
        except OSError as error:
            raise RunError(
                f"cannot link {path} to {target}: {error.strerror or error}; take --images copy."
            ) from error

    @contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file that is written piece by piece, and is there only once it is whole."""
        path = self.path / name
        require_inside(path)
        make_folder(path.parent)
        temporary = path.parent / f".{path.name}.part"
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise RunError(
                f"cannot write {path}: {error.strerror or error}; "
                "free some space or choose a folder that may be written."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def open_folder(path: Path, record: dict[str, Any]) -> Iterator[Folder]:
    """Open the folder of an export, and keep other exports out of it."""
    check_local(path)
    # a run may get another name
    print_ = fingerprint({name: value for name, value in record.items() if name != "run"})
    _check_content(path, print_)
    with confine_writes(path), _lock(path):
        # another process may have been faster
        _check_content(path, print_)
        content = {**record, "fingerprint": print_}
        if not (path / RECORD).exists():
            write_json(path / RECORD, {**content, "finished": False})
        yield Folder(path)
        write_json(path / RECORD, {**content, "finished": True})


def check_local(path: Path) -> None:
    """Refuse an object store, and a file where a folder is meant."""
    require_local(path, f"--out {path}: an export needs a local folder; copy it there afterwards.")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; give a folder.")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    file = path / _LOCK
    with hold_lock(file, what=f"the export {path}", wait=False):
        yield


def _check_content(path: Path, print_: str) -> None:
    try:
        found = [p.name for p in path.iterdir()] if path.is_dir() else []
    except OSError as error:
        raise RunError(f"cannot list {path}: {error.strerror or error}.") from error
    foreign = [name for name in found if not name.startswith(_LOCK)]
    if not foreign:
        return
    try:
        record = read_json(path / RECORD)
    except DamageError as error:
        raise RunError(f"{path / RECORD} is damaged; give a new folder with --out.") from error
    if not isinstance(record, dict) or "fingerprint" not in record:
        raise RunError(f"{path} is not empty and holds no export; give a new folder with --out.")
    if record["fingerprint"] != print_:
        raise RunError(
            f"{path} holds another export (format {record.get('format')} of "
            f"{record.get('run')}, or of labels that have changed since); "
            "give a new folder with --out, or delete this one."
        )
