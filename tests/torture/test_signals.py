"""Ctrl-C, SIGTERM, a closed terminal, a reader that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from commands import verbs
from pipeline.compute import signals
from tests.torture.server import REPOSITORY
from tests.torture.stops import (
    SIGNALS,
    has_children,
    has_mapped,
    judge,
    run_stops,
    start_program,
    stop_workers,
)
from tests.torture.workshop import JOBS, STAGES, Workshop


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_stopped_says_how_to_go_on(workshop: Workshop, stage: str) -> None:
    struck = False
    # on a machine that was busy when the stage was timed, a signal may come after its end
    for seed in range(3, 7):
        trials = list(run_stops(workshop, stage, 2, seed=seed))
        assert not [trial for trial in trials if trial.wrong]
        struck = any(trial.struck for trial in trials)
        if struck:
            break
    assert struck


@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_python"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_being_loaded_is_stopped(
    workshop: Workshop, library: str, number: int
) -> None:
    workshop.reset("masks")
    program = start_program(workshop.run.parent, JOBS["masks"].command)
    assert program.wait_for(has_mapped(library))
    program.send(number, "group")
    assert judge(program.finish(), number, may_end=False) == []


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGINT, "group"), (signal.SIGTERM, "process"), (signal.SIGKILL, "process")],
)
def test_workers_end_with_the_command(workshop: Workshop, number: int, whom: str) -> None:
    trial = stop_workers(workshop, "masks", number, whom, has_children(2))
    assert trial.struck
    assert trial.wrong == []


def test_the_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from pipeline.compute import signals\n"
        "signals._TOGETHER_S = 0.0\n"
        "with signals.watch_signals() as watch:\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)\n"
        "    except signals.Stopped as stopped:\n"
        "        assert watch.code == 143 and stopped.number == signal.SIGTERM\n"
        "        time.sleep(0.01); os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130
    assert ended.stderr.count("\n") == 1


def test_a_signal_sent_twice_at_once_is_one() -> None:
    with signals.watch_signals() as watch:
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        # an exception that a library has swallowed comes again
        with pytest.raises(signals.Stopped):
            signals.check_stopped()
    assert watch.reason == "stopped by SIGTERM"
    signals.check_stopped()


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.watch_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) not in before
    finally:
        signal.signal(signal.SIGHUP, before[2])
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_changes_no_handlers() -> None:
    def watch() -> None:
        with signals.watch_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["status", "{run}", "--json"], ["status", "{run}"]]
)
def test_a_reader_that_goes_away_gets_no_traceback(
    workshop: Workshop, arguments: list[str], tmp_path: Path
) -> None:
    workshop.reset("evaluate")
    words = [word.format(run=workshop.run) for word in arguments]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=REPOSITORY,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert ended.stderr == ""
    assert ended.returncode in (1, 141)


def test_a_signal_on_the_threshold_of_the_watch_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextmanager
    def watch() -> Iterator[signals.Watch]:
        raise signals.Stopped(signal.SIGHUP)
        yield

    monkeypatch.setattr(verbs, "watch_signals", watch)
    result = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert result.exit_code == 129
    assert result.output == (
        "primaps-pipe: stopped by SIGHUP; the same command goes on from here.\n"
    )
