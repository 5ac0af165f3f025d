"""Progress: plain lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.progress import Counter, Screen


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
    assert line.endswith("/s  loss [0.5]")


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
        "masks: 10/100 windows, 1/s",
        "masks: 20/100 windows, 1/s",
        "masks: 30/100 windows, 1/s",
    ]


@pytest.mark.parametrize(("shown", "total"), [(False, 5), (True, 0)])
def test_nothing_is_counted_silently(
    shown: bool, total: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Screen(progress=shown).count("masks", total, "windows") as counter:
        assert type(counter) is Counter
        counter.advance(5)
        counter.say("x")
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
