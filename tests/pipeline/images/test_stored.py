"""Files that are read piece by piece, and images that are decoded by parts: the same bytes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images import decoding, stored, tiff
from pipeline.images.decoding import probe_pages, read_rgb, read_sample
from pipeline.images.reading import Reading
from pipeline.run import frames
from pipeline.run.manifest import Image as Row


def draw(dtype: str, bands: int) -> np.ndarray:
    generator = np.random.default_rng(bands)
    values = generator.integers(0, 255, (53, 70, bands))
    return values.astype(dtype) / (255 if dtype[0] == "f" else 1)


def cut(patch: pytest.MonkeyPatch) -> None:
    """Let every image count as a large one, in a large file."""
    patch.setattr(decoding, "MAX_CERTAIN_PIXELS", 1)
    patch.setattr(stored, "LARGE_BYTES", 1)
    patch.setattr(tiff, "_STRIP", 999)


LAYOUTS = (
    {},
    {"tile": (16, 32)},
    {"rowsperstrip": 7},
    {"planarconfig": "separate", "tile": (16, 16)},
    {"planarconfig": "separate", "rowsperstrip": 5},
    {"planarconfig": "separate"},
)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_parts_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, bands: int
) -> None:
    values = draw(dtype, bands)
    path = tmp_path / "a.tif"
    alphas = ("unassalpha", "assocalpha", "unspecified") if bands == 4 else ("",)
    ways = itertools.product(LAYOUTS, (None, "zlib", "lzw", "jpeg"), "<>", alphas)
    seen = 0
    for layout, compression, order, alpha in ways:
        how = {**layout, "compression": compression, "byteorder": order}
        if compression == "jpeg" and (dtype != "u1" or bands == 4):
            continue
        if bands == 1 and "planarconfig" in layout:
            continue
        if alpha:
            how["extrasamples"] = [alpha]
            values[:, :, 3] = np.where(np.arange(70) < 9, 0, 255 if dtype == "u1" else 1)
            if dtype == "u2":
                values[:, :, 3] *= 65535
        planes = np.moveaxis(values, 2, 0) if "planarconfig" in layout else values
        shape = planes if bands > 1 else planes[:, :, 0]
        tifffile.imwrite(
            path,
            np.ascontiguousarray(shape).astype(dtype),
            photometric="rgb" if bands > 1 else "minisblack",
            **how,
        )
        for reading in (Reading(), Reading(range="10..60"), Reading(bands=(1,))):
            try:
                whole = probe_pages(path, reading)[0]
            except ImageError:
                continue
            expected = read_rgb(path, whole.digest)
            with monkeypatch.context() as patch:
                cut(patch)
                assert probe_pages(path, reading)[0] == whole, how
                assert np.array_equal(read_rgb(path, whole.digest), expected), (how, reading)
                if ":range" in whole.digest:
                    sample = read_sample(path, whole.digest)
                    patch.undo()
                    again = read_sample(path, whole.digest)
                    assert np.array_equal(sample[0], again[0]) and sample[1] == again[1]
            seen += 1
    assert seen > 20


def test_a_large_file_is_held_in_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, draw("u1", 3), photometric="rgb", tile=(16, 16))
    monkeypatch.setattr(stored, "LARGE_BYTES", 1)
    with stored.open_stored(path) as found:
        assert len(found.data) == 64 and found.length == path.stat().st_size
        assert found.digest == stored.Stored.of(path.read_bytes()).digest


def test_a_large_file_that_ends_early_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    for compression in (None, "zlib", "lzw"):
        tifffile.imwrite(
            path, draw("u1", 3), photometric="rgb", tile=(16, 16), compression=compression
        )
        path.write_bytes(path.read_bytes()[:6000])
        cut(monkeypatch)
        with pytest.raises(ImageError, match=r"truncated|damaged"):
            read_rgb(path)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 50),
    st.integers(1, 50),
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.booleans(),
)
def test_strips_resize_to_the_bytes_of_the_whole(
    width: int, height: int, wide: int, high: int, cuts: list[int], grey: bool
) -> None:
    shape = (height, width) if grey else (height, width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tops = [0]
    for rows in itertools.cycle(cuts):
        if tops[-1] >= height:
            break
        tops.append(min(tops[-1] + rows, height))
    strips = [pixels[top:bottom] for top, bottom in itertools.pairwise(tops)]
    row = Row(0, "a", "all", "a.png", None, width, height, 0, 0, "", "ok")

    def resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=None)

    picture = Image.fromarray(pixels)
    whole = np.asarray(resize(picture, (wide, high)))
    assert np.array_equal(frames._read_resized(strips, row, wide, high), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "MAX_CERTAIN_PIXELS", 0)
        found = frames._read_resized(strips, row, wide, high)
    rows_first = np.asarray(resize(resize(picture, (wide, height)), (wide, high)))
    assert np.array_equal(found, rows_first)
    # Pillow chooses the order itself from version 13 on: what is rounded in between is another
    assert abs(found.astype(int) - whole).max() <= 2
