"""Bands, ranges and pages: right values by hand; what is taken is written and read the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import AccessError, ImageError
from pipeline.images.decoding import probe_pages, read_rgb, read_sample
from pipeline.images.reading import (
    Reading,
    Taking,
    check_bands,
    check_range,
    find_top,
    is_alpha,
    measure,
    scale,
    spread,
)


@given(
    page=st.integers(1, 9),
    more=st.integers(0, 9),
    bands=st.sampled_from([(), (1,), (3, 2, 1)]),
    range_=st.sampled_from(["", "full", "0..2047", "-1.5..1e+06", "percentiles"]),
)
def test_a_taking_is_read_as_it_is_written(
    page: int, more: int, bands: tuple[int, ...], range_: str
) -> None:
    taking = Taking(page, page + more, bands, 8 if bands else 0, range_)
    assert Taking.parse(f"0a1b{taking}") == taking
    assert str(Taking()) == ""


def test_what_can_be_given() -> None:
    assert check_bands([3, 2, 1]) == check_bands("3, 2,1") == "3,2,1"
    assert check_bands(4) == "4"
    for wrong in ("0", "1,2", "1,2,3,4", "r,g,b", "", "-1"):
        with pytest.raises(ValueError, match="three for red, green, blue"):
            check_bands(wrong)
    for right in ("full", "percentiles", "0..2047", "-10.5..1e5"):
        assert check_range(right) == right
    for wrong in ("5..5", "9..1", "a..b", "0-2047", "", "half"):
        with pytest.raises(ValueError, match="full, percentiles, or the values"):
            check_range(wrong)


def column(*values: float, dtype: str = "u2") -> np.ndarray:
    return np.array(values, dtype)[:, None, None]


def test_a_given_range_becomes_0_to_255_and_what_lies_outside_is_clipped() -> None:
    found = scale(column(0, 1000, 1002, 1004, 2020, 65535), "1000..2020", 16)
    assert found.ravel().tolist() == [0, 0, 0, 1, 255, 255]
    found = scale(column(-100, 0, 155, dtype="i2"), "-100..155", 16)
    assert found.ravel().tolist() == [0, 100, 255]
    found = scale(column(0, 0.1, 0.4, dtype="f4"), "0..0.2", 32)
    assert found.ravel().tolist() == [0, 128, 255]
    with pytest.raises(ImageError, match="not finite"):
        scale(column(0, np.nan, dtype="f4"), "0..1", 32)
    bytes_ = column(3, 200, dtype="u1")
    assert scale(bytes_, "0..10", 8) is bytes_, "8 bit stay as they are"


def test_the_full_range() -> None:
    assert scale(column(0, 128, 129, 65535), "full", 16).ravel().tolist() == [0, 0, 1, 255]
    assert scale(column(0, 4095), "full", 12).ravel().tolist() == [0, 255]
    colour = np.array([[[255, 256, 65535]]], "u2")
    assert scale(colour, "full", 16).tolist() == [[[0, 1, 255]]]
    for values in (column(-1, dtype="i2"), column(70000, dtype="u4"), column(256, dtype="f4")):
        with pytest.raises(ImageError, match="or --range percentiles"):
            scale(values, "full", 32)
    with pytest.raises(ImageError, match="could be measured"):
        scale(column(1), "percentiles", 16)


def test_percentiles_are_those_of_all_images_together() -> None:
    dark, bright = np.arange(101)[:, None, None], 1000 + np.arange(101)[:, None, None]
    low, high = measure([dark, bright])
    wanted = np.percentile(np.concatenate([dark, bright]), [1, 99])
    assert (low, high) == pytest.approx(wanted)
    assert measure([column(1, np.nan, 3, dtype="f4")]) == pytest.approx((1.02, 2.98))
    assert spread(2, 2040.5) == "2..2040.5" and spread(7, 7) == "7..8"
    assert check_range(spread(-1e-7, 1e9)) == "-1e-07..1e+09"
    assert find_top(column(0.5, dtype="f4"), 32) == 1 and find_top(column(9), 12) == 4095


def test_alpha_is_mostly_opaque_where_it_is_not_transparent() -> None:
    assert is_alpha([np.array([0, 0, 0, 255])], 255) and is_alpha([np.array([255, 255, 128])], 255)
    assert not is_alpha([np.array([40, 40, 200])], 255) and not is_alpha([np.array([0, 1, 2])], 255)


def test_sixteen_bit_png_of_colour_keeps_its_depth_where_a_range_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = np.array([[[0, 1020, 2040], [255, 510, 765]]], "u2")
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(values))
    full = probe_pages(path, Reading())[0].digest
    assert full.endswith(":range=full")
    assert np.array_equal(read_rgb(path, full), values >> 8)
    narrow = probe_pages(path, Reading(range="0..2040"))[0].digest
    assert read_rgb(path, narrow).tolist() == [[[0, 128, 255], [32, 64, 96]]]
    assert read_sample(path, narrow)[0].tolist() == values.ravel().tolist()
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    with pytest.raises(AccessError, match="16-bit colour"):
        read_rgb(path, narrow)
    assert np.array_equal(read_rgb(path, full), values >> 8), "as it was read without the package"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_twelve_bits_in_sixteen(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 2047, 4095]], "u2")
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    digest = probe_pages(path, Reading(range="0..4095"))[0].digest
    assert read_rgb(path, digest)[0, :, 0].tolist() == [0, 127, 255]
    assert read_rgb(path)[0, :, 0].tolist() == [0, 8, 16], "without a range all 16 bits"


def test_bands_of_common_files(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3, 0], [4, 5, 6, 255]]], np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    plain = probe_pages(path, Reading())[0].digest
    assert ":" not in plain, "nothing but its bytes says how it is read"
    assert read_rgb(path, plain).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    for bands, of in (((3, 2, 1), 4), ((4,), 4), ((1, 2, 3), 4)):
        digest = probe_pages(path, Reading(bands=bands))[0].digest
        assert digest == f"{plain}:bands={','.join(map(str, bands))}/{of}"
        wanted = pixels[:, :, [band - 1 for band in bands]].repeat(3 // len(bands), axis=2)
        assert np.array_equal(read_rgb(path, digest), wanted)
    rgb = tmp_path / "rgb.png"
    Image.fromarray(pixels[:, :, :3].copy()).save(rgb)
    assert ":" not in probe_pages(rgb, Reading(bands=(1, 2, 3)))[0].digest
    with pytest.raises(ImageError, match="it has 3 bands, and no band 4"):
        probe_pages(rgb, Reading(bands=(4,)))


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_every_page(tmp_path: Path, suffix: str) -> None:
    shades = [np.full((4, 5 if suffix != "tif" else 5 + n, 3), 40 * n, np.uint8) for n in range(3)]
    frames = [Image.fromarray(each) for each in shades]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    first = probe_pages(path, Reading())
    assert [header.digest.partition(":")[2] for header in first] == ["page=1/3"]
    assert np.array_equal(read_rgb(path, first[0].digest), shades[0])
    pages = probe_pages(path, Reading(all_pages=True))
    for page, shade in zip(pages, shades, strict=True):
        assert (page.height, page.width) == shade.shape[:2]
        assert np.array_equal(read_rgb(path, page.digest), shade)


def test_the_further_pictures_of_a_jpeg_are_no_pages(tmp_path: Path) -> None:
    stream = io.BytesIO()
    first, second = (Image.new("RGB", (8, 8), shade) for shade in ("red", "blue"))
    first.save(stream, "MPO", save_all=True, append_images=[second])
    path = tmp_path / "a.jpg"
    path.write_bytes(stream.getvalue())
    (header,) = probe_pages(path, Reading(all_pages=True))
    assert ":" not in header.digest
