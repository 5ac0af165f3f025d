"""Pieces that pages are rendered with."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.report import rendering
from stages.report.rendering import (
    break_path,
    check_picture,
    format_colour,
    format_number,
    format_percent,
    name_fragment,
)

TEMPLATES = Path(rendering.__file__).parent / "templates"


@given(st.lists(st.text(), min_size=1))
def test_a_fragment_can_be_read_again(parts: list[str]) -> None:
    fragment = name_fragment(*parts)
    assert fragment.isascii() and not set(fragment) & set(" \"'<>&#\n")
    assert [unquote(part) for part in fragment.split("/")] == parts


def test_a_fragment_of_what_is_no_unicode() -> None:
    assert name_fragment("image", "caf\udce9") == "image/caf%5Cudce9"


def test_paths_break_after_their_separators() -> None:
    assert break_path("a/b_c.d") == "a/<wbr>b_<wbr>c.<wbr>d"
    assert break_path("<b>/&") == "&lt;b&gt;/<wbr>&amp;"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "12"])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    assert format_number(value) == format_percent(value) == "–"


def test_numbers() -> None:
    assert format_number(1.25) == "1.2"
    assert format_number(1.25, 2) == "1.25"
    assert format_percent(99.96) == "100.0 %"
    assert format_colour((0, 15, 255)) == "#000fff"


@pytest.mark.parametrize("source", ["", "https://a/b.png", "data:text/html,x", " data:image/png,"])
def test_a_picture_is_a_data_uri(source: str) -> None:
    with pytest.raises(ValueError, match="the picture of a is no data URI"):
        check_picture(source, "of a")


def test_scripts_and_styles_can_stand_inside_a_page() -> None:
    for file in TEMPLATES.iterdir():
        if file.suffix in (".js", ".css"):
            text = file.read_text(encoding="utf-8")
            assert "</" not in text, file
            for word in ("innerHTML", "eval(", "document.write", "http"):
                assert word not in text, (file, word)
