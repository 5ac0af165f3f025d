"""The run lengths in which Label Studio keeps what a brush has painted.

A stream of bits, of a picture of four channels (red, green, blue and how opaque a pixel is): 32
bits, how many values there are; 5, how long a value is; four times 4, how long a length may be.
Then blocks: one bit, whether it repeats one value; two, which of the four lengths follows; the
length, less one; and the value, or as many values as the length says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANNELS = 4
OPAQUE = 255
# Half opaque is inside: the tool smooths the rims of a brush.
_INSIDE = 128
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_HEAD_BITS = 32 + 5 + 4 * len(_LENGTH_BITS)


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask, bool [y, x], as bytes of the stream."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = CHANNELS * np.diff(starts, append=flat.size)
    values = np.where(flat[starts], OPAQUE, 0)
    most = 1 << _LENGTH_BITS[-1]
    pieces = -(-lengths // most)
    values = np.repeat(values, pieces)
    last = np.cumsum(pieces) - 1
    rest = lengths - (pieces - 1) * most
    lengths = np.full(len(values), most)
    lengths[last] = rest
    kinds = np.searchsorted([1 << bits for bits in _LENGTH_BITS], lengths)
    # a row of bits for each block; of a length only as many as its kind has
    sizes = np.array(_LENGTH_BITS)[kinds]
    rows = np.concatenate(
        [
            np.ones((len(values), 1), np.uint8),
            _to_bits(kinds, 2),
            _to_bits(lengths - 1, _LENGTH_BITS[-1]),
            _to_bits(values, _VALUE_BITS),
        ],
        axis=1,
    )
    kept = np.ones(rows.shape, bool)
    kept[:, 3 : 3 + _LENGTH_BITS[-1]] = np.arange(_LENGTH_BITS[-1]) >= (
        _LENGTH_BITS[-1] - sizes[:, None]
    )
    head = np.concatenate(
        [
            _to_bits(np.array([CHANNELS * flat.size]), 32)[0],
            _to_bits(np.array([_VALUE_BITS - 1]), 5)[0],
            *_to_bits(np.array(_LENGTH_BITS) - 1, 4),
        ]
    )
    return np.packbits(np.concatenate([head, rows[kept]])).tolist()


def decode_brush(stream: list[int], width: int, height: int) -> NDArray[np.bool_]:
    """Decode bytes of the stream as a mask, bool [y, x].

    Raises
    ------
    ValueError
        They are no such stream, or one of another size.
    """
    data = bytes(stream)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if len(bits) < _HEAD_BITS:
        raise ValueError("its run lengths are cut off")

    def read(at: int, count: int) -> int:
        if at + count > len(bits):
            raise ValueError("its run lengths are cut off")
        part = int.from_bytes(data[at >> 3 : (at + count + 7) >> 3])
        return (part >> (-(at + count) % 8)) & ((1 << count) - 1)

    total = read(0, 32)
    if total != CHANNELS * width * height:
        raise ValueError(f"its run lengths are of {total} values, not of {width} x {height} pixels")
    value_bits = read(32, 5) + 1
    if value_bits != _VALUE_BITS:
        raise ValueError(f"its run lengths hold values of {value_bits} bits, not of {_VALUE_BITS}")
    length_bits = [read(37 + 4 * n, 4) + 1 for n in range(len(_LENGTH_BITS))]
    values = np.zeros(total, np.uint8)
    at, done = _HEAD_BITS, 0
    while done < total:
        repeats, size = read(at, 1), length_bits[read(at + 1, 2)]
        end = done + read(at + 3, size) + 1
        at += 3 + size
        if end > total:
            raise ValueError("its run lengths go beyond the image")
        count = 1 if repeats else end - done
        if at + _VALUE_BITS * count > len(bits):
            raise ValueError("its run lengths are cut off")
        values[done:end] = np.packbits(bits[at : at + _VALUE_BITS * count])
        at += _VALUE_BITS * count
        done = end
    return values.reshape(height, width, CHANNELS)[..., CHANNELS - 1] >= _INSIDE


def _to_bits(numbers: NDArray[np.integer], count: int) -> NDArray[np.uint8]:
    """Write numbers in bits, the highest first: uint8 [number, bit]."""
    return ((numbers[:, None] >> np.arange(count - 1, -1, -1)) & 1).astype(np.uint8)
