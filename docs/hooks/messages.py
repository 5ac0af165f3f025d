"""Every message of a typed error, read out of the code when the site is built.

In a page, ``<!-- messages: UsageError -->`` becomes the list of that class's messages, and
``<!-- warnings -->`` that of the warnings; what changes from case to case stands as ``…``.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cli.py", "commands", "workflows", "stages", "pipeline")
GAP = "…"
_PLACE = re.compile(r"^<!-- (?:messages: (\w+)|(warnings)) -->$", re.MULTILINE)
_WARNINGS = {"warn", "warning"}
# errors of Python's own, and those that pydantic turns into a sentence of ours
_BUILT_IN = {n for n in dir(builtins) if n.endswith("Error")} | {"PydanticCustomError"}
# what pydantic makes a sentence of, and the class of that, by the name of the module
_SAID_AS = {"settings.py": "UsageError", "definition.py": "DatasetError"}
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Message:
    """A message: the class of its error (``warning`` for none), its text and its module."""

    kind: str
    text: str
    module: str


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the lists in the places that a page keeps for them."""
    return _PLACE.sub(lambda found: make_list(found[1] or "warning"), markdown)


def make_list(kind: str) -> str:
    """Return a Markdown table of the messages of one kind."""
    rows = sorted({(m.text, m.module) for m in find_messages() if m.kind == kind})
    lines = [f"| {_as_code(text)} | `{module}` |" for text, module in rows]
    return "\n".join(["| message | from |", "| --- | --- |", *lines])


def _as_code(text: str) -> str:
    return "<code>" + re.sub(r"([|*_<>\[\]`$\\])", lambda c: f"&#{ord(c[1])};", text) + "</code>"


@cache
def find_messages() -> tuple[Message, ...]:
    """Read the messages of all modules."""
    found: list[Message] = []
    for room in ROOMS:
        place = ROOT / room
        files = [place] if place.suffix == ".py" else sorted(place.rglob("*.py"))
        for file in files:
            module = str(file.relative_to(ROOT))
            tree = ast.parse(file.read_text(encoding="utf-8"))
            pairs = _find_in(tree, _SAID_AS.get(file.name, ""))
            found += [Message(kind, text, module) for kind, text in pairs]
    return tuple(found)


def _find_in(tree: ast.AST, said_as: str) -> Iterator[tuple[str, str]]:
    # texts that are put together before they are raised
    named = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if said_as and name == "ValueError":
            kind = said_as
        elif name.endswith("Error") and name not in _BUILT_IN:
            kind = name
        elif name in _WARNINGS:
            kind = "warning"
        else:
            continue
        text = " ".join(_read_text(node.args[0], named).split()).replace(GAP + GAP, GAP)
        if sum(character.isalpha() for character in text.replace(GAP, "")) > 7:
            yield kind, text[:_MOST_CHARACTERS]


def _read_text(node: ast.expr, named: dict[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-+.\d]*[sdgfr]", GAP, node.value).replace("%%", "%")
    if isinstance(node, ast.JoinedStr):
        return "".join(_read_text(part, named) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _read_text(node.left, named) + _read_text(node.right, named)
    if isinstance(node, ast.Name) and node.id in named:
        value = named[node.id]
        if isinstance(value, ast.Constant | ast.JoinedStr | ast.BinOp):
            return _read_text(value, {})
    return GAP
