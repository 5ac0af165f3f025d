"""Class colours: one (red, green, blue) per class, and palettes for indexed PNGs."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

Colour = tuple[int, int, int]

IGNORE_COLOUR: Colour = (0, 0, 0)
"""Colour of index 255, the pixels that belong to no class."""


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Give colours for classes that nobody has named, each unlike its neighbours in the list."""
    if not 0 <= count <= 255:
        raise ValueError(f"an indexed label map holds at most 255 classes, not {count}")
    # Hues a golden section apart never come close to the last few, however many are drawn.
    return tuple(_colour(index * 0.6180339887498949 % 1.0, index) for index in range(count))


def _colour(hue: float, index: int) -> Colour:
    saturation = (0.85, 0.55, 0.95)[index % 3]
    value = (0.95, 0.80, 0.60)[index // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def png_palette(colours: Sequence[Colour]) -> bytes:
    """Lay colours out as the palette of an indexed PNG whose index 255 means ignore."""
    if len(colours) > 255:
        raise ValueError(f"an indexed label map holds at most 255 classes, not {len(colours)}")
    entries = [*colours, *distinct_colours(255)[len(colours) :], IGNORE_COLOUR]
    return bytes(value for colour in entries for value in colour)
