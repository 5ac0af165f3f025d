"""Variants that another package brings through its entry points, used from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def write_package(folder: Path, group: str, name: str, code: str) -> Path:
    """Write what installing a package leaves behind: a module, and the entry point of a variant.

    ``code`` defines the class ``Variant``, which ``group`` has as ``name``. Several packages may
    lie in one folder.
    """
    module = name.replace("-", "_") + "_plugin"
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(textwrap.dedent(code))
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:Variant\n")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Call the program as an installation calls it that has the packages of ``tmp_path/site``."""

    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        paths = [str(tmp_path / "site"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        done = subprocess.run(
            [sys.executable, "-m", "cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


def test_a_registry_finds_what_a_package_brings(tmp_path: Path) -> None:
    site = write_package(tmp_path / "site", "primaps_pipe.things", "a-thing", "class Variant: ...")
    lines = (
        f"import sys; sys.path.insert(0, {str(site)!r})",
        "from pipeline.registry import Registry",
        "things = Registry('thing', 'primaps_pipe.things', {})",
        "print(list(things), things['a-thing'].__module__)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert done.stdout.split("\n")[0] == "['a-thing'] a_thing_plugin"
