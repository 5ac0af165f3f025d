"""Pictures side by side under titles, with a legend of class colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP, LINE = 6, 18
_INK, _PAPER = (30, 30, 30), (255, 255, 255)

Pixels = NDArray[np.uint8]


def draw_grid(
    rows: Sequence[Sequence[Pixels]],
    titles: Sequence[str],
    legend: Sequence[tuple[str, Sequence[int]]],
    side: int,
) -> Image.Image:
    """Draw a grid of pictures.

    Parameters
    ----------
    rows
        Row -> column -> uint8 [y, x, rgb], squares.
    titles
        One for each column, of one or more lines.
    legend
        Names and colours of the classes.
    side
        Side of a picture in the grid, pixels.
    """
    font = ImageFont.load_default(13)
    head = LINE * max(title.count("\n") + 1 for title in titles) + GAP
    width = len(titles) * (side + GAP) + GAP
    lines = _break_legend(legend, font, width)
    height = head + len(rows) * (side + GAP) + LINE * len(lines) + GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.multiline_text((GAP + column * (side + GAP), GAP // 2), title, _INK, font)
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            place = GAP + column * (side + GAP), head + row * (side + GAP)
            sheet.paste(_resize(pixels, side, smooth=column == 0), place)
    top = head + len(rows) * (side + GAP)
    for number, line in enumerate(lines):
        for left, name, colour in line:
            y = top + number * LINE
            pen.rectangle((left, y + 2, left + 12, y + 14), tuple(colour))
            pen.text((left + 17, y), name, _INK, font)
    return sheet


def _resize(pixels: Pixels, side: int, *, smooth: bool) -> Image.Image:
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize((side, side), how)


def _break_legend(
    legend: Sequence[tuple[str, Sequence[int]]],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> list[list[tuple[int, str, Sequence[int]]]]:
    """Place the entries of the legend from left to right, in as many lines as it takes."""
    lines: list[list[tuple[int, str, Sequence[int]]]] = [[]]
    left = GAP
    for name, colour in legend:
        needed = 17 + round(font.getlength(name)) + 3 * GAP
        if left + needed > width and lines[-1]:
            lines.append([])
            left = GAP
        lines[-1].append((left, name, colour))
        left += needed
    return lines
