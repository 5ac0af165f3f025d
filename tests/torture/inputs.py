"""Cases of bad input: generated, read one by one in a guarded process, and run as one dataset.

``run_cases()`` does both, and the changes of :mod:`tests.torture.changes`, and gives a table. The
first pass calls the readers in a process of its own, with limits on time and memory, so that a
crash, a hang or a bomb ends one case and not the test. The second puts all cases into one root and
runs the command line over it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from click.testing import CliRunner
from PIL import Image

from tests.torture import damaged_images, odd_labels, odd_places, unusual_images
from tests.torture.cases import Case, Expected, SkipError

TIME_LIMIT_S = 10
MEMORY_LIMIT = 2**30
"""Bytes that one case may take beyond what the process has at its start."""

SIZE = 32
REPOSITORY = Path(__file__).resolve().parents[2]


class Result(NamedTuple):
    """A case, what must come out, what came out, and whether that is right."""

    name: str
    expected: str
    outcome: str
    ok: bool


def all_cases() -> list[Case]:
    """Give every case, each under a name of its own, always in the same order."""
    cases = [
        *damaged_images.cases(),
        *unusual_images.cases(),
        *odd_labels.cases(),
        *odd_places.cases(),
    ]
    assert len({(case.kind, case.name) for case in cases}) == len(cases)
    return cases


def run_cases() -> list[Result]:
    """Run all cases and changes in a temporary folder.

    Returns
    -------
    list of Result
        Two for each case: its files read alone, and as a part of one large dataset; and one for
        each change of :mod:`tests.torture.changes`.
    """
    from tests.torture.changes import run_changes

    cases = all_cases()
    with temporary_folder() as folder:
        return [
            *read_alone(cases, folder / "alone"),
            *run_together(cases, folder / "together"),
            *run_changes(folder / "changes"),
        ]


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that is removed with all that the cases made in it."""
    memory = Path("/dev/shm")  # thousands of small files, which a busy disk takes minutes for
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    folder = Path(tempfile.mkdtemp(prefix="inputs-", dir=memory if roomy else None))
    try:
        yield folder
    finally:
        # no tool of the system removes folders that lie so deep
        for pattern in ("photographs/*/d", "*/photographs/*/d"):
            for place in folder.glob(pattern):
                odd_places.remove_deep(place.parent)
        shutil.rmtree(folder)


def write_case(case: Case, number: int, folder: Path) -> list[Expected]:
    """Write the files of a case below ``photographs`` and ``labels``; paths are below those."""
    slug = f"case {number}"
    photographs, labels = folder / "photographs" / slug, folder / "labels" / slug
    photographs.mkdir(parents=True)
    return case.write(photographs, labels)


def read_alone(cases: list[Case], folder: Path) -> list[Result]:
    """Read every file of every case in a process with limits on time and memory."""
    results: list[Result] = []
    while len(results) < len(cases):
        first = len(results)
        command = [sys.executable, "-m", "tests.torture.inputs", str(folder), str(first)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        lines = [json.loads(line) for line in process.stdout.splitlines()]
        results += [_name(cases[first + n], *line) for n, line in enumerate(lines)]
        if len(results) < len(cases):
            # the process ended within a case: by a signal, the time limit, or an error of its own
            how = f"process ended ({process.returncode}): {process.stderr.strip()[-600:]}"
            results.append(_name(cases[len(results)], "no crash, no hang", how, False))
    return results


def _name(case: Case, expected: str, outcome: str, ok: bool) -> Result:
    return Result(f"{case.kind}: {case.name}", expected, outcome, ok)


def _serve(folder: Path, first: int) -> None:
    """Read the cases from ``first`` on, and print a line of JSON for each."""
    cases = all_cases()
    limit_memory(MEMORY_LIMIT)
    for number, case in enumerate(cases[first:], start=first):
        faulthandler.dump_traceback_later(TIME_LIMIT_S, exit=True)
        try:
            expected = write_case(case, number, folder)
        except SkipError as reason:
            line = ("skipped", f"skipped: {reason}", True)
        else:
            line = _read_case(folder, number, expected)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(line), flush=True)


def limit_memory(more: int) -> None:
    """Let this process take so many bytes more than it has now, where the system can limit it."""
    try:
        import resource
    except ImportError:
        return  # not on this system
    status = Path("/proc/self/status")
    if status.exists():
        taken = int(re.findall(r"VmSize:\s+(\d+) kB", status.read_text())[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (taken + more,) * 2)


def _read_case(folder: Path, number: int, expected: list[Expected]) -> tuple[str, str, bool]:
    wanted, found, faults = [], [], []
    for each in expected:
        path = folder / "photographs" / f"case {number}" / each.path
        if not each.by_path:
            outcome, fault = _read_photograph(path, each)
            wanted.append(each.outcome)
            found.append(outcome)
            faults += [fault] if fault else []
        if each.label and (each.ids is not None or each.label_reason):
            outcome, fault = _read_label(folder / "labels" / f"case {number}" / each.label, each)
            wanted.append("label refused" if each.label_reason else "label")
            found.append(outcome)
            faults += [fault] if fault else []
    return _join(wanted), _join([*found, *faults]), not faults


def _join(texts: list[str]) -> str:
    return "; ".join(dict.fromkeys(texts)) or "nothing to read"


def _read_photograph(path: Path, expected: Expected) -> tuple[str, str]:
    """Read a photograph as the stages do; return what came out, and what is wrong with that."""
    from pipeline.errors import ImageError
    from pipeline.images.decoding import probe_image, read_rgb
    from pipeline.images.windows import fit_size, place_windows

    begun = time.perf_counter()
    try:
        header = probe_image(path)
        pixels = read_rgb(path, header.digest)
        place_windows(*fit_size(header.width, header.height, SIZE), SIZE, "whole", 0.25)
    except ImageError as error:
        return _judge_reason(expected, str(error))
    seconds = time.perf_counter() - begun
    if expected.outcome == "rejected":
        return "right", f"{path.name} should have been rejected"
    shape = (header.height, header.width, 3)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        return "wrong", f"{pixels.shape} of {pixels.dtype} where the header says {shape}"
    if expected.size is not None and (header.width, header.height) != expected.size:
        return "wrong", f"{header.width} x {header.height}, not {expected.size}"
    if expected.pixels is not None:
        if pixels.shape != expected.pixels.shape:
            return "wrong", f"{pixels.shape}, not {expected.pixels.shape}"
        far = int(np.abs(pixels.astype(int) - expected.pixels.astype(int)).max())
        if far > expected.tolerance:
            return "wrong", f"pixels are up to {far} off"
    return "right", f"took {seconds:.1f} s" if seconds > TIME_LIMIT_S else ""


def _judge_reason(expected: Expected, reason: str) -> tuple[str, str]:
    if expected.outcome == "right":
        return "rejected", f"{expected.path} was rejected: {reason}"
    if "\n" in reason or len(reason) > 300 or not re.search(expected.reason, reason):
        return "rejected", f"for the reason {reason!r}, which is not {expected.reason!r}"
    return "rejected", ""


def _read_label(path: Path, expected: Expected) -> tuple[str, str]:
    from pipeline.datasets import get_dataset
    from pipeline.errors import ImageError

    try:
        found = get_dataset("folder").read_label(path)
    except ImageError as error:
        if not expected.label_reason or not re.search(expected.label_reason, str(error)):
            return "label refused", f"for the reason {str(error)!r}"
        return "label refused", ""
    if expected.ids is not None:
        same = found.shape == expected.ids.shape and bool((found == expected.ids).all())
        return ("label", "") if same else ("wrong label", f"ids {np.unique(found)[:9]}")
    if expected.label_reason.startswith("it is"):
        return "label refused", ""  # by its size, which the evaluation compares
    return "label", f"{path.name} should have been refused"


def run_together(cases: list[Case], folder: Path) -> list[Result]:
    """Run the command line on all cases at once, and compare manifest, label maps and scores."""
    written: dict[int, list[Expected] | SkipError] = {}
    for number, case in enumerate(cases):
        try:
            written[number] = write_case(case, number, folder)
        except SkipError as reason:
            written[number] = reason
    run, photographs = folder / "run", folder / "photographs"
    call(
        *("extract", run, "--dataset", "folder", "--root", photographs),
        *("--labels", folder / "labels", "--backbone", "handcrafted", "--size", SIZE),
    )
    call("masks", run, "--crf", "none", "--max-proposals", 3)
    call("em", run, "--classes", 3, "--epochs", 1, "--init-steps", 2)
    call("evaluate", run, "--crf", "none", "--gallery", 1)
    rows = {row["path"]: row for row in pq.read_table(run / "manifest.parquet").to_pylist()}
    shards = (run / "state" / "evaluate" / "default").rglob("*.json")
    unreadable: dict[str, str] = {}
    for path in shards:
        unreadable |= json.loads(path.read_text()).get("result", {}).get("unreadable_labels", {})
    results = []
    listed: set[str] = set()
    for number, case in enumerate(cases):
        expected = written[number]
        if isinstance(expected, SkipError):
            results.append(_name(case, "skipped", f"skipped: {expected}", True))
            continue
        slug = f"case {number}/"
        own = {path[len(slug) :]: row for path, row in rows.items() if path.startswith(slug)}
        listed |= {slug + path for path in own}
        faults = list(_compare_rows(expected, own, slug, unreadable, run / "labels" / "all"))
        found = _join([row["state"] for row in own.values()])
        wanted = _join([each.outcome for each in expected if each.listed])
        results.append(_name(case, wanted, _join([found, *faults]), not faults))
    strays = rows.keys() - listed
    maps = sum(path.is_file() for path in (run / "labels").rglob("*.png"))
    usable = sum(row["state"] == "ok" for row in rows.values())
    ok = not strays and maps == usable
    outcome = f"{maps} label maps of {usable} usable images, {len(strays)} stray rows"
    results.append(Result("all: one label map for every usable image", "as many", outcome, ok))
    return results


def _compare_rows(
    expected: list[Expected],
    rows: dict[str, dict[str, Any]],
    slug: str,
    unreadable: dict[str, str],
    labels: Path,
) -> Iterator[str]:
    """Say what is wrong with a case's rows of the manifest, and with the label maps made of it."""
    wanted = {each.path: each for each in expected if each.listed}
    if wanted.keys() != rows.keys():
        yield f"rows {sorted(rows)[:5]}, not {sorted(wanted)[:5]}"
        return
    for path, each in wanted.items():
        row = rows[path]
        if row["state"] == "rejected":
            fault = _judge_reason(each, row["reason"] or "")[1]
            if fault:
                yield fault
            continue
        if each.outcome == "rejected":
            yield f"{path} should have been rejected"
            continue
        if each.size is not None and (row["width"], row["height"]) != each.size:
            yield f"{path} is {row['width']} x {row['height']}"
        # the size tells one image's label map from another's
        with Image.open(labels / f"{row['id']}.png") as made:
            if made.size != (row["width"], row["height"]):
                yield f"the label map of {path} is {made.size}"
        yield from _compare_label(each, row, slug, unreadable)


def _compare_label(
    each: Expected, row: dict[str, Any], slug: str, unreadable: dict[str, str]
) -> Iterator[str]:
    if each.label == "":
        return
    own = None if each.label is None else slug + each.label
    if row["label"] != own:
        yield f"{row['path']} has the label map {row['label']}, not {own}"
    reason = unreadable.get(row["path"])
    if bool(each.label_reason) != (reason is not None):
        yield f"its label map was {'refused: ' + reason if reason else 'taken'}"
    elif reason is not None and not re.search(each.label_reason, reason):
        yield f"its label map was refused for {reason!r}"


def call(*arguments: object, code: int = 0) -> str:
    """Run the command line in this process; return what it printed.

    Raises
    ------
    AssertionError
        It ended with another code, or in an error that it did not put into words.
    """
    from cli import main

    words = [str(argument) for argument in (*arguments, "--no-progress")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, f"{words[0]} ended with {result.exit_code}: {result.output}"
    assert "unexpected" not in result.output and "Traceback" not in result.output, result.output
    return result.output


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read cases of bad input; see run_cases().")
    parser.add_argument("folder", type=Path)
    parser.add_argument("first", type=int)
    options = parser.parse_args()
    _serve(options.folder, options.first)
