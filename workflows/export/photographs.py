"""The photographs of an export: copied as they are, linked to, or written anew where they must."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from PIL import Image as PillowImage

from pipeline.errors import ImageError, RunError, StaleError
from pipeline.images.decoding import FORMATS, read_rgb
from pipeline.run.manifest import Image
from pipeline.storage.files import checksum
from pipeline.storage.places import require_local
from workflows.export.folder import Folder

JPEG = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ".jpg")
PNG = {".png": ".png"}
TIFF = dict.fromkeys((".tif", ".tiff"), ".tif")
COMMON = {**JPEG, **PNG, **TIFF, ".bmp": ".bmp", ".webp": ".webp"}
"""Suffix of a photograph -> the one it is exported with, for readers that take all of these."""

# Lossless, but for JPEG: there 4:4:4 at a quality at which no difference can be seen.
_ENCODINGS: dict[str, tuple[str, dict[str, object]]] = {
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".png": ("PNG", {}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
    ".webp": ("WEBP", {"lossless": True}),
}


def choose_suffix(path: str, accepted: Mapping[str, str]) -> str:
    """Choose the suffix that a photograph is exported with."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in accepted:
        return accepted[suffix]
    return ".png" if ".png" in accepted else next(iter(accepted.values()))


def check_linkable(root: Path) -> None:
    """Refuse links into an object store."""
    require_local(root, f"--images link: the photographs lie at {root}; take copy or none.")


def export_photograph(root: Path, image: Image, folder: Folder, name: str, images: str) -> None:
    """Bring one photograph along.

    A file that the format takes is copied bit by bit, or linked to. It is decoded and written anew
    where the format takes another kind of file, or where its EXIF data turn it around: label maps
    are upright, and not every reader turns photographs.
    """
    if images == "none" or folder.has(name):
        return
    path = root / image.path
    suffix = PurePosixPath(name).suffix
    same = COMMON.get(path.suffix.lower()) == suffix
    if images == "link":
        _require_same_status(path, image)
        if same and _is_upright(path):
            folder.link(name, path.absolute())
            return
        same = False
    if same:
        data = read_photograph(root, image)
        if _is_upright(io.BytesIO(data)):
            folder.write(name, data)
            return
    folder.write(name, encode_pixels(decode_photograph(root, image), suffix))


def read_photograph(root: Path, image: Image) -> bytes:
    """Read the file of a photograph."""
    path = root / image.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _stale(path, error.strerror or str(error)) from error
    if checksum(data) != image.digest:
        raise _stale(path, "it holds other bytes")
    return data


def load_photograph(root: Path, image: Image, suffix: str) -> bytes:
    """Give the content of the file that :func:`export_photograph` would copy."""
    if COMMON.get(PurePosixPath(image.path).suffix.lower()) == suffix:
        data = read_photograph(root, image)
        if _is_upright(io.BytesIO(data)):
            return data
    return encode_pixels(decode_photograph(root, image), suffix)


def decode_photograph(root: Path, image: Image) -> NDArray[np.uint8]:
    """Decode a photograph upright, uint8 [y, x, rgb]."""
    path = root / image.path
    try:
        return read_rgb(path, image.digest)
    except ImageError as error:
        raise _stale(path, str(error)) from error


def encode_pixels(pixels: NDArray[np.uint8], suffix: str) -> bytes:
    """Encode pixels, uint8 [y, x, rgb], as a file with a suffix."""
    name, options = _ENCODINGS[suffix]
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, format=name, **options)
    return buffer.getvalue()


def _is_upright(file: Path | io.BytesIO) -> bool:
    """Whether the EXIF data of an image leave it as it is stored."""
    try:
        with PillowImage.open(file, formats=FORMATS) as image:
            if image.format == "TIFF":
                return True  # Pillow turns it, and so do the readers that are built on it
            # the base class's method: that of PNG decodes the whole image
            found = PillowImage.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, LookupError, OSError, TypeError, struct.error):
        return True  # metadata that cannot be parsed count as absent
    return found == 1 or found not in range(2, 9)


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
