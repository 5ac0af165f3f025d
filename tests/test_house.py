"""The house as CONTRIBUTING.md draws it: which way imports run, and how large a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FLOORS = ("pipeline", "stages", "workflows", "commands", "cli")
STAGES = ("extract", "masks", "head", "em", "evaluate", "report")
# Rooms of stages/ that are no stage: every stage may use them, and they use none.
LIBRARIES = (
    "crf",
    "artefacts",
    "labelling",
    "scores",
    "calibration",
    "clustering",
    "discriminants",
    "intervals",
    "known",
    "parts",
    "selection",
)


@cache
def list_modules() -> dict[str, Path]:
    """Return dotted name -> file of every production module."""
    files = [REPOSITORY / "cli.py"]
    for floor in FLOORS[:-1]:
        files += sorted((REPOSITORY / floor).rglob("*.py"))
    return {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


@cache
def find_imports(*, lazy: bool) -> dict[str, set[str]]:
    """Return module -> the production modules it imports; with ``lazy`` also inside functions."""
    modules = list_modules()
    return {
        name: {
            target
            for node in _walk(ast.parse(file.read_text()), lazy)
            for target in _list_targets(node)
            if target in modules and target != name
        }
        for name, file in modules.items()
    }


def _walk(node: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if not typing_only and (lazy or not later):
            yield from _walk(child, lazy)


def _list_targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in list_modules() else node.module


def _room(module: str) -> str:
    """Return the room of ``stages/`` that a module lies in, or nothing."""
    parts = module.split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else ""


def test_imports_run_down_the_floors() -> None:
    upward = [
        f"{name} imports {target}"
        for name, targets in find_imports(lazy=True).items()
        for target in targets
        if FLOORS.index(target.split(".")[0]) > FLOORS.index(name.split(".")[0])
    ]
    assert not upward, "\n".join(upward)


def test_a_stage_imports_no_other_stage() -> None:
    across = [
        f"{name} imports {target}"
        for name, targets in find_imports(lazy=True).items()
        for target in targets
        if _room(name) in (*STAGES, *LIBRARIES)
        and _room(target) in STAGES
        and _room(target) != _room(name)
    ]
    assert not across, "\n".join(across)


def test_every_room_of_stages_is_a_stage_or_a_library() -> None:
    assert {_room(name) for name in list_modules()} - {""} == {*STAGES, *LIBRARIES}


@pytest.mark.parametrize("lazy", [False, True])
def test_there_is_no_ring(lazy: bool) -> None:
    try:
        TopologicalSorter(find_imports(lazy=lazy)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_file_is_a_subject() -> None:
    lines = {name: len(file.read_text().splitlines()) for name, file in list_modules().items()}
    small = [
        name
        for name, count in lines.items()
        if count < 30 and list_modules()[name].name != "__init__.py"
    ]
    large = [name for name, count in lines.items() if count > 800]
    assert not small, f"under 30 lines: {small}"
    assert not large, f"over 800 lines: {large}"
