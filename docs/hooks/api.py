"""The Python interface from its docstrings: ``<!-- api: pipeline.run.reader.Run -->``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from typing import Any

_PLACE = re.compile(r"^<!-- api: ([\w.]+) -->$", re.MULTILINE)
_LONGEST = 60
_LISTS = {"Parameters", "Returns", "Raises", "Yields", "Attributes", "Warns"}
_ROLE = re.compile(r":\w+:`~?([^`]+)`")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the description of a class or function in the place that a page keeps for it."""
    return _PLACE.sub(lambda found: "\n".join(describe(found[1])), markdown)


def describe(path: str) -> Iterator[str]:
    """Yield the Markdown of a class and of its public members, in order, or of a function."""
    module, _, name = path.rpartition(".")
    cls = getattr(import_module(module), name)
    yield f"## `{name}`\n"
    if not inspect.isclass(cls):
        yield f"```python\n{name}{_show_signature(cls, skip=0)}\n```\n"
    yield from describe_docstring(cls)
    if not inspect.isclass(cls):
        return
    for member, value in list_members(cls):
        function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "func", value))
        if not callable(function):
            continue
        signature = "" if function is not value else _show_signature(function)
        yield f"\n### `{member}`\n"
        yield f"```python\nrun.{member}{signature}\n```\n"
        yield from describe_docstring(function)


def list_members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public members of a class: its own, and then those of the classes it is made of."""
    seen: set[str] = set()
    for part in cls.__mro__[:-1]:
        for member, value in vars(part).items():
            if not member.startswith("_") and member not in seen:
                seen.add(member)
                yield member, value


def _show_signature(function: Any, skip: int = 1) -> str:
    parts = []
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        # annotations are text here: they were not evaluated
        text = f"{parameter.name}: {parameter.annotation}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}".replace("'", '"')
        parts.append(text)
    line = f"({', '.join(parts)})"
    if len(line) <= _LONGEST:
        return line
    return "(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def describe_docstring(target: Any) -> Iterator[str]:
    """Yield a NumPy-style docstring as Markdown: its lists of parameters become tables."""
    lines = (inspect.getdoc(target) or "").splitlines()
    heads = [n for n in range(len(lines) - 1) if lines[n] and re.fullmatch(r"-{3,}", lines[n + 1])]
    yield _plain("\n".join(lines[: heads[0] if heads else None])) + "\n"
    for head, end in pairwise([*heads, len(lines)]):
        body = lines[head + 2 : end]
        yield f"**{lines[head]}**\n"
        if lines[head] in _LISTS:
            yield from _make_list(body)
        else:
            yield _plain("\n".join(body)) + "\n"


def _make_list(body: list[str]) -> Iterator[str]:
    for line in body:
        if not line.strip():
            continue
        if line.startswith(" "):
            yield f"    {_plain(line.strip())}"
        else:
            name, _, kind = line.partition(" : ")
            yield f"- `{name}`" + (f": {_plain(kind)}" if kind else "") + "  "
    yield ""


def _plain(text: str) -> str:
    return _ROLE.sub(r"`\1`", text).replace("``", "`")
