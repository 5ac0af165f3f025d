"""Checking what a dataset's YAML says: every fault is one sentence with the key that it is in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pipeline.datasets.base import IGNORE, Frame
from pipeline.datasets.definition import EVERYTHING, OTHERS, DatasetClass, Definition
from pipeline.datasets.palettes import Colour, distinct_colours
from pipeline.datasets.patterns import SPLIT, find_fault, list_stars
from pipeline.errors import DatasetError
from pipeline.settings import show_value
from pipeline.wording import did_you_mean

MAX_ID = 65535
"""The largest id that a label map can hold."""

_KEYS = (
    *("name", "about", "images", "labels", "splits", "default_splits", "lists", "lists_optional"),
    *("frame", "ignore", "classes"),
)
_CLASS_KEYS = ("name", "ids", "colour")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_HEX = re.compile(r"#([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})")


def parse_definition(content: Any, where: str, *, inner: bool = False) -> Definition:
    """Check what a dataset's YAML says.

    Parameters
    ----------
    content
        As it was read.
    where
        Name of the file, for the message of an error.
    inner
        Whether the program wrote it: it may then do without patterns.

    Raises
    ------
    DatasetError
        A key that does not exist, one that is missing, or a value that cannot be meant.
    """
    try:
        return _parse(content, inner)
    except _FaultError as fault:
        raise DatasetError(f"the dataset definition {where}: {fault}.") from None


class _FaultError(Exception):
    """What is wrong, without the name of the file."""


def _parse(content: Any, inner: bool) -> Definition:
    values = _mapping("it", content)
    for key in values:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise _FaultError(
                f"unknown key {show_value(key)}{hint}; its keys are {', '.join(_KEYS)}"
            )
    for key in () if inner else ("name", "images"):
        if key not in values:
            raise _FaultError(f"the key '{key}' is missing")
    name = _text("name", values.get("name"))
    if not inner and not _NAME.fullmatch(name):
        raise _FaultError("name: give 1 to 64 letters, digits, '.', '_' or '-'")
    splits = _splits(values.get("splits", [EVERYTHING]))
    definition = Definition(
        name=name,
        about=_about(values.get("about", {})),
        images=_patterns("images", values.get("images", [])),
        labels=_patterns("labels", values.get("labels", [])),
        splits=splits,
        default_splits=_default_splits(values.get("default_splits", list(splits)), splits),
        lists=_lists(values.get("lists", {}), splits),
        lists_optional=_choice(
            "lists_optional", values.get("lists_optional", False), (True, False)
        ),
        frame=_choice("frame", values.get("frame", "whole"), get_args(Frame)),
        ignore=_ids("ignore", _without_others(values.get("ignore", []))),
        ignore_others=OTHERS in _listed(values.get("ignore", [])),
        classes=_classes(values["classes"]) if "classes" in values else None,
    )
    _check_patterns(definition)
    _check_ids(definition)
    return definition


def _check_patterns(definition: Definition) -> None:
    images, labels, lists = definition.images, definition.labels, definition.lists
    stars = [list_stars(pattern) for pattern in images]
    for pattern, found in zip(images, stars, strict=True):
        if not found:
            raise _FaultError(f"images: {pattern!r} has no * for the name of the image")
        if lists and found != ["*"]:
            raise _FaultError(f"images: {pattern!r} needs one * for the ids of the lists")
    for pattern in labels:
        if any(list_stars(pattern) != found for found in stars):
            raise _FaultError(
                f"labels: {pattern!r} must have the stars of the images' pattern, in its order"
            )
    named = [SPLIT in pattern for pattern in images]
    files = list(lists.values())
    told_apart = all(named) or (len(files) == len(definition.splits) == len({*files}))
    if images and len(definition.splits) > 1 and not told_apart:
        raise _FaultError(f"images: write {SPLIT} where the name of a split's folder stands")


def _check_ids(definition: Definition) -> None:
    seen: dict[int, str] = dict.fromkeys(definition.ignore, "ignore")
    for each in definition.classes or ():
        for raw in each.ids:
            if raw == IGNORE:
                raise _FaultError(f"classes: id {IGNORE} of {each.name!r} always means ignore")
            if raw in seen:
                raise _FaultError(f"classes: id {raw} is of {seen[raw]!r} and of {each.name!r}")
            seen[raw] = each.name


def _mapping(key: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _FaultError(f"{key} must hold keys and values, not {show_value(value)}")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        hint = "" if value is None else " (quotes make a text of it)"
        raise _FaultError(f"{key} must be a text, not {show_value(value)}{hint}")
    return value.strip()


def _choice(key: str, value: Any, known: Sequence[Any]) -> Any:
    # True is 1 to Python, and a list in YAML has no hash
    if not any(value is each or (isinstance(value, str) and value == each) for each in known):
        raise _FaultError(f"{key} must be {' or '.join(map(str, known))}, not {show_value(value)}")
    return value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _about(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"title": " ".join(value.split())}
    texts = _mapping("about", value)
    for key, text in texts.items():
        # a list may hold itself, or lists that are huge when they are written out
        if not isinstance(text, str | int | float):
            raise _FaultError(f"about: {show_value(key)} must be a text, not {show_value(text)}")
    return {_text("about", key): " ".join(str(text).split()) for key, text in texts.items()}


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    patterns = tuple(_text(key, each) for each in _listed(value))
    for pattern in patterns:
        if fault := find_fault(pattern):
            raise _FaultError(f"{key}: {pattern!r} {fault}")
    return patterns


def _splits(value: Any) -> dict[str, str]:
    pairs = (
        value.items() if isinstance(value, Mapping) else [(each, each) for each in _listed(value)]
    )
    splits: dict[str, str] = {}
    for name, folder in pairs:
        name, folder = _text("splits", name), _text("splits", folder)
        if not _NAME.fullmatch(name):
            raise _FaultError(f"splits: {name!r} is no name of letters, digits, '.', '_' or '-'")
        if find_fault(folder) or "*" in folder or SPLIT in folder:
            raise _FaultError(f"splits: {folder!r} is no plain path of a folder")
        if name in splits:
            raise _FaultError(f"splits: {name!r} is there twice")
        splits[name] = folder
    if not splits:
        raise _FaultError("splits: name one at least, or leave the key out")
    return splits


def _default_splits(value: Any, splits: Mapping[str, str]) -> tuple[str, ...]:
    chosen = tuple(_text("default_splits", each) for each in _listed(value))
    for name in chosen:
        if name not in splits:
            raise _FaultError(f"default_splits: {name!r} is no split{did_you_mean(name, splits)}")
    if not chosen or len({*chosen}) != len(chosen):
        raise _FaultError("default_splits: name each split once, one at least")
    return chosen


def _lists(value: Any, splits: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        value = dict.fromkeys(splits, value)
    lists = {}
    for split, files in value.items():
        if split not in splits:
            hint = did_you_mean(str(split), splits)
            raise _FaultError(f"lists: {show_value(split)} is no split{hint}")
        lists[split] = tuple(
            each.replace(SPLIT, splits[split]) for each in _patterns("lists", files)
        )
        if any("*" in each for each in lists[split]) or not lists[split]:
            raise _FaultError("lists: give the paths of files, without *")
    return lists


def _without_others(value: Any) -> list[Any]:
    return [each for each in _listed(value) if each != OTHERS]


def _ids(key: str, value: Any) -> tuple[int, ...]:
    ids, seen = list[int](), set[int]()
    for each in _listed(value):
        span = _RANGE.fullmatch(each) if isinstance(each, str) else None
        if span is not None:
            first, last = int(span[1]), int(span[2])
        elif isinstance(each, int) and not isinstance(each, bool):
            first = last = each
        else:
            raise _FaultError(f"{key}: {show_value(each)} is no id such as 7, and no range 7-12")
        if not 0 <= first <= last <= MAX_ID:
            raise _FaultError(f"{key}: {show_value(each)} is not within 0..{MAX_ID}, or falls")
        # before a long list of long ranges has been written out
        if seen & {*range(first, last + 1)}:
            raise _FaultError(f"{key}: an id is there twice")
        seen |= {*range(first, last + 1)}
        ids += range(first, last + 1)
    return tuple(ids)


def _classes(value: Any) -> tuple[DatasetClass, ...]:
    entries = _listed(value)
    if not 1 <= len(entries) <= IGNORE:
        raise _FaultError(f"classes: give 1 to {IGNORE}, not {len(entries)}")
    colours = distinct_colours(len(entries))
    classes = [_class(index, each, colours[index]) for index, each in enumerate(entries)]
    names = [each.name for each in classes]
    for name in names:
        if names.count(name) > 1:
            raise _FaultError(f"classes: the name {name!r} is there twice")
    return tuple(classes)


def _class(index: int, value: Any, colour: Colour) -> DatasetClass:
    key = f"classes: number {index}"
    if not isinstance(value, Mapping):
        return DatasetClass(_text(key, value), (index,), colour)
    for name in value:
        if name not in _CLASS_KEYS:
            hint = did_you_mean(str(name), _CLASS_KEYS)
            raise _FaultError(f"{key} has an unknown key {show_value(name)}{hint}")
    name = _text(f"{key}, name", value.get("name"))
    ids = _ids(f"classes: {name}, ids", value.get("ids", index))
    if not ids:
        raise _FaultError(f"classes: {name} has no id")
    if "colour" in value:
        colour = _colour(f"classes: {name}, colour", value["colour"])
    return DatasetClass(name, ids, colour)


def _colour(key: str, value: Any) -> Colour:
    match = _HEX.fullmatch(value) if isinstance(value, str) else None
    parts: Iterable[Any] = [int(part, 16) for part in match.groups()] if match else _listed(value)
    parts = list(parts)
    if len(parts) != 3 or any(type(part) is not int or not 0 <= part <= 255 for part in parts):
        raise _FaultError(f"{key}: {show_value(value)} is no [red, green, blue] of 0..255")
    return parts[0], parts[1], parts[2]
