"""What differs between two definitions of a dataset, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASS_KEYS = frozenset({"classes", "ignore"})
"""The keys of a definition that say what label maps mean."""

MOST = 3
"""So many changes are told; the others are counted."""


def describe_difference(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """Say what differs between two definitions, as `Dataset.content` gives them.

    Parameters
    ----------
    old, new
        The definitions; None for none.

    Returns
    -------
    str
        A few words on each change, joined by commas; nothing where they say the same. What
        ``about`` says changes nothing.
    """
    before, after = dict(old or {}), dict(new or {})
    for values in (before, after):
        values.pop("about", None)
    names = [*after, *(key for key in before if key not in after)]
    told = [
        f"{key} {_show(before.get(key))} -> {_show(after.get(key))}"
        for key in names
        if key != "classes" and before.get(key) != after.get(key)
    ]
    told += _compare_classes(before.get("classes") or [], after.get("classes") or [])
    more = [f"{len(told) - MOST} more"] if len(told) > MOST else []
    return ", ".join([*told[:MOST], *more])


def _compare_classes(old: list[Any], new: list[Any]) -> list[str]:
    if len(old) != len(new):
        return [f"{len(old)} -> {len(new)} classes"]
    told = []
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        for key in ("name", "ids", "colour"):
            if before[key] != after[key]:
                words = f"{_show(before[key])} -> {_show(after[key])}"
                told.append(f"{key} of class {index} {words}")
    return told


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]" if len(value) < 9 else f"{len(value)} values"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} in {_show(to)}" for key, to in value.items())
    return "none" if value is None else str(value)
