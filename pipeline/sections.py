"""The sections of a help page, and options that know theirs; imports click alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import click

WHAT = "What is computed"
FINE = "Fine points"
HOW = "Where and how it runs"
SHOWN = "What is shown"


class Option(click.Option):
    """An option in a section of the help page."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


what = partial(click.option, cls=Option, section=WHAT)
how = partial(click.option, cls=Option, section=HOW)
shown = partial(click.option, cls=Option, section=SHOWN)


def find_section(param: click.Parameter) -> str:
    """Return the section of an option; ``--help``, click's own, is in that of what is shown."""
    return getattr(param, "section", "") or SHOWN


def sort_sections(sections: Iterable[str]) -> list[str]:
    """Sort sections: what is computed, what a verb has besides, fine points, how, what is shown."""
    order = (WHAT, "", FINE, HOW, SHOWN)
    return sorted(sections, key=lambda name: order.index(name if name in order else ""))
