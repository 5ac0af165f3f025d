"""The MAT-file reader agrees with scipy's on whole files and never trusts damaged ones."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from pipeline.errors import ImageError
from pipeline.images.decoding import read_label, read_rgb
from pipeline.images.mat import read_array, read_shape


def mat(compress: bool = False, **arrays: object) -> bytes:
    stream: Any = io.BytesIO()
    savemat(stream, arrays, do_compression=compress)
    return bytes(stream.getvalue())


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f4", "f8"])
def test_agrees_with_scipy(kind: str, compress: bool) -> None:
    values = np.random.default_rng(0).integers(0, 100, (5, 3, 4)).astype(kind)
    data = mat(compress, a=np.eye(2), img=values, z="text")
    found = read_array(data, "img")
    file: Any = io.BytesIO(data)
    expected = loadmat(file)["img"]
    assert found.dtype == expected.dtype == values.dtype and read_shape(data, "img") == (5, 3, 4)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("compress", [False, True])
def test_values_small_enough_to_sit_in_their_tag(compress: bool) -> None:
    for values in ([[7]], [[1, 2, 3, 4]]):
        data = mat(compress, gt=np.array(values, dtype=np.uint8))
        np.testing.assert_array_equal(read_array(data, "gt"), values)


def test_agrees_with_scipy_on_real_tiles(shared: Path) -> None:
    files = sorted((shared / "datasets" / "potsdam").glob("*/*.mat"))
    assert len(files) == 8
    for file in files:
        data = file.read_bytes()
        name = "img" if file.parent.name == "imgs" else "gt"
        np.testing.assert_array_equal(read_array(data, name), loadmat(file)[name])


def test_reasons() -> None:
    tile = np.zeros((3, 2), dtype=np.uint8)
    cases = {
        "not a MATLAB file of version 5": b"x" * 200,
        "MATLAB 7.3": b"MATLAB 7.3 MAT-file".ljust(200),
        "without 'gt'; it holds: img": mat(img=tile),
        "not a real numeric array": mat(gt=np.array([[1j]])),
        "'gt' claims 0 x 2 pixels": mat(gt=tile[:0]),
    }
    for reason, data in cases.items():
        with pytest.raises(ImageError, match=reason):
            read_array(data, "gt")


def test_a_reason_is_short_whatever_the_arrays_are_called() -> None:
    data = mat(**{"a" * 31: np.zeros((2, 2), np.uint8)})
    many = data[:128] + data[128:] * 40
    with pytest.raises(ImageError, match="without 'gt'") as caught:
        read_array(many, "gt")
    assert len(str(caught.value)) < 300


def test_a_claim_beyond_reason_takes_no_memory() -> None:
    data = bytearray(mat(gt=np.zeros((300, 200), dtype=np.uint8)))
    at = data.index(struct.pack("<ii", 300, 200))
    data[at : at + 8] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    for read in (read_array, read_shape):
        with pytest.raises(ImageError, match="decompression bomb: 'gt' claims 2147483647 x"):
            read(bytes(data), "gt")


def test_a_wrong_type_of_values_is_refused() -> None:
    data = bytearray(mat(gt=np.zeros((30, 20), dtype=np.uint8)))
    at = data.index(struct.pack("<II", 2, 600))
    data[at : at + 4] = struct.pack("<I", 99)
    with pytest.raises(ImageError, match="unknown type 99"):
        read_array(bytes(data), "gt")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    compress=st.booleans(),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=6),
)
def test_damage_gives_a_reason_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    compress: bool,
    cut: float,
    changes: list[tuple[int, int]],
) -> None:
    tile = np.arange(120, dtype=np.uint8).reshape(6, 5, 4)
    data = bytearray(mat(compress, img=tile, gt=tile[:, :, 0]))
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path_factory.mktemp("damage") / "a.mat"
    path.write_bytes(data[: int(cut * len(data))])
    for read in (read_rgb, read_label):
        try:
            assert read(path).ndim >= 2
        except ImageError as error:
            assert "\n" not in str(error)
