"""Label Studio's run lengths: streams by hand, every length of a run, and what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from workflows.brush import decode_brush, encode_brush


def pack(*fields: tuple[int, int]) -> list[int]:
    """Pack numbers of so many bits, and fill the last byte with zeros."""
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def head(values: int) -> list[tuple[int, int]]:
    return [(values, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]


def test_a_stream_by_hand() -> None:
    # one pixel outside, and two inside: 4 and 8 values
    stream = pack(*head(12), (1, 1), (0, 2), (3, 3), (0, 8), (1, 1), (0, 2), (7, 3), (255, 8))
    mask = np.array([[False, True, True]])
    assert encode_brush(mask) == stream
    np.testing.assert_array_equal(decode_brush(stream, 3, 1), mask)


def test_values_one_by_one_and_smooth_rims() -> None:
    values = [9, 9, 9, 127, 9, 9, 9, 128]
    stream = pack(*head(8), (0, 1), (0, 2), (7, 3), *((value, 8) for value in values))
    np.testing.assert_array_equal(decode_brush(stream, 2, 1), [[False, True]])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 16_383, 16_384, 16_385, 50_000])
@pytest.mark.parametrize("first", [False, True])
def test_runs_of_every_length(length: int, first: bool) -> None:
    mask = np.array([[first] * length + [not first] * 3])
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), length + 3, 1), mask)


def test_any_mask() -> None:
    generator = np.random.default_rng(1)
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = generator.random((37, 53)) < share
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), 53, 37), mask)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "cut off"),
        (pack(*head(12)), "cut off"),
        (pack(*head(12), (1, 1), (0, 2), (3, 3), (0, 8)), "cut off"),
        (pack(*head(12), (0, 1), (0, 2), (7, 3), (0, 8)), "cut off"),
        (pack(*head(12), (1, 1), (1, 2), (15, 4), (0, 8)), "beyond"),
        (pack(*head(16)), "of 16 values"),
        (pack((12, 32), (15, 5), (2, 4), (3, 4), (7, 4), (15, 4)), "16 bits"),
        ([300], "range"),
    ],
)
def test_what_is_no_stream(stream: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_brush(stream, 3, 1)
