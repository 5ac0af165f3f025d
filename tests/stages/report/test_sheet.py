"""The sheet of captioned pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.report.inspection import Legend, Panel, draw_sheet, wrap_text

RED, BLUE = (250, 10, 20), (10, 20, 250)


def make_map(height: int = 30, width: int = 40) -> np.ndarray:
    """Left half red, right half blue."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, BLUE
    return pixels


def count_colour(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(axis=-1).sum())


SHEET: dict[str, Any] = {
    "title": "a title",
    "line": "a line",
    "panels": [Panel("a caption", make_map())],
}


def test_a_picture_keeps_its_colours_and_shape() -> None:
    drawn = draw_sheet(**SHEET)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1:] == (1640, 3)
    red, blue = count_colour(drawn, RED), count_colour(drawn, BLUE)
    assert red > 100_000
    assert abs(red - blue) < 0.01 * red
    rows, columns = np.nonzero((drawn == RED).all(axis=-1) | (drawn == BLUE).all(axis=-1))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(width / height - 4 / 3) < 0.01


@pytest.mark.parametrize(
    ("shape", "columns"),
    [((30, 40), 4), ((40, 30), 4), ((30, 60), 3), ((30, 90), 2), ((30, 600), 1), ((900, 3), 4)],
)
def test_pictures_stand_side_by_side_as_their_shape_allows(
    shape: tuple[int, int], columns: int
) -> None:
    panels = tuple(Panel("a caption", make_map(*shape)) for _ in range(4))
    drawn = draw_sheet(**dict(SHEET, panels=panels))
    red = (drawn == RED).all(axis=-1)
    first = np.flatnonzero(red.any(axis=1))[0]
    starts = np.flatnonzero(np.diff(red[first].astype(int)) == 1)
    assert len(starts) == columns
    assert drawn.shape[0] < 4000


def test_pictures_are_drawn_whole() -> None:
    """Nothing is cut off at the right or at the bottom, whatever there is to draw."""
    panels = tuple(Panel(f"caption {i} " * 9, make_map()) for i in range(7))
    legend = tuple(Legend((i, 255 - i, 7), f"class {i} " * 9, ("100.0 %", "–")) for i in range(40))
    figures = tuple((f"figure {i}", "12.3 %") for i in range(30))
    full = dict(
        SHEET,
        panels=panels,
        legend=legend,
        columns=("class", "share", "IoU"),
        figures=figures,
        notes=("a note " * 60, "another"),
    )
    drawn = draw_sheet(**full)
    white = (drawn == 255).all(axis=-1)
    for edge in (white[:20], white[-20:], white[:, :20], white[:, -20:]):
        assert edge.all()
    assert all(count_colour(drawn, entry.colour) > 100 for entry in legend)
    np.testing.assert_array_equal(drawn, draw_sheet(**full))


def test_photographs_are_smoothed_and_maps_are_not() -> None:
    smooth = draw_sheet(**dict(SHEET, panels=(Panel("x", make_map(), smooth=True),)))
    colours = np.unique(smooth.reshape(-1, 3), axis=0)
    assert len(colours) > len(np.unique(draw_sheet(**SHEET).reshape(-1, 3), axis=0))


def test_a_sheet_without_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="without a picture"):
        draw_sheet(**dict(SHEET, panels=()))


def test_text_is_wrapped_between_words_if_that_will_do() -> None:
    lines = wrap_text("one two three four five six seven eight", 100, 16)
    assert len(lines) > 2
    assert " ".join(lines) == "one two three four five six seven eight"
    assert "".join(wrap_text("x" * 200, 100, 16)) == "x" * 200
    assert wrap_text("", 100, 16) == [""]
    assert wrap_text("a\nb\tc", 100, 16) == ["a b c"]


def test_what_does_not_fit_is_cut_short() -> None:
    lines = wrap_text("one two three four five six seven eight", 100, 16, lines=2)
    assert len(lines) == 2
    assert lines[-1].endswith("…")


@pytest.mark.parametrize(
    "name", ["äöü ß", "$x^", "дорога", "δρόμος", "道路", "\u202e\x00\x07", "🌳"]
)
def test_names_of_any_alphabet_are_drawn(name: str) -> None:
    draw_sheet(**dict(SHEET, title=name, legend=(Legend(RED, name, (name,)),)))
