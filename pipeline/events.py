"""Events: what a command does as lines of JSON on standard output, for programs that call it.

One object a line, nothing else. The first is ``start``; the last is ``done`` (the command has
succeeded) or ``error``, both with the exit code. Fields may be added; none changes its meaning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.progress import Counter, FigureCounter, Figures, Screen

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

INTERVAL_S = 1.0


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

    def count(
        self, title: str, total: int, unit: str, *, device: str = "", images: float | None = None
    ) -> Counter:
        """Open a counter whose figures are printed now and then, at its beginning and its end."""
        if not self.progress or total == 0:
            return Counter()
        counter = _Events(title, total, unit, {"device": device, "images": images})
        counter.show(counter.figures())
        return counter


class _Events(FigureCounter):
    interval = INTERVAL_S

    def show(self, figures: Figures) -> None:
        print_event("progress", **_list_figures(figures))


def _list_figures(figures: Figures) -> Mapping[str, Any]:
    f = figures
    return {
        "task": f.title,
        "done": f.done,
        "total": f.total,
        "unit": f.unit,
        "seconds": round(f.seconds, 3),
        "rate": round(f.rate, 3) if f.speed else None,
        "rate_unit": f.rate_unit,
        "eta": None if f.eta is None else round(f.eta, 3),
        "device": f.device,
        "bytes": f.bytes,
        "text": f.text,
    }
