"""What a case of bad input is, and the encoders that the cases are made with."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Outcome = Literal["right", "rejected", "either"]
WIDTH, HEIGHT = 48, 36


@dataclass(frozen=True)
class Expected:
    """What must come out of one photograph and its label map.

    Attributes
    ----------
    path
        As the manifest has it, below the case's folder.
    outcome
        ``either`` where a cut may spare all pixels: then they are right or the file is rejected.
    reason
        A piece of the reason (a regular expression).
    size
        Width and height, pixels.
    pixels, tolerance
        uint8 [y, x, rgb], and how far a lossy format may be from it.
    label
        Which label map is its own, below the case's folder; "" where that is not asked.
    ids, label_reason
        What the label map holds, or a piece of why it cannot be read.
    listed
        Whether the manifest has a row of it; where not, it is only read.
    by_path
        Whether it is rejected for its path, so that reading it alone says nothing.
    """

    path: str
    outcome: Outcome
    reason: str = ""
    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    tolerance: int = 0
    label: str | None = ""
    ids: np.ndarray | None = None
    label_reason: str = ""
    listed: bool = True
    by_path: bool = False


Write = Callable[[Path, Path], list[Expected]]


@dataclass(frozen=True)
class Case:
    """Files to write below a folder of photographs and one of label maps, and what must come out.

    ``write`` raises :class:`SkipError` where the system cannot hold such files.
    """

    kind: str
    name: str
    write: Write


class SkipError(Exception):
    """The case cannot be made here."""


def photograph_case(
    kind: str, name: str, data: bytes, outcome: Outcome, *, suffix: str = "", **expected: Any
) -> Case:
    """Make a case of one photograph of these bytes."""
    path = f"photo.{suffix or 'png'}"

    def write(photographs: Path, labels: Path) -> list[Expected]:
        (photographs / path).write_bytes(data)
        return [Expected(path, outcome, **expected)]

    return Case(kind, name, write)


def scene(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> np.ndarray:
    """Draw smooth colours with some noise: JPEG stays near them, and no two pixels agree."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = np.stack(
        [
            120 + 60 * np.sin(x / 9 + seed),
            110 + 70 * np.cos(y / 7 + 2 * seed),
            130 + 50 * np.sin((x + y) / 11),
        ],
        axis=2,
    )
    noise = np.random.default_rng(seed).normal(0, 3, waves.shape)
    return (waves + noise).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    """Encode an array or a Pillow image in a format by Pillow's name of it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Make a PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int = 8,
    colour: int = 0,
    before: bytes = b"",
) -> bytes:
    """Make a PNG of any claim; ``rows`` are the filtered rows before compression."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before
        + png_chunk(b"IDAT", zlib.compress(rows, 1))
        + png_chunk(b"IEND", b"")
    )


def tiff(
    tags: dict[int, tuple[int, tuple[int, ...]]], body: bytes, order: Literal["<", ">"] = "<"
) -> bytes:
    """Make a TIFF of one strip: tag -> (type 3 or 4, values); offset and length are filled in."""
    tags = {**tags, 273: (4, (8,)), 279: (4, (len(body),))}
    at = 8 + len(body) + len(body) % 2
    extra, entries = b"", b""
    start = at + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            field = struct.pack(order + "I", start + len(extra))
            extra += packed
        else:
            field = packed.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + field
    head = (b"II\x2a\0" if order == "<" else b"MM\0\x2a") + struct.pack(order + "I", at)
    table = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    return head + body + b"\0" * (len(body) % 2) + table + extra


def grey_tiff(
    values: np.ndarray, bits: int, *, photometric: int = 1, body: bytes | None = None
) -> bytes:
    """Make an uncompressed little-endian greyscale TIFF of any depth."""
    height, width = values.shape
    tags = {
        256: (3, (width,)),
        257: (3, (height,)),
        258: (3, (bits,)),
        259: (3, (1,)),
        262: (3, (photometric,)),
        277: (3, (1,)),
        278: (3, (height,)),
    }
    return tiff(tags, values.tobytes() if body is None else body)


def bmp(bits: int, greys: list[int], rows: bytes, width: int, height: int) -> bytes:
    """Make a BMP with a palette of greys; rows stand bottom up, filled up to four bytes."""
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in greys)
    at = 54 + len(palette)
    header = struct.pack("<IHHI", at + len(rows), 0, 0, at) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(rows), 0, 0, len(greys), 0
    )
    return b"BM" + header + palette + rows


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    """Repeat grey values in three channels."""
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def put(folder: Path, name: str, data: bytes) -> Path:
    """Write a file, with the folders above it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
