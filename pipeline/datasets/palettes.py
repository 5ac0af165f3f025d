"""Class colours: one (red, green, blue) per class, and palettes for indexed PNGs."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

Colour = tuple[int, int, int]

IGNORE_COLOUR: Colour = (0, 0, 0)
"""Colour of index 255, the pixels that belong to no class."""

CITYSCAPES: tuple[Colour, ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (250, 170, 160),
    (230, 150, 140),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (180, 165, 180),
    (150, 100, 100),
    (150, 120, 90),
    (153, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 0, 90),
    (0, 0, 110),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
"""Official colours of label ids 7..33 (the dataset gives pole and polegroup the same one)."""

CAMVID: tuple[Colour, ...] = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
"""The colours of the 11-class protocol."""

POTSDAM: tuple[Colour, ...] = ((255, 255, 255), (0, 0, 255), (0, 255, 0))
"""ISPRS colours of impervious surface, building and tree."""

COCOSTUFF: tuple[Colour, ...] = (
    (0, 200, 255),  # electronic
    (120, 60, 200),  # appliance
    (255, 140, 60),  # food
    (160, 90, 40),  # furniture
    (200, 160, 220),  # indoor
    (255, 90, 180),  # kitchen
    (150, 0, 90),  # accessory
    (255, 200, 0),  # animal
    (200, 255, 0),  # outdoor
    (220, 20, 60),  # person
    (255, 60, 0),  # sports
    (0, 0, 160),  # vehicle
    (230, 220, 200),  # ceiling
    (180, 140, 100),  # floor
    (255, 190, 130),  # food-stuff
    (110, 70, 30),  # furniture-stuff
    (140, 140, 170),  # raw-material
    (240, 150, 200),  # textile
    (200, 190, 160),  # wall
    (150, 220, 230),  # window
    (110, 110, 110),  # building
    (128, 64, 128),  # ground
    (40, 140, 40),  # plant
    (120, 180, 255),  # sky
    (130, 120, 80),  # solid
    (190, 60, 60),  # structural
    (0, 90, 220),  # water
)
"""Colours of this project: the 27 classes have no official ones."""


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Give colours for classes that nobody has named, each unlike its neighbours in the list.

    Parameters
    ----------
    count : int
        How many, 0..255.

    Returns
    -------
    tuple of (red, green, blue)
        All different, none black; a longer list begins with the shorter one.
    """
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
    """Lay colours out as the palette of an indexed PNG whose index 255 means ignore.

    Parameters
    ----------
    colours : sequence of (red, green, blue)
        Colours of classes 0..C-1, C at most 255. Indices from C to 254 get distinct colours, so a
        label map with more clusters than classes still shows them apart.

    Returns
    -------
    bytes
        256 x 3 values, for ``Image.putpalette``.
    """
    if len(colours) > 255:
        raise ValueError(f"an indexed label map holds at most 255 classes, not {len(colours)}")
    entries = [*colours, *distinct_colours(255)[len(colours) :], IGNORE_COLOUR]
    return bytes(value for colour in entries for value in colour)
