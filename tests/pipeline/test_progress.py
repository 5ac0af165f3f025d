"""Progress: plain lines where there is no terminal, a bar where there is one; units.

Events: one JSON object a line, with the fields that the schema names.
"""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline import progress
from pipeline.progress import (
    SCHEMA,
    Counter,
    EventScreen,
    Screen,
    show_bytes,
    show_controls,
    show_rate,
    show_seconds,
)


def test_notes_and_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(progress=False)
    screen.note("em/k12: [bold]done[/] " + "x" * 200)
    screen.warn("no [classes]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"em/k12: [bold]done[/] {'x' * 200}\nwarning: no [classes]\n"


def test_the_end_is_always_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().count("masks", 3, "windows") as counter:
        counter.advance()
        counter.say("loss [0.5]")
        counter.advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("masks: 3/3 windows, ")
    assert " windows/s, in 0.0 s" in line
    assert line.endswith("  loss [0.5]")


def test_a_line_says_speed_time_left_device_and_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Screen().count("masks", 100, "windows", device="cpu", images=0.5) as counter:
        counter.wrote(2_500_000)
        now[0] = 10
        counter.advance(20)
        now[0] = 20
        counter.advance(20)
        now[0] = 50
        # the last bytes are on disk after the last item is counted
        counter.advance(60)
        counter.wrote(1_500_000)
    assert capsys.readouterr().err.splitlines() == [
        "masks: 20/100 windows, 1.00 images/s, 40 s left, 2.50 MB written, cpu",
        "masks: 40/100 windows, 1.00 images/s, 30 s left, 2.50 MB written, cpu",
        "masks: 100/100 windows, 1.00 images/s, in 50 s, 4.00 MB written, cpu",
    ]


def test_lines_come_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Screen().count("masks", 100, "windows") as counter:
        for _ in range(30):
            now[0] += 1
            counter.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "masks: 10/100 windows, 1.00 windows/s, 1 min 30 s left",
        "masks: 20/100 windows, 1.00 windows/s, 1 min 20 s left",
        "masks: 30/100 windows, 1.00 windows/s, 1 min 10 s left",
    ]


def make_counter(total: int) -> Counter:
    facts = {"task": "em", "total": total, "unit": "epochs", "device": ""}
    return Counter(facts, None, lambda _: None, 1e9)


def test_what_comes_before_the_first_items_does_not_slow_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    counter = make_counter(50)
    assert (counter.figures().rate, counter.figures().eta) == (None, None)
    now[0] = 40
    counter.advance()
    assert counter.figures().eta == pytest.approx(40 * 49)
    for _ in range(9):
        now[0] += 2
        counter.advance()
    assert counter.figures().rate == pytest.approx(0.5)
    assert counter.figures().eta == pytest.approx(80)
    now[0] += 3
    assert counter.figures().eta == pytest.approx(77)
    now[0] += 300
    assert counter.figures().eta == 0


def test_a_speed_is_that_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    counter = make_counter(5000)
    for pause in [1.0] * 100 + [0.1] * 1000:
        now[0] += pause
        counter.advance()
    assert counter.figures().rate == pytest.approx(10)


@pytest.mark.parametrize(("shown", "total"), [(False, 5), (True, 0)])
def test_nothing_is_counted_silently(
    shown: bool, total: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Screen(progress=shown).count("masks", total, "windows") as counter:
        assert type(counter) is Counter
        counter.advance(5)
        counter.say("x")
        counter.wrote(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar() -> None:
    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with screen.count("em/[k12]", 4, "epochs") as counter:
        counter.advance(3)
        counter.say("loss 0.5 [/] of [4]")
        counter.advance()
    shown = screen.console.file.getvalue()  # type: ignore[attr-defined]
    assert "em/[k12]" in shown
    assert "4/4" in shown
    assert "loss 0.5 [/] of [4]" in shown


def test_an_error_inside_is_not_swallowed() -> None:
    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(KeyError), screen.count("em", 4, "epochs"):
        raise KeyError("x")


def test_names_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.note("a\x1b[2Jb\u202egnp.jpg")
    screen.warn("c\x07d\x9bm")
    assert capsys.readouterr().err == "a\\x1b[2Jb\\u202egnp.jpg\nwarning: c\\x07d\\x9bm\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_counters_show_names_as_they_are(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    if terminal:
        screen.console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with screen.count("em/\x1b[31mred", 1, "epochs") as counter:
        counter.say("of \x07.png")
        counter.advance()
    shown = screen.console.file.getvalue() if terminal else capsys.readouterr().err  # type: ignore[attr-defined]
    assert "em/\\x1b[31mred" in shown
    assert "of \\x07.png" in shown


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


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (1_420_000_000, "1.42 GB"),
        (2e18, "2000 PB"),
    ],
)
def test_sizes_have_three_digits(size: float, text: str) -> None:
    assert show_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.21, "3.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3780, "1 h 03 min"),
    ],
)
def test_durations_are_as_people_say_them(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


@given(st.floats(0, 1e7))
def test_no_duration_holds_sixty_of_anything(seconds: float) -> None:
    assert "60" not in show_seconds(seconds).split()[2:]


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (12.34, "12.3 images/s"),
        (1234, "1234 images/s"),
        (0.25, "4.00 s/image"),
        (0, "0.00 images/s"),
    ],
)
def test_slow_things_are_said_the_other_way_round(rate: float, text: str) -> None:
    assert show_rate(rate, "images") == text


def test_control_characters_are_spelt_out() -> None:
    assert show_controls("a\x1b[2J\u202eb\nc") == "a\\x1b[2J\\u202eb\nc"
