"""Reading photographs and label maps: each file gives a plain array, or one short reason why not.

An image is rejected for what its bytes are. A drive that does not answer and memory that is short
say nothing of it: they stop the work, which goes on where it was, and no image is lost silently.

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

Only the formats of `pipeline.images.formats` are tried, whatever the file is called: none starts
another program.
A decoder believes what it reads, so `check_image` finds, without decoding a pixel, what would make
it give wrong pixels without a word or work for minutes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import re
import shlex
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import AccessError, ImageError, MemoryShortError, RunError, StaleError
from pipeline.images.formats import FORMATS, HINT, load_extra, name_extra
from pipeline.images.mat import one_line, read_array, read_shape
from pipeline.storage.files import require_inside, write_bytes
from pipeline.storage.places import ObjectPath, ObjectStatus, find_files, is_remote

MAX_CERTAIN_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""An image that claims more is to blame itself where memory is short: Pillow warns from here on."""

# What Pillow's parsers are known to raise on damaged bytes.
_DAMAGE = (
    AssertionError,
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    EOFError,
    LookupError,
    TypeError,
    # of a JPEG XL
    RuntimeError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow's codecs say where they find no memory, or sizes that they cannot multiply.
_CODEC_SHORT = "out of memory"
# The most that a decoded pixel takes, and its conversion beside it.
_PIXEL_BYTES = 8
# A drive, a network share or the system itself that does not answer, for now or for ever.
_UNANSWERED = {
    getattr(errno, name, -1)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EREMOTEIO"),
        *("EMFILE", "ENFILE"),
    )
}


def require_answer(path: Path, error: OSError) -> None:
    """Stop the work for an error that is no fault of the file; return for any other."""
    if error.errno == errno.ENOMEM:
        raise memory_short(path) from error
    if error.errno in _UNANSWERED:
        raise RunError(
            f"cannot read {path}: {error.strerror or error}; see to the drive that it lies on, "
            "or take the file away, and run the same command again."
        ) from error


def memory_short(path: Path) -> MemoryShortError:
    """Say that an image of a usual size finds no memory."""
    return MemoryShortError(
        f"{path} cannot be read: memory is short; free some of it, or run the same command again "
        "with fewer --workers."
    )


@contextmanager
def _damage_as_reason(path: Path, data: bytes, variable: str) -> Iterator[None]:
    """Turn what a decoder raises on damaged bytes into one short reason."""
    try:
        yield
    except ImageError:
        raise
    except _BOMB as error:
        raise ImageError(f"decompression bomb: {one_line(str(error)).split(', ')[0]}") from error
    except MemoryError as error:
        if _count_claim(path, data, variable) <= MAX_CERTAIN_PIXELS:
            raise memory_short(path) from error
        raise AccessError("claims more pixels than memory holds") from error
    except _DAMAGE as error:
        message = one_line(str(error)) or type(error).__name__
        if isinstance(error, AssertionError):
            message = "its parts do not fit together"
        if message.startswith(_CODEC_SHORT) and _is_short(_count_claim(path, data, variable)):
            raise memory_short(path) from error
        if "truncated" in message.lower() or isinstance(error, EOFError):
            raise ImageError("truncated: the file ends early") from error
        if isinstance(error, struct.error):
            message = "the header ends early"
        raise ImageError(f"damaged: {message}") from error


def _count_claim(path: Path, data: bytes, variable: str) -> int:
    with suppress(ImageError, MemoryError, *_BOMB, *_DAMAGE):
        if _is_mat(path):
            return math.prod(read_shape(data, variable))
        with _open_image(data) as image:
            return image.width * image.height
    return 0


def _is_short(pixels: int) -> bool:
    """Whether memory is short for an image of a usual size, and not its sizes nonsense."""
    try:
        bytearray(_PIXEL_BYTES * pixels)
    except MemoryError:
        return pixels <= MAX_CERTAIN_PIXELS
    return False


Ids = NDArray[np.integer[Any]]
_STRIP_PIXELS = 2**22


def to_rgb(image: Image.Image, raw: str) -> NDArray[np.uint8]:
    """Convert a decoded image to red, green and blue."""
    grey = None
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if raw == "I;12":
            values = (values.astype(np.uint32) * 65535 + 2047) // 4095
        grey = _grey_from_integers(values)
    elif image.mode == "F":
        grey = _grey_from_floats(np.asarray(image))
    if grey is not None:
        return np.repeat(grey[:, :, None], 3, axis=2)
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    # In strips: each step is a copy, and a large photograph has no room for five of them.
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        pixels[top:bottom] = np.asarray(_opaque(strip))
    return pixels


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colours)
    return image if image.mode == "RGB" else image.convert("RGB")


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


def find_raw_mode(image: Image.Image) -> str:
    """Give Pillow's name of how the pixels are stored, before they are decoded; '' if unknown."""
    arguments = next((tile[3] for tile in getattr(image, "tile", ())), "")
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def find_label_spread(image: Image.Image) -> Callable[[Ids], Ids] | None:
    """Give what undoes the scaling to 0..255 or 0..65535 that Pillow applies to grey values.

    2 and 4-bit values are spread over 0..255, and those of a PGM from 0..its own maximum.
    """
    raw, _, suffix = find_raw_mode(image).partition(";")
    if "I" in suffix:
        raise ImageError("a label map in which 0 is stored as white: save its ids as a PNG")
    if image.mode == "L" and raw == "L" and suffix[:1] in ("2", "4"):
        step = 85 if suffix.startswith("2") else 17
        return lambda ids: ids // step
    if image.format == "PPM" and image.mode in ("L", "I"):
        tile = image.tile[0]  # type: ignore[attr-defined]
        top = 255 if image.mode == "L" else 65535
        highest = tile[3][1] if tile[0] in ("ppm", "ppm_plain") else top
        return lambda ids: ((ids.astype(np.int64) * highest + top // 2) // top).astype(ids.dtype)
    return None


JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

MAX_SCAN_PIXELS = 2**32
"""A JPEG may have `FREE_SCANS` scans, and more as long as scans x pixels stay below this."""

FREE_SCANS = 16
"""Encoders write at most about ten; each is a pass over all pixels, even an empty one."""

MAX_SLOW_PIXELS = 2**22
"""Most pixels for a decoder that is a loop in Python: about five seconds."""

_HEADS = (
    *(JPEG_MAGIC, PNG_MAGIC, b"RIFF", b"GIF8", b"BM"),
    *(b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b", b"MM\x2a\0", b"II\0\x2a"),
    *(b"P%c" % kind for kind in b"0123456fy"),
)
# Start-of-frame markers: all of C0..CF but the Huffman table, reserved and arithmetic ones.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_PROGRESSIVE = 0xC2
_JPEG_HUFFMAN = (0xC0, 0xC1, _JPEG_PROGRESSIVE)
# Within the coded pixels FF is followed by 00 or a restart marker; FF may be repeated as filling.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)

_PNG_SAMPLES = {2: 3, 4: 2, 6: 4}
# Left, top, step to the right and step down of the passes of an interlaced PNG.
_PNG_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """Give (width, height) as a JPEG, PNG or GIF header claims it; Pillow hides a claim of zero."""
    if data.startswith(PNG_MAGIC) and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if data.startswith(JPEG_MAGIC):
        for marker, at in _jpeg_segments(data):
            if marker in _JPEG_FRAMES and at + 9 <= len(data):
                height, width = struct.unpack_from(">HH", data, at + 5)
                return width, height
    return None


def check_image(image: Image.Image, data: bytes) -> None:
    """Refuse an opened, not yet decoded image that would come out wrong, or not for minutes."""
    pixels = image.width * image.height
    slow = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    if pixels > MAX_SLOW_PIXELS and slow:
        raise ImageError(
            f"{image.width} x {image.height} pixels in a variant of {image.format} that takes "
            "minutes to decode: save it as PNG"
        )
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(data, pixels)
    elif image.format == "PNG":
        _check_png(data)
    elif image.format == "BMP":
        # A grey palette is dropped by Pillow, which takes the indices for pixels of other depth.
        bits = int.from_bytes(data[28:30], "little")
        if (image.mode, bits) not in (("1", 1), ("L", 8)) and image.mode in ("1", "L"):
            raise ImageError(f"a BMP of {bits} bits with a palette of greys: save it as PNG")
    elif image.format == "TIFF":
        # Pillow turns 0 = white around for 1 to 8 bits alone.
        inverted = getattr(image, "tag_v2", {}).get(262) == 0
        if inverted and (image.mode == "F" or image.mode.startswith("I")):
            raise ImageError(
                "a TIFF of more than 8 bits in which 0 is white: save it with 0 as black"
            )


def _check_jpeg(data: bytes, pixels: int) -> None:
    scans = 0
    for marker, at in _jpeg_segments(data):
        scans += marker == _JPEG_SCAN
        # libjpeg fills up what is missing before an end marker, and says so to nobody
        if marker in _JPEG_HUFFMAN and _least_bytes(data, at, marker) > len(data):
            raise ImageError("truncated: the file ends early")
    if scans > max(FREE_SCANS, MAX_SCAN_PIXELS // pixels):
        raise ImageError(f"decompression bomb: a JPEG of {scans} scans")


def _least_bytes(data: bytes, at: int, marker: int) -> int:
    """Give the fewest bytes that the blocks of a frame can be coded in: one bit for a value."""
    height, width, components = struct.unpack_from(">HHB", data, at + 5)
    factors = [divmod(data[at + 11 + 3 * index], 16) for index in range(components)]
    across, down = (max(each) for each in zip(*factors, strict=True))
    if not (across and down):
        return 0
    blocks = sum(
        math.ceil(width * own_across / across / 8) * math.ceil(height * own_down / down / 8)
        for own_across, own_down in factors
    )
    # each block has a mean, and an end where it is not coded progressively
    return blocks * (1 if marker == _JPEG_PROGRESSIVE else 2) // 8


def _check_png(data: bytes) -> None:
    # Pillow checks no sum over the chunks of pixels, and zlib's own only where it reads to the end.
    for kind, start, stop in _png_chunks(data):
        if kind[:1].isupper() and stop + 4 <= len(data):
            found = zlib.crc32(memoryview(data)[start - 4 : stop])
            if found != int.from_bytes(data[stop : stop + 4], "big"):
                # four letters, where nothing is damaged
                name = kind.decode("latin-1").encode("unicode_escape").decode()
                raise ImageError(f"damaged: the PNG chunk {name} does not match its checksum")
        if kind == b"IEND":
            return


def _png_bytes(data: bytes) -> int:
    """Give how many bytes a PNG's pixels take, each row with the number of its filter."""
    start = next(start for kind, start, _ in _png_chunks(data) if kind == b"IHDR")
    width, height, depth, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", data, start)
    bits = depth * _PNG_SAMPLES.get(colour, 1)
    total = 0
    for left, top, right, down in _PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def _count_inflated(data: bytes) -> int:
    engine, total = zlib.decompressobj(), 0
    for kind, start, stop in _png_chunks(data):
        rest = data[start:stop] if kind == b"IDAT" else b""
        while rest and not engine.eof:
            total += len(engine.decompress(rest, 2**20))
            rest = engine.unconsumed_tail
    return total + len(engine.flush()) if not engine.eof else total


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and stop of every chunk's body; the last may reach beyond the data."""
    at = len(PNG_MAGIC)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of every segment up to the first image's end, and where it stands."""
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.start()
        if marker == _JPEG_END:
            return
        yield marker, at
        at += 2
        if marker not in (0x01, 0xD8) and at + 2 <= len(data):
            at += int.from_bytes(data[at : at + 2], "big")


# Remarks on metadata that nobody reads would stand between the lines of the progress.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Formats in which a colour of a label map comes out as it was painted.
_EXACT = ("PNG", "TIFF", "BMP", "PPM")

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
    """What is known of an image without decoding its pixels."""

    width: int
    height: int
    bytes: int
    modified_ns: int
    digest: str
    changed_ns: int = 0


def read_rgb(path: Path, digest: str = "") -> NDArray[np.uint8]:
    """Read a photograph upright, as 8-bit red, green, blue, by the rules of this module."""
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
            raw = find_raw_mode(image)
            return to_rgb(_decode(image, data), raw)


def probe_image(path: Path) -> ImageHeader:
    """Read a photograph's bytes once, hash them, and parse the header alone.

    A file cut short after its header passes here and fails in `read_rgb`, which decodes it.
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
    """Read a label map's raw ids, [y, x]: palette indices and grey values as stored.

    One of colours gives them as they are: uint8 [y, x, rgb].
    """
    data, _ = _read_bytes(path)
    with _damage_as_reason(path, data, "gt"):
        if _is_mat(path):
            return _mat_label(data)
        with _open_image(data) as image:
            if image.format in ("JPEG", "MPO"):
                raise ImageError("a label map in JPEG, which blurs class ids: save it as PNG")
            coloured = image.mode in ("RGB", "RGBA") and image.format in _EXACT
            if not (coloured or image.mode in ("1", "L", "P", "I") or image.mode[:4] == "I;16"):
                raise ImageError(
                    f"a label map of mode {image.mode}, not of class ids:"
                    " save one channel of ids as a greyscale or palette PNG"
                )
            if coloured and find_raw_mode(image).partition(";")[2].startswith("16"):
                raise ImageError("a label map of 16-bit colours: save it with 8 bits")
            spread = None if coloured else find_label_spread(image)
            ids = np.array(_decode(image, data))
    if coloured:
        if (ids[..., 3:] != 255).any():
            raise ImageError("a label map of colours with transparent pixels: save it without")
        return ids[..., :3]
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
        # The system's own files claim to be empty, and some of them wait for events when read.
        _check_size(status)
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT), "rb") as file:
            data = file.read(_HEAD_BYTES)
            # A film of gigabytes under a photograph's name is not read.
            if _is_mat(path) or data.startswith(_HEADS) or name_extra(data):
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


def _read_object(path: ObjectPath) -> tuple[bytes, ObjectStatus]:
    # a store that does not answer is no fault of the image, and stops the work instead
    try:
        data, status = path.store.get(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise AccessError("no such file") from error
    _check_size(status)
    assert data is not None
    return data, status


def _check_size(status: os.stat_result | ObjectStatus) -> None:
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(f"file of {status.st_size} bytes, the limit is {MAX_FILE_BYTES}")
    if status.st_size == 0:
        raise ImageError("empty file")


def _is_mat(path: Path) -> bool:
    return path.suffix.lower() == _MAT_SUFFIX


def _open_image(data: bytes) -> Image.Image:
    extra = name_extra(data)
    if extra and not load_extra(extra):
        raise ImageError(f"an image in {extra}: {HINT}")
    try:
        return Image.open(io.BytesIO(data), formats=(extra,) if extra else FORMATS)
    except UnidentifiedImageError as error:
        claim = claimed_size(data)
        if claim is not None and 0 in claim:
            raise ImageError(f"claims {claim[0]} x {claim[1]} pixels") from error
        if extra or data.startswith((JPEG_MAGIC, PNG_MAGIC)):
            raise ImageError("damaged: the header cannot be read") from error
        raise ImageError("not an image") from error


def _orientation(image: Image.Image, data: bytes) -> int:
    """Give the EXIF orientation (1..8) still to be applied, without decoding a pixel."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself, and gives the turned size on opening.
    if image.format == "PNG" and "exif" not in image.info:
        # wherever it stands: some writers put it behind the pixels
        for kind, start, stop in _png_chunks(data):
            if kind == b"eXIf":
                image.info["exif"] = data[start:stop]
                break
    try:
        # The base class's method: that of PNG decodes the whole image to find late metadata.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, LookupError, OSError, TypeError, struct.error):
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _decode(image: Image.Image, data: bytes) -> Image.Image:
    """Decode an opened image, upright, or say why it would come out wrong."""
    orientation = _orientation(image, data)
    check_image(image, data)
    image.load()
    # Pillow leaves the pixels of a PNG that ends early 0 without a word, and so are many whole
    # images: only counting tells
    last = (0, image.height - 1, *image.size)
    blank = image.format == "PNG" and not np.asarray(image.crop(last)).any()
    if blank and _count_inflated(data) < _png_bytes(data):
        raise ImageError("truncated: the pixels end early")
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


def encode_png(pixels: NDArray[np.uint8], palette: bytes | None = None) -> bytes:
    """Encode numbers, [y, x], with a palette or as grey values, or colours, [y, x, rgb]."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def repaint_png(content: bytes, palette: bytes) -> bytes:
    """Give an indexed PNG of :func:`encode_png` another palette; its pixels stay as they are."""
    start = content.find(b"PLTE", 0, 64)
    end = start + 4 + len(palette)
    if start < 0 or int.from_bytes(content[start - 4 : start]) != len(palette):
        raise ImageError(f"no indexed PNG with a palette of {len(palette)} bytes")
    chunk = b"PLTE" + palette
    return content[:start] + chunk + zlib.crc32(chunk).to_bytes(4) + content[end + 4 :]


def write_label(path: Path, labels: NDArray[np.uint8], palette: bytes) -> None:
    """Write a label map as an indexed PNG, atomically."""
    write_bytes(path, encode_png(labels, palette))


def remove_other_labels(folder: Path, keep: set[Path]) -> int:
    """Remove the PNGs below a folder that are not in ``keep``, and return how many there were.

    Label maps of an earlier evaluation (other splits, images that are gone) would otherwise be
    taken for those of this one.
    """
    require_inside(folder)
    others = [p for p in find_files(folder) if p.suffix == ".png" and p not in keep]
    for path in others:
        path.unlink()
    if is_remote(folder):
        return len(others)
    folders = (p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink())
    for path in sorted(folders, reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    return len(others)
