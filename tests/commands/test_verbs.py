"""Sections: their order, and options that know theirs."""

from __future__ import annotations

import click

from commands.verbs import FINE, HOW, SHOWN, WHAT, Option, find_section, sort_sections


def test_what_is_computed_comes_before_how_and_how_before_what_is_shown() -> None:
    given = [SHOWN, HOW, FINE, "Further views", WHAT]
    assert sort_sections(given) == [WHAT, "Further views", FINE, HOW, SHOWN]


def test_an_option_knows_its_section_and_others_show_something() -> None:
    assert find_section(Option(["--x"], section=HOW)) == HOW
    assert find_section(click.Option(["--help"])) == SHOWN
