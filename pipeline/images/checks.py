"""What is asked of the bytes of an image before a pixel is decoded.

A decoder believes what it reads: `check_image` finds what would make it give wrong pixels without
a word, or work for minutes.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from pipeline.errors import ImageError

MAX_CERTAIN_PIXELS = 89_478_485
"""From here on a claim of pixels is not believed without bytes: Pillow's own limit, Photoshop's."""

# No codec of pictures packs more of them into a byte: that is what deflate makes of zeros.
_MOST_IN_A_BYTE = 1032

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

MAX_SCAN_PIXELS = 2**32
"""A JPEG may have `FREE_SCANS` scans, and more as long as scans x pixels stay below this."""

FREE_SCANS = 16
"""Encoders write at most about ten; each is a pass over all pixels, even an empty one."""

MAX_SLOW_PIXELS = 2**22
"""Most pixels for a decoder that is a loop in Python: about five seconds."""

HEADS = (
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


def check_claim(width: int, height: int, length: int, most: int) -> None:
    """Refuse an image that claims more pixels than are allowed, or than its bytes can hold."""
    pixels = width * height
    if pixels > most:
        raise ImageError(
            f"decompression bomb: Image size of {pixels} pixels, the limit is {most}; where it is "
            "a photograph, give --max-pixels"
        )
    if pixels > 2 * MAX_CERTAIN_PIXELS and pixels > _MOST_IN_A_BYTE * length:
        raise ImageError(f"decompression bomb: {pixels} pixels in a file of {length} bytes")


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
    for kind, start, stop in png_chunks(data):
        if kind[:1].isupper() and stop + 4 <= len(data):
            found = zlib.crc32(memoryview(data)[start - 4 : stop])
            if found != int.from_bytes(data[stop : stop + 4], "big"):
                # four letters, where nothing is damaged
                name = kind.decode("latin-1").encode("unicode_escape").decode()
                raise ImageError(f"damaged: the PNG chunk {name} does not match its checksum")
        if kind == b"IEND":
            return


def png_bytes(data: bytes) -> int:
    """Give how many bytes a PNG's pixels take, each row with the number of its filter."""
    start = next(start for kind, start, _ in png_chunks(data) if kind == b"IHDR")
    width, height, depth, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", data, start)
    bits = depth * _PNG_SAMPLES.get(colour, 1)
    total = 0
    for left, top, right, down in _PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def count_inflated(data: bytes) -> int:
    """Count the bytes that the pixels of a PNG are inflated to, without keeping them."""
    engine, total = zlib.decompressobj(), 0
    for kind, start, stop in png_chunks(data):
        rest = data[start:stop] if kind == b"IDAT" else b""
        while rest and not engine.eof:
            total += len(engine.decompress(rest, 2**20))
            rest = engine.unconsumed_tail
    return total + len(engine.flush()) if not engine.eof else total


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
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
