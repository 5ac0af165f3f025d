"""Reading photographs and label maps: each file gives a plain array, or one short reason why not.

The rules that decide what a pixel is:

- EXIF (or XMP) orientation is applied, so an array is upright as a viewer shows it. Metadata that
  cannot be parsed counts as absent, as it does in a viewer.
- Transparency is composited over white, which is what a page or a viewer shows; the colours hidden
  under transparent pixels are arbitrary and never reach the features.
- 16-bit greyscale is divided by 257 and rounded (65535 -> 255). 32-bit integers must hold 16-bit
  values and take the same rule. Floats are read as 0..1 when nothing exceeds 1, as 0..255
  otherwise. Values outside have no agreed scale and are refused. 16-bit colour keeps its high byte.
- CMYK is converted without its colour profile, LAB through the sRGB profile, as Pillow does.
- Of an animation or a multi-page file the first frame is read.
- A ``.mat`` file (the Potsdam benchmark) holds ``img`` (height x width x 3 or more channels; the
  first three are red, green, blue) or ``gt`` (height x width class ids).

Only the formats of `FORMATS` are tried, whatever the file is called: none starts another program.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import ImageError
from pipeline.mat import read_array, read_shape

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
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: all of C0..CF but the Huffman table, reserved and arithmetic ones.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

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

# What Pillow's parsers are known to raise on damaged bytes.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


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
    """

    width: int
    height: int
    bytes: int
    modified_ns: int
    digest: str


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a photograph upright, as 8-bit red, green, blue, by the rules of this module.

    Parameters
    ----------
    path : Path
        An image of any of `FORMATS`, or a ``.mat`` file with ``img``.

    Returns
    -------
    array of uint8, [y, x, rgb]
        sRGB values 0..255; writable and contiguous.

    Raises
    ------
    ImageError
        The file cannot be read; the message is one short reason, without the path.
    """
    data, _ = _read_bytes(path)
    with _damage_as_reason():
        if _is_mat(path):
            return _mat_rgb(data)
        with _open_image(data) as image:
            orientation = _orientation(image, data)
            image.load()
            return np.ascontiguousarray(_rgb(_upright(image, orientation)))


def probe_image(path: Path) -> ImageHeader:
    """Read a photograph's bytes once, hash them, and parse the header alone.

    A file cut short after its header passes here and fails in `read_rgb`, which decodes it.

    Raises
    ------
    ImageError
        As `read_rgb`.
    """
    data, status = _read_bytes(path)
    with _damage_as_reason():
        if _is_mat(path):
            height, width = read_shape(data, "img")[:2]
        else:
            with _open_image(data) as image:
                width, height = image.size
                if _orientation(image, data) in _TURNED:
                    width, height = height, width
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return ImageHeader(width, height, len(data), status.st_mtime_ns, digest)


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
    with _damage_as_reason():
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
            orientation = _orientation(image, data)
            image.load()
            ids = np.array(_upright(image, orientation))
    if ids.dtype == np.bool_:
        return ids.astype(np.uint8)
    return ids.astype(ids.dtype.newbyteorder("=")) // _png_grey_step(data)


def _read_bytes(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        # Opening a pipe or a device may block for ever, so the kind is asked first.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"file of {status.st_size} bytes, the limit is {MAX_FILE_BYTES}")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except (OSError, MemoryError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"cannot be opened: {_one_line(reason).lower()}") from error
    if not data:
        raise ImageError("empty file")
    return data, status


@contextmanager
def _damage_as_reason() -> Iterator[None]:
    """Turn what a decoder raises on damaged bytes into an `ImageError` with a short reason."""
    try:
        yield
    except ImageError:
        raise
    except _BOMB as error:
        raise ImageError(f"decompression bomb: {_one_line(str(error)).split(', ')[0]}") from error
    except MemoryError as error:
        raise ImageError("claims more pixels than memory holds") from error
    except _DAMAGE as error:
        message = _one_line(str(error)) or type(error).__name__
        if "truncated" in message.lower() or isinstance(error, EOFError):
            raise ImageError("truncated: the file ends early") from error
        if isinstance(error, struct.error):
            message = "the header ends early"
        raise ImageError(f"damaged: {message}") from error


def _one_line(message: str) -> str:
    return " ".join(message.split())[:200]


def _is_mat(path: Path) -> bool:
    return path.suffix.lower() == _MAT_SUFFIX


def _open_image(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        claim = _claimed_size(data)
        if claim is not None and 0 in claim:
            raise ImageError(f"claims {claim[0]} x {claim[1]} pixels") from error
        if data.startswith((_JPEG_MAGIC, _PNG_MAGIC)):
            raise ImageError("damaged: the header cannot be read") from error
        raise ImageError("not an image") from error


def _claimed_size(data: bytes) -> tuple[int, int] | None:
    """Give (width, height) as a JPEG, PNG or GIF header claims it; Pillow hides a claim of zero."""
    if data.startswith(_PNG_MAGIC) and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if data.startswith(_JPEG_MAGIC):
        return _jpeg_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + length
    return None


def _orientation(image: Image.Image, data: bytes) -> int:
    """Give the EXIF orientation (1..8) still to be applied, without decoding a pixel."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself, and gives the turned size on opening.
    if image.format == "PNG" and "exif" not in image.info:
        late = _png_exif(data)
        if late is not None:
            image.info["exif"] = late
    try:
        # The base class's method: that of PNG decodes the whole image to find late metadata.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, LookupError, OSError, TypeError, struct.error):
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _png_exif(data: bytes) -> bytes | None:
    """Find a PNG's EXIF chunk wherever it stands: some writers put it behind the pixels."""
    at = len(_PNG_MAGIC)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += 12 + length
    return None


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_rgb(_grey_from_integers(np.asarray(image)))
    if image.mode == "F":
        return _grey_rgb(_grey_from_floats(np.asarray(image)))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colours)
    return np.array(image.convert("RGB"))


def _grey_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _grey_from_integers(values: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ImageError(f"integer pixels {lowest}..{highest} are not 16-bit: no scale to 0..255")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey_from_floats(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    lowest, highest = float(values.min()), float(values.max())
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest >= 0 and highest <= 255):
        raise ImageError(f"float pixels {lowest:g}..{highest:g} are not 0..1 or 0..255")
    scale = 255.0 if highest <= 1 else 1.0
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def _png_grey_step(data: bytes) -> int:
    """Give the factor by which Pillow spread a 2 or 4-bit greyscale PNG's values over 0..255."""
    if not data.startswith(_PNG_MAGIC):
        return 1
    depth, colour_type = data[24], data[25]
    return {2: 85, 4: 17}.get(depth, 1) if colour_type == 0 else 1


def _mat_rgb(data: bytes) -> NDArray[np.uint8]:
    values = read_array(data, "img")
    if values.ndim != 3 or values.shape[2] < 3 or values.dtype != np.uint8:
        shape = " x ".join(map(str, values.shape))
        raise ImageError(f"'img' is {shape} of {values.dtype}, not height x width x 4 of uint8")
    return np.ascontiguousarray(values[:, :, :3])


def _mat_label(data: bytes) -> NDArray[np.integer[Any]]:
    values = read_array(data, "gt")
    whole = values.dtype.kind in "iu" or (
        values.dtype.kind == "f" and bool(np.all(values == np.rint(values)))
    )
    if values.ndim != 2 or not whole:
        shape = " x ".join(map(str, values.shape))
        raise ImageError(f"'gt' is {shape} of {values.dtype}, not height x width of class ids")
    return values.astype(np.int64) if values.dtype.kind == "f" else values
