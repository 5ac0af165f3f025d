"""A disk full, read-only, forbidden: one sentence, earlier shards intact, and on it goes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.torture.server import Outcome
from tests.torture.workshop import Trial, Workshop, list_records

# what the system answers: a full disk, a quota, a read-only disk, no permission, a limit on files
CODES = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO")
# a user that may nothing
NOBODY = 65534


def refuse_at(workshop: Workshop, job: str, point: int, code: str) -> Trial:
    """Let every write of a command fail from a boundary on, and go on without that.

    Parameters
    ----------
    workshop
        Where.
    job
        Which command.
    point
        Number of the boundary.
    code
        Name of the error.
    """
    start = time.monotonic()
    workshop.reset(job)
    first = workshop.call(job, faults={"root": "run", "mode": "error", "at": point, "code": code})
    wrong = judge(first)
    wrong += go_on(workshop, job)
    what = f"{job}: {code} from write boundary {point} of {workshop.points[job]} on"
    return Trial(what, first.code != 0, wrong, 0, time.monotonic() - start)


def judge(outcome: Outcome, *, sized: bool = False) -> list[str]:
    """List what is wrong with how a command took a disk that refuses.

    Parameters
    ----------
    outcome
        How it ended.
    sized
        Whether it must say how many bytes are needed.
    """
    if outcome.code == 0:
        return []
    wrong = []
    if outcome.code != 1:
        wrong.append(f"exit code {outcome.code}")
    lines = [line for line in outcome.errors.splitlines() if line.startswith("primaps-pipe: ")]
    if len(lines) != 1 or "Traceback" in outcome.said or "unexpected" in outcome.said:
        wrong.append(f"not one sentence: {outcome.said.strip()}")
    elif "run/" not in lines[0] and "/run" not in lines[0] and " run" not in lines[0]:
        wrong.append(f"no path: {lines[0]}")
    elif sized and not re.search(r"\d+ bytes", lines[0]):
        wrong.append(f"no number of bytes: {lines[0]}")
    return wrong


def go_on(workshop: Workshop, job: str) -> list[str]:
    """Give the command again and list what is not as if nothing had been."""
    kept = list_records(workshop.run)
    second = workshop.call(job)
    wrong = workshop.compare(job)
    if second.code != 0:
        wrong.append(f"the same command ended with {second.code}: {second.said.strip()}")
    now = list_records(workshop.run)
    if any(kept.get(path, now[path]) != now[path] for path in now):
        wrong.append("a finished shard was computed again")
    return wrong


def run_refusals(workshop: Workshop, job: str, points: Sequence[int], seed: int) -> Iterator[Trial]:
    """Refuse a command's writes from some boundaries on, with one error after the other."""
    for number, point in enumerate(points):
        yield refuse_at(workshop, job, point, CODES[(number + seed) % len(CODES)])


def fill_disk(workshop: Workshop, job: str, free: int) -> Trial:
    """Give a command a real file system with so many free bytes, then room, and go on.

    The run directory lies on a file system in memory; the place that is lacking is taken by a file
    beside it, which is removed afterwards.
    """
    start = time.monotonic()
    workshop.reset(job)
    with mount_small(workshop) as ballast:
        leave_free(ballast, free)
        first = workshop.call(job)
        wrong = judge(first, sized=True)
        ballast.unlink()
        wrong += go_on(workshop, job)
    what = f"{job}: a disk with {free} bytes left"
    return Trial(what, first.code != 0, wrong, 0, time.monotonic() - start)


def make_read_only(workshop: Workshop, job: str) -> Trial:
    """Give a command a read-only file system, then a writable one, and go on."""
    start = time.monotonic()
    workshop.reset(job)
    with mount_small(workshop) as ballast:
        place = str(ballast.parent)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        first = workshop.call(job)
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        wrong = judge(first) + go_on(workshop, job)
    if first.code == 0:
        wrong.append("it wrote on a read-only disk")
    return Trial(f"{job}: read-only", True, wrong, 0, time.monotonic() - start)


def limit_files(workshop: Workshop, job: str, size: int) -> Trial:
    """Let no file of a command grow beyond a size (``RLIMIT_FSIZE``), then go on without."""
    start = time.monotonic()
    workshop.reset(job)
    first = workshop.call(job, limits={"FSIZE": size})
    wrong = judge(first, sized=True) + go_on(workshop, job)
    what = f"{job}: files of {size} bytes at most"
    return Trial(what, first.code != 0, wrong, 0, time.monotonic() - start)


def forbid(workshop: Workshop, job: str) -> Trial:
    """Run a command as a user who may not write there, then as one who may."""
    start = time.monotonic()
    workshop.reset(job)
    workshop.run.mkdir(exist_ok=True)
    for folder in (workshop.folder, *workshop.folder.parents[:2]):
        with contextlib.suppress(OSError):
            folder.chmod(folder.stat().st_mode | 0o055)
    first = workshop.call(job, uid=NOBODY)
    wrong = judge(first)
    if first.code == 0:
        wrong.append("it wrote where it must not")
    wrong += go_on(workshop, job)
    return Trial(f"{job}: no permission", True, wrong, 0, time.monotonic() - start)


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    return (
        os.geteuid() == 0
        and subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@contextlib.contextmanager
def mount_small(workshop: Workshop) -> Iterator[Path]:
    """Put the run directory onto a file system in memory; give the place of a file to fill it."""
    kept = workshop.run.with_name("run-kept")
    place = workshop.run.parent / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    try:
        if workshop.run.exists():
            workshop.run.rename(kept)
            subprocess.run(["cp", "-a", str(kept), str(place / "run")], check=True)
        else:
            (place / "run").mkdir()
        workshop.run.symlink_to(place / "run")
        yield place / "ballast"
    finally:
        workshop.run.unlink()
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()
        subprocess.run(["rm", "-rf", str(kept)], check=True)


def leave_free(ballast: Path, free: int) -> None:
    """Fill a file system but for so many bytes."""
    status = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - free)))
