"""Patterns of paths below a root: ``leftImg8bit/train/*/*_leftImg8bit.png``.

A part of a path holds at most one ``*``, which stands for one character or more; a part ``**``
stands for any number of folders, none included. What the stars stand for is the image's id, and
puts the path of its label map together, so that nothing but a star can differ between the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.datasets.listing import list_objects, visible_names
from pipeline.places import is_remote

SPLIT = "{split}"
"""What stands for the folder of a split in a pattern."""

Match = tuple[str, tuple[str, ...]]
"""A path below the root, '/'-separated, and what each star stands for."""


def find_fault(pattern: str) -> str | None:
    """Say why a text is no pattern, or None."""
    parts = pattern.replace(SPLIT, "split").split("/")
    if "\\" in pattern or "\0" in pattern:
        return "holds a backslash or a zero byte: write / between folders"
    if {"", ".", ".."} & set(parts):
        return "must be a plain path below the root, without '..' and not absolute"
    if any(set("?{}") & set(part) for part in parts):
        return f"holds ?, {{ or }}: only *, ** and {SPLIT} stand for something else"
    if any(part.count("*") > 1 and part != "**" for part in parts) or parts[-1] == "**":
        return "may hold one * in each part of the path, and ** for folders alone"
    return None


def list_stars(pattern: str) -> list[str]:
    """List the stars of a pattern, ``*`` and ``**``, in their order."""
    return re.findall(r"\*+", pattern)


def fill_stars(pattern: str, values: Sequence[str]) -> str:
    """Put values in the place of a pattern's stars; an empty one takes its part away."""
    rest = iter(values)
    filled = re.sub(r"\*+", lambda _: next(rest), pattern)
    return "/".join(part for part in filled.split("/") if part)


def find_paths(root: Path, pattern: str) -> list[Match]:
    """Find the visible files that a pattern means, below a local or a remote root.

    Links are followed where one ``*`` means a folder, and not below ``**``, where they could lead
    in a circle.
    """
    if is_remote(root):
        return list(_match_objects(root, pattern))
    found: list[Match] = [("", ())]
    parts = pattern.split("/")
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        found = [new for old in found for new in _step(root, old, part, last)]
    return [match for match in found if _is_plain(match)]


def _step(root: Path, match: Match, part: str, last: bool) -> Iterator[Match]:
    folder, values = match
    if part == "**":
        yield from ((path, (*values, inner)) for path, inner in _descend(root, folder))
    elif "*" not in part:
        path = _join(folder, part)
        if not last or (root / path).is_file():
            yield path, values
    else:
        before, after = part.split("*")
        for name, inner in visible_names(root / folder):
            star = name[len(before) : len(name) - len(after)]
            if star and inner is not last and name == before + star + after:
                yield _join(folder, name), (*values, star)


def _descend(root: Path, top: str) -> Iterator[tuple[str, str]]:
    """Yield a folder and those below it, each with its path below the first."""
    waiting = [""]
    while waiting:
        place = waiting.pop()
        path = _join(top, place)
        yield path, place
        for name, inner in visible_names(root / path):
            if inner and not (root / path / name).is_symlink():
                waiting.append(_join(place, name))


def _match_objects(root: Path, pattern: str) -> Iterator[Match]:
    parts = pattern.split("/")
    expression = "".join(_translate(part) for part in parts).removesuffix("/")
    for name in list_objects(root):
        match = re.fullmatch(expression, name, re.DOTALL)
        if match is None or any(p.startswith(".") and p not in parts for p in name.split("/")):
            continue
        values = tuple(value.removesuffix("/") for value in match.groups())
        if _is_plain((name, values)):
            yield name, values


def _translate(part: str) -> str:
    if part == "**":
        return "((?:[^/]+/)*)"
    return "([^/]+)".join(re.escape(text) for text in part.split("*")) + "/"


def _is_plain(match: Match) -> bool:
    # a star may also stand for the dots in 'x...png', which lead elsewhere as a part of an id
    return not {".", ".."} & set(match[1])


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
