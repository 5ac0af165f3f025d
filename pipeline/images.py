"""Reading photographs and label maps: each file gives a plain array, or one short reason why not.

The rules that decide what a pixel is:

- EXIF (or XMP) orientation is applied, so an array is upright as a viewer shows it. Metadata that
  cannot be parsed counts as absent, as it does in a viewer.
- Transparency is composited over white, which is what a page or a viewer shows; the colours hidden
  under transparent pixels are arbitrary and never reach the features.
- 16-bit greyscale is divided by 257 and rounded (65535 -> 255). 32-bit integers must hold 16-bit
  values and take the same rule. Floats are read as 0..1 when nothing exceeds 1, as 0..255
  otherwise. Values outside have no agreed scale and are refused. 16-bit colour keeps its high byte.
  12-bit greyscale is scaled so that 4095 -> 255.
- CMYK is converted without its colour profile, LAB through the sRGB profile, as Pillow does.
- Of an animation or a multi-page file the first frame is read.
- A ``.mat`` file (the Potsdam benchmark) holds ``img`` (height x width x 3 or more channels; the
  first three are red, green, blue) or ``gt`` (height x width class ids).

Only the formats of `FORMATS` are tried, whatever the file is called: none starts another program.
What a decoder would get wrong, or take minutes for, is refused first (`pipeline.image_checks`).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import shlex
import stat
import struct
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import AccessError, ImageError, StaleError
from pipeline.image_checks import (
    JPEG_MAGIC,
    PNG_MAGIC,
    check_image,
    check_pixels,
    claimed_size,
    find_png_exif,
    has_known_head,
)
from pipeline.image_faults import damage_as_reason, memory_short, one_line, require_answer
from pipeline.mat import read_array, read_shape
from pipeline.pixels import find_label_spread, find_raw_mode, to_rgb
from pipeline.places import is_remote

if TYPE_CHECKING:
    from pipeline.objects import ObjectStatus

# Remarks on metadata that nobody reads would stand between the lines of the progress.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Pillow's names of the formats that are tried on a file's content."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Lower-case suffixes of a photograph in a folder; ``.mat`` belongs to Potsdam alone."""

MAX_FILE_BYTES = 2**31
"""A file above this is refused unread: the whole file is held in memory once."""

_MAT_SUFFIX = ".mat"
_HEAD_BYTES = 64
# A device that opens like a file must not make the process wait; elsewhere files never do.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = frozenset((5, 6, 7, 8))


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image without decoding its pixels.

    Attributes
    ----------
    width, height : int
        Size in pixels after the EXIF orientation is applied: that of `read_rgb`'s array.
    bytes : int
        Size of the file.
    modified_ns : int
        Time of the last change, nanoseconds since the epoch.
    digest : str
        BLAKE2b of the file's bytes, 16 bytes, hexadecimal.
    changed_ns : int
        Time of the last change of the bytes, the name or the rights, which no program can set; 0
        where the system keeps none.
    """

    width: int
    height: int
    bytes: int
    modified_ns: int
    digest: str
    changed_ns: int = 0


def read_rgb(path: Path, digest: str = "") -> NDArray[np.uint8]:
    """Read a photograph upright, as 8-bit red, green, blue, by the rules of this module.

    Parameters
    ----------
    path : Path
        An image of any of `FORMATS`, or a ``.mat`` file with ``img``.
    digest : str
        What `probe_image` said of the file's bytes; not asked for when empty.

    Returns
    -------
    array of uint8, [y, x, rgb]
        sRGB values 0..255; writable and contiguous.

    Raises
    ------
    ImageError
        The file cannot be read; the message is one short reason, without the path.
    StaleError
        Its bytes have another digest.
    RunError, MemoryShortError
        The machine is at fault and not the file (see `pipeline.image_faults`).
    """
    data, _ = _read_bytes(path)
    if digest and _digest(data) != digest:
        if is_remote(path):
            raise StaleError(
                f"{path} has changed since it was extracted; run `primaps-pipe extract` again."
            )
        raise StaleError(
            f"{path} holds other bytes than when it was extracted, under the same size and time; "
            "run `primaps-pipe extract` again, after "
            f"`touch {shlex.quote(str(path))}` if that finds nothing to do."
        )
    with _damage_as_reason(path, data, "img"):
        if _is_mat(path):
            return _mat_rgb(data)
        with _open_image(data) as image:
            orientation = _orientation(image, data)
            check_image(image, data)
            raw = find_raw_mode(image)
            image.load()
            check_pixels(image, data)
            return to_rgb(_upright(image, orientation), raw)


def probe_image(path: Path) -> ImageHeader:
    """Read a photograph's bytes once, hash them, and parse the header alone.

    A file cut short after its header passes here and fails in `read_rgb`, which decodes it.

    Raises
    ------
    ImageError
        As `read_rgb`.
    """
    data, status = _read_bytes(path)
    with _damage_as_reason(path, data, "img"):
        if _is_mat(path):
            height, width = read_shape(data, "img")[:2]
        else:
            with _open_image(data) as image:
                width, height = image.size
                if _orientation(image, data) in _TURNED:
                    width, height = height, width
    changed = getattr(status, "st_ctime_ns", 0)
    return ImageHeader(width, height, len(data), status.st_mtime_ns, _digest(data), changed)


def read_label(path: Path) -> NDArray[np.integer[Any]]:
    """Read a label map's raw ids: palette indices and grey values as stored, never colours.

    Parameters
    ----------
    path : Path
        A one-channel image (palette, 1 to 16-bit greyscale, 32-bit integer), or a ``.mat`` file
        with ``gt``.

    Returns
    -------
    array of an integer type, [y, x]
        Ids exactly as stored, upright like the photograph.

    Raises
    ------
    ImageError
        The file cannot be read, or does not hold ids: colours, floats, or a lossy format.
    """
    data, _ = _read_bytes(path)
    with _damage_as_reason(path, data, "gt"):
        if _is_mat(path):
            return _mat_label(data)
        with _open_image(data) as image:
            if image.format in ("JPEG", "MPO"):
                raise ImageError("a label map in JPEG, which blurs class ids: save it as PNG")
            if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
                raise ImageError(
                    f"a label map of mode {image.mode}, not of class ids:"
                    " save one channel of ids as a greyscale or palette PNG"
                )
            check_image(image, data)
            spread = find_label_spread(image)
            orientation = _orientation(image, data)
            image.load()
            check_pixels(image, data)
            ids = np.array(_upright(image, orientation))
    if ids.dtype == np.bool_:
        return ids.astype(np.uint8)
    ids = ids.astype(ids.dtype.newbyteorder("="))
    return ids if spread is None else spread(ids)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _read_bytes(path: Path) -> tuple[bytes, os.stat_result | ObjectStatus]:
    if is_remote(path):
        return _read_object(path)
    try:
        # Opening a pipe or a device may block for ever, so the kind is asked first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise AccessError(kind)
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"file of {status.st_size} bytes, the limit is {MAX_FILE_BYTES}")
        # The system's own files claim to be empty, and some of them wait for events when read.
        if status.st_size == 0:
            raise ImageError("empty file")
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT), "rb") as file:
            data = file.read(_HEAD_BYTES)
            # A film of gigabytes under a photograph's name is not read.
            if _is_mat(path) or has_known_head(data):
                file.seek(0)
                data = file.read()
            return data, os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise AccessError("no such file") from error
    except MemoryError as error:
        raise memory_short(path) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            require_answer(path, error)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AccessError(f"cannot be opened: {one_line(reason).lower()}") from error


def _read_object(path: Path) -> tuple[bytes, ObjectStatus]:
    from pipeline.objects import read_object

    # a store that does not answer is no fault of the image, and stops the work instead
    try:
        data, status = read_object(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise AccessError("no such file") from error
    if data is None:
        raise ImageError(f"file of {status.st_size} bytes, the limit is {MAX_FILE_BYTES}")
    if not data:
        raise ImageError("empty file")
    return data, status


def _damage_as_reason(path: Path, data: bytes, variable: str) -> AbstractContextManager[None]:
    return damage_as_reason(path, lambda: math.prod(_claimed_shape(path, data, variable)))


def _claimed_shape(path: Path, data: bytes, variable: str) -> tuple[int, ...]:
    if _is_mat(path):
        return read_shape(data, variable)
    with _open_image(data) as image:
        return image.size


def _is_mat(path: Path) -> bool:
    return path.suffix.lower() == _MAT_SUFFIX


def _open_image(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        claim = claimed_size(data)
        if claim is not None and 0 in claim:
            raise ImageError(f"claims {claim[0]} x {claim[1]} pixels") from error
        if data.startswith((JPEG_MAGIC, PNG_MAGIC)):
            raise ImageError("damaged: the header cannot be read") from error
        raise ImageError("not an image") from error


def _orientation(image: Image.Image, data: bytes) -> int:
    """Give the EXIF orientation (1..8) still to be applied, without decoding a pixel."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself, and gives the turned size on opening.
    if image.format == "PNG" and "exif" not in image.info:
        late = find_png_exif(data)
        if late is not None:
            image.info["exif"] = late
    try:
        # The base class's method: that of PNG decodes the whole image to find late metadata.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, LookupError, OSError, TypeError, struct.error):
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _mat_rgb(data: bytes) -> NDArray[np.uint8]:
    values = read_array(data, "img")
    if values.ndim != 3 or values.shape[2] < 3 or values.dtype != np.uint8:
        shape = " x ".join(map(str, values.shape))
        raise ImageError(f"'img' is {shape} of {values.dtype}, not height x width x 4 of uint8")
    return np.ascontiguousarray(values[:, :, :3])


def _mat_label(data: bytes) -> NDArray[np.integer[Any]]:
    values = read_array(data, "gt")
    whole = values.dtype.kind in "iu" or (
        # beyond 2**31 no id lies, and infinity is equal to itself rounded
        values.dtype.kind == "f"
        and bool(np.all((values == np.rint(values)) & (abs(values) < 2**31)))
    )
    if values.ndim != 2 or not whole:
        shape = " x ".join(map(str, values.shape))
        raise ImageError(f"'gt' is {shape} of {values.dtype}, not height x width of class ids")
    return values.astype(np.int64) if values.dtype.kind == "f" else values
