"""Killed at any instant, and the power lost: the same command goes on to the same bytes."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.torture.workshop import Trial, Workshop, list_records, spread


def kill_at(workshop: Workshop, job: str, point: int, mode: str, seed: int = 0) -> Trial:
    """Kill a command at a write boundary, or take the power away there, and go on.

    Parameters
    ----------
    workshop
        Where.
    job
        Which command.
    point
        Number of the boundary.
    mode
        ``kill`` or ``power``.
    seed
        Chooses what a power loss leaves.
    """
    report = workshop.folder / "work" / ".taken"
    report.unlink(missing_ok=True)
    faults = {"root": "run", "mode": mode, "at": point, "seed": seed, "report": str(report)}
    what = f"{job}: {mode} at write boundary {point} of {workshop.points[job]}"
    return _try(workshop, job, what, report, faults=faults)


def kill_after(workshop: Workshop, job: str, seconds: float) -> Trial:
    """Kill a command from outside, so many seconds after its start, and go on."""
    what = f"{job}: killed after {seconds:.3f} s"
    return _try(workshop, job, what, None, signals=[(seconds, signal.SIGKILL, "group")])


def kill_and_go_back(workshop: Workshop, point: int, mode: str, seed: int = 0) -> Trial:
    """Strike masks over finished shards of another threshold, and go back to that threshold."""
    start = time.monotonic()
    workshop.reset("masks-again")
    faults = {"root": "run", "mode": mode, "at": point, "seed": seed}
    first = workshop.call("masks-again", faults=faults)
    struck = first.code == -signal.SIGKILL
    second = workshop.server.call(("masks", "run", "--forget", "--no-progress"))
    # a temporary file lies about until the same file is written again, which is not so here
    wrong = [text for text in workshop.compare("masks") if not text.endswith(".part is left over")]
    if second.code != 0:
        wrong.append(f"the former command ended with {second.code}: {second.said.strip()}")
    what = f"masks-again: {mode} at write boundary {point}, then back"
    return Trial(what, struck, wrong, 0, time.monotonic() - start)


def _try(workshop: Workshop, job: str, what: str, report: Path | None, **how: Any) -> Trial:
    start = time.monotonic()
    workshop.reset(job)
    before = list_records(workshop.run)
    first = workshop.call(job, **how)
    struck = first.code == -signal.SIGKILL
    wrong = [] if struck or first.code == 0 else [f"it ended with {first.code}: {first.said}"]
    lost = _count_taken(report)
    # those that were there before may be stale
    kept = dict(list_records(workshop.run).items() - before.items())
    second = workshop.call(job)
    if second.code != 0:
        wrong.append(f"the same command ended with {second.code}: {second.said.strip()}")
    wrong += workshop.compare(job)
    wrong += [f"left a process: {command}" for command in first.orphans + second.orphans]
    now = list_records(workshop.run)
    again = [path for path in now if kept.get(path, now[path]) != now[path]]
    lost += sum(_count_bytes(path) for path in again)
    epochs = _list_epochs(first.errors) & _list_epochs(second.errors)
    wrong += [f"epoch {epoch} was computed twice" for epoch in sorted(epochs)]
    return Trial(what, struck, wrong, lost, time.monotonic() - start)


def _count_taken(report: Path | None) -> int:
    """Count the bytes that a power loss took although they had been synced."""
    if report is None or not report.is_file():
        return 0
    return sum(json.loads(report.read_text()).values())


def _count_bytes(record: Path) -> int:
    """Count the bytes of the files that a shard's record lists."""
    files = json.loads(record.read_text()).get("files", {})
    return sum(int(size) for size, _ in files.values()) + record.stat().st_size


def _list_epochs(text: str) -> set[str]:
    return set(re.findall(r"epoch (\d+)/", text))


def run_random(workshop: Workshop, job: str, count: int, seed: int) -> Iterator[Trial]:
    """Kill a command at random instants over its duration."""
    chance = random.Random(f"{seed} {job}")
    for _ in range(count):
        yield kill_after(workshop, job, chance.uniform(0, workshop.durations[job]))


def run_points(
    workshop: Workshop, job: str, points: Sequence[int], mode: str, seed: int
) -> Iterator[Trial]:
    """Strike a command at some of its write boundaries."""
    for point in points:
        yield kill_at(workshop, job, point, mode, seed + point)


def choose_points(workshop: Workshop, job: str, count: int | None, seed: int) -> list[int]:
    """Choose write boundaries of a command: all where no number is given, else evenly spread."""
    total = workshop.points[job]
    return list(range(1, total + 1)) if count is None else spread(total, count, seed)
