"""What is read of a TIFF is what tifffile with imagecodecs decodes, or the true reason why not."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from pipeline.errors import AccessError, ImageError
from pipeline.images import tiff
from pipeline.images.decoding import probe_pages, read_label, read_rgb
from pipeline.images.reading import Reading

SHAPE = 18, 22
# to 0..255; of what tifffile writes as JPEG of 12 bit, 12 bit
TOP = {"u1": 255, "u2": 65535, "u4": 65535, "i2": 65535, "f4": 1}


def draw(dtype: str, bands: int) -> np.ndarray:
    """Draw bands that no shift, swap or wrong byte order leaves the same; none looks like alpha."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    base = np.stack([(y * 11 + x * (k + 1) + 17 * k) % 251 for k in range(bands)], axis=2)
    if dtype == "f4":
        return (base / 251).astype("f4")
    return (base * {"u1": 1, "u2": 257, "u4": 257, "i2": 100}[dtype]).astype(dtype)


def write(path: Path, values: np.ndarray, **how: Any) -> np.ndarray | None:
    """Write a TIFF and decode it again; None where its combination cannot be written."""
    bands = values.shape[2]
    planar = how.pop("planar")
    stored = values if planar == "contig" else np.moveaxis(values, 2, 0)
    options = how if bands == 1 else {**how, "planarconfig": planar}
    try:
        tifffile.imwrite(path, stored[:, :, 0] if bands == 1 else stored, **options)
    except (ValueError, RuntimeError, KeyError):
        return None
    with tifffile.TiffFile(path) as file:
        found = file.pages.first.asarray(squeeze=False)
        return found[:, 0].transpose(1, 2, 0, 3).reshape(*SHAPE, bands) * (
            np.uint16(16) if file.pages.first.bitspersample == 12 else found.dtype.type(1)
        )


COMPRESSIONS = (
    *(None, "zlib", "lzw", "packbits", "zstd", "lzma", "jpeg", "webp", "lerc", "jpegxl"),
    "jpeg2000",
)


@pytest.mark.parametrize("dtype", TOP)
@pytest.mark.parametrize("bands", range(1, 9))
def test_the_matrix(tmp_path: Path, dtype: str, bands: int) -> None:
    values, tried = draw(dtype, bands), 0
    planars = ("contig", "separate")[: 1 if bands == 1 else 2]
    photometrics = ("minisblack", "rgb")[: 1 if bands < 3 else 2]
    for planar, compression, order, photometric, tile in product(
        planars, COMPRESSIONS, "<>", photometrics, (None, (16, 16))
    ):
        how = {"compression": compression, "byteorder": order, "photometric": photometric}
        path = tmp_path / "a.tif"
        if compression == "jpeg2000" and dtype not in ("u1", "u2"):
            continue  # the writer itself turns bytes around
        truth = write(path, values, planar=planar, tile=tile, **how)
        if truth is None:
            continue
        tried += 1
        count = 1 if bands < 3 else 3
        wanted = 255 * (truth[:, :, :count].astype(float) / TOP[dtype]).clip(0, 1)
        given = {"-": Reading(), "1,2,3": Reading(bands=(1, 2, 3)[:count])}
        for name, reading in given.items():
            try:
                header = probe_pages(path, reading)[0]
            except ImageError as error:
                assert "name three of them with --bands" in str(error), (how, planar, name)
                assert name == "-" and photometric == "minisblack" and bands > 1, (how, planar)
                continue
            assert (header.width, header.height) == SHAPE[::-1]
            found = read_rgb(path, header.digest).astype(float)
            worst = np.abs(found - wanted).max()
            # a JPEG's colours are converted by two libraries
            assert worst <= (4 if compression == "jpeg" else 1), (how, planar, tile, name, worst)
    assert tried >= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_planes(tmp_path: Path, orientation: int) -> None:
    values = draw("u2", 3)
    stored = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.transpose(1, 0, 2),
        6: values.transpose(1, 0, 2)[::-1],
        7: values[::-1, ::-1].transpose(1, 0, 2),
        8: values.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.ascontiguousarray(np.moveaxis(stored, 2, 0)),
        photometric="rgb",
        planarconfig="separate",
        extratags=[(274, "H", 1, orientation, True)],
    )
    header = probe_pages(path, Reading())[0]
    assert (header.width, header.height) == SHAPE[::-1]
    assert np.array_equal(read_rgb(path, header.digest), values >> 8)


def rgb_and(band: np.ndarray, dtype: str = "u1") -> np.ndarray:
    return np.dstack([draw(dtype, 3), band.astype(dtype)])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tag", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize(("dtype", "top"), [("u1", 255), ("u2", 65535)])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_near_infrared_is_no_transparency(
    tmp_path: Path, planar: str, tag: str, dtype: str, top: int, compression: str | None
) -> None:
    infrared = np.full(SHAPE, top // 6)
    infrared[9:] = top * 7 // 8
    for name, band, alpha in (
        ("infrared", infrared, False),
        ("opaque", np.full(SHAPE, top), True),
        ("cut out", np.where(np.arange(SHAPE[1]) < 9, 0, top) + np.zeros(SHAPE, int), True),
    ):
        values = rgb_and(band, dtype)
        if tag == "assocalpha" and alpha:
            values[:, :, :3][band == 0] = 0
        how = {"photometric": "rgb", "extrasamples": [tag], "compression": compression}
        path = tmp_path / f"{name}.tif"
        assert write(path, values, planar=planar, **how) is not None
        header = probe_pages(path, Reading())[0]
        found = read_rgb(path, header.digest)
        colours = values[:, :, :3] if dtype == "u1" else values[:, :, :3] >> 8
        if alpha:
            assert ":" not in header.digest.partition(":range")[0]
            assert np.array_equal(found, np.where(band[:, :, None] == 0, 255, colours)), name
        else:
            assert ":bands=1,2,3/4" in header.digest
            assert np.array_equal(found, colours), name
        # what is asked for is taken as it is
        header = probe_pages(path, Reading(bands=(4, 1, 2)))[0]
        chosen = values[:, :, [3, 0, 1]] if dtype == "u1" else values[:, :, [3, 0, 1]] >> 8
        assert np.array_equal(read_rgb(path, header.digest), chosen)


def test_previews_and_masks_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    big, small = draw("u1", 3), draw("u1", 3)[::2, ::2]
    with tifffile.TiffWriter(path) as writer:
        writer.write(small, photometric="rgb", subfiletype=1)
        writer.write(big, photometric="rgb", subfiletype=0)
        writer.write(small[:, :, 0] > 99, photometric="minisblack", subfiletype=4)
    (header,) = probe_pages(path, Reading(all_pages=True))
    assert (header.width, header.height) == SHAPE[::-1]
    assert np.array_equal(read_rgb(path, header.digest), big)
    assert np.array_equal(read_rgb(path), big)


def test_a_missing_codec_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    write(path, draw("u1", 3), planar="separate", photometric="rgb", compression="lzw")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    with pytest.raises(AccessError, match=r"by LZW.*primaps-pipe\[codecs\]"):
        read_rgb(path)


def test_what_has_no_agreed_colours_is_said(tmp_path: Path) -> None:
    for name, values, how, reason in (
        ("inverted", draw("u2", 3), {"photometric": "miniswhite"}, "in which 0 is white"),
        ("ink", draw("u2", 5), {"photometric": "separated"}, "save it as RGB"),
        ("complex", draw("u1", 1).astype("c8"), {"photometric": "minisblack"}, "save it as RGB"),
        ("eight", draw("u2", 8), {"photometric": "minisblack"}, "a TIFF of 8 bands of 16-bit int"),
    ):
        path = tmp_path / f"{name}.tif"
        assert write(path, values, planar="contig", **how) is not None
        with pytest.raises(ImageError, match=reason):
            probe_pages(path, Reading())
    with pytest.raises(ImageError, match="it has 8 bands, and no band 9"):
        probe_pages(tmp_path / "eight.tif", Reading(bands=(9,)))


def test_a_truncated_plane_is_no_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    for compression in (None, "zlib", "lzw", "packbits"):
        stream = io.BytesIO()
        tifffile.imwrite(
            stream,
            np.moveaxis(noise, 2, 0),
            photometric="rgb",
            planarconfig="separate",
            compression=compression,
        )
        path = tmp_path / "a.tif"
        path.write_bytes(stream.getvalue()[: len(stream.getvalue()) * 3 // 4])
        with pytest.raises(ImageError, match=r"truncated|damaged"):
            read_rgb(path)


def test_label_ids_in_a_rare_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, draw("i2", 1)[:, :, 0], byteorder=">", compression="zlib")
    with pytest.raises(ImageError, match="rare form of TIFF"):
        read_label(path)


def test_the_words_of_a_page() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, draw("f4", 1)[:, :, 0])
    stream.seek(0)
    assert str(tiff.open_pages(stream)[1]) == "a TIFF of 1 band of 32-bit floats"
