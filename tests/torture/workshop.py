"""Tiny runs to be disturbed: the stages, their undisturbed ends, and what differs from those."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from tests.end_to_end.conftest import draw_scene
from tests.torture.server import Outcome, Server

IMAGES, SIDE = 6, 64
FAST = ("--epochs", "3", "--init-steps", "6")


@dataclass(frozen=True)
class Job:
    """One command, and the command after which it can be given."""

    after: str | None
    command: tuple[str, ...]


JOBS = {
    "extract": Job(
        None,
        (
            *("extract", "run", "--dataset", "folder", "--root", "../scenes/photographs"),
            *("--labels", "../scenes/labels", "--backbone", "handcrafted"),
            *("--size", str(SIDE), "--shard-size", "2", "--no-progress"),
        ),
    ),
    "masks": Job("extract", ("masks", "run", "--no-progress")),
    # each epoch is noted on the screen: what was noted once must not be computed again
    "em": Job("masks", ("em", "run", "--classes", "3", *FAST, "--progress")),
    "evaluate": Job("em", ("evaluate", "run", "--no-progress")),
    "views": Job(
        "extract",
        ("extract", "run", "--views", "clean,photometric", "--crops", "five", "--no-progress"),
    ),
    "head": Job(
        "extract",
        (
            *("head", "run", "--method", "stego", "--classes", "3", "--steps", "6"),
            "--no-progress",
        ),
    ),
    # over finished shards that are stale: old and new ones must not be mixed
    "masks-again": Job("masks", ("masks", "run", "--threshold", "0.7", "--no-progress")),
}
STAGES = ("extract", "masks", "em", "evaluate")
OPTIONAL = ("views", "head", "masks-again")


@dataclass(frozen=True)
class Trial:
    """What became of one disturbed command and of the same command after it.

    Attributes
    ----------
    what
        The stage and the fault, in words.
    struck
        Whether the fault came before the command's end.
    wrong
        What is not as it should be; empty where the run survived.
    lost
        Bytes of finished shards that had to be computed again.
    seconds
        Of the whole trial.
    """

    what: str
    struck: bool
    wrong: list[str]
    lost: int
    seconds: float


@dataclass
class Workshop:
    """A folder with scenes, a warm server, and runs as every command leaves them.

    Attributes
    ----------
    folder
        Holds ``scenes``, ``work`` (where the commands run) and ``kept`` (the undisturbed ends).
    server
        Runs the commands.
    """

    folder: Path
    server: Server
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run directory that the commands work on."""
        return self.folder / "work" / "run"

    def reset(self, job: str) -> None:
        """Put the run directory into the state that a job starts from."""
        shutil.rmtree(self.run, ignore_errors=True)
        for stash in self.run.parent.glob("run.stash-*"):
            shutil.rmtree(stash)
        if (before := JOBS[job].after) is not None:
            shutil.copytree(self.folder / "kept" / before, self.run)

    def call(self, job: str, **how: Any) -> Outcome:
        """Give the command of a job."""
        return self.server.call(JOBS[job].command, **how)

    def prepare(self, jobs: Sequence[str]) -> None:
        """Make the undisturbed ends of some jobs, and of those that they need."""
        needed = list(jobs)
        for job in needed:
            if (before := JOBS[job].after) is not None:
                needed.append(before)
        for job in (name for name in JOBS if name in needed and name not in self.trees):
            self.reset(job)
            self._check(job, self.call(job, learn=True))
            self.trees[job] = describe_tree(self.run)
            shutil.copytree(self.run, self.folder / "kept" / job)
            # once more, warm: how long it takes, and that it gives the same bytes at all
            self.reset(job)
            outcome = self._check(job, self.call(job))
            self.durations[job] = outcome.seconds
            if different := self.compare(job):
                raise AssertionError(f"two undisturbed runs of {job} differ: {different}")
            self.reset(job)
            self.points[job] = self._check(job, self.call(job, faults={"root": "run"})).points

    def _check(self, job: str, outcome: Outcome) -> Outcome:
        if outcome.code != 0:
            raise AssertionError(f"undisturbed, {job} ended with {outcome.code}:\n{outcome.said}")
        return outcome

    def compare(self, job: str) -> list[str]:
        """List what differs from the undisturbed end of a job."""
        return compare_trees(self.trees[job], describe_tree(self.run))


@contextmanager
def open_workshop(folder: Path, jobs: Sequence[str] = STAGES) -> Iterator[Workshop]:
    """Draw scenes below a folder, start a server, and make the undisturbed ends of some jobs."""
    draw_scenes(folder / "scenes")
    with Server(folder / "work") as server:
        workshop = Workshop(folder, server)
        workshop.prepare(jobs)
        yield workshop


def draw_scenes(folder: Path) -> None:
    """Draw a few scenes with labels, and a file that is no picture."""
    for number in range(IMAGES):
        pixels, labels = draw_scene(number, SIDE, SIDE)
        for kind, values in (("photographs", pixels), ("labels", labels)):
            path = folder / kind / f"scene {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    (folder / "photographs" / "broken.png").write_bytes(b"\x89PNG\r\n")


def describe_tree(folder: Path) -> dict[str, str]:
    """Return relative path -> digest of every file of a run, timings and locks left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("state/locks/"):
            content = path.read_bytes()
            if name.startswith("state/") and path.suffix == ".json":
                content = _leave_out_times(content)
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _leave_out_times(content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:
        return content
    if isinstance(value, dict):
        # the record's own checksum covers its time
        value = {name: v for name, v in value.items() if name not in ("seconds", "checksum")}
        if isinstance(value.get("result"), dict):
            # which of a shard's parts this call had to compute
            value["result"].pop("computed", None)
    return json.dumps(value, sort_keys=True).encode()


def compare_trees(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """List the files that are missing, not wanted, or other than wanted."""
    return [
        *(f"{name} is missing" for name in wanted.keys() - found.keys()),
        *(f"{name} is left over" for name in found.keys() - wanted.keys()),
        *(
            f"{name} differs"
            for name in wanted.keys() & found.keys()
            if wanted[name] != found[name]
        ),
    ]


def list_records(run: Path) -> dict[Path, tuple[str, float]]:
    """Identify the computations of finished shards by their records: path -> of what, how long.

    What a stage adds to a record at its end, such as the palette of label maps, is none.
    """
    records = {}
    for path in run.glob("state/**/shards/*.json"):
        record = json.loads(path.read_bytes())
        records[path] = (record["fingerprint"], record["seconds"])
    return records


def spread(total: int, count: int, seed: int) -> list[int]:
    """Choose some numbers from 1 to ``total``, one at random from each of as many equal parts."""
    chance = random.Random(seed)
    count = min(count, total)
    edges = [1 + total * part // count for part in range(count + 1)]
    return [chance.randrange(low, high) for low, high in pairwise(edges)]
