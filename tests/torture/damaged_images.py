"""Photographs that are cut short, altered, something else, or far larger than they look."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.torture.cases import (
    Case,
    Expected,
    encode,
    grey_rgb,
    grey_tiff,
    photograph_case,
    png,
    png_chunk,
    put,
    scene,
    tiff,
)

MAGICS = {
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "jpeg frame": b"\xff\xd8\xff\xc0",
    "png": b"\x89PNG\r\n\x1a\n",
    "png header": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "gif": b"GIF89a",
    "webp": b"RIFF\xff\x00\x00\x00WEBPVP8 ",
    "webp lossless": b"RIFF\xff\x00\x00\x00WEBPVP8L",
    "tiff": b"II\x2a\x00\x08\x00\x00\x00",
    "big tiff": b"II\x2b\x00\x08\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00",
    "tiff big-endian": b"MM\x00\x2a\x00\x00\x00\x08",
    "bmp": b"BM\xff\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00",
    "ppm": b"P6 ",
    "plain ppm": b"P3\n",
    "pfm": b"PF\n",
}
NOT_IMAGES = {
    "text": b"this is no photograph\n" * 9,
    "html": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "film": b"\x00\x00\x00\x20ftypisom" + bytes(500),
    "elf": b"\x7fELF" + bytes(100),
    "zeros": bytes(4096),
    "one byte": b"\xff",
    "icon": b"\x00\x00\x01\x00\x01\x00\x10\x10" + bytes(100),
    "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
    "photoshop": b"8BPS\x00\x01" + bytes(100),
    "utf-16 mark": b"\xff\xfe" + "photo".encode("utf-16-le"),
}


def cases() -> Iterator[Case]:
    """Give all cases of this module."""
    yield from _truncated()
    yield from _altered()
    yield from _something_else()
    yield from _bombs()
    yield from _slow()
    yield from _mat()


def encodings() -> dict[str, bytes]:
    """Encode one scene in every format and variant that is read."""
    pixels = scene()
    image = Image.fromarray(pixels)
    return {
        "jpeg": encode(pixels, "JPEG", quality=90),
        "progressive jpeg": encode(pixels, "JPEG", quality=90, progressive=True),
        "png": encode(pixels, "PNG"),
        "palette png": encode(image.quantize(32), "PNG"),
        "webp": encode(pixels, "WEBP", quality=80),
        "lossless webp": encode(pixels, "WEBP", lossless=True),
        "tiff": encode(pixels, "TIFF"),
        "lzw tiff": encode(pixels, "TIFF", compression="tiff_lzw"),
        "deflate tiff": encode(pixels, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg tiff": encode(pixels, "TIFF", compression="jpeg"),
        "gif": encode(image.quantize(64), "GIF"),
        "bmp": encode(pixels, "BMP"),
        "ppm": encode(pixels, "PPM"),
        "plain ppm": b"P3 48 36 255\n" + " ".join(map(str, pixels.ravel())).encode() + b"\n",
    }


def _decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _truncated() -> Iterator[Case]:
    for name, whole in encodings().items():
        pixels = _decode(whole)
        cuts = [1, 9, 30, *(int(len(whole) * share) for share in (0.1, 0.5, 0.9)), len(whole) - 1]
        for cut in cuts:
            yield photograph_case(
                "truncated",
                f"{name} cut after {cut} of {len(whole)} bytes",
                whole[:cut],
                # a part of the coded pixels is missing, or only what stands behind them
                "rejected" if cut <= len(whole) // 2 else "either",
                suffix=name.split()[-1],
                reason="truncated|damaged|not an image|claims|empty",
                pixels=pixels,
            )
    for suffix in ("jpg", "png", "tif", "webp", "gif", "bmp", "ppm"):
        yield photograph_case(
            "empty", f"empty {suffix}", b"", "rejected", suffix=suffix, reason="^empty file$"
        )


def _altered() -> Iterator[Case]:
    whole = encode(scene(), "PNG")
    start = whole.index(b"IDAT") + 4
    for share in (0.1, 0.5, 0.99):
        data = bytearray(whole)
        at = start + int((len(whole) - start - 20) * share)
        data[at] ^= 0x10
        yield photograph_case(
            "altered",
            f"png with a flipped bit at {share:.0%} of its pixels",
            bytes(data),
            "rejected",
            reason="damaged",
        )
    yield photograph_case(
        "altered",
        "png with a wrong checksum alone",
        whole[:-13] + bytes([whole[-13] ^ 1]) + whole[-12:],
        "rejected",
        reason="chunk IDAT does not match its checksum",
    )
    yield photograph_case(
        "altered",
        "png with rubbish behind its end",
        whole + bytes(range(256)) * 9,
        "right",
        pixels=scene(),
    )
    rows = b"".join(b"\0" + row.tobytes() for row in scene())
    for name, some in (("half", rows[: len(rows) // 2]), ("no", b""), ("all but one", rows[:-145])):
        yield photograph_case(
            "altered",
            f"png with {name} rows in a whole stream",
            png(48, 36, some, colour=2),
            "rejected",
            reason="the pixels end early|truncated",
        )
    yield photograph_case(
        "altered",
        "png of 146 bytes that claims 129 million pixels",
        png(48, 2687012, bytes(99)),
        "rejected",
        reason="end early|ends early|too long",
    )
    jpeg = encode(scene(), "JPEG", quality=90)
    yield photograph_case(
        "altered",
        "jpeg with rubbish behind its end",
        jpeg + bytes(range(256)) * 9,
        "right",
        suffix="jpg",
        pixels=_decode(jpeg),
    )
    for size in ((0, 0), (64, 0), (0, 64)):
        yield photograph_case(
            "altered",
            f"png of {size[0]} x {size[1]}",
            png(*size, b""),
            "rejected",
            reason="claims|damaged",
        )
    yield photograph_case(
        "altered",
        "gif of 0 x 5",
        b"GIF89a\0\0\5\0\0\0\0;",
        "rejected",
        suffix="gif",
        reason="claims 0 x 5",
    )


def _something_else() -> Iterator[Case]:
    generator = np.random.default_rng(5)
    for name, magic in MAGICS.items():
        yield photograph_case(
            "random bytes",
            f"random bytes behind the magic number of {name}",
            magic + generator.bytes(600),
            "rejected",
            suffix="jpg",
            reason="truncated|damaged|not an image|claims|decompression bomb|minutes|a TIFF of",
        )
    for name, data in NOT_IMAGES.items():
        yield photograph_case(
            "not an image",
            name,
            data,
            "rejected",
            suffix="jpg",
            reason="^not an image|^an? .*: save it",
        )
    for suffix, name in (("jpg", "png"), ("png", "jpeg"), ("gif", "webp"), ("bmp", "tiff")):
        data = encodings()[name]
        yield photograph_case(
            "wrong extension",
            f"{name} called .{suffix}",
            data,
            "right",
            suffix=suffix,
            pixels=_decode(data),
        )
    for suffix in ("JPG", "JPEG", "Png", "jpe", "jfif", "tiff", "pnm"):
        yield photograph_case(
            "wrong extension",
            f"png called .{suffix}",
            encode(scene(), "PNG"),
            "right",
            suffix=suffix,
            pixels=scene(),
        )

    def hidden(photographs: Path, labels: Path) -> list[Expected]:
        for name in ("photo.txt", "photo", ".photo.png", "photo.png~", "photo.nef", "a.png.part"):
            put(photographs, name, encode(scene(), "PNG"))
        return [Expected("photo.txt", "right", pixels=scene(), listed=False)]

    yield Case("wrong extension", "images that are called otherwise are not listed", hidden)
    for dtype in ("float32", "float64", "uint8"):
        stream = io.BytesIO()
        values = scene().astype(dtype)
        if values.dtype.kind == "f":
            values[3, 4] = np.nan
        np.save(stream, values)
        yield photograph_case(
            "npy",
            f".npy of {dtype}{' with NaN' if values.dtype.kind == 'f' else ''} called .png",
            stream.getvalue(),
            "rejected",
            reason="^not an image$",
        )


def _bombs() -> Iterator[Case]:
    def bomb(name: str, data: bytes, suffix: str, reason: str = "decompression bomb") -> Case:
        return photograph_case("bomb", name, data, "rejected", suffix=suffix, reason=reason)

    yield bomb("png that claims 50000 x 50000", png(50000, 50000, b""), "png")
    yield bomb("png that claims 2147483647 x 1", png(2**31 - 1, 1, b""), "png")
    rows = bytes(2501 * 20000)
    yield bomb("one-bit png of 20000 x 20000 zeros", png(20000, 20000, rows, depth=1), "png")
    yield photograph_case(
        "bomb",
        "png of 40 x 30 with 50 MB of zeros behind its pixels",
        png(40, 30, bytes(50 * 2**20)),
        "right",
        size=(40, 30),
    )
    zeros = zlib.compress(bytes(50 * 2**20), 9)
    for kind, body in (
        (b"zTXt", b"Comment\0\0" + zeros),
        (b"iCCP", b"profile\0\0" + zeros),
        (b"iTXt", b"Comment\0\1\0\0\0" + zeros),
    ):
        yield photograph_case(
            "bomb",
            f"png with 50 MB in a compressed {kind.decode()} chunk",
            png(
                48, 36, b"".join(b"\0" + bytes(48) for _ in range(36)), before=png_chunk(kind, body)
            ),
            "either",
            reason="damaged|decompression",
            pixels=np.zeros((36, 48, 3), np.uint8),
        )
    yield bomb(
        "gif that claims 65535 x 65535",
        b"GIF89a\xff\xff\xff\xff\0\0\0"
        + b","
        + struct.pack("<HHHH", 0, 0, 65535, 65535)
        + b"\0\2\1\0\0;",
        "gif",
    )
    frame = b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\2\1\0\0;"
    yield bomb("gif of 1 x 1 with a frame of 65535 x 65535", b"GIF89a\1\0\1\0\0\0\0" + frame, "gif")
    big = {256: (4, (60000,)), 257: (4, (60000,)), 258: (3, (8,)), 259: (3, (1,)), 262: (3, (1,))}
    yield bomb("tiff that claims 60000 x 60000", tiff(big, bytes(64)), "tif")
    deflate = {**big, 256: (4, (9000,)), 257: (4, (9000,)), 259: (3, (8,)), 278: (4, (9000,))}
    yield bomb(
        "deflate tiff of 9000 x 9000 that ends early",
        tiff(deflate, zlib.compress(bytes(1000))),
        "tif",
        "truncated|damaged",
    )
    claim = bytearray(encode(scene(), "BMP"))
    claim[18:26] = struct.pack("<ii", 100000, 100000)
    yield bomb("bmp that claims 100000 x 100000", bytes(claim), "bmp")
    claim[18:26] = struct.pack("<ii", -40, 30)
    yield bomb("bmp of negative width", bytes(claim), "bmp")
    yield bomb("ppm that claims 100000 x 100000", b"P6 100000 100000 255\n" + bytes(99), "ppm")
    jpeg = bytearray(encode(scene(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    yield bomb("jpeg that claims 65500 x 65500", bytes(jpeg), "jpg")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 9000, 9000)
    yield bomb("jpeg that claims 9000 x 9000 and ends early", bytes(jpeg), "jpg", "truncated")
    webp = bytearray(encode(scene(), "WEBP", lossless=True))
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", 16383 | 16383 << 14)
    yield bomb(
        "webp that claims 16384 x 16384", bytes(webp), "webp", "bomb|damaged|truncated|not an"
    )


def _slow() -> Iterator[Case]:
    """Make small files that a decoder works on for minutes."""
    flat = encode(Image.new("L", (4000, 4000), 90), "JPEG", progressive=True)
    last = flat.rindex(b"\xff\xda")
    scans = flat[:-2] + flat[last:-2] * 5000 + flat[-2:]
    yield photograph_case(
        "slow", "jpeg of 5000 scans", scans, "rejected", suffix="jpg", reason="a JPEG of 500. scans"
    )
    few = encode(scene(), "JPEG", progressive=True)
    last = few.rindex(b"\xff\xda")
    yield photograph_case(
        "slow",
        "small jpeg of 200 scans",
        few[:-2] + few[last:-2] * 190 + few[-2:],
        "either",
        suffix="jpg",
        size=(48, 36),
    )
    for name, data, suffix in (
        ("grey pgm up to 254 of 3000 x 3000", b"P5 3000 3000 254\n" + bytes(9_000_000), "pgm"),
        ("plain ppm of 3000 x 3000", b"P3 3000 3000 255\n" + b"1 " * 99, "ppm"),
        ("plain pbm of 13000 x 13000", b"P1 13000 13000\n" + b"1" * 9999, "pbm"),
    ):
        yield photograph_case(
            "slow", name, data, "rejected", suffix=suffix, reason="takes minutes to decode"
        )
    rle = bytearray(encode(Image.new("P", (16, 16)), "BMP"))
    rle[18:26] = struct.pack("<ii", 13000, 13000)
    rle[30:34] = struct.pack("<I", 2)
    yield photograph_case(
        "slow",
        "run-length bmp of 13000 x 13000",
        bytes(rle),
        "rejected",
        suffix="bmp",
        reason="takes minutes to decode",
    )
    grey = (scene()[:, :, 0] // 2).astype(np.uint8)
    yield photograph_case(
        "slow",
        "small pgm up to 127",
        b"P5 48 36 127\n" + grey.tobytes(),
        "right",
        suffix="pgm",
        pixels=grey_rgb(np.rint(grey * 255.0 / 127)),
        tolerance=1,
    )
    yield photograph_case(
        "slow",
        "tiff whose directory is its own next",
        grey_tiff(scene()[:, :, 0], 8)[:-4] + b"\x08\0\0\0",
        "either",
        suffix="tif",
        pixels=grey_rgb(scene()[:, :, 0]),
    )


def _mat() -> Iterator[Case]:
    """Make tiles of the Potsdam benchmark, which no folder of photographs lists."""
    stream = io.BytesIO()
    tile = np.dstack([scene(), scene()[:, :, :1]])
    savemat(stream, {"img": tile}, do_compression=True)
    whole = stream.getvalue()
    stream = io.BytesIO()
    savemat(stream, {"img": tile})
    plain = stream.getvalue()
    stream = io.BytesIO()
    savemat(stream, {"img": tile.astype(float) * np.nan})
    floats = stream.getvalue()
    altered = bytearray(plain)
    altered[128] = 3
    large = bytearray(plain)
    at = plain.index(struct.pack("<ii", 36, 48))
    large[at : at + 8] = struct.pack("<ii", 2**30, 2**30)

    def case(name: str, data: bytes, reason: str) -> Case:
        if not reason:
            right = {"pixels": scene(), "listed": False}
            return photograph_case("mat", name, data, "right", suffix="mat", **right)
        return photograph_case(
            "mat", name, data, "rejected", suffix="mat", reason=reason, listed=False
        )

    yield case("compressed .mat", whole, "")
    yield case("plain .mat", plain, "")
    for share in (0.1, 0.5, 0.95):
        yield case(
            f".mat cut at {share:.0%}",
            whole[: int(len(whole) * share)],
            "truncated|damaged|not a MATLAB|without",
        )
    yield case(".mat with an altered type", bytes(altered), "without|damaged")
    yield case(".mat that claims 2**60 values", bytes(large), "decompression bomb")
    yield case(".mat of NaN", floats, "not height x width x 4 of uint8")
    yield case("random bytes called .mat", np.random.default_rng(1).bytes(999), "not a MATLAB")
    yield case("MATLAB 7.3", b"MATLAB 7.3 MAT-file" + bytes(600), "7.3")
