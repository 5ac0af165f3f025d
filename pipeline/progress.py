"""Progress on the screen: a bar in a terminal, plain lines elsewhere, with the same figures.

Numbers are shown with their units, and names so that they do not steer a terminal.

Events: what a command does as lines of JSON on standard output, for programs that call it, one
object a line. The first is ``start``; the last is ``done`` (the command has succeeded) or
``error``, both with the exit code. Fields may be added; none changes its meaning.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_INTERVAL_S = 10.0
INTERVAL_S = 1.0
# the past that a speed is measured over
SPEED_OF_S = 30.0
# Control characters but the line feed, and marks that turn the direction of writing around.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SIZES = ("kB", "MB", "GB", "TB", "PB")


def show_bytes(size: float) -> str:
    """Return a size in three digits or so, in decimal units: ``1.42 GB``."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in _SIZES:
        size /= 1000
        if size < 999.5 or unit == _SIZES[-1]:
            break
    return f"{_three_digits(size)} {unit}"


def show_seconds(seconds: float) -> str:
    """Return a duration as people say it: ``3.2 s``, ``2 min 05 s``, ``1 h 03 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def show_rate(rate: float, unit: str) -> str:
    """Return a speed: ``12.3 images/s``, or ``4.1 s/image`` where it is less than one a second."""
    if 0 < rate < 1:
        return f"{_three_digits(1 / rate)} s/{unit.removesuffix('s')}"
    return f"{_three_digits(rate)} {unit}/s"


def _three_digits(number: float) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def show_controls(text: str) -> str:
    """Spell out control characters: the name of a file must not steer the terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@dataclass(frozen=True)
class Figures:
    """How far a task is, with the fields of the event that says so (see ``SCHEMA``)."""

    task: str
    done: int
    total: int
    unit: str
    seconds: float
    rate: float | None
    rate_unit: str
    eta: float | None
    device: str
    bytes: int
    text: str

    def describe(self, *, clock: bool = True) -> str:
        """Say speed, time left or taken, bytes and device, as far as they are known."""
        parts = [show_rate(self.rate, self.rate_unit)] if self.rate else []
        if self.done >= self.total:
            parts += [f"in {show_seconds(self.seconds)}"] if clock else []
        elif self.eta is not None:
            parts.append(f"{show_seconds(self.eta)} left")
        parts += [f"{show_bytes(self.bytes)} written"] if self.bytes else []
        parts += [self.device] if self.device else []
        return ", ".join(parts)


class Screen:
    """Where a stage shows what it does: lines on standard error, results on standard output."""

    def __init__(self, *, progress: bool = True) -> None:
        self.progress = progress

    @cached_property
    def console(self) -> Console:
        """Rich's console; it takes a moment to import, and help pages need none."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    def begin(self, **facts: Any) -> None:
        """Take note that a command begins; for machines."""

    def end(self) -> None:
        """Take note that a command has come to its end; for machines."""

    def found(self, **facts: Any) -> None:
        """Take note of what came out, by names; for machines."""

    def result(self, text: str, **facts: Any) -> None:
        """Show a line of what came out, on standard output."""
        print(show_controls(text))
        self.found(**facts)

    def note(self, text: str) -> None:
        """Show a line."""
        self.console.print(show_controls(text), markup=False)

    def warn(self, text: str) -> None:
        """Show a line that the user should not miss."""
        self.console.print(f"warning: {show_controls(text)}", markup=False, style="yellow")

    def count(
        self, title: str, total: int, unit: str, *, device: str = "", images: float | None = None
    ) -> Counter:
        """Open a counter from 0 to ``total`` items, each of which stands for so many images."""
        if not self.progress or total == 0:
            return Counter()
        return self._open({"task": title, "total": total, "unit": unit, "device": device}, images)

    def _open(self, facts: dict[str, Any], images: float | None) -> Counter:
        shown = {name: show_controls(facts[name]) for name in ("task", "device")}
        if self.console.is_terminal:
            return _Bar(self.console, facts | shown, images)
        return Counter(facts | shown, images, _print_line, PLAIN_INTERVAL_S)


class Counter:
    """Counts what is done, and has the figures shown at intervals and at the end, if anywhere."""

    def __init__(
        self,
        facts: Mapping[str, Any] | None = None,
        images: float | None = None,
        show: Callable[[Figures], None] | None = None,
        interval: float = 0.0,
    ) -> None:
        self._facts, self._images = facts or {"total": 0}, images
        self._show, self._interval = show, interval
        self._done = self._bytes = 0
        self._text = ""
        self._start = self._last = time.monotonic()
        # when how much was done: of late, and never from before the first items, which wait for
        # compilers and weights
        self._marks: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # last of all, as the last bytes are written after the last item is counted
        if self._done >= self._facts["total"]:
            self.show()

    def show(self) -> None:
        """Have the figures of this moment shown."""
        if self._show is not None:
            self._show(self.figures())

    def figures(self) -> Figures:
        """Return the figures of this moment."""
        now = time.monotonic()
        seconds, left = now - self._start, self._facts["total"] - self._done
        speed = self._measure_speed() if left > 0 else self._done / max(seconds, 1e-9)
        # it goes on counting down while nothing comes
        eta = left / speed - (now - self._marks[-1][0]) if speed and self._marks else None
        return Figures(
            done=self._done,
            seconds=seconds,
            rate=speed * (self._images or 1) or None,
            rate_unit=self._facts["unit"] if self._images is None else "images",
            eta=None if eta is None else max(eta, 0.0),
            bytes=self._bytes,
            text=self._text,
            **self._facts,
        )

    def _measure_speed(self) -> float:
        # the bar is drawn by a thread of its own, which may look between a count and its mark
        if not self._marks:
            return 0.0
        (first, before), (last, done) = self._marks[0], self._marks[-1]
        if done > before and last > first:
            return (done - before) / (last - first)
        return self._done / max(last - self._start, 1e-9)

    def advance(self, amount: int = 1) -> None:
        """Count some more as done, and show the figures where it is time."""
        if not amount:
            return
        self._done += amount
        now = time.monotonic()
        self._marks.append((now, self._done))
        while len(self._marks) > 2 and now - self._marks[0][0] > SPEED_OF_S:
            self._marks.popleft()
        if self._done < self._facts["total"] and now - self._last >= self._interval:
            self._last = now
            self.show()

    def say(self, text: str) -> None:
        """Show a short text beside the count."""
        self._text = show_controls(text)

    def wrote(self, size: int) -> None:
        """Count some more bytes as written."""
        self._bytes += size


class _Bar(Counter):
    """A bar that is drawn anew some times a second, with the figures of that moment."""

    def __init__(self, console: Console, facts: Mapping[str, Any], images: float | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Clock
        from rich.table import Column

        super().__init__(facts, images, self._draw, 0.0)
        line = Column(no_wrap=True)
        rest = Column(no_wrap=True, overflow="ellipsis")
        self._bar = Progress(
            TextColumn("{task.description}", markup=False, table_column=line),
            BarColumn(
                min(24, max(6, console.width - 80)), complete_style="cyan", finished_style="green"
            ),
            MofNCompleteColumn(),
            TextColumn(facts["unit"], markup=False, table_column=line),
            Clock(),
            TextColumn("{task.fields[counter]}", markup=False, table_column=rest),
            console=console,
        )
        self._task = self._bar.add_task(facts["task"], total=facts["total"], counter=self)

    def __str__(self) -> str:
        # asked for whenever the bar is drawn
        figures = self.figures()
        return "  ".join(filter(None, (figures.text, figures.describe(clock=False))))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.show()
        self._bar.stop()

    def _draw(self, figures: Figures) -> None:
        self._bar.update(self._task, completed=figures.done)


def _print_line(f: Figures) -> None:
    line = f"{f.task}: {f.done}/{f.total} {f.unit}, {f.describe()}".rstrip(", ")
    print(f"{line}  {f.text}".rstrip(), file=sys.stderr, flush=True)


SCHEMA: dict[str, dict[str, str]] = {
    "start": {
        "command": "the verb",
        "run": "the run directory, as it was given; null where a verb has none",
        "version": "of primaps-pipe",
    },
    "progress": {
        "task": "what is counted: a stage, or a part of it",
        "done": "items done",
        "total": "items to do; those that were finished before are not among them",
        "unit": "what an item is, in the plural",
        "seconds": "since the task began",
        "rate": "items, or images, a second of late, at the end of all; null where not known",
        "rate_unit": "of what the rate is",
        "eta": "seconds that the rest will take at this rate; null where not known",
        "device": "what computes; empty where nothing does that could be chosen",
        "bytes": "written so far, of whole shards",
        "text": "a word on what happens at the moment",
    },
    "note": {"text": "what a terminal would be shown as a line"},
    "warning": {"text": "what should not be missed"},
    "done": {
        "exit_code": "0",
        "seconds": "since the start",
        "results": "what came out: names, such as report, and paths",
        "lines": "the same as a terminal would be shown it",
    },
    "error": {
        "message": "what is wrong, where, and what to do, in one sentence",
        "exit_code": "the exit code that follows: 1, 2 for wrong use, 128 + n for signal n",
    },
}
"""Event -> field -> meaning; each event has ``event`` (its name) and ``time`` (UTC), too."""


def print_event(event: str, **fields: Any) -> None:
    """Print one event, whole and at once."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"event": event, "time": now, **fields}
    # ASCII, so that no name of a file steers a terminal, nor fails on its encoding
    print(json.dumps(line, ensure_ascii=True, default=str), flush=True)


class EventScreen(Screen):
    """A screen that prints events."""

    def __init__(self, *, progress: bool = True) -> None:
        super().__init__(progress=progress)
        self._start = time.monotonic()
        self._results: dict[str, Any] = {}
        self._lines: list[str] = []

    def begin(self, **facts: Any) -> None:
        """Print that a command begins."""
        print_event("start", **facts)

    def end(self) -> None:
        """Print that it has succeeded, and what came out."""
        seconds = round(time.monotonic() - self._start, 3)
        print_event("done", exit_code=0, seconds=seconds, results=self._results, lines=self._lines)

    def found(self, **facts: Any) -> None:
        """Keep what came out for the end."""
        self._results.update(facts)

    def result(self, text: str, **facts: Any) -> None:
        """Keep a line of what came out for the end."""
        self._lines.append(text)
        self.found(**facts)

    def note(self, text: str) -> None:
        """Print a note."""
        print_event("note", text=text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        print_event("warning", text=text)

    def _open(self, facts: dict[str, Any], images: float | None) -> Counter:
        counter = Counter(facts, images, _print_progress, INTERVAL_S)
        counter.show()
        return counter


def _print_progress(figures: Figures) -> None:
    fields = asdict(figures)
    rounded = {name: round(value, 3) for name, value in fields.items() if isinstance(value, float)}
    print_event("progress", **fields | rounded)
