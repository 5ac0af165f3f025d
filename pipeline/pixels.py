"""The rules that make 8-bit red, green and blue of every kind of pixel (see `pipeline.images`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ImageError

Ids = NDArray[np.integer[Any]]
_STRIP_PIXELS = 2**22


def to_rgb(image: Image.Image, raw: str) -> NDArray[np.uint8]:
    """Convert a decoded image to red, green and blue.

    Parameters
    ----------
    image : PIL.Image.Image
        Decoded and upright.
    raw : str
        How its pixels were stored (`find_raw_mode`).

    Returns
    -------
    array of uint8, [y, x, rgb]
        Writable and contiguous.

    Raises
    ------
    ImageError
        Its values have no agreed scale to 0..255.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if raw == "I;12":
            values = (values.astype(np.uint32) * 65535 + 2047) // 4095
        return _grey_rgb(_grey_from_integers(values))
    if image.mode == "F":
        return _grey_rgb(_grey_from_floats(np.asarray(image)))
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    # In strips: each step is a copy, and a large photograph has no room for five of them.
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        pixels[top:bottom] = np.asarray(_opaque(strip))
    return pixels


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colours)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _grey_from_integers(values: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ImageError(f"integer pixels {lowest}..{highest} are not 16-bit: no scale to 0..255")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey_from_floats(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    lowest, highest = float(values.min()), float(values.max())
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest >= 0 and highest <= 255):
        raise ImageError(f"float pixels {lowest:g}..{highest:g} are not 0..1 or 0..255")
    scale = 255.0 if highest <= 1 else 1.0
    return np.rint(values.astype(np.float64) * scale).astype(np.uint8)


def find_raw_mode(image: Image.Image) -> str:
    """Give Pillow's name of how the pixels are stored, before they are decoded; '' if unknown."""
    arguments = next((tile[3] for tile in getattr(image, "tile", ())), "")
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def find_label_spread(image: Image.Image) -> Callable[[Ids], Ids] | None:
    """Give what undoes the scaling to 0..255 or 0..65535 that Pillow applies to grey values.

    2 and 4-bit values are spread over 0..255, and those of a PGM from 0..its own maximum.

    Raises
    ------
    ImageError
        Black and white are stored the other way round, so that ids are not what they seem.
    """
    raw, _, suffix = find_raw_mode(image).partition(";")
    if "I" in suffix:
        raise ImageError("a label map in which 0 is stored as white: save its ids as a PNG")
    if image.mode == "L" and raw == "L" and suffix[:1] in ("2", "4"):
        step = 85 if suffix.startswith("2") else 17
        return lambda ids: ids // step
    if image.format == "PPM" and image.mode in ("L", "I"):
        tile = image.tile[0]  # type: ignore[attr-defined]
        top = 255 if image.mode == "L" else 65535
        highest = tile[3][1] if tile[0] in ("ppm", "ppm_plain") else top
        return lambda ids: ((ids.astype(np.int64) * highest + top // 2) // top).astype(ids.dtype)
    return None
