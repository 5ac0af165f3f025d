"""A sheet of captioned pictures, with a legend and figures, drawn as one matplotlib figure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from pipeline.datasets import Colour

# All lengths are pixels.
_WIDTH = 1640
_MARGIN = 28
_INNER = _WIDTH - 2 * _MARGIN
_GAP = 14
_TALLEST = 620  # of a picture
_FIGURE = 88  # that a figure of the legend may take
_BESIDE = 3  # columns of the legend
_INK, _MUTED, _RULE = "#1d2125", "#5d6670", "#d0d4d2"
_TITLE, _TEXT, _SMALL = 26, 16, 14
_LINE = 1.4  # line height in units of the font size
_ASCENT = 0.93  # of the font, in the same unit
_POINT = 0.72  # points a pixel, at matplotlib's 100 pixels an inch


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
    """Draw a sheet, uint8 [y, x, rgb]."""
    if not sheet.panels:
        raise ValueError("a sheet without a picture")
    with warnings.catch_warnings():
        # a letter that the font lacks is drawn as a box
        warnings.simplefilter("ignore", UserWarning)
        page = _Page()
        page.write_lines([sheet.title], _TITLE, weight="bold")
        page.write_lines(sheet.lines, _TEXT, color=_MUTED)
        page.write_lines(sheet.notes, _TEXT)
        page.draw_panels(sheet.panels)
        page.list_figures(sheet.figures)
        page.list_legend(sheet.legend, sheet.columns)
        return page.finish()


def wrap_text(
    text: str, width: float, size: int, *, weight: str = "normal", lines: int = 0
) -> list[str]:
    """Break a text into lines that fit a width, between words where that is possible."""

    def fits(line: str) -> bool:
        return _measure(line, size, weight) <= width

    wrapped = [""]
    for word in text.split():
        joined = f"{wrapped[-1]} {word}".lstrip()
        if fits(joined):
            wrapped[-1] = joined
            continue
        wrapped.append("")
        for character in word:
            if wrapped[-1] and not fits(wrapped[-1] + character):
                wrapped.append("")
            wrapped[-1] += character
    wrapped = [line for line in wrapped if line] or [""]
    if lines and len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and not fits(f"{last}…"):
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], f"{last}…"]
    return wrapped


def _measure(text: str, size: int, weight: str = "normal") -> float:
    font = FontProperties(size=size * _POINT, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / _POINT


def _line_height(size: int) -> int:
    return round(_LINE * size)


class _Page:
    """One figure whose coordinates are pixels from its upper left; it grows row by row."""

    def __init__(self) -> None:
        self.figure = Figure(facecolor="white", dpi=100)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.top = _MARGIN

    def finish(self) -> NDArray[np.uint8]:
        height = self.top - _GAP + _MARGIN
        self.figure.set_size_inches(_WIDTH / 100, height / 100)
        self.axes.set(xlim=(0, _WIDTH), ylim=(height, 0), aspect="auto")
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])

    def write(self, left: float, top: float, text: str, size: int, **style: Any) -> None:
        style = {"color": _INK, "size": size * _POINT, "parse_math": False, **style}
        self.axes.text(left, top + _ASCENT * size, text, **style)

    def write_lines(
        self, texts: Sequence[str], size: int, weight: str = "normal", **style: Any
    ) -> None:
        for text in texts:
            for line in wrap_text(text, _INNER, size, weight=weight):
                self.write(_MARGIN, self.top, line, size, weight=weight, **style)
                self.top += _line_height(size)
        self.top += _GAP if texts else 0

    def draw_panels(self, panels: Sequence[Panel]) -> None:
        columns = _count_columns(panels)
        place = (_INNER - _GAP * (columns - 1)) // columns
        for start in range(0, len(panels), columns):
            row = panels[start : start + columns]
            captions = [wrap_text(panel.caption, place, _TEXT, lines=3) for panel in row]
            tallest = max(_fit(panel, place)[1] for panel in row)
            for number, (panel, lines) in enumerate(zip(row, captions, strict=True)):
                left = _MARGIN + number * (place + _GAP)
                width, height = _fit(panel, place)
                self.axes.imshow(
                    panel.pixels,
                    extent=(left, left + width, self.top + height, self.top),
                    interpolation="lanczos" if panel.kind == "photograph" else "nearest",
                )
                for n, line in enumerate(lines):
                    below = self.top + tallest + 6 + n * _line_height(_TEXT)
                    self.write(left, below, line, _TEXT, color=_MUTED)
            self.top += tallest + 6 + max(map(len, captions)) * _line_height(_TEXT) + _GAP

    def list_figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Write name over value, from left to right, in as many rows as it takes."""
        left, height = 0, _line_height(_SMALL) + _line_height(_TEXT) + 8
        for name, value in figures:
            width = round(max(_measure(name, _SMALL), _measure(value, _TEXT, "bold")))
            if left and left + width > _INNER:
                left, self.top = 0, self.top + height
            self.write(_MARGIN + left, self.top, name, _SMALL, color=_MUTED)
            under = self.top + _line_height(_SMALL)
            self.write(_MARGIN + left, under, value, _TEXT, weight="bold")
            left += width + 2 * _GAP
        self.top += height + _GAP if figures else 0

    def list_legend(self, legend: Sequence[Legend], columns: Sequence[str]) -> None:
        """Write the legend as a table, broken into as many parts as stand side by side."""
        if not legend:
            return
        place = (_INNER - 2 * _GAP * (_BESIDE - 1)) // _BESIDE
        length = -(-len(legend) // _BESIDE)
        height = _line_height(_TEXT) + 4
        for part in range(-(-len(legend) // length)):
            left = _MARGIN + part * (place + 2 * _GAP)
            self.write(left, self.top, "".join(columns[:1]), _SMALL, color=_MUTED)
            self._write_figures(left + place, self.top, columns[1:], _SMALL, _MUTED)
            rule = self.top + height - 3
            self.axes.hlines(rule, left, left + place, colors=_RULE, linewidth=_POINT)
            for number, row in enumerate(legend[part * length : (part + 1) * length], start=1):
                top = self.top + number * height
                colour = [channel / 255 for channel in row.colour]
                swatch = Rectangle((left, top + 2), 17, 17, fc=colour, ec=_RULE, lw=_POINT)
                self.axes.add_patch(swatch)
                room = place - 28 - _FIGURE * len(row.figures)
                name = wrap_text(row.name, room, _TEXT, lines=1)[0]
                self.write(left + 28, top, name, _TEXT)
                self._write_figures(left + place, top, row.figures, _TEXT, _INK)
        self.top += height * (length + 1) + _GAP

    def _write_figures(
        self, right: float, top: float, texts: Sequence[str], size: int, color: str
    ) -> None:
        for i, text in enumerate(reversed(texts)):
            self.write(right - _FIGURE * i, top, text, size, color=color, ha="right")


def _count_columns(panels: Sequence[Panel]) -> int:
    """Choose how many pictures stand side by side: four, or fewer where they are wide."""
    height, width = panels[0].pixels.shape[:2]
    most = 4 if width <= 1.7 * height else 3 if width <= 2.2 * height else 2
    return min(len(panels), most if width <= 4 * height else 1)


def _fit(panel: Panel, place: int) -> tuple[int, int]:
    """Return the width and height in which a picture is drawn."""
    height, width = panel.pixels.shape[:2]
    scale = min(place / width, _TALLEST / height)
    return max(1, round(scale * width)), max(1, round(scale * height))
