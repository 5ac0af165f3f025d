"""Bad input of every kind is right or rejected with a reason: no crash, no hang, no wrong pair."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.cases import Case, encode, put, scene
from tests.torture.changes import run_changes
from tests.torture.inputs import (
    REPOSITORY,
    Result,
    all_cases,
    call,
    read_alone,
    run_together,
    temporary_folder,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return all_cases()


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as place:
        yield place


def check(results: list[Result], at_least: int) -> None:
    failures = [result for result in results if not result.ok]
    shown = "\n".join(f"{r.name}: expected {r.expected}, got {r.outcome}" for r in failures)
    assert not failures, shown
    assert len(results) >= at_least


def test_there_are_cases_of_every_kind(cases: list[Case]) -> None:
    kinds = Counter(case.kind for case in cases)
    assert len(cases) >= 200 and len(kinds) >= 20, kinds


def test_every_case_alone(cases: list[Case], folder: Path) -> None:
    check(read_alone(cases, folder), len(cases))


def test_all_cases_as_one_dataset(cases: list[Case], folder: Path) -> None:
    check(run_together(cases, folder), len(cases) + 1)


def test_changes_behind_a_run(folder: Path) -> None:
    check(run_changes(folder / "changes"), 25)


LIST = """
import json, sys
from pathlib import Path
from pipeline.datasets import get_dataset
from pipeline.run.manifest import Image
from pipeline.progress import Screen
from stages.extract.settings import ExtractSettings
from stages.extract.listing import list_images

folder, known = get_dataset("folder"), ()
settings = ExtractSettings(dataset="folder", root=Path(sys.argv[1]), splits=("all",))
for line in sys.stdin:
    known = list_images(folder, settings, known, [], Screen(progress=False))
    print(json.dumps({image.path: image.reason for image in known}), flush=True)
"""
DROP_BOUND, OVERRIDE, SEARCH = 24, 1, 2


def become_ordinary() -> None:
    """Give up the superuser's right to read every file, for the process that is started next."""
    if os.geteuid() == 0:
        library = ctypes.CDLL(None)
        assert library.prctl(DROP_BOUND, OVERRIDE, 0, 0, 0) == 0
        assert library.prctl(DROP_BOUND, SEARCH, 0, 0, 0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="drops a capability of Linux")
def test_files_that_may_not_be_read_are_tried_again(tmp_path: Path) -> None:
    locked = put(tmp_path, "locked.png", encode(scene(), "PNG"))
    put(tmp_path, "sub/a.png", encode(scene(), "PNG"))
    put(tmp_path, "fine.png", encode(scene(), "PNG"))
    locked.chmod(0)
    (tmp_path / "sub").chmod(0)
    process = subprocess.Popen(
        [sys.executable, "-c", LIST, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=become_ordinary,
    )
    assert process.stdin is not None and process.stdout is not None

    def list_again() -> dict[str, str | None]:
        process.stdin.write("\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        assert list_again() == {
            "locked.png": "cannot be opened: permission denied",
            "sub": "a folder that cannot be listed: Permission denied",
            "fine.png": None,
        }
        locked.chmod(0o600)  # neither size nor modification time change
        (tmp_path / "sub").chmod(0o700)
        assert list_again() == {"locked.png": None, "sub/a.png": None, "fine.png": None}
    finally:
        process.stdin.close()
        process.wait()
        locked.chmod(0o600)
        (tmp_path / "sub").chmod(0o700)


def test_paths_of_the_command_that_are_no_text(tmp_path: Path) -> None:
    """Names of the root and the run that are not UTF-8 are refused in a sentence, or work."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd \xff"))
    try:
        put(odd, "a.png", encode(scene(), "PNG"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    put(tmp_path, "photographs/a.png", encode(scene(), "PNG"))
    options = ("--dataset", "folder", "--backbone", "handcrafted", "--size", 32)
    refused = call("extract", tmp_path / "run", *options, "--root", odd, code=2)
    assert "not UTF-8" in refused
    refused = call("extract", odd / "run", *options, "--root", tmp_path / "photographs", code=2)
    assert "not UTF-8" in refused
