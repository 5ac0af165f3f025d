"""Ctrl-C, SIGTERM and a closed terminal, at any instant: one line, the exit code, no orphan."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.torture.server import REPOSITORY, Outcome, list_session
from tests.torture.workshop import JOBS, Trial, Workshop, list_records

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAIT_S = 60.0
# a shard in hand may be finished first
END_S = 15.0


def stop_after(workshop: Workshop, job: str, seconds: float, number: int) -> Trial:
    """Send a signal to a command, so many seconds after its start, and go on.

    Parameters
    ----------
    workshop
        Where.
    job
        Which command.
    seconds
        When.
    number
        Which signal; as a terminal does it, to the whole group, where it is SIGINT or SIGHUP.
    """
    start = time.monotonic()
    workshop.reset(job)
    whom = "process" if number == signal.SIGTERM else "group"
    first = workshop.call(job, signals=[(seconds, number, whom)])
    wrong = judge(first, number)
    kept = list_records(workshop.run)
    second = workshop.call(job)
    if second.code != 0:
        wrong.append(f"the same command ended with {second.code}: {second.said.strip()}")
    wrong += workshop.compare(job)
    now = list_records(workshop.run)
    if any(kept.get(path, now[path]) != now[path] for path in now):
        wrong.append("a finished shard was computed again")
    what = f"{job}: {signal.Signals(number).name} after {seconds:.3f} s"
    return Trial(what, first.code != 0, wrong, 0, time.monotonic() - start)


# What an interpreter says that is only starting: no handler of ours can be there yet.
_STARTING = re.compile(
    r"Fatal Python error: init_import_site.*?^KeyboardInterrupt$", re.DOTALL | re.M
)


def judge(outcome: Outcome, number: int, *, may_end: bool = True) -> list[str]:
    """List what is wrong with how a command took a signal."""
    wrong = [f"left a process: {command}" for command in outcome.orphans]
    if outcome.hung:
        wrong.append("it did not end")
    if "Traceback" in _STARTING.sub("", outcome.said):
        wrong.append(f"a traceback: {outcome.said}")
    if may_end and outcome.code == 0:
        return wrong
    if outcome.code != 128 + number:
        wrong.append(f"exit code {outcome.code}, not {128 + number}: {outcome.said.strip()}")
    if number == signal.SIGHUP and not outcome.errors.strip():
        return wrong  # nobody is there to read it
    lines = [line for line in outcome.errors.splitlines() if line.startswith("primaps-pipe: ")]
    if len(lines) != 1 or not ("goes on from here" in lines[0] or "again" in lines[0]):
        wrong.append(f"not one line that says how to go on: {outcome.errors.strip()!r}")
    return wrong


def run_stops(workshop: Workshop, job: str, count: int, seed: int) -> Iterator[Trial]:
    """Send each signal to a command at random instants over its duration."""
    chance = random.Random(f"{seed} {job}")
    for number in SIGNALS:
        for _ in range(count):
            yield stop_after(workshop, job, chance.uniform(0, workshop.durations[job]), number)


@dataclass(frozen=True)
class Program:
    """The command line as a user starts it, in a session of its own.

    Attributes
    ----------
    process
        The running process.
    files
        What it writes to standard output and standard error.
    """

    process: subprocess.Popen[bytes]
    files: tuple[Path, Path]

    def wait_for(self, sign: Callable[[int], bool], limit_s: float = WAIT_S) -> bool:
        """Wait until a sign is seen, given the process's number; false where it ends before."""
        limit = time.monotonic() + limit_s
        while self.process.poll() is None:
            if sign(self.process.pid):
                return True
            if time.monotonic() > limit:
                self.send(signal.SIGKILL, "group")
                raise TimeoutError(f"the sign never came: {self.files[1].read_text()}")
            time.sleep(0.01)
        return False

    def send(self, number: int, whom: str = "process") -> None:
        """Send a signal to the process or to its group."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if whom == "group" else os.kill)(self.process.pid, number)

    def finish(self, limit_s: float = WAIT_S) -> Outcome:
        """Wait for its end, and look who is left."""
        start = time.monotonic()
        hung = False
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            hung = True
            self.send(signal.SIGKILL, "group")
            self.process.wait()
        seconds = time.monotonic() - start
        orphans = list_session(self.process.pid)
        for number in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        output, errors = (path.read_text(errors="replace") for path in self.files)
        code = self.process.returncode
        return Outcome(code, seconds, output, errors, list(orphans.values()), hung=hung)


def start_program(folder: Path, arguments: Sequence[object]) -> Program:
    """Start the command line in a folder."""
    files = (folder / ".program-output", folder / ".program-errors")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with files[0].open("wb") as output, files[1].open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    return Program(process, files)


def has_mapped(library: str) -> Callable[[int], bool]:
    """Make a sign: the process has begun to load a library."""

    def sign(number: int) -> bool:
        with contextlib.suppress(OSError):
            return library in Path(f"/proc/{number}/maps").read_text()
        return False

    return sign


def has_children(count: int) -> Callable[[int], bool]:
    """Make a sign: the process has started so many others of its session."""
    return lambda number: len(list_session(number, patience_s=0)) > count


def stop_workers(
    workshop: Workshop, job: str, number: int, whom: str, sign: Callable[[int], bool]
) -> Trial:
    """Send a signal to a command with two worker processes when a sign is seen, and go on."""
    start = time.monotonic()
    workshop.reset(job)
    folder = workshop.run.parent
    program = start_program(folder, [*JOBS[job].command, "--workers", "2"])
    struck = program.wait_for(sign)
    program.send(number, whom)
    outcome = program.finish()
    if number == signal.SIGKILL:
        wrong = [f"left a process: {command}" for command in outcome.orphans]
    else:
        wrong = judge(outcome, number)
    if workshop.call(job).code != 0:
        wrong.append("the same command failed")
    wrong += workshop.compare(job)
    name = f"{job} with 2 workers: {signal.Signals(number).name} to the {whom}"
    if outcome.seconds > END_S:
        wrong.append(f"it took {outcome.seconds:.1f} s to end")
    return Trial(name, struck, wrong, 0, time.monotonic() - start)
