"""Photographs of every mode give exact pixels, label maps their ids, broken files one reason.

Faults of the machine are told from those of an image: the one stops, the other rejects.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import shlex
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from scipy.io import savemat

from pipeline.errors import (
    AccessError,
    ImageError,
    MemoryShortError,
    PipelineError,
    RunError,
    StaleError,
)
from pipeline.images import decoding
from pipeline.images.decoding import (
    encode_png,
    is_whole_image,
    probe_image,
    read_label,
    read_rgb,
    remove_files,
)
from pipeline.run.frames import read_frame
from pipeline.run.manifest import Image as ListedImage
from pipeline.storage.files import write_bytes

COLOURS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [255, 255, 255], [0, 0, 0]]],
    dtype=np.uint8,
)
GREY = np.array([[0, 1, 127], [128, 254, 255]], dtype=np.uint8)
ORIENTATION = 0x0112


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=2)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg_bytes(size: tuple[int, int] = (64, 48)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()


def jpeg_claiming(width: int, height: int) -> bytes:
    data = jpeg_bytes()
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_colour_is_exact_in_lossless_formats(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(COLOURS), **options)
    found = read_rgb(path)
    assert found.dtype == np.uint8 and found.flags.writeable and found.flags.c_contiguous
    np.testing.assert_array_equal(found, COLOURS)


def test_jpeg_is_close(tmp_path: Path) -> None:
    flat = Image.new("RGB", (20, 10), (200, 100, 50))
    found = read_rgb(save(tmp_path / "a.JPG", flat, quality=95)).astype(int)
    assert found.shape == (10, 20, 3) and np.abs(found - [200, 100, 50]).max() <= 3


def test_content_counts_not_the_suffix(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(COLOURS), format="PNG")
    np.testing.assert_array_equal(read_rgb(path), COLOURS)


def test_greyscale_is_repeated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY))
    np.testing.assert_array_equal(read_rgb(path), grey_rgb(GREY))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False, True]])
    path = save(tmp_path / "a.png", Image.fromarray(bits))
    np.testing.assert_array_equal(read_rgb(path), grey_rgb(bits * np.uint8(255)))


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image = image.convert("P")
    image.putdata([0, 1, 2])
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
    return image


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", palette_image())
    np.testing.assert_array_equal(read_rgb(path), [[[255, 0, 0], [0, 255, 0], [9, 8, 7]]])


def test_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", palette_image(), transparency=1)
    np.testing.assert_array_equal(read_rgb(path), [[[255, 0, 0], [255, 255, 255], [9, 8, 7]]])


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], dtype=np.uint8)
    found = read_rgb(save(tmp_path / "a.png", Image.fromarray(pixels)))
    # 51 of 255 is a fifth: 0.2 * (0, 100, 200) + 0.8 * 255.
    np.testing.assert_array_equal(found, [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]])


def test_grey_alpha_and_transparent_colour_are_composited_too(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[[40, 255], [40, 0]]], dtype=np.uint8), mode=None)
    assert grey.mode == "LA"
    np.testing.assert_array_equal(
        read_rgb(save(tmp_path / "la.png", grey)), grey_rgb(np.array([[40, 255]]))
    )
    path = save(tmp_path / "key.png", Image.fromarray(COLOURS), transparency=(10, 20, 30))
    expected = COLOURS.copy()
    expected[1, 0] = 255
    np.testing.assert_array_equal(read_rgb(path), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_divided_by_257_and_rounded(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    found = read_rgb(save(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    np.testing.assert_array_equal(found, grey_rgb(np.array([[0, 0, 1, 1, 128, 255]])))


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x01\x01\xff\xff")
    found = read_rgb(save(tmp_path / "a.tif", image))
    np.testing.assert_array_equal(found, grey_rgb(np.array([[1, 255]])))


def test_wide_integers_must_hold_sixteen_bits(tmp_path: Path) -> None:
    fits = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32))
    found = read_rgb(save(tmp_path / "fits.tif", fits))
    np.testing.assert_array_equal(found, grey_rgb(np.array([[0, 1, 255]])))
    wide = Image.fromarray(np.array([[-1, 70000]], dtype=np.int32))
    with pytest.raises(ImageError, match=r"-1\.\.70000 are not 16-bit"):
        read_rgb(save(tmp_path / "wide.tif", wide))


def test_floats_are_unit_or_byte_valued(tmp_path: Path) -> None:
    unit = Image.fromarray(np.array([[0, 0.2, 1]], dtype=np.float32))
    found = read_rgb(save(tmp_path / "unit.tif", unit))
    np.testing.assert_array_equal(found, grey_rgb(np.array([[0, 51, 255]])))
    byte = Image.fromarray(np.array([[0, 1.6, 255]], dtype=np.float32))
    found = read_rgb(save(tmp_path / "byte.tif", byte))
    np.testing.assert_array_equal(found, grey_rgb(np.array([[0, 2, 255]])))
    for name, value in {"nan": np.nan, "inf": np.inf, "big": 256.0, "low": -0.1}.items():
        odd = Image.fromarray(np.array([[0, value]], dtype=np.float32))
        with pytest.raises(ImageError, match="float pixels"):
            read_rgb(save(tmp_path / f"{name}.tif", odd))


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_is_not_inverted(tmp_path: Path, suffix: str) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = read_rgb(save(tmp_path / f"a.{suffix}", ink)).astype(int)
    assert np.abs(found - [255, 0, 0]).max() <= 3


def test_lab_goes_through_its_profile(tmp_path: Path) -> None:
    grey = Image.new("LAB", (4, 4), (128, 128, 128))
    found = read_rgb(save(tmp_path / "a.tif", grey)).astype(int)
    # L* = 128 / 255 * 100 = 50.2 with a* = b* = 0 is the sRGB grey 119 to 120.
    assert np.abs(found - 120).max() <= 2


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    red, blue = (Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", red, save_all=True, append_images=[blue], **options)
    found = read_rgb(path)
    np.testing.assert_array_equal(found, np.broadcast_to(np.array([255, 0, 0]), (3, 4, 3)))
    assert (probe_image(path).width, probe_image(path).height) == (4, 3)


LOSSLESS: dict[str, dict[str, Any]] = {
    "webp": {"lossless": True},
    "jpg": {"quality": 100, "subsampling": 0},
    "tiff": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "tiff", "jpg"])
def test_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = COLOURS
    # Each undoes one orientation, by EXIF's definition of where row 0 and column 0 lie.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    # Blocks of eight survive JPEG's transform almost unchanged.
    tile = np.ascontiguousarray(stored.repeat(8, axis=0).repeat(8, axis=1))
    options: dict[str, Any] = {"exif": oriented(orientation)} | LOSSLESS.get(suffix, {})
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(tile), **options)
    found = read_rgb(path)
    expected = upright.repeat(8, axis=0).repeat(8, axis=1)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (3 if suffix == "jpg" else 0)
    header = probe_image(path)
    assert (header.height, header.width) == found.shape[:2]


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))
    data = path.read_bytes()
    end = data.index(b"IEND") - 4
    late = chunk(b"eXIf", oriented(6).tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(data[:end] + late + data[end:])
    found = read_rgb(path)
    np.testing.assert_array_equal(found, COLOURS[::-1].transpose(1, 0, 2))
    header = probe_image(path)
    assert (header.height, header.width) == found.shape[:2]


def test_orientation_agrees_with_pillow(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        path = save(tmp_path / "a.png", Image.fromarray(COLOURS), exif=oriented(orientation))
        with Image.open(path) as image:
            np.testing.assert_array_equal(
                read_rgb(path), np.asarray(ImageOps.exif_transpose(image))
            )


def test_unreadable_metadata_counts_as_none(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(COLOURS), exif=b"Exif\0\0nonsense")
    assert read_rgb(path).shape == COLOURS.shape
    assert probe_image(path).width == 3


def test_header(tmp_path: Path) -> None:
    path = save(tmp_path / "ä b\n.png", Image.fromarray(COLOURS))
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    header = probe_image(path)
    data = path.read_bytes()
    assert (header.width, header.height, header.bytes) == (3, 2, len(data))
    assert header.modified_ns == path.stat().st_mtime_ns
    assert header.digest == hashlib.blake2b(data, digest_size=16).hexdigest()


def test_mat_image_gives_its_first_three_channels(tmp_path: Path) -> None:
    tile = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "0_0.mat"
    savemat(path, {"img": tile})
    np.testing.assert_array_equal(read_rgb(path), tile[:, :, :3])
    assert (probe_image(path).width, probe_image(path).height) == (3, 2)


BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"this is no photograph\n" * 9, "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "png of 0 x 0": (png_claiming(0, 0), "claims 0 x 0 pixels"),
    "jpeg of 0 x 0": (jpeg_claiming(0, 0), "claims 0 x 0 pixels"),
    "jpeg of 64 x 0": (jpeg_claiming(64, 0), "claims 64 x 0 pixels"),
    "gif of 0 x 5": (b"GIF89a\0\0\5\0\0\0\0;", "claims 0 x 5 pixels"),
    "bomb": (png_claiming(60000, 60000), "decompression bomb: Image size"),
    "jpeg cut in its header": (jpeg_bytes()[:30], "truncated: the file ends early"),
    "png cut in its header": (png_claiming(3, 2)[:12], "damaged: the header cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_headers_have_a_reason(tmp_path: Path, kind: str) -> None:
    data, reason = BROKEN[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for read in (probe_image, read_rgb, read_label):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert str(caught.value).startswith(reason)
        assert "\n" not in str(caught.value) and str(path) not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "bmp", "webp", "ppm"])
def test_truncated_pixels_pass_the_probe_and_fail_the_read(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    # A GIF's colour table alone takes 768 bytes; Pillow writes a TIFF's header at its end.
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(ImageError, match=r"truncated|damaged|not an image"):
        read_rgb(path)
    if suffix in ("jpg", "png", "gif", "bmp", "ppm"):
        assert (probe_image(path).width, probe_image(path).height) == (64, 48)


def test_truncated_jpeg_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes()[:1500])
    with pytest.raises(ImageError, match=r"^truncated: the file ends early$"):
        read_rgb(path)


def test_what_is_no_file_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = {
        "missing.jpg": "no such file",
        "folder.jpg": "not a file",
        "dangling.jpg": "no such file",
        "circle.jpg": "cannot be opened",
        "pipe.jpg": "not a regular file",
        "nul\0.jpg": "cannot be opened",
        "n" * 300 + ".jpg": "cannot be opened",
    }
    for name, reason in reasons.items():
        for read in (probe_image, read_rgb, read_label):
            with pytest.raises(ImageError, match=reason):
                read(tmp_path / name)


def seeds() -> list[bytes]:
    found = [jpeg_bytes((16, 16))]
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    for kind in ("PNG", "GIF", "BMP", "WEBP", "PPM"):
        stream = io.BytesIO()
        image.save(stream, kind)
        found.append(stream.getvalue())
    return found


SEEDS = seeds()


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.sampled_from(SEEDS),
    cut=st.floats(0.01, 1),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
)
def test_damage_never_raises_anything_else(
    tmp_path: Path, seed: bytes, cut: float, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path / "a.jpg"
    path.write_bytes(data[: max(1, int(cut * len(data)))])
    sizes = set()
    for read in (probe_image, read_rgb, read_label):
        try:
            found = read(path)
        except ImageError:
            continue
        shape = found.shape[:2] if isinstance(found, np.ndarray) else (found.height, found.width)
        sizes.add(shape)
    assert len(sizes) <= 1


def test_label_palette_is_kept_as_indices(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", palette_image())
    np.testing.assert_array_equal(read_label(path), [[0, 1, 2]])


def test_label_of_one_channel(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_label(save(tmp_path / "a.png", Image.fromarray(GREY))), GREY)
    wide = np.array([[0, 300, 65535]], dtype=np.uint16)
    found = read_label(save(tmp_path / "b.png", Image.fromarray(wide)))
    np.testing.assert_array_equal(found, wide)
    assert found.dtype.isnative and found.dtype.kind in "iu"
    bits = np.array([[True, False]])
    np.testing.assert_array_equal(
        read_label(save(tmp_path / "c.png", Image.fromarray(bits))), [[1, 0]]
    )


@pytest.mark.parametrize(("depth", "row"), [(2, 0b00_01_10_11), (4, 0x3F)])
def test_label_of_few_bits_is_not_spread_over_the_byte(
    tmp_path: Path, depth: int, row: int
) -> None:
    width = 8 // depth
    header = struct.pack(">IIBBBBB", width, 1, depth, 0, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes([0, row])))
        + chunk(b"IEND", b"")
    )
    expected = [(row >> shift) & (2**depth - 1) for shift in range(8 - depth, -1, -depth)]
    np.testing.assert_array_equal(read_label(path), [expected])


def test_label_of_colours_or_in_jpeg_is_refused(tmp_path: Path) -> None:
    for mode, kind in (("LA", "png"), ("RGB", "webp")):
        path = save(tmp_path / f"{mode}.{kind}", Image.new(mode, (3, 2)))
        with pytest.raises(ImageError, match=f"a label map of mode {mode}, not of class ids"):
            read_label(path)
    with pytest.raises(ImageError, match="JPEG"):
        read_label(save(tmp_path / "a.jpg", Image.fromarray(GREY)))
    floats = Image.fromarray(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(ImageError, match="mode F"):
        read_label(save(tmp_path / "a.tif", floats))


def test_label_in_mat(tmp_path: Path) -> None:
    path = tmp_path / "0_0.mat"
    for ids in (np.array([[0, 5], [255, 2]], dtype=np.uint8), np.array([[-1.0, 3.0]])):
        savemat(path, {"gt": ids})
        found = read_label(path)
        np.testing.assert_array_equal(found, ids)
        assert found.dtype.kind in "iu"
    savemat(path, {"gt": np.array([[0.5]])})
    with pytest.raises(ImageError, match="not height x width of class ids"):
        read_label(path)
    with pytest.raises(ImageError, match="without 'img'; it holds: gt"):
        read_rgb(path)


def test_a_digest_that_differs_says_what_to_run(tmp_path: Path) -> None:
    path = save(tmp_path / "it's.png", Image.fromarray(COLOURS))
    digest = probe_image(path).digest
    np.testing.assert_array_equal(read_rgb(path, digest), COLOURS)
    save(path, Image.fromarray(255 - COLOURS))
    with pytest.raises(
        StaleError, match=r"other bytes .* run `primaps-pipe extract` again"
    ) as found:
        read_rgb(path, digest)
    assert f"`touch {shlex.quote(str(path))}`" in str(found.value)


def test_what_cannot_be_had_is_told_from_what_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for name, kind in (("missing.png", AccessError), ("empty.png", ImageError)):
        with pytest.raises(ImageError) as found:
            probe_image(tmp_path / name)
        assert type(found.value) is kind


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))
    data = bytearray(path.read_bytes())
    data[data.index(b"IEND") - 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="the PNG chunk IDAT does not match its checksum"):
        read_rgb(path)


def test_a_jpeg_of_too_few_bytes_for_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    for size, right in (((640, 480), True), ((2500, 2000), False)):
        flat = Image.new("RGB", size)
        data = save(path, flat, quality=10).read_bytes()
        assert read_rgb(path).shape == (size[1], size[0], 3)
        scan = data.index(b"\xff\xda")
        path.write_bytes(data[: scan + 40] + b"\xff\xd9")  # libjpeg fills up in silence
        if not right:
            with pytest.raises(ImageError, match="truncated"):
                read_rgb(path)


@pytest.mark.parametrize("endless", [False, True])
def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path, endless: bool) -> None:
    path = save(tmp_path / "a.jpg", Image.new("L", (3000, 3000)), progressive=True)
    data = path.read_bytes()
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:-2] + data[last:-2] * (600 if endless else 9) + data[-2:])
    if endless:
        with pytest.raises(ImageError, match=r"a JPEG of 60. scans"):
            read_rgb(path)
    else:
        assert read_rgb(path).shape == (3000, 3000, 3)


def test_large_images_are_converted_in_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (13, 7, 4), dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(colours))
    whole = read_rgb(path)
    monkeypatch.setattr("pipeline.images.decoding._STRIP_PIXELS", 20)
    np.testing.assert_array_equal(read_rgb(path), whole)
    path = save(tmp_path / "b.png", palette_image().resize((7, 13)), transparency=1)
    strips = read_rgb(path)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_rgb(path), strips)


@pytest.mark.parametrize("top", [3, 100, 254, 255, 1000, 65535])
def test_label_of_a_pgm_is_as_stored(tmp_path: Path, top: int) -> None:
    ids = np.array([[0, 1, 2, 3]])
    kind = ">u2" if top > 255 else "u1"
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 4 1 %d\n" % top + ids.astype(kind).tobytes())
    np.testing.assert_array_equal(read_label(path), ids)


def test_label_in_mat_of_what_is_no_number(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf, 1e300):
        savemat(tmp_path / "a.mat", {"gt": np.array([[0.0, value]])})
        with pytest.raises(ImageError, match="not height x width of class ids"):
            read_label(tmp_path / "a.mat")


def write_label(path: Path, labels: np.ndarray, palette: bytes) -> None:
    write_bytes(path, encode_png(labels, palette))


PALETTE = bytes((37 * i + c) % 256 for i in range(256) for c in range(3))


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 255, 255, 254], [5, 5, 5, 5]])
def test_ids_and_colours_are_read_back(tmp_path: Path, ids: list[int]) -> None:
    labels = np.array(ids, np.uint8).reshape(2, 2)
    path = tmp_path / "val" / "a.b" / "é.png"
    write_label(path, labels, PALETTE)
    np.testing.assert_array_equal(read_label(path), labels, strict=True)
    with Image.open(path) as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB"))
    table = np.frombuffer(PALETTE, np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(colours, table[labels])
    assert [p.name for p in path.parent.iterdir()] == ["é.png"]


def test_a_view_with_strides_is_written_as_it_reads(tmp_path: Path) -> None:
    labels = np.arange(40, dtype=np.uint8).reshape(5, 8)[::2, ::-3]
    write_label(tmp_path / "a.png", labels, PALETTE)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), labels)


def test_other_types_are_refused_rather_than_mangled(tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        write_label(tmp_path / "a.png", np.ones((2, 2), np.int64), PALETTE)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_equal_labels_give_equal_files(tmp_path: Path) -> None:
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    write_label(tmp_path / "a.png", labels, PALETTE)
    write_label(tmp_path / "b.png", labels, PALETTE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_folder_that_cannot_be_made_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "val").write_bytes(b"")
    with pytest.raises(RunError, match=r"^cannot write "):
        write_label(tmp_path / "val" / "a.png", np.zeros((2, 2), np.uint8), PALETTE)


def test_empty_folders_go_with_their_files(tmp_path: Path) -> None:
    keep = {tmp_path / "val" / "a.png", tmp_path / "val" / "dir.png" / "b.png"}
    others = [tmp_path / "train" / "deep" / "c.png", tmp_path / "val" / "d.png"]
    for path in [*keep, *others]:
        write_label(path, np.zeros((2, 2), np.uint8), PALETTE)
    remove_files(tmp_path, others)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == keep
    assert not (tmp_path / "train").exists()
    remove_files(tmp_path / "none", ())


def test_links_below_the_labels_are_left_alone(tmp_path: Path) -> None:
    outside, labels = tmp_path / "outside", tmp_path / "labels"
    (outside / "empty").mkdir(parents=True)
    labels.mkdir()
    (labels / "empty").symlink_to(outside / "empty")
    (labels / "old.png").write_bytes(b"old")
    remove_files(labels, [labels / "old.png"])
    assert (outside / "empty").is_dir()
    assert not (labels / "old.png").exists()


def test_a_whole_image_has_all_its_bits() -> None:
    labels = np.arange(40, dtype=np.uint8).reshape(5, 8)
    content = encode_png(labels, PALETTE)
    assert is_whole_image(content)
    for bit in range(0, 8 * len(content), 5):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        assert not is_whole_image(bytes(broken)), bit
    for end in (0, 1, 20, len(content) - 12, len(content) - 1):
        assert not is_whole_image(content[:end]), end
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "BMP")  # whatever an editor makes of it
    assert is_whole_image(buffer.getvalue())


READERS: tuple[Callable[[Path], Any], ...] = (probe_image, read_rgb, read_label)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(path)
    return path


def fail_reads(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(os, "fdopen", fail)


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EMFILE"])
def test_a_drive_that_does_not_answer_stops_the_work(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    number = getattr(errno, code)
    fail_reads(monkeypatch, OSError(number, os.strerror(number)))
    for read in READERS:
        with pytest.raises(PipelineError) as caught:
            read(path)
        assert type(caught.value) is RunError
        assert str(caught.value).startswith(f"cannot read {path}: {os.strerror(number)}; see to")


@pytest.mark.parametrize("code", ["EACCES", "EPERM", "ELOOP"])
def test_what_may_not_be_read_is_rejected(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    number = getattr(errno, code)
    fail_reads(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(AccessError, match=r"^cannot be opened: "):
        read_rgb(path)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory")])
def test_no_memory_for_the_bytes(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_reads(monkeypatch, error)
    for read in READERS:
        with pytest.raises(MemoryShortError, match=r"a\.png cannot be read: memory is short; free"):
            read(path)


def test_a_drive_that_fails_under_a_frame_is_not_a_file_that_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ListedImage(0, "a", "all", path.name, None, 4, 3, 0, 0, "")

    def fail(self: Path, **_: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(PipelineError) as caught:
        read_frame(path.parent, replace(image), 4, 3)
    assert type(caught.value) is RunError


def test_no_memory_for_the_pixels_stops_the_work(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for read in READERS[1:]:
        with pytest.raises(MemoryShortError, match=r"a\.png cannot be read: memory is short; free"):
            read(path)
    # a claim that Pillow itself warns of is the image's own
    monkeypatch.setattr(decoding, "MAX_CERTAIN_PIXELS", 11)
    for read in READERS[1:]:
        with pytest.raises(AccessError, match=r"^claims more pixels than memory holds$"):
            read(path)


def test_a_codec_without_memory_is_told_from_one_with_nonsense_sizes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise OSError("out of memory when reading image file")

    def refuse(size: int) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"^damaged: out of memory"):
        read_rgb(path)
    monkeypatch.setattr(decoding, "bytearray", refuse, raising=False)
    with pytest.raises(MemoryShortError):
        read_rgb(path)
    assert builtins.bytearray is not refuse


def test_a_real_limit_on_memory(tmp_path: Path) -> None:
    """A photograph of 40 million pixels does not fit beside 50 MB; a small one does."""
    Image.new("RGB", (8000, 5000)).save(tmp_path / "large.png")
    Image.new("RGB", (80, 50)).save(tmp_path / "small.png")
    code = f"""
import resource
from pathlib import Path
from pipeline.errors import MemoryShortError
from pipeline.images.decoding import read_rgb
folder = Path({str(tmp_path)!r})
read_rgb(folder / "small.png")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 50 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
read_rgb(folder / "small.png")
try:
    read_rgb(folder / "large.png")
except MemoryShortError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "large.png cannot be read: memory is short" in done.stdout


def test_a_palette_image_without_its_palette_is_damaged(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("P", (9, 8)).save(buffer, "PNG")
    path = tmp_path / "a.png"
    # the palette under a name that no reader knows, its checksum made right
    content = buffer.getvalue()
    start = content.index(b"PLTE")
    length = int.from_bytes(content[start - 4 : start], "big")
    chunk = b"pLTe" + content[start + 4 : start + 4 + length]
    checksum = zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:start] + chunk + checksum + content[start + 8 + length :])
    with pytest.raises(ImageError, match="damaged"):
        read_rgb(path)


def test_a_reason_is_one_line_whatever_a_chunk_is_called(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (9, 8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IDAT", b"I\nAT", 1))
    with pytest.raises(ImageError) as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)
