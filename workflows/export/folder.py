"""The folder of an export: known by its record, written whole file by whole file, and resumed.

Photographs are copied into it as they are, linked to, or written anew where they must.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from pipeline.errors import DamageError, ImageError, RunError, StaleError, UsageError
from pipeline.images.decoding import encode_png, is_upright, read_rgb
from pipeline.images.reading import Taking
from pipeline.run.manifest import Image
from pipeline.storage.files import (
    checksum,
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
        if not self.has(name):
            self.write(name, encode_png(labels, palette))

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


def write_rows(stream: IO[bytes], name: str | None, rows: Iterable[Any]) -> None:
    """Write a list as JSON, row by row: it may be larger than memory. A member of a name has it."""
    stream.write(b"[" if name is None else f"{json.dumps(name)}: [".encode())
    for number, row in enumerate(rows):
        stream.write(b",\n" if number else b"\n")
        stream.write(json.dumps(row, ensure_ascii=False).encode())
    stream.write(b"\n]")


@contextmanager
def open_folder(path: Path, record: dict[str, Any]) -> Iterator[Folder]:
    """Open the folder of an export, and keep other exports out of it."""
    require_local(path, f"--out {path}: an export needs a local folder; copy it there afterwards.")
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; give a folder.")
    # a run may get another name
    print_ = fingerprint({name: value for name, value in record.items() if name != "run"})
    _check_content(path, print_)
    with confine_writes(path), hold_lock(path / _LOCK, what=f"the export {path}", wait=False):
        # another process may have been faster
        _check_content(path, print_)
        content = {**record, "fingerprint": print_}
        if not (path / RECORD).exists():
            write_json(path / RECORD, {**content, "finished": False})
        yield Folder(path)
        write_json(path / RECORD, {**content, "finished": True})


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


JPEG = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ".jpg")
PNG = {".png": ".png"}
TIFF = dict.fromkeys((".tif", ".tiff"), ".tif")
COMMON = {**JPEG, **PNG, **TIFF, ".bmp": ".bmp", ".webp": ".webp"}
"""Suffix of a photograph -> the one it is exported with, for readers that take all of these."""

# Lossless, but for JPEG: there 4:4:4 at a quality at which no difference can be seen.
_ENCODINGS: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".tif": {"compression": "tiff_lzw"},
    ".webp": {"lossless": True},
}


def choose_suffix(path: str, accepted: Mapping[str, str]) -> str:
    """Choose the suffix that a photograph is exported with."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in accepted:
        return accepted[suffix]
    return ".png" if ".png" in accepted else next(iter(accepted.values()))


def export_photograph(
    root: Path, image: Image, folder: Folder, name: str, images: str, *, as_it_is: bool = False
) -> None:
    """Bring one photograph along: copied, linked to, or (``none``) not at all.

    ``as_it_is`` means its file, whatever of it was read.
    """
    if images == "none" or folder.has(name):
        return
    path = root / image.path
    suffix = PurePosixPath(name).suffix
    if images == "link":
        _require_same_status(path, image)
        fits = _is_whole(image) and _takes(path, suffix)
        if as_it_is or (fits and is_upright(path.read_bytes())):
            folder.link(name, path.absolute())
            return
    content = _load_file(path, image) if as_it_is else load_photograph(root, image, suffix)
    folder.write(name, content)


def load_photograph(root: Path, image: Image, suffix: str) -> bytes:
    """Give the content of the file that a photograph is exported as.

    A file that the format takes is copied bit by bit. It is decoded and written anew where the
    format takes another kind of file, or where its EXIF data turn it around: label maps are
    upright, and not every reader turns photographs; and where not all of it was read, a page, some
    bands or values beyond 8 bit.
    """
    path = root / image.path
    if _is_whole(image) and _takes(path, suffix):
        data = _load_file(path, image)
        if is_upright(data):
            return data
    try:
        pixels = read_rgb(path, image.digest)
    except ImageError as error:
        raise _stale(path, str(error)) from error
    buffer = io.BytesIO()
    kind = PillowImage.registered_extensions()[suffix]
    PillowImage.fromarray(pixels).save(buffer, format=kind, **_ENCODINGS.get(suffix, {}))
    return buffer.getvalue()


def _load_file(path: Path, image: Image) -> bytes:
    """Read the file of a photograph, which must be the one that was labelled."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _stale(path, error.strerror or str(error)) from error
    if checksum(data) != image.digest.partition(":")[0]:
        raise _stale(path, "it holds other bytes")
    return data


def _is_whole(image: Image) -> bool:
    """Whether the file was read as any viewer reads it."""
    return replace(Taking.parse(image.digest), nodata="") == Taking()


def _takes(path: Path, suffix: str) -> bool:
    """Whether a photograph is of the kind of files that have a suffix."""
    return COMMON.get(path.suffix.lower()) == suffix


def _require_same_status(path: Path, image: Image) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise _stale(path, error.strerror or str(error)) from error
    if (status.st_size, status.st_mtime_ns) != (image.bytes, image.modified_ns):
        raise _stale(path, "its size or time is another")


def _stale(path: Path, reason: str) -> RunError:
    return StaleError(
        f"{path} is not the photograph that was labelled ({reason}); put it back, or run "
        "`primaps-pipe extract` and the stages after it again."
    )
