"""Photographs of every mode, depth, shape and orientation, with metadata of every kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.torture.cases import (
    Case,
    bmp,
    encode,
    grey_rgb,
    grey_tiff,
    photograph_case,
    png_chunk,
    scene,
    tiff,
)

ORIENTATION = 0x0112


def cases() -> Iterator[Case]:
    """Give all cases of this module."""
    yield from _shapes()
    yield from _depths()
    yield from _colours()
    yield from _transparency()
    yield from _several_frames()
    yield from _orientations()
    yield from _metadata()
    yield from _codecs()


def _right(kind: str, name: str, data: bytes, suffix: str = "png", **expected: Any) -> Case:
    return photograph_case(kind, name, data, "right", suffix=suffix, **expected)


def _refused(kind: str, name: str, data: bytes, reason: str, suffix: str = "tif") -> Case:
    return photograph_case(kind, name, data, "rejected", suffix=suffix, reason=reason)


def _shapes() -> Iterator[Case]:
    for kind, suffix in (
        *(("PNG", "png"), ("TIFF", "tif"), ("BMP", "bmp"), ("PPM", "ppm"), ("GIF", "gif")),
        *(("WEBP", "webp"), ("JPEG", "jpg")),
    ):
        pixel = np.full((1, 1, 3), 77, np.uint8)
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(pixel, kind, **options)
        yield _right("shape", f"{suffix} of 1 x 1", data, suffix, pixels=pixel, tolerance=3)
    for width, height in ((30000, 4), (4, 30000)):
        for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("TIFF", "tif")):
            flat = Image.new("RGB", (width, height), (9, 9, 9))
            # readable, and refused when its windows are placed
            yield photograph_case(
                "shape",
                f"{suffix} of {width} x {height}",
                encode(flat, kind),
                "rejected",
                suffix=suffix,
                reason="too long",
                size=(width, height),
            )
    for width, height in ((1, 40), (40, 1), (2, 3), (31, 32), (33, 32)):
        pixels = scene(width, height)
        yield _right("shape", f"png of {width} x {height}", encode(pixels, "PNG"), pixels=pixels)


def _depths() -> Iterator[Case]:
    grey = scene()[:, :, 0]
    deep = grey.astype(np.uint16) * 257
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("pgm", "PPM")):
        yield _right(
            "depth", f"16-bit grey {suffix}", encode(deep, kind), suffix, pixels=grey_rgb(grey)
        )
    big = Image.frombytes("I;16B", (48, 36), deep.astype(">u2").tobytes())
    yield _right(
        "depth", "16-bit big-endian grey tif", encode(big, "TIFF"), "tif", pixels=grey_rgb(grey)
    )
    rgb16 = scene().astype(">u2") * 257
    header = struct.pack(">IIBBBBB", 48, 36, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in rgb16)
    yield _right(
        "depth",
        "16-bit colour png",
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b""),
        pixels=scene(),
    )
    colour = {
        256: (3, (48,)),
        257: (3, (36,)),
        258: (3, (16, 16, 16)),
        259: (3, (1,)),
        262: (3, (2,)),
        277: (3, (3,)),
        278: (3, (36,)),
    }
    body = (scene().astype("<u2") * 257).tobytes()
    yield _right("depth", "16-bit colour tif", tiff(colour, body), "tif", pixels=scene())
    body = (scene().astype(">u2") * 257).tobytes()
    yield _right(
        "depth", "16-bit colour ppm", b"P6 48 36 65535\n" + body, "ppm", pixels=scene(), tolerance=1
    )
    wide = deep.astype(np.int32)
    yield _right("depth", "32-bit grey tif", encode(wide, "TIFF"), "tif", pixels=grey_rgb(grey))
    wide[0, 0] = 70000
    yield _refused("depth", "32-bit grey tif beyond 16", encode(wide, "TIFF"), "are not 16-bit")
    wide[0, 0] = -1
    yield _refused("depth", "negative grey tif", encode(wide, "TIFF"), "are not 16-bit")
    twelve = (grey.astype(np.uint16) * 16).ravel()
    pairs = twelve.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").tobytes()
    body = b"".join(packed[at + 1 : at + 4] for at in range(0, len(packed), 4))
    yield _right(
        "depth",
        "12-bit grey tif",
        grey_tiff(grey, 12, body=body),
        "tif",
        pixels=grey_rgb(np.rint(grey.astype(float) * 16 * 255 / 4095)),
        tolerance=1,
    )
    floats = grey.astype(np.float32)
    for name, values in (("0..255", floats), ("0..1", floats / 255)):
        yield _right(
            "depth", f"float tif {name}", encode(values, "TIFF"), "tif", pixels=grey_rgb(grey)
        )
    for name, value in (("NaN", np.nan), ("inf", np.inf), ("-inf", -np.inf), ("1e30", 1e30)):
        odd = floats.copy()
        odd[5, 6] = value
        yield _refused("depth", f"float tif with {name}", encode(odd, "TIFF"), "float pixels")
    odd = floats[:, :, None].repeat(3, axis=2)
    odd[5, 6] = np.nan
    pfm = b"PF\n48 36\n-1.0\n" + odd[::-1].tobytes()
    yield photograph_case(
        "depth",
        "colour pfm with NaN",
        pfm,
        "rejected",
        suffix="ppm",
        reason="float|not an image|damaged|truncated",
    )
    yield _refused(
        "depth",
        "grey pfm with NaN",
        b"Pf\n48 36\n-1.0\n" + odd[::-1, :, 0].tobytes(),
        "float pixels",
        "pnm",
    )
    bits = grey > 120
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP"), ("pbm", "PPM")):
        yield _right(
            "depth",
            f"1-bit {suffix}",
            encode(bits, kind),
            suffix,
            pixels=grey_rgb(bits * np.uint8(255)),
        )
    for bits_each in (2, 4):
        top = 2**bits_each - 1
        few = grey // 64 if bits_each == 2 else grey // 16
        joined = few.reshape(36, -1, 8 // bits_each).astype(np.uint8)
        body = b"".join(
            bytes(
                sum(int(v) << bits_each * (8 // bits_each - 1 - k) for k, v in enumerate(group))
                for group in row
            )
            for row in joined
        )
        yield _right(
            "depth",
            f"{bits_each}-bit grey tif",
            grey_tiff(grey, bits_each, body=body),
            "tif",
            pixels=grey_rgb(few * (255 // top)),
        )
    yield _right(
        "depth",
        "8-bit tif in which 0 is white",
        grey_tiff(grey, 8, photometric=0),
        "tif",
        pixels=grey_rgb(255 - grey),
    )
    yield _refused(
        "depth",
        "16-bit tif in which 0 is white",
        grey_tiff(deep, 16, photometric=0),
        "0 is white",
    )


def _colours() -> Iterator[Case]:
    ink = Image.fromarray(scene()).convert("CMYK")
    # Pillow's own conversion is the rule, and the inks that it makes are exact
    for suffix, kind in (("tif", "TIFF"), ("jpg", "JPEG")):
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        yield _right(
            "colour",
            f"CMYK {suffix}",
            encode(ink, kind, **options),
            suffix,
            pixels=scene(),
            tolerance=12,
        )
    stream = bytearray(encode(ink, "JPEG", quality=95))
    at = stream.index(b"Adobe")
    stream[at + 11] = 2  # the transform flag: YCCK
    yield _right("colour", "YCCK jpg", bytes(stream), "jpg", size=(48, 36))
    yield _right(
        "colour",
        "LAB tif",
        encode(Image.new("LAB", (48, 36), (128, 128, 128)), "TIFF"),
        "tif",
        pixels=np.full((36, 48, 3), 120, np.uint8),
        tolerance=3,
    )
    ycc = Image.fromarray(scene()).convert("YCbCr")
    yield _right("colour", "YCbCr tif", encode(ycc, "TIFF"), "tif", pixels=scene(), tolerance=6)
    palette = Image.fromarray(scene()).quantize(32)
    colours = np.asarray(palette.convert("RGB"))
    for suffix, kind in (("png", "PNG"), ("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF")):
        yield _right("colour", f"palette {suffix}", encode(palette, kind), suffix, pixels=colours)
    few = Image.fromarray(scene()).quantize(4)
    yield _right(
        "colour",
        "2-bit palette png",
        encode(few, "PNG", bits=2),
        pixels=np.asarray(few.convert("RGB")),
    )
    yield _right("colour", "24-bit bmp", encode(scene(), "BMP"), "bmp", pixels=scene())
    grey = scene()[:, :, 1]
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("pgm", "PPM"), ("bmp", "BMP")):
        yield _right("colour", f"grey {suffix}", encode(grey, kind), suffix, pixels=grey_rgb(grey))
    two = (grey > 120).astype(np.uint8)
    yield photograph_case(
        "colour",
        "8-bit bmp of two greys",
        bmp(8, [0, 255], two[::-1].tobytes(), 48, 36),
        "rejected",
        suffix="bmp",
        reason="a BMP of 8 bits with a palette of greys",
    )
    yield photograph_case(
        "colour",
        "4-bit bmp of sixteen greys",
        bmp(4, list(range(16)), bytes(24 * 36), 48, 36),
        "rejected",
        suffix="bmp",
        reason="a BMP of 4 bits with a palette of greys",
    )


def _transparency() -> Iterator[Case]:
    # a cut-out with a soft edge: what is not mostly opaque is no transparency of a TIFF
    alpha = np.linspace(-255, 765, 48 * 36).clip(0, 255).reshape(36, 48).astype(np.uint8)
    over = np.rint(
        scene() * (alpha[:, :, None] / 255.0) + 255 * (1 - alpha[:, :, None] / 255.0)
    ).astype(np.uint8)
    rgba = np.dstack([scene(), alpha])
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("webp", "WEBP")):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        yield _right(
            "transparency",
            f"RGBA {suffix}",
            encode(rgba, kind, **options),
            suffix,
            pixels=over,
            tolerance=1,
        )
    la = Image.fromarray(rgba[:, :, [0, 3]])
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF")):
        yield _right(
            "transparency",
            f"LA {suffix}",
            encode(la, kind),
            suffix,
            pixels=grey_rgb(over[:, :, 0]),
            tolerance=1,
        )
    palette = Image.fromarray(scene()).quantize(16)
    indices, colours = np.asarray(palette), np.array(palette.convert("RGB"))
    colours[indices == 3] = 255
    for suffix, kind in (("png", "PNG"), ("gif", "GIF")):
        yield _right(
            "transparency",
            f"palette {suffix} with a transparent entry",
            encode(palette, kind, transparency=3),
            suffix,
            pixels=colours,
        )
    key = tuple(int(v) for v in scene()[7, 9])
    keyed = scene().copy()
    keyed[(scene() == key).all(axis=2)] = 255
    yield _right(
        "transparency",
        "colour png with a transparent colour",
        encode(scene(), "PNG", transparency=key),
        pixels=keyed,
    )
    premultiplied = {
        256: (3, (48,)),
        257: (3, (36,)),
        258: (3, (8, 8)),
        259: (3, (1,)),
        262: (3, (1,)),
        277: (3, (2,)),
        278: (3, (36,)),
        338: (3, (1,)),
    }
    body = np.dstack([np.minimum(scene()[:, :, 0], alpha), alpha]).tobytes()
    yield photograph_case(
        "transparency",
        "premultiplied grey tif",
        tiff(premultiplied, body),
        "either",
        suffix="tif",
        reason="damaged|mode",
        pixels=grey_rgb(np.minimum(scene()[:, :, 0], alpha).astype(int) + 255 - alpha),
        tolerance=2,
    )


def _several_frames() -> Iterator[Case]:
    first, second = scene(), scene(seed=3)
    others = [Image.fromarray(second), Image.fromarray(first[::-1])]
    for suffix, kind in (("webp", "WEBP"), ("png", "PNG"), ("tif", "TIFF")):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(first, kind, save_all=True, append_images=others, **options)
        yield _right("frames", f"animated {suffix}", data, suffix, pixels=first)
    frames = [Image.fromarray(pixels).quantize(32) for pixels in (first, second)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0)
    colours = np.asarray(frames[0].convert("RGB"))
    yield _right("frames", "animated gif", data, "gif", pixels=colours)
    cut = data[: len(data) * 3 // 4]
    yield _right("frames", "animated gif cut in its second frame", cut, "gif", pixels=colours)
    later = encode(first, "PNG", save_all=True, append_images=others, default_image=True)
    yield _right("frames", "animated png with a picture of its own", later, pixels=first)
    jpegs = encode(Image.fromarray(first), "MPO", save_all=True, append_images=others, quality=100)
    yield _right("frames", "mpo of three pictures", jpegs, "jpg", pixels=first, tolerance=12)
    pages = io.BytesIO()
    small = Image.fromarray(scene(9, 7))
    Image.fromarray(first).save(pages, "TIFF", save_all=True, append_images=[small, small])
    yield _right("frames", "tif of pages of several sizes", pages.getvalue(), "tif", pixels=first)


def _orientations() -> Iterator[Case]:
    upright = scene(32, 24)
    undone = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    for value, stored in undone.items():
        exif = Image.Exif()
        exif[ORIENTATION] = value
        for suffix, kind in (("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"), ("jpg", "JPEG")):
            options: dict[str, Any] = {
                "WEBP": {"lossless": True},
                "JPEG": {"quality": 100, "subsampling": 0},
            }.get(kind, {})
            yield _right(
                "orientation",
                f"{suffix} of orientation {value}",
                encode(np.ascontiguousarray(stored), kind, exif=exif, **options),
                suffix,
                pixels=upright,
                size=(32, 24),
                tolerance=6 if kind == "JPEG" else 0,
            )
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[ORIENTATION] = value
        yield _right(
            "orientation",
            f"png of orientation {value}, which there is not",
            encode(upright, "PNG", exif=exif),
            pixels=upright,
        )


def _metadata() -> Iterator[Case]:
    rubbish = {
        "nonsense": b"Exif\0\0nonsense",
        "cut": b"Exif\0\0MM\0\x2a\0\0",
        "empty": b"Exif\0\0",
        "far offset": b"Exif\0\0II\x2a\0\xff\xff\xff\x7f",
        "circle": b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
        "many entries": b"Exif\0\0II\x2a\0\x08\0\0\0\xff\xff" + bytes(range(256)) * 20,
        "text orientation": b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\4six\0",
        "two orientations": b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\2\0\1\0\1",
    }
    for name, exif in rubbish.items():
        for suffix, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
            options: dict[str, Any] = {"WEBP": {"lossless": True}}.get(kind, {"quality": 100})
            yield _right(
                "metadata",
                f"{suffix} with EXIF: {name}",
                encode(scene(), kind, exif=exif, **options),
                suffix,
                pixels=scene(),
                tolerance=12 if kind == "JPEG" else 0,
            )
    profiles = {"random": np.random.default_rng(2).bytes(3000), "one byte": b"x"}
    for name, profile in profiles.items():
        for suffix, kind in (("jpg", "JPEG"), ("png", "PNG"), ("tif", "TIFF"), ("webp", "WEBP")):
            options = {"WEBP": {"lossless": True}}.get(kind, {})
            yield _right(
                "metadata",
                f"{suffix} with a colour profile of {name}",
                encode(scene(), kind, icc_profile=profile, **options),
                suffix,
                pixels=scene(),
                tolerance=40 if kind == "JPEG" else 0,
            )
    jpeg = encode(scene(), "JPEG", quality=100, subsampling=0)
    for name, segment in (
        ("XMP that is no XML", b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<<"),
        ("XMP with an entity", b"http://ns.adobe.com/xap/1.0/\0<!DOCTYPE a [<!ENTITY b 'c'>]>&b;"),
        ("Adobe segment cut short", b"Adobe\0"),
        ("MPF rubbish", b"MPF\0II\x2a\0\x08\0\0\0\xff\xff" + bytes(50)),
        ("Photoshop rubbish", b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff\xff"),
    ):
        marker = b"\xff\xee" if name.startswith("Adobe") else b"\xff\xe1"
        if name.startswith("MPF"):
            marker = b"\xff\xe2"
        if name.startswith("Photoshop"):
            marker = b"\xff\xed"
        inserted = marker + struct.pack(">H", len(segment) + 2) + segment
        yield photograph_case(
            "metadata",
            f"jpg with {name}",
            jpeg[:2] + inserted + jpeg[2:],
            "either",
            suffix="jpg",
            reason="damaged|truncated|not an image",
            size=(48, 36),
        )


def _codecs() -> Iterator[Case]:
    for name, options in (
        ("progressive", {"progressive": True}),
        ("optimised", {"optimize": True}),
        ("4:2:0", {"subsampling": 2}),
        ("with restarts", {"restart_marker_rows": 1}),
    ):
        data = encode(scene(), "JPEG", quality=95, **options)
        yield _right("codec", f"{name} jpg", data, "jpg", pixels=scene(), tolerance=40)
    baseline = bytearray(encode(scene(), "JPEG", quality=95))
    baseline[baseline.index(b"\xff\xc0") + 1] = 0xC9
    yield photograph_case(
        "codec",
        "jpg that claims arithmetic coding",
        bytes(baseline),
        "either",
        suffix="jpg",
        reason="damaged|truncated|header",
        size=(48, 36),
    )
    lossless = bytearray(encode(scene(), "JPEG", quality=95))
    lossless[lossless.index(b"\xff\xc0") + 1] = 0xC3
    yield photograph_case(
        "codec",
        "jpg that claims lossless coding",
        bytes(lossless),
        "rejected",
        suffix="jpg",
        reason="damaged|truncated|header|not an image",
    )
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "group4", "jpeg", "lzma"):
        pixels = scene()
        picture: Any = pixels[:, :, 0] > 120 if compression == "group4" else pixels
        expected = grey_rgb(picture * np.uint8(255)) if compression == "group4" else pixels
        yield photograph_case(
            "codec",
            f"tif of {compression}",
            encode(picture, "TIFF", compression=compression),
            # lzma is not in every build of libtiff
            "either" if compression == "lzma" else "right",
            suffix="tif",
            reason="damaged",
            pixels=expected,
            tolerance=60 if compression == "jpeg" else 0,
        )
    yield _right(
        "codec",
        "lossy webp",
        encode(scene(), "WEBP", quality=95),
        "webp",
        pixels=scene(),
        tolerance=40,
    )
    yield _right(
        "codec",
        "interlaced gif",
        encode(Image.fromarray(scene()).quantize(16), "GIF", interlace=1),
        "gif",
        size=(48, 36),
    )
