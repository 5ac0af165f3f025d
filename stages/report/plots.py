"""Plots of the report, as inline SVG that takes its ink and accents from the page's theme."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

# matplotlib has no notion of a CSS variable, so each theme colour is drawn as a stand-in
_THEME = {
    "#0a0b1c": "currentColor",
    "#0a0b2c": "var(--muted)",
    "#0a0b3c": "var(--rule)",
    "#0a0b4c": "var(--accent)",
    "#0a0b5c": "var(--heat)",
    "#0a0b6c": "var(--panel)",
}
_INK, _MUTED, _RULE, _ACCENT, _HEAT, _PANEL = _THEME

_POINTS = 72.0  # the SVG backend's unit: one point of the figure is one unit of the view box
_CURVE_SIZE = (360.0, 210.0)
_CHARACTER = 0.58  # mean width of a sans-serif character in units of the font size
_LONGEST_LABEL = 26
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.0,
}


def draw_scores(scores: Sequence[tuple[int, float]], chosen: int | None = None) -> Markup:
    """Draw the score of every number of classes that was tried."""
    ordered = sorted(scores)
    numbers, values = zip(*ordered, strict=True)
    figure, axes = _make_curve_axes("classes")
    _draw_line(axes, numbers, values, marker="o")
    for number, value in ordered:
        if number == chosen:
            axes.plot([number], [value], color=_INK, marker="o", markersize=8)
    axes.margins(x=0.03, y=0.12)
    return _render(figure, f"Score of {len(ordered)} numbers of classes")


def draw_series(
    name: str, values: ArrayLike, unit: str = "epoch", *, margin: float = 0.1
) -> Markup:
    """Draw one number over the epochs; ``margin`` is left free above and below."""
    figure, axes = _make_curve_axes(unit)
    points = np.asarray(values, np.float64)
    marker = "o" if len(points) < 12 else ""
    _draw_line(axes, np.arange(1, len(points) + 1), points, marker)
    axes.margins(x=0.02, y=margin)
    return _render(figure, f"{name} of {len(points)} times one {unit}")


def draw_lines(*lines: tuple[ArrayLike, ArrayLike, str], unit: str) -> Markup:
    """Draw curves, each x, y and what it is; the last stands out."""
    figure, axes = _make_curve_axes(unit)
    for x, y, _ in lines[:-1]:
        axes.plot(x, y, color=_MUTED, linewidth=1.2)
    _draw_line(axes, *lines[-1][:2], marker="o")
    axes.margins(x=0.03, y=0.1)
    return _render(figure, f"{' and '.join(name for _, _, name in lines)}, over {unit}")


def _draw_line(axes: Axes, x: ArrayLike, y: ArrayLike, marker: str) -> None:
    axes.plot(x, y, color=_ACCENT, linewidth=1.8, marker=marker, markersize=3.5)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)


def draw_usage(
    usage: ArrayLike, palette: Sequence[tuple[int, int, int]], unit: str = "epoch"
) -> Markup:
    """Draw how the share of pixels of each cluster develops, stacked to 100 per cent."""
    shares = np.asarray(usage, np.float64)
    total = shares.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)
    epochs = np.arange(1.0, len(shares) + 1)
    if len(shares) == 1:  # an area needs two ends
        shares, epochs = np.repeat(shares, 2, axis=0), np.array([0.5, 1.5])
    figure, axes = _make_curve_axes(unit)
    axes.stackplot(
        epochs,
        shares.T,
        colors=[(red / 255, green / 255, blue / 255) for red, green, blue in palette],
        edgecolor=_PANEL,
        linewidth=0.6,
    )
    axes.set_xlim(epochs[0], epochs[-1])
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    return _render(figure, f"Share of pixels of {shares.shape[1]} clusters per {unit}")


def draw_confusion(
    confusion: NDArray[np.int64], assignment: Sequence[int | None], class_names: Sequence[str]
) -> Markup:
    """Draw the confusion matrix as a heat map of row shares, matched clusters on the diagonal."""
    rows = order_clusters(assignment)
    counts = np.asarray(confusion, np.float64)[rows]
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    names = [_shorten(name) for name in class_names]
    matches = [assignment[row] for row in rows]
    labels = [
        f"{row} (unmatched)" if match is None else f"{row} → {names[match]}"
        for row, match in zip(rows, matches, strict=True)
    ]

    cell = float(np.clip(780 / max(shares.shape), 9, 44))
    font = min(11.5, 0.7 * cell)
    figure, axes = _make_matrix_axes(shares.shape, cell, font, labels, names)
    cells = np.argwhere(shares >= 0.005).tolist()
    colours = [(_HEAT, float(round(shares[y, x], 2))) for y, x in cells]
    _add_squares(axes, cells, facecolors=colours, linewidths=0)
    matched = [(y, x) for y, x in enumerate(matches) if x is not None]
    _add_squares(axes, matched, facecolors="none", edgecolors=_INK, linewidths=1.1)
    if cell >= 18:
        for y, x in np.argwhere(np.rint(100 * shares) >= 1):
            axes.text(
                x + 0.5,
                y + 0.5,
                f"{100 * shares[y, x]:.0f}",
                fontsize=0.38 * cell if cell < 30 else 11,
                ha="center",
                va="center_baseline",
                color=_INK,
            )
    return _render(figure, "Confusion matrix: clusters in rows, classes in columns")


def order_clusters(assignment: Sequence[int | None]) -> list[int]:
    """Order clusters by the class that they are matched to, unmatched ones last."""
    return sorted(
        range(len(assignment)),
        key=lambda row: (assignment[row] is None, assignment[row] or 0, row),
    )


def _make_curve_axes(unit: str) -> tuple[Figure, Axes]:
    width, height = _CURVE_SIZE
    figure = Figure(figsize=(width / _POINTS, height / _POINTS), dpi=_POINTS)
    axes = figure.add_axes((54 / width, 42 / height, (width - 68) / width, (height - 54) / height))
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(length=0, pad=6, colors=_MUTED, labelsize=12)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(
        MaxNLocator(integer=True, min_n_ticks=1, nbins=8, steps=[1, 2, 5, 10])
    )
    axes.set_xlabel(unit, color=_MUTED, fontsize=12, labelpad=4, parse_math=False)
    return figure, axes


def _make_matrix_axes(
    shape: tuple[int, ...], cell: float, font: float, labels: list[str], names: list[str]
) -> tuple[Figure, Axes]:
    rows, columns = shape
    longest = font * _CHARACTER * max(map(len, names), default=1)
    left = font * _CHARACTER * max(map(len, labels), default=1) + 14
    top, right = 0.75 * longest + 1.6 * font, max(0.75 * longest - 0.5 * cell, 0.0) + 6
    width, height = left + columns * cell + right, top + rows * cell + 4
    figure = Figure(figsize=(width / _POINTS, height / _POINTS), dpi=_POINTS)
    axes = figure.add_axes(
        (left / width, 4 / height, columns * cell / width, rows * cell / height),
        xlim=(0, columns),
        ylim=(rows, 0),
    )
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=4, colors=_INK, labelsize=font)
    # no mathematics in names: "$" is a character like any other
    axes.set_xticks(
        np.arange(columns) + 0.5,
        names,
        rotation=45,
        ha="left",
        va="bottom",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.set_yticks(np.arange(rows) + 0.5, labels, va="center_baseline", parse_math=False)
    axes.hlines(np.arange(rows + 1), 0, columns, color=_RULE, linewidth=0.5, clip_on=False)
    axes.vlines(np.arange(columns + 1), 0, rows, color=_RULE, linewidth=0.5, clip_on=False)
    return figure, axes


def _add_squares(axes: Axes, places: Iterable[Sequence[int]], **style: Any) -> None:
    squares = [[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)] for y, x in places]
    axes.add_collection(PolyCollection(squares, clip_on=False, **style), autolim=False)


def _shorten(name: str) -> str:
    label = " ".join(name.split())
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def _render(figure: Figure, description: str) -> Markup:
    """Turn a figure into an SVG element that may stand beside others in one HTML page."""
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    # salted by the description: ids that are the same in every run and differ between the figures
    with rc_context(_RC | {"svg.hashsalt": description}):
        FigureCanvasSVG(figure).print_figure(buffer, format="svg")
    svg = buffer.getvalue()
    # the prologue and the metadata name outside addresses, the style would apply to the whole page
    svg = svg[svg.index("<svg") :]
    for element in ("metadata", "style"):
        svg = re.sub(rf"<{element}\b.*?</{element}>\s*", "", svg, flags=re.DOTALL)
    width, height = (_POINTS * length for length in figure.get_size_inches())
    opening = (
        f'<svg role="img" aria-label="{html.escape(description)}" '
        f'viewBox="0 0 {width:.6g} {height:.6g}" '
        f'style="width:{width:.0f}px">'
    )
    # as a function: what the description holds is no template
    svg = re.sub(r"<svg\b[^>]*>", lambda _: opening, svg, count=1)
    # only inside tags: what the texts between them hold stays as it is
    return Markup(re.sub(r"<[^>]+>\s*", _adapt_tag, svg))


def _adapt_tag(match: re.Match[str]) -> str:
    tag = match.group().strip()
    for stand_in, colour in _THEME.items():
        tag = tag.replace(stand_in, colour)
    # keep the ids that are hashes: those of clip paths and markers, which are referred to
    tag = re.sub(r'\bid="(?!\w[0-9a-f]{10}")[^"]*"', "", tag)
    # the page has its own typeface; matplotlib before 3.10 writes size and family as one property
    tag = re.sub(r"font-family: [^;\"]*; ", "", tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", tag)
    return re.sub(r"\s+", " ", tag).replace(" >", ">")
