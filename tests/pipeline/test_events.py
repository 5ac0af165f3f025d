"""Events: one JSON object a line, with the fields that the schema names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline import progress
from pipeline.events import SCHEMA, EventScreen
from pipeline.progress import Counter


def read(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


def test_every_event_has_the_fields_of_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    screen = EventScreen()
    screen.begin(command="masks", run="runs/a", version="1")
    screen.note("a note")
    screen.warn("a\x1b[2J warning of \udcff")
    with screen.count("masks", 2, "windows", device="cpu", images=0.5) as counter:
        counter.advance(2)
        counter.wrote(7)
    screen.result("the report is at x", report="x")
    screen.end()
    events = read(capsys)
    kinds = ["start", "note", "warning", "progress", "progress", "done"]
    assert [event["event"] for event in events] == kinds
    for event in events:
        assert set(event) == {"event", "time", *SCHEMA[event["event"]]}
    last = events[-2]
    assert (last["done"], last["bytes"], last["rate_unit"]) == (2, 7, "images")
    assert events[-1]["results"] == {"report": "x"}
    assert events[-1]["lines"] == ["the report is at x"]


def test_figures_come_at_intervals_and_at_both_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with EventScreen().count("masks", 100, "windows") as counter:
        for _ in range(100):
            now[0] += 0.25
            counter.advance()
    events = read(capsys)
    assert [event["done"] for event in events] == [0, *range(4, 100, 4), 100]
    assert events[0]["rate"] is None
    assert events[0]["eta"] is None
    assert (events[1]["rate"], events[1]["eta"]) == (4.0, 24.0)
    assert (events[-1]["rate"], events[-1]["eta"]) == (4.0, 0.0)


def test_without_progress_nothing_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with EventScreen(progress=False).count("masks", 3, "windows") as counter:
        assert type(counter) is Counter
    assert read(capsys) == []
