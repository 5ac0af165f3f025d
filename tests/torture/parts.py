"""The parts of the long form: some need a workshop, others bring their own."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from tests.torture import disk, kills, stops
from tests.torture.server import REPOSITORY
from tests.torture.workshop import OPTIONAL, STAGES, Trial, Workshop, spread

Task = Callable[[Workshop], Trial]
RANDOM_KILLS = 20
# boundaries of the optional stages, and of those at which the disk refuses
SAMPLE = 40
STOPS = 10
FUZZ_S = 60.0


def list_kills(workshop: Workshop, seed: int) -> list[Task]:
    """Kill at random instants and at every write boundary."""
    return [*_kill_at_random(workshop, seed), *_strike(workshop, "kill", seed)]


def list_power_losses(workshop: Workshop, seed: int) -> list[Task]:
    """Take the power away at every write boundary."""
    return _strike(workshop, "power", seed)


def _kill_at_random(workshop: Workshop, seed: int) -> list[Task]:
    chance = random.Random(seed)
    return [
        partial(kills.kill_after, job=stage, seconds=chance.uniform(0, workshop.durations[stage]))
        for stage in STAGES
        for _ in range(RANDOM_KILLS)
    ]


def _strike(workshop: Workshop, mode: str, seed: int) -> list[Task]:
    chosen = {stage: kills.choose_points(workshop, stage, None, seed) for stage in STAGES}
    chosen |= {job: spread(workshop.points[job], SAMPLE, seed) for job in OPTIONAL}
    tasks: list[Task] = [
        partial(kills.kill_at, job=job, point=point, mode=mode, seed=seed + point)
        for job, points in chosen.items()
        for point in points
    ]
    tasks += [
        partial(kills.kill_and_go_back, point=point, mode=mode, seed=seed + point)
        for point in chosen["masks-again"]
    ]
    return tasks


def list_stops(workshop: Workshop, seed: int) -> list[Task]:
    """Stop at random instants, and commands with workers at several."""
    chance = random.Random(seed)
    tasks: list[Task] = [
        partial(
            stops.stop_after,
            job=stage,
            seconds=chance.uniform(0, workshop.durations[stage]),
            number=number,
        )
        for stage in STAGES
        for number in stops.SIGNALS
        for _ in range(STOPS)
    ]
    for stage in STAGES:
        for number, whom, sign in (
            (signal.SIGINT, "group", stops.has_children(2)),
            (signal.SIGINT, "process", stops.has_mapped("libtorch_python")),
            (signal.SIGTERM, "process", stops.has_children(3)),
            (signal.SIGHUP, "group", stops.has_children(3)),
            (signal.SIGKILL, "process", stops.has_children(3)),
        ):
            tasks.append(
                partial(stops.stop_workers, job=stage, number=number, whom=whom, sign=sign)
            )
    return tasks


def list_refusals(workshop: Workshop, seed: int) -> list[Task]:
    """Let the disk refuse from many boundaries on, and fill, lock and limit real ones."""
    tasks: list[Task] = []
    for stage in STAGES:
        points = spread(workshop.points[stage], SAMPLE, seed)
        for number, point in enumerate(points):
            code = disk.CODES[(number + seed) % len(disk.CODES)]
            tasks.append(partial(disk.refuse_at, job=stage, point=point, code=code))
        if disk.can_mount():
            tasks += [
                partial(disk.fill_disk, job=stage, free=free) for free in range(0, 2**17, 2**13)
            ]
            tasks += [partial(disk.make_read_only, job=stage), partial(disk.forbid, job=stage)]
        sizes = (512, 1024, 2048, 4096, 8192)
        tasks += [partial(disk.limit_files, job=stage, size=size) for size in sizes]
    return tasks


def run_tests(*files: str) -> Iterator[Trial]:
    """Run tests that inject their own faults; a test is a trial."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", ""),
                *files,
                f"--junit-xml={report}",
            ],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}.{case.get('name')}"
            wrong = [
                str(end.get("message")) for kind in ("failure", "error") for end in case.iter(kind)
            ]
            struck = case.find("skipped") is None
            yield Trial(name, struck, wrong, 0, float(case.get("time", 0)))


def run_inputs(seed: int) -> Iterator[Trial]:
    """Read every generated case of bad input, then fuzz the readers."""
    from tests.torture.fuzz import TARGETS, fuzz
    from tests.torture.inputs import run_cases

    start = time.monotonic()
    results = run_cases()
    each = (time.monotonic() - start) / max(1, len(results))
    for result in results:
        wrong = [] if result.ok else [f"expected {result.expected}, got {result.outcome}"]
        yield Trial(result.name, True, wrong, 0, each)
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            start = time.monotonic()
            try:
                report = fuzz(target, FUZZ_S, Path(folder))
            except (RuntimeError, ImportError) as error:
                yield Trial(f"fuzz {target}", False, [], 0, time.monotonic() - start)
                print(f"fuzz {target} did not run: {str(error).splitlines()[-1]}")
                continue
            wrong = [path.with_suffix(".txt").read_text() for path in report.findings]
            what = f"fuzz {target}: {report.executions} executions"
            yield Trial(what, True, wrong, 0, time.monotonic() - start)


def run_damage(seed: int) -> Iterator[Trial]:
    """Damage every file of a run in every way."""
    from tests.torture.corruption import run_corruptions

    with tempfile.TemporaryDirectory() as folder:
        yield from run_corruptions(Path(folder), seed=seed)


def run_memory(seed: int) -> Iterator[Trial]:
    """Let allocations fail and workers be killed."""
    yield from run_tests(
        "tests/pipeline/compute/test_memory.py", "tests/end_to_end/test_cluster.py"
    )


def run_locks(seed: int) -> Iterator[Trial]:
    """Let several processes write, on disks and object stores, through faults."""
    yield from run_tests(
        "tests/pipeline/storage/test_locks.py",
        "tests/object_store/test_locks.py",
        "tests/object_store/test_faults.py",
    )


def run_numbers(seed: int) -> Iterator[Trial]:
    """Give the stages numbers that nobody expects."""
    yield from run_tests(
        "tests/end_to_end/test_numbers.py",
        "tests/stages/em/test_degenerate.py",
        "tests/stages/extract/test_backbones.py",
    )


def run_changes(seed: int) -> Iterator[Trial]:
    """Change whatever a run was made from."""
    yield from run_tests("tests/end_to_end/test_staleness.py")


def run_attacks(seed: int) -> Iterator[Trial]:
    """Attack with weights, recipes, names, tables, metadata and links."""
    yield from run_tests("tests/end_to_end/test_security.py")


# Of a guarantee: its number and the fault, and what gives the trials.
WITH_WORKSHOP: dict[str, tuple[str, Callable[[Workshop, int], list[Task]]]] = {
    "kills": ("1 killed", list_kills),
    "power": ("1 power lost", list_power_losses),
    "signals": ("2 stopped by a signal", list_stops),
    "disk": ("3 a disk that refuses", list_refusals),
}
ALONE: dict[str, tuple[str, Callable[[int], Iterator[Trial]]]] = {
    "memory": ("4 memory short, workers killed", run_memory),
    "inputs": ("5 bad input", run_inputs),
    "corruption": ("6 corruption at rest", run_damage),
    "locks": ("7 two writers, object stores", run_locks),
    "numbers": ("8 odd numbers", run_numbers),
    "changes": ("9 something has changed", run_changes),
    "attacks": ("10 attacks", run_attacks),
}
NAMES: Sequence[str] = (*WITH_WORKSHOP, *ALONE)
