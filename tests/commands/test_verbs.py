"""Sections: their order, and options that know theirs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from commands import verbs
from commands.options import execution_options, screen_options
from commands.verbs import (
    CONTEXT,
    FINE,
    HOW,
    SHOWN,
    WHAT,
    Option,
    Verb,
    find_section,
    sort_sections,
)
from pipeline.compute.scheduler import Execution
from pipeline.errors import RunError, UsageError
from pipeline.progress import Screen


def test_what_is_computed_comes_before_how_and_how_before_what_is_shown() -> None:
    given = [SHOWN, HOW, FINE, "Further views", WHAT]
    assert sort_sections(given) == [WHAT, "Further views", FINE, HOW, SHOWN]


def test_an_option_knows_its_section_and_others_show_something() -> None:
    assert find_section(Option(["--x"], section=HOW)) == HOW
    assert find_section(click.Option(["--help"])) == SHOWN


def call(body: Callable[[Screen], None], *arguments: str) -> Result:
    @click.command(cls=Verb, events=True, context_settings=CONTEXT)
    @screen_options
    def verb(screen: Screen) -> None:
        """Do what the test says."""
        body(screen)

    return CliRunner().invoke(verb, list(arguments))


def fail(error: BaseException) -> Callable[[Screen], None]:
    def body(screen: Screen) -> None:
        raise error

    return body


def stop(screen: Screen) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        (fail(RunError("no run.")), 1, "no run."),
        (fail(UsageError("no such name.")), 2, "no such name."),
        (fail(ValueError("x\x1b[2J")), 1, "unexpected ValueError: x\x1b[2J; -v shows where."),
        (
            fail(ImportError("libx.so: failed to map segment from shared object")),
            1,
            "memory is short (libx.so: failed to map segment from shared object); close other "
            "programs, or raise the limit that `ulimit -v` names.",
        ),
        (
            fail(MemoryError()),
            1,
            "memory is short (MemoryError); close other programs, or raise the limit that "
            "`ulimit -v` names.",
        ),
        (
            fail(RuntimeError("can't start new thread")),
            1,
            "no further thread can be started: memory is short, or too many are at work; run the "
            "same command again with fewer --workers, close other programs, or raise the limits "
            "that `ulimit -u` and `ulimit -v` name.",
        ),
        (fail(KeyboardInterrupt()), 130, "interrupted; the same command goes on from here."),
        (stop, 143, "stopped by SIGTERM; the same command goes on from here."),
    ],
)
def test_every_end_is_said_to_people_and_to_programs(
    body: Callable[[Screen], None], code: int, sentence: str
) -> None:
    for arguments in ((), ("--json",)):
        result = call(body, *arguments)
        assert result.exit_code == code
        assert result.stderr == f"primaps-pipe: {sentence}\n".replace("\x1b", "\\x1b")
        if arguments:
            first, last = (json.loads(line) for line in result.stdout.splitlines())
            assert first["event"] == "start"
            assert (last["event"], last["exit_code"], last["message"]) == ("error", code, sentence)
        else:
            assert result.stdout == ""


def test_results_are_printed_and_are_events() -> None:
    def body(screen: Screen) -> None:
        screen.note("a note")
        screen.result("in \x1b[2J.html", report="x.html")

    assert call(body).stdout == "in \\x1b[2J.html\n"
    kinds = [json.loads(line) for line in call(body, "--json").stdout.splitlines()]
    assert [event["event"] for event in kinds] == ["start", "note", "done"]
    assert kinds[-1]["results"] == {"report": "x.html"}


def test_a_reader_that_has_gone_ends_the_command_silently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the test's own streams stay as they are
    monkeypatch.setattr(verbs.os, "dup2", lambda *_: None)
    result = call(fail(BrokenPipeError()))
    assert result.exit_code == 141
    assert result.output == ""


def test_how_to_execute_is_handed_on() -> None:
    seen: list[Execution] = []

    @click.command(cls=Verb, events=True, context_settings=CONTEXT)
    @execution_options
    def verb(execution: Execution, screen: Screen) -> None:
        """Keep what comes."""
        seen.append(execution)

    def run(*arguments: str) -> Any:
        assert CliRunner().invoke(verb, list(arguments)).exit_code == 0
        return seen[-1]

    assert run() == Execution()
    assert run("--workers", "3", "--force", "--wait") == Execution(3, force=True, wait=True)
    address = "tcp://host:8786"
    assert run("--scheduler", address, "--dry-run") == Execution(scheduler=address, dry_run=True)
    assert CliRunner().invoke(verb, ["--workers", "-1"]).exit_code == 2
