"""Progress on the screen: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL_S = 10.0
# Control characters but the line feed, and marks that turn the direction of writing around.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def show_controls(text: str) -> str:
    """Spell out control characters: the name of a file must not steer the terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Screen:
    """Where a stage shows what it does.

    Lines go to standard error, so that standard output holds results only.

    Parameters
    ----------
    progress
        Whether to show bars and counts; warnings and notes are always shown.
    """

    def __init__(self, *, progress: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.progress = progress

    def note(self, text: str) -> None:
        """Show a line."""
        self.console.print(show_controls(text), markup=False)

    def warn(self, text: str) -> None:
        """Show a line that the user should not miss."""
        self.console.print(f"warning: {show_controls(text)}", markup=False, style="yellow")

    def count(self, title: str, total: int, unit: str) -> Counter:
        """Open a counter from 0 to ``total``; a context manager."""
        if not self.progress or total == 0:
            return Counter()
        title = show_controls(title)
        if self.console.is_terminal:
            return _Bar(self.console, title, total, unit)
        return _Lines(title, total, unit)


class Counter:
    """A counter that shows nothing; the base of those that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def advance(self, amount: int = 1) -> None:
        """Count some more as done."""

    def say(self, text: str) -> None:
        """Show a short text beside the count."""


class _Bar(Counter):
    def __init__(self, console: Console, title: str, total: int, unit: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._task = self._bar.add_task(title, total=total, text="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def advance(self, amount: int = 1) -> None:
        self._bar.advance(self._task, amount)

    def say(self, text: str) -> None:
        self._bar.update(self._task, text=show_controls(text))


class _Lines(Counter):
    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._text = 0, ""
        self._start = self._shown = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if self._done == self._total or now - self._shown >= PLAIN_INTERVAL_S:
            self._shown = now
            rate = self._done / max(now - self._start, 1e-9)
            line = f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:.3g}/s"
            print(f"{line}  {self._text}".rstrip(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        self._text = show_controls(text)
