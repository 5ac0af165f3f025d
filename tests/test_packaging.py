"""The wheel holds everything that the commands need; imports run one way."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ROOMS = ("commands", "pipeline", "stages", "workflows")
ALLOWED = {
    "commands": {"commands", "pipeline", "stages", "workflows"},
    "pipeline": {"pipeline"},
    "stages": {"pipeline", "stages"},
    "workflows": {"pipeline", "stages", "workflows"},
}


def test_the_wheel_holds_recipes_templates_and_every_module(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (*ROOMS, "cli.py", "setup.cfg", "pyproject.toml", "README.md"):
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(source))
        for room in ROOMS
        for path in (source / room).rglob("*")
        if path.suffix in (".py", ".yaml", ".json", ".j2")
    }
    assert {*wanted, "cli.py"} <= held


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    for file in (REPOSITORY / room).rglob("*.py"):
        for module in _imported(file):
            top = module.split(".")[0]
            assert top not in {*ROOMS, "cli", "tests"} - ALLOWED[room], f"{file} imports {module}"


def test_no_stage_imports_another() -> None:
    stages = ("extract", "masks", "em", "evaluate")
    for stage in stages:
        for file in (REPOSITORY / "stages" / stage).rglob("*.py"):
            for module in _imported(file):
                parts = module.split(".")
                foreign = parts[0] == "stages" and len(parts) > 1 and parts[1] in stages
                assert not foreign or parts[1] == stage, f"{file} imports {module}"


def _imported(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules
