"""Reading one numeric array from a MATLAB version 5 file, without trusting a single byte of it.

scipy.io.loadmat reads these files too, and is the oracle of this module's tests; but on damaged
bytes it brings the whole process down (a segmentation fault on an altered type tag), which no
error handling can turn into a reason, and it inflates whatever a few bytes claim.

Source: "MAT-File Format", The MathWorks, level 5: a 128-byte header, then data elements of an
8-byte tag (type, size) and a body, an array being an element of elements: flags, dimensions, name,
values. An element may be compressed by zlib. Values are stored column by column.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError

MAX_VALUES = 2**28
"""An array that claims more values is refused before any memory is taken for it."""

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
# What precedes an array's values (flags, dimensions, name) fits well within this many bytes.
_PREAMBLE = 4096
# Number of a type in the file -> numpy's name of it: how values are stored, and what they are.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_STORED |= {12: "i8", 13: "u8"}
_CLASSES = dict(enumerate(["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"], start=6))
_COMPLEX = 0x0800


@dataclass(frozen=True)
class _Variable:
    order: str
    name: str
    shape: tuple[int, ...]
    flags: int
    values_at: int
    body: memoryview
    compressed: bool


def read_shape(data: bytes, name: str) -> tuple[int, ...]:
    """Give the dimensions that a named array claims, without reading its values."""
    return _find(data, name).shape


def read_array(data: bytes, name: str) -> NDArray[Any]:
    """Read a named array."""
    variable = _find(data, name)
    count, order = math.prod(variable.shape), variable.order
    if variable.flags & 0xFF not in _CLASSES or variable.flags & _COMPLEX:
        raise ImageError(f"damaged: '{name}' is not a real numeric array")
    body = variable.body
    if variable.compressed:
        # Eight bytes are the widest value, and the tags before the values fit in the preamble.
        body = memoryview(_inflate(variable.body, 8 * count + _PREAMBLE))
    kind, start, size, _ = _element(body, variable.values_at, order)
    if kind not in _STORED:
        raise ImageError(f"damaged: '{name}' has values of the unknown type {kind}")
    stored = np.dtype(order + _STORED[kind])
    if size != count * stored.itemsize:
        raise ImageError(f"damaged: '{name}' has {size} bytes for {count} values")
    if start + size > len(body):
        raise ImageError("truncated: the file ends early")
    values = np.frombuffer(body, stored, count, start).reshape(variable.shape, order="F")
    kept = np.dtype(_CLASSES[variable.flags & 0xFF])
    if kept.kind in "iu" and not _fits(values, kept):
        # MATLAB stores values in a narrower type than the array's, never in a wider one
        raise ImageError(f"damaged: '{name}' has values that its type {kept} cannot hold")
    return values.astype(kept, order="C")


def _fits(values: NDArray[Any], kept: np.dtype[Any]) -> bool:
    if values.dtype.kind == "f":
        return False
    limits = np.iinfo(kept)
    return int(values.min()) >= limits.min and int(values.max()) <= limits.max


def _find(data: bytes, name: str) -> _Variable:
    if data.startswith(b"MATLAB 7.3"):
        raise ImageError("a MATLAB 7.3 file: save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None:
        raise ImageError("not a MATLAB file of version 5")
    seen = []
    at = _HEADER
    view = memoryview(data)
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        body = view[at + 8 : at + 8 + size]
        if kind in (_MATRIX, _COMPRESSED):
            variable = _variable(body, kind == _COMPRESSED, order)
            if variable.name == name:
                claim = " x ".join(map(str, variable.shape)) or "no"
                if math.prod(variable.shape) == 0 or len(variable.shape) < 2:
                    raise ImageError(f"'{name}' claims {claim} pixels")
                if math.prod(variable.shape) > MAX_VALUES:
                    raise ImageError(f"decompression bomb: '{name}' claims {claim} values")
                return variable
            seen.append(variable.name)
        at += 8 + size
    # names are as long as whoever wrote the file liked
    held = one_line(", ".join(seen)) or "nothing"
    raise ImageError(f"a .mat file without '{name}'; it holds: {held}")


def _variable(body: memoryview, compressed: bool, order: str) -> _Variable:
    if compressed:
        preamble = memoryview(_inflate(body, _PREAMBLE))
        if struct.unpack_from(order + "I", preamble)[0] != _MATRIX:
            raise ImageError("damaged: a compressed element that is not an array")
        at = 8
    else:
        preamble, at = body, 0
    _, start, _, at = _element(preamble, at, order)
    (flags,) = struct.unpack_from(order + "I", preamble, start)
    _, start, size, at = _element(preamble, at, order)
    shape = struct.unpack_from(f"{order}{size // 4}i", preamble, start)
    if len(shape) > 8 or min(shape, default=0) < 0:
        raise ImageError("damaged: an array of impossible dimensions")
    _, start, size, at = _element(preamble, at, order)
    name = bytes(preamble[start : start + size]).decode("ascii", errors="replace")
    # MATLAB's own hidden data has no name
    if name and not name.isidentifier():
        raise ImageError("damaged: an array whose name is none that MATLAB gives")
    return _Variable(order, name, shape, flags, at, body, compressed)


def _element(buffer: memoryview, at: int, order: str) -> tuple[int, int, int, int]:
    """Parse the tag at a position: type, where its body starts, its size, where the next tag is."""
    (word,) = struct.unpack_from(order + "I", buffer, at)
    if word >> 16:
        return word & 0xFFFF, at + 4, word >> 16, at + 8
    (size,) = struct.unpack_from(order + "I", buffer, at + 4)
    return word, at + 8, size, at + 8 + (size + 7) // 8 * 8


def _inflate(body: memoryview, limit: int) -> bytes:
    return zlib.decompressobj().decompress(body, limit)


def one_line(message: str) -> str:
    """Put a message of others onto one line, at most 200 characters of it."""
    return " ".join(message.split())[:200]
