"""Label maps of every mode and fault, beside a photograph that is right."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.torture.cases import (
    HEIGHT,
    WIDTH,
    Case,
    Expected,
    encode,
    grey_tiff,
    png,
    put,
    scene,
)

_y, _x = np.mgrid[:HEIGHT, :WIDTH]
IDS = ((_x // 8 + 2 * (_y // 9)) % 4).astype(np.uint8)
OF_COLOURS = "not of class ids"


def cases() -> Iterator[Case]:
    """Give all cases of this module."""
    yield from _right()
    yield from _refused()
    yield from _mat()
    yield from _absent()


def _label(
    name: str, data: bytes, ids: np.ndarray | None = None, reason: str = "", suffix: str = "png"
) -> Case:
    """Make a case of a photograph and its label map; a format but PNG keeps the image's name."""
    photo = f"photo.{suffix}"

    def write(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, photo, encode(scene(), "PNG"))
        put(labels, photo, data)
        return [Expected(photo, "right", pixels=scene(), label=photo, ids=ids, label_reason=reason)]

    return Case("label", name, write)


def _right() -> Iterator[Case]:
    palette = Image.fromarray(IDS)
    palette.putpalette(np.random.default_rng(0).bytes(768))
    yield _label("palette png", encode(palette, "PNG"), IDS)
    yield _label("palette png with a transparent id", encode(palette, "PNG", transparency=0), IDS)
    yield _label("2-bit palette png", encode(palette, "PNG", bits=2), IDS)
    yield _label("palette gif", encode(palette, "GIF"), suffix="gif")
    yield _label("palette bmp", encode(palette, "BMP"), IDS, suffix="bmp")
    yield _label("palette tif", encode(palette, "TIFF"), IDS, suffix="tif")
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP"), ("pgm", "PPM")):
        yield _label(f"grey {suffix}", encode(IDS, kind), IDS, suffix=suffix)
    ignore = IDS.copy()
    ignore[3:9] = 255
    yield _label("ignore", encode(ignore, "PNG"), ignore)
    yield _label("all ignored", encode(np.full_like(IDS, 255), "PNG"), np.full_like(IDS, 255))
    yield _label("largest id", encode(np.full_like(IDS, 254), "PNG"), np.full_like(IDS, 254))
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("pgm", "PPM")):
        deep = encode(IDS.astype(np.uint16), kind)
        yield _label(f"16-bit {suffix}", deep, IDS, suffix=suffix)
    yield _label("32-bit tif", encode(IDS.astype(np.int32), "TIFF"), IDS, suffix="tif")
    minus = IDS.astype(np.int32)
    minus[0] = -1
    yield _label(
        "32-bit tif with -1",
        encode(minus, "TIFF"),
        np.where(minus < 0, 255, minus).astype(np.uint8),
        suffix="tif",
    )
    bits = IDS > 1
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP")):
        yield _label(f"1-bit {suffix}", encode(bits, kind), bits.astype(np.uint8), suffix=suffix)
    for depth in (2, 4):
        packed = _pack(IDS, depth)
        rows = b"".join(b"\0" + row for row in packed)
        yield _label(f"{depth}-bit grey png", png(WIDTH, HEIGHT, rows, depth=depth), IDS)
        yield _label(
            f"{depth}-bit grey tif",
            grey_tiff(IDS, depth, body=b"".join(packed)),
            IDS,
            suffix="tif",
        )
    for top in (3, 10, 254):
        head = f"P5 {WIDTH} {HEIGHT} {top}\n".encode()
        yield _label(f"pgm up to {top}", head + IDS.tobytes(), IDS, suffix="pgm")
    plain = f"P2 {WIDTH} {HEIGHT} 3\n" + " ".join(map(str, IDS.ravel()))
    yield _label("plain pgm", plain.encode(), IDS, suffix="pgm")
    deep = f"P5 {WIDTH} {HEIGHT} 1000\n".encode() + IDS.astype(">u2").tobytes()
    yield _label("pgm up to 1000", deep, IDS, suffix="pgm")
    # a value that no class has is counted, and its pixel left out of the scores
    for value in (256, 300, 65535):
        deep = IDS.astype(np.uint16)
        deep[2, 3] = value
        yield _label(f"with id {value}", encode(deep, "PNG"), np.where(deep == value, 255, IDS))
    for value in (-2, 70000, -(2**31)):
        wide = IDS.astype(np.int32)
        wide[2, 3] = value
        data = encode(wide, "TIFF")
        yield _label(f"with id {value}", data, np.where(wide == value, 255, IDS), suffix="tif")
    exif = Image.Exif()
    exif[0x0112] = 3
    yield _label(
        "png turned by its orientation",
        encode(np.ascontiguousarray(IDS[::-1, ::-1]), "PNG", exif=exif),
        IDS,
    )
    gap = png(WIDTH, HEIGHT, b"".join(b"\0" + row.tobytes() for row in IDS))
    yield _label("png with rubbish behind its end", gap + b"x" * 999, IDS)


def _pack(ids: np.ndarray, depth: int) -> list[bytes]:
    each = 8 // depth
    shifts = np.arange(each)[::-1] * depth
    groups = ids.reshape(len(ids), -1, each).astype(np.uint16)
    return [bytes((row << shifts).sum(axis=1).astype(np.uint8)) for row in groups]


def _refused() -> Iterator[Case]:
    for width, height in ((WIDTH + 1, HEIGHT), (WIDTH, HEIGHT - 1), (HEIGHT, WIDTH), (1, 1)):
        yield _label(
            f"of {width} x {height}",
            encode(np.zeros((height, width), np.uint8), "PNG"),
            reason=f"it is {width} x {height}, the image {WIDTH} x {HEIGHT}",
        )
    colours = np.dstack([IDS] * 3)
    alpha = np.full_like(IDS, 255)
    for name, values in (
        ("RGB", colours),
        ("RGBA", np.dstack([colours, alpha])),
        ("LA", np.dstack([IDS, alpha])),
    ):
        yield _label(f"{name} png", encode(values, "PNG"), reason=OF_COLOURS)
    yield _label("jpg", encode(IDS, "JPEG"), reason="JPEG, which blurs", suffix="jpg")
    yield _label("jpg called png", encode(IDS, "JPEG"), reason="JPEG, which blurs")
    lossless = encode(colours, "WEBP", lossless=True)
    yield _label("webp", lossless, reason=OF_COLOURS, suffix="webp")
    floats = encode(IDS.astype(np.float32), "TIFF")
    yield _label("float tif", floats, reason=f"of mode F, {OF_COLOURS}", suffix="tif")
    odd = IDS.astype(np.float32)
    odd[0, 0] = np.nan
    yield _label("float tif with NaN", encode(odd, "TIFF"), reason=OF_COLOURS, suffix="tif")
    yield _label(
        "CMYK tif",
        encode(Image.new("CMYK", (WIDTH, HEIGHT)), "TIFF"),
        reason=OF_COLOURS,
        suffix="tif",
    )
    yield _label(
        "tif in which 0 is white",
        grey_tiff(IDS, 8, photometric=0),
        reason="0 is stored as white",
        suffix="tif",
    )
    yield _label("pbm", encode(IDS > 1, "PPM"), reason="0 is stored as white", suffix="pbm")
    whole = encode(IDS, "PNG")
    for cut in (0, 1, 20, 40, len(whole) // 2):
        yield _label(
            f"png cut after {cut} bytes",
            whole[:cut],
            reason="^empty file$|truncated|damaged|not an image",
        )
    at = whole.index(b"IDAT") + 9
    flipped = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
    yield _label("png with a flipped bit", flipped, reason="damaged")
    yield _label("text", b"0 0 1 2", reason="not an image")
    yield _label("random", np.random.default_rng(3).bytes(500), reason="not an image")
    stream = io.BytesIO()
    np.save(stream, odd)
    yield _label(".npy with NaN called .png", stream.getvalue(), reason="not an image")
    yield _label("png that claims 50000 x 50000", png(50000, 50000, b""), reason="bomb")
    slow = b"P5 3000 3000 3\n" + bytes(9_000_000)
    yield _label("pgm of minutes", slow, reason="takes minutes", suffix="pgm")


def _mat() -> Iterator[Case]:
    """Make label maps of the Potsdam benchmark, which no folder of label maps lists."""

    def tile(name: str, ids: np.ndarray, expected: np.ndarray | None, reason: str = "") -> Case:
        def write(photographs: Path, labels: Path) -> list[Expected]:
            put(photographs, "photo.png", encode(scene(), "PNG"))
            stream = io.BytesIO()
            savemat(stream, {"gt": ids}, do_compression=True)
            put(labels, "tile.mat", stream.getvalue())
            options: dict[str, Any] = {"ids": expected, "label_reason": reason, "listed": False}
            return [
                Expected("photo.png", "right", pixels=scene(), label=None),
                Expected("photo.png", "right", label="tile.mat", **options),
            ]

        return Case("label", name, write)

    yield tile(".mat", IDS, IDS)
    yield tile(".mat of floats", IDS.astype(float), IDS)
    for value in (np.nan, np.inf, 0.5, 1e300):
        odd = IDS.astype(float)
        odd[1, 2] = value
        yield tile(f".mat with {value}", odd, None, "not height x width of class ids")
    yield tile(".mat of three axes", np.dstack([IDS, IDS]), None, "not height x width")


def _absent() -> Iterator[Case]:
    def without(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "photo.png", encode(scene(), "PNG"))
        return [Expected("photo.png", "right", pixels=scene(), label=None)]

    def folder(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "photo.jpg", encode(scene(), "PNG"))
        (labels / "photo.png").mkdir(parents=True)
        return [Expected("photo.jpg", "right", pixels=scene(), label=None)]

    def dangling(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "photo.jpg", encode(scene(), "PNG"))
        labels.mkdir(parents=True, exist_ok=True)
        (labels / "photo.png").symlink_to("nowhere.png")
        return [Expected("photo.jpg", "right", pixels=scene(), label=None)]

    def orphan(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "photo.jpg", encode(scene(), "PNG"))
        put(labels, "photo.png", encode(IDS, "PNG"))
        put(labels, "another.png", encode(IDS + 1, "PNG"))
        put(labels, "deeper/photo.png", encode(IDS + 2, "PNG"))
        return [Expected("photo.jpg", "right", pixels=scene(), label="photo.png", ids=IDS)]

    def large_suffix(photographs: Path, labels: Path) -> list[Expected]:
        put(photographs, "photo.jpg", encode(scene(), "PNG"))
        put(labels, "photo.PNG", encode(IDS, "PNG"))
        return [Expected("photo.jpg", "right", pixels=scene(), label=None)]

    yield Case("label", "missing", without)
    yield Case("label", "a folder in its place", folder)
    yield Case("label", "a dangling link", dangling)
    yield Case("label", "label maps of images that are not there", orphan)
    yield Case("label", "a suffix in capitals", large_suffix)
