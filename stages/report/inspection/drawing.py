"""A sheet of captioned pictures, with a legend and figures, drawn as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.datasets.base import Colour

_WIDTH = 1640
_MARGIN = 28
_GAP = 14
_TALLEST = 620  # pixels of a picture
_FIGURE = 88  # pixels that a figure of the legend may take
_BESIDE = 3  # columns of the legend
_PAGE, _INK, _MUTED, _RULE = (255, 255, 255), (29, 33, 37), (93, 102, 112), (208, 212, 210)
_TITLE, _TEXT, _SMALL = 26, 16, 14
_LINE = 1.4  # line height in units of the font size
_FACES = {False: "DejaVuSans.ttf", True: "DejaVuSans-Bold.ttf"}


@dataclass(frozen=True)
class Panel:
    """One picture of the sheet."""

    caption: str
    pixels: NDArray[np.uint8]
    kind: Literal["photograph", "map"] = "map"


@dataclass(frozen=True)
class Legend:
    """One row of the legend."""

    colour: Colour
    name: str
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """All that is drawn."""

    title: str
    lines: tuple[str, ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    legend: tuple[Legend, ...] = ()
    columns: tuple[str, ...] = ()


def draw_sheet(sheet: Sheet) -> NDArray[np.uint8]:
    """Draw a sheet."""
    if not sheet.panels:
        raise ValueError("a sheet without a picture")
    rows = [
        _draw_text((sheet.title,), _TITLE, bold=True),
        *([_draw_text(sheet.lines, _TEXT, colour=_MUTED)] if sheet.lines else []),
        *([_draw_text(sheet.notes, _TEXT)] if sheet.notes else []),
        _draw_panels(sheet.panels),
        *([_draw_figures(sheet.figures)] if sheet.figures else []),
        *([_draw_legend(sheet.legend, sheet.columns)] if sheet.legend else []),
    ]
    height = sum(row.height for row in rows) + _GAP * (len(rows) - 1) + 2 * _MARGIN
    canvas = Image.new("RGB", (_WIDTH, height), _PAGE)
    top = _MARGIN
    for row in rows:
        canvas.paste(row, (_MARGIN, top))
        top += row.height + _GAP
    return np.asarray(canvas)


def wrap_text(
    text: str, width: float, size: int, *, bold: bool = False, lines: int = 0
) -> list[str]:
    """Break a text into lines that fit a width, between words where that is possible."""
    font = _open_font(size, bold=bold)
    wrapped = [""]
    for word in text.split():
        joined = f"{wrapped[-1]} {word}".lstrip()
        if font.getlength(joined) <= width:
            wrapped[-1] = joined
            continue
        *pieces, rest = _break_word(word, width, font)
        wrapped += [*pieces, rest]
    wrapped = [line for line in wrapped if line] or [""]
    if lines and len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], f"{last}…"]
    return wrapped


def _break_word(word: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


@lru_cache
def _open_font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib's own: it comes with the install, and has the letters of most alphabets
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _FACES[bold]
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def _line_height(size: int) -> int:
    return round(_LINE * size)


def _draw_text(
    texts: Sequence[str],
    size: int,
    *,
    width: int = _WIDTH - 2 * _MARGIN,
    colour: Colour = _INK,
    bold: bool = False,
    lines: int = 0,
) -> Image.Image:
    wrapped = [
        line for text in texts for line in wrap_text(text, width, size, bold=bold, lines=lines)
    ]
    image = Image.new("RGB", (width, _line_height(size) * len(wrapped)), _PAGE)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(wrapped):
        _write(draw, (0, number * _line_height(size)), line, size, colour=colour, bold=bold)
    return image


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, int],
    text: str,
    size: int,
    *,
    colour: Colour = _INK,
    bold: bool = False,
) -> None:
    draw.text(place, text, fill=colour, font=_open_font(size, bold=bold))


def _draw_panels(panels: Sequence[Panel]) -> Image.Image:
    columns = _count_columns(panels)
    place = (_WIDTH - 2 * _MARGIN - _GAP * (columns - 1)) // columns
    pictures = [_fit_picture(panel, place) for panel in panels]
    captions = [
        _draw_text((panel.caption,), _TEXT, width=place, colour=_MUTED, lines=3) for panel in panels
    ]
    rows = [range(i, min(i + columns, len(panels))) for i in range(0, len(panels), columns)]
    heights = [
        (max(pictures[i].height for i in row), max(captions[i].height for i in row)) for row in rows
    ]
    total = sum(picture + caption + 6 for picture, caption in heights) + _GAP * (len(rows) - 1)
    image = Image.new("RGB", (_WIDTH - 2 * _MARGIN, total), _PAGE)
    top = 0
    for row, (picture, caption) in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = column * (place + _GAP)
            image.paste(pictures[index], (left, top))
            image.paste(captions[index], (left, top + picture + 6))
        top += picture + caption + 6 + _GAP
    return image


def _count_columns(panels: Sequence[Panel]) -> int:
    """Choose how many pictures stand side by side: four, or fewer where they are wide."""
    height, width = panels[0].pixels.shape[:2]
    most = 4 if width <= 1.7 * height else 3 if width <= 2.2 * height else 2
    return min(len(panels), most if width <= 4 * height else 1)


def _fit_picture(panel: Panel, place: int) -> Image.Image:
    height, width = panel.pixels.shape[:2]
    scale = min(place / width, _TALLEST / height)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    smooth = panel.kind == "photograph"
    return Image.fromarray(np.ascontiguousarray(panel.pixels)).resize(
        size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    )


def _draw_figures(figures: Sequence[tuple[str, str]]) -> Image.Image:
    """Draw name over value, from left to right, in as many rows as it takes."""
    places, left, row = [], 0, 0
    for name, value in figures:
        width = round(
            max(
                _open_font(_SMALL).getlength(name),
                _open_font(_TEXT, bold=True).getlength(value),
            )
        )
        if left and left + width > _WIDTH - 2 * _MARGIN:
            left, row = 0, row + 1
        places.append((left, row))
        left += width + 2 * _GAP
    height = _line_height(_SMALL) + _line_height(_TEXT) + 8
    image = Image.new("RGB", (_WIDTH - 2 * _MARGIN, height * (row + 1)), _PAGE)
    draw = ImageDraw.Draw(image)
    for (name, value), (left, row) in zip(figures, places, strict=True):
        _write(draw, (left, row * height), name, _SMALL, colour=_MUTED)
        _write(draw, (left, row * height + _line_height(_SMALL)), value, _TEXT, bold=True)
    return image


def _draw_legend(legend: Sequence[Legend], columns: Sequence[str]) -> Image.Image:
    """Draw the legend as a table, broken into as many columns of rows as stand side by side."""
    place = (_WIDTH - 2 * _MARGIN - 2 * _GAP * (_BESIDE - 1)) // _BESIDE
    length = -(-len(legend) // _BESIDE)
    height = _line_height(_TEXT) + 4
    used = -(-len(legend) // length)
    image = Image.new("RGB", (_WIDTH - 2 * _MARGIN, height * (length + 1)), _PAGE)
    draw = ImageDraw.Draw(image)
    for part in range(used):
        left = part * (place + 2 * _GAP)
        room = place - 28 - _FIGURE * max(len(columns) - 1, 0)
        if columns:
            _write(draw, (left, 0), columns[0], _SMALL, colour=_MUTED)
            for i, heading in enumerate(columns[1:]):
                end = left + place - _FIGURE * (len(columns) - 2 - i)
                _write_right(draw, (end, 0), heading, _SMALL, _MUTED)
        draw.line((left, height - 3, left + place, height - 3), fill=_RULE)
        for number, row in enumerate(legend[part * length : (part + 1) * length], start=1):
            top = number * height
            draw.rectangle((left, top + 2, left + 17, top + 19), fill=row.colour, outline=_RULE)
            name = wrap_text(row.name, room, _TEXT, lines=1)[0]
            _write(draw, (left + 28, top), name, _TEXT)
            for i, text in enumerate(row.figures):
                end = left + place - _FIGURE * (len(row.figures) - 1 - i)
                _write_right(draw, (end, top), text, _TEXT, _INK)
    return image


def _write_right(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, colour: Colour
) -> None:
    _write(draw, (place[0] - _open_font(size).getlength(text), place[1]), text, size, colour=colour)
