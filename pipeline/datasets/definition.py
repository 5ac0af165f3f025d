"""What a dataset's YAML says: its globs, its classes with their ids, names and colours.

Every fault is one sentence with the key that it is in.
"""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pipeline.datasets.listing import SPLIT, find_fault, list_stars, read_text
from pipeline.errors import DatasetError, did_you_mean
from pipeline.images.reading import check_bands, check_range
from pipeline.settings import show_value

Colour = tuple[int, int, int]

Frame = Literal["centre", "whole"]

IGNORE = 255
"""The label of a pixel that belongs to no class and is left out of every score."""

IGNORE_COLOUR: Colour = (0, 0, 0)

EVERYTHING = "all"
"""The one split of a dataset that names none."""

OTHERS = "others"
"""What stands for every id that no class has."""

MAX_ID = 65535
"""The largest id that a label map can hold."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_HEX = re.compile(r"#([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})")


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Give colours for classes that nobody has named, each unlike its neighbours in the list."""
    if not 0 <= count <= IGNORE:
        raise ValueError(f"an indexed label map holds at most 255 classes, not {count}")
    colours = []
    for index in range(count):
        # Hues a golden section apart never come close to the last few, however many are drawn.
        hue = index * 0.6180339887498949 % 1.0
        saturation, value = (0.85, 0.55, 0.95)[index % 3], (0.95, 0.80, 0.60)[index // 3 % 3]
        red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))
        colours.append((red, green, blue))
    return tuple(colours)


def png_palette(colours: Sequence[Colour]) -> bytes:
    """Lay colours out as the palette of an indexed PNG whose index 255 means ignore."""
    if len(colours) > IGNORE:
        raise ValueError(f"an indexed label map holds at most 255 classes, not {len(colours)}")
    entries = [*colours, *distinct_colours(IGNORE)[len(colours) :], IGNORE_COLOUR]
    return bytes(value for colour in entries for value in colour)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        hint = "" if value is None else " (quotes make a text of it)"
        raise ValueError(f"{key} must be a text, not {show_value(value)}{hint}")
    return value.strip()


def _ids(key: str, value: Any) -> tuple[int, ...]:
    ids: dict[int, None] = {}
    for each in _listed(value):
        span = _RANGE.fullmatch(each) if isinstance(each, str) else None
        if span is not None:
            first, last = int(span[1]), int(span[2])
        elif isinstance(each, int) and not isinstance(each, bool):
            first = last = each
        else:
            raise ValueError(f"{key}: {show_value(each)} is no id such as 7, and no range 7-12")
        if not 0 <= first <= last <= MAX_ID:
            raise ValueError(f"{key}: {show_value(each)} is not within 0..{MAX_ID}, or falls")
        new = range(first, last + 1)
        # before a long list of long ranges has been written out
        if not ids.keys().isdisjoint(new):
            raise ValueError(f"{key}: an id is there twice")
        ids |= dict.fromkeys(new)
    return tuple(ids)


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    patterns = tuple(_text(key, each) for each in _listed(value))
    for pattern in patterns:
        if fault := find_fault(pattern):
            raise ValueError(f"{key}: {pattern!r} {fault}")
    return patterns


def _colour(key: str, value: Any) -> Colour:
    match = _HEX.fullmatch(value) if isinstance(value, str) else None
    parts: list[Any] = [int(part, 16) for part in match.groups()] if match else _listed(value)
    if len(parts) != 3 or any(type(part) is not int or not 0 <= part <= 255 for part in parts):
        raise ValueError(f"{key}: {show_value(value)} is no [red, green, blue] of 0..255")
    return parts[0], parts[1], parts[2]


def _pack(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


class DatasetClass(BaseModel, frozen=True, extra="forbid"):
    """One class: its name, the raw ids that mean it in label maps, and its colour."""

    name: str
    ids: tuple[int, ...]
    colour: Colour


def show_colour(colour: int) -> str:
    """Write a colour, 0xRRGGBB, as a definition does."""
    return f"#{colour:06x}"


def _checked(key: str, check: Callable[[Any], str], value: Any) -> str:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{key}: {show_value(value)}: {error}") from error


def _mapping(key: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} must hold keys and values, not {show_value(value)}")
    return value


def _read_class(index: int, value: Any, colour: Colour) -> DatasetClass:
    key = f"classes: number {index}"
    if isinstance(value, DatasetClass):
        return value
    if not isinstance(value, Mapping):
        return DatasetClass(name=_text(key, value), ids=(index,), colour=colour)
    for name in value:
        if name not in DatasetClass.model_fields:
            hint = did_you_mean(str(name), DatasetClass.model_fields)
            raise ValueError(f"{key} has an unknown key {show_value(name)}{hint}")
    name = _text(f"{key}, name", value.get("name"))
    ids = _ids(f"classes: {name}, ids", value.get("ids", index))
    if not ids:
        raise ValueError(f"classes: {name} has no id")
    if "colour" in value:
        colour = _colour(f"classes: {name}, colour", value["colour"])
    return DatasetClass(name=name, ids=ids, colour=colour)


def _read_about(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"title": " ".join(value.split())}
    texts = _mapping("about", value)
    for key, text in texts.items():
        # a list may hold itself, or lists that are huge when they are written out
        if not isinstance(text, str | int | float):
            raise ValueError(f"about: {show_value(key)} must be a text, not {show_value(text)}")
    return {_text("about", key): " ".join(str(text).split()) for key, text in texts.items()}


def _read_splits(value: Any) -> dict[str, str]:
    named = isinstance(value, Mapping)
    splits: dict[str, str] = {}
    for name, folder in value.items() if named else [(each, each) for each in _listed(value)]:
        name, folder = _text("splits", name), _text("splits", folder)
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"splits: {name!r} is no name of letters, digits, '.', '_' or '-'")
        if find_fault(folder) or "*" in folder or SPLIT in folder:
            raise ValueError(f"splits: {folder!r} is no plain path of a folder")
        if name in splits:
            raise ValueError(f"splits: {name!r} is there twice")
        splits[name] = folder
    if not splits:
        raise ValueError("splits: name one at least, or leave the key out")
    return splits


def _read_default_splits(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    splits = info.data.get("splits", {})
    if value == ():
        return tuple(splits)
    chosen = tuple(_text("default_splits", each) for each in _listed(value))
    for name in chosen:
        if name not in splits:
            hint = did_you_mean(name, splits)
            raise ValueError(f"default_splits: {name!r} is no split{hint}")
    if not chosen or len({*chosen}) != len(chosen):
        raise ValueError("default_splits: name each split once, one at least")
    return chosen


def _read_lists(value: Any, info: ValidationInfo) -> dict[str, tuple[str, ...]]:
    splits = info.data.get("splits", {})
    if not isinstance(value, Mapping):
        value = dict.fromkeys(splits, value)
    lists = {}
    for split, files in value.items():
        if split not in splits:
            hint = did_you_mean(str(split), splits)
            raise ValueError(f"lists: {show_value(split)} is no split{hint}")
        paths = [each.replace(SPLIT, splits[split]) for each in _patterns("lists", files)]
        if any("*" in each for each in paths) or not paths:
            raise ValueError("lists: give the paths of files, without *")
        lists[split] = tuple(paths)
    return lists


def _read_ignore(value: Any) -> tuple[int | str, ...]:
    listed = _listed(value)
    hexes = [each for each in listed if isinstance(each, str) and _HEX.fullmatch(each)]
    ids = _ids("ignore", [each for each in listed if each != OTHERS and each not in hexes])
    colours = dict.fromkeys(each.lower() for each in hexes)
    return (*ids, *colours, *([OTHERS] if OTHERS in listed else []))


def _read_classes(value: Any) -> tuple[DatasetClass, ...]:
    entries = _listed(value)
    if not 1 <= len(entries) <= IGNORE:
        raise ValueError(f"classes: give 1 to {IGNORE}, not {len(entries)}")
    colours = distinct_colours(len(entries))
    classes = [_read_class(index, each, colours[index]) for index, each in enumerate(entries)]
    for name, count in Counter(each.name for each in classes).items():
        if count > 1:
            raise ValueError(f"classes: the name {name!r} is there twice")
    return tuple(classes)


class Definition(BaseModel, frozen=True, extra="forbid"):
    """What a dataset's YAML says, checked."""

    name: Annotated[str, BeforeValidator(partial(_text, "name"))]
    about: Annotated[dict[str, str], BeforeValidator(_read_about)] = {}
    images: Annotated[tuple[str, ...], BeforeValidator(partial(_patterns, "images"))] = ()
    labels: Annotated[tuple[str, ...], BeforeValidator(partial(_patterns, "labels"))] = ()
    splits: Annotated[dict[str, str], BeforeValidator(_read_splits)] = {EVERYTHING: EVERYTHING}
    default_splits: Annotated[
        tuple[str, ...], BeforeValidator(_read_default_splits), Field(validate_default=True)
    ] = ()
    lists: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_read_lists)] = {}
    lists_optional: StrictBool = False
    frame: Frame = "whole"
    bands: Annotated[str | None, BeforeValidator(partial(_checked, "bands", check_bands))] = None
    range: Annotated[str | None, BeforeValidator(partial(_checked, "range", check_range))] = None
    ignore: Annotated[tuple[int | str, ...], BeforeValidator(_read_ignore)] = ()
    classes: Annotated[tuple[DatasetClass, ...] | None, BeforeValidator(_read_classes)] = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        stars = [list_stars(pattern) for pattern in self.images]
        for pattern, found in zip(self.images, stars, strict=True):
            if not found:
                raise ValueError(f"images: {pattern!r} has no * for the name of the image")
            if self.lists and found != ["*"]:
                raise ValueError(f"images: {pattern!r} needs one * for the ids of the lists")
        for pattern in self.labels:
            if any(list_stars(pattern) != found for found in stars):
                raise ValueError(
                    f"labels: {pattern!r} must have the stars of the images' pattern, in its order"
                )
        named = [SPLIT in pattern for pattern in self.images]
        files = list(self.lists.values())
        told_apart = all(named) or (len(files) == len(self.splits) == len({*files}))
        if self.images and len(self.splits) > 1 and not told_apart:
            raise ValueError(f"images: write {SPLIT} where the name of a split's folder stands")
        seen: dict[Any, str] = dict.fromkeys(self.ignore, "ignore")
        for each in self.classes or ():
            for raw in each.ids:
                if raw in seen:
                    raise ValueError(f"classes: id {raw} is of {seen[raw]!r} and of {each.name!r}")
                seen[raw] = each.name
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in class order; empty where they are unknown."""
        return tuple(each.name for each in self.classes or ())

    @cached_property
    def palette(self) -> tuple[Colour, ...]:
        """Class colours in class order; 255 of them where the classes are unknown."""
        if self.classes is None:
            return distinct_colours(IGNORE)
        return tuple(each.colour for each in self.classes)

    @cached_property
    def class_of(self) -> dict[int, int]:
        """Raw id in a label map -> class."""
        if self.classes is None:
            return {index: index for index in range(IGNORE)}
        return {raw: index for index, each in enumerate(self.classes) for raw in each.ids}

    @cached_property
    def ignored(self) -> tuple[int, ...]:
        """Raw ids that are said to mean ignore, in rising order."""
        return tuple(sorted(raw for raw in self.ignore if isinstance(raw, int)))

    @property
    def ignores_others(self) -> bool:
        """Whether every value that no class has means ignore."""
        return OTHERS in self.ignore

    @property
    def tells_ignore(self) -> bool:
        """Whether it says itself what 255 means, which is ignore where nothing says so."""
        return self.ignores_others or IGNORE in (*self.ignored, *self.class_of)

    @cached_property
    def class_of_colour(self) -> dict[int, int]:
        """Colour in a label map, 0xRRGGBB -> class."""
        return {_pack(each.colour): index for index, each in enumerate(self.classes or ())}

    @cached_property
    def ignored_colours(self) -> tuple[int, ...]:
        """Colours that mean ignore."""
        told = [each for each in self.ignore if isinstance(each, str) and each != OTHERS]
        return tuple(int(each.removeprefix("#"), 16) for each in told)

    @property
    def layout(self) -> str:
        """The files that the root must hold, for error messages."""
        text = " or ".join(self.images)
        if self.labels:
            text += f" with label maps {' or '.join(self.labels)}"
        if self.lists:
            files = dict.fromkeys(file for each in self.lists.values() for file in each)
            text += f", and the lists {', '.join(files)}"
        named = [name if name == to else f"{name} in {to}" for name, to in self.splits.items()]
        return text.replace(SPLIT, "<split>") + f" (splits {', '.join(named)})"

    def describe(self) -> dict[str, Any]:
        """Return plain values that :func:`parse_definition` makes this definition of."""
        values = self.model_dump(mode="json")
        return {key: value for key, value in values.items() if value not in ({}, [], False, None)}


def name_classes(
    definition: Definition, names: Mapping[int, str], colours: Mapping[int, Colour] | None = None
) -> Definition:
    """Name and colour the ids of a definition that says nothing of them; no names leave it so."""
    distinct = distinct_colours(len(names))
    classes = [
        DatasetClass(name=names[raw], ids=(raw,), colour=(colours or {}).get(raw, distinct[index]))
        for index, raw in enumerate(sorted(names))
    ]
    return definition.model_copy(update={"classes": tuple(classes) or None})


def parse_definition(content: Any, where: str, *, inner: bool = False) -> Definition:
    """Check what a dataset's YAML says; ``inner``: what a run keeps of any dataset.

    A DatasetError says in one sentence what cannot be meant, and names the key.
    """
    try:
        values = _mapping("it", content)
        for key in values:
            if key not in Definition.model_fields:
                known = list(Definition.model_fields)
                hint = did_you_mean(str(key), known)
                raise ValueError(
                    f"unknown key {show_value(key)}{hint}; its keys are {', '.join(known)}"
                )
        for key in ("name",) if inner else ("name", "images"):
            if key not in values:
                raise ValueError(f"the key '{key}' is missing")
        definition = Definition(**values)
        if not inner and not PLAIN_NAME.fullmatch(definition.name):
            raise ValueError("name: give 1 to 64 letters, digits, '.', '_' or '-'")
    except ValidationError as error:
        first = error.errors()[0]
        if "error" in first.get("ctx", {}):
            fault = str(first["ctx"]["error"])
        else:
            key = str(first["loc"][0])
            choices = "True or False" if key == "lists_optional" else " or ".join(get_args(Frame))
            fault = f"{key} must be {choices}, not {show_value(first['input'])}"
    except ValueError as error:
        fault = str(error)
    else:
        return definition
    raise DatasetError(f"the dataset definition {where}: {fault}.")


MAX_BYTES = 2**20
"""A larger file is no definition of a dataset."""

MAX_DEPTH = 16
"""Nor is one with more levels."""


def read_definition(path: Path) -> Definition:
    """Read and check a dataset's YAML, at a local path or in an object store."""
    text = read_text(path, "the dataset definition", MAX_BYTES, end=".")
    try:
        content = _parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: 2024-13-45 looks like a date
        reason = " ".join(str(error).split())
        raise DatasetError(f"the dataset definition {path} is not YAML: {reason}.") from error
    return parse_definition(content, str(path))


def _parse_yaml(text: str) -> Any:
    """Make plain values of YAML, and of nothing else that YAML can name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        # before the composer, written in C, which would end the process
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")
    root = yaml.compose(text, Loader=loader)
    if root is None:
        return None
    _refuse_twins(root)
    return yaml.constructor.SafeConstructor().construct_document(root)


def _refuse_twins(root: yaml.Node) -> None:
    """Refuse a key that is there twice, of which YAML takes the last."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in node.value]
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key, count in keys.items():
                if count > 1:
                    raise ValueError(f"the key {key!r} is there twice")


MOST = 3
"""So many changes are told; the others are counted."""


def describe_difference(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """Say in a few words what differs between two definitions, as `Definition.describe` gives them.

    Nothing where they say the same; what ``about`` says changes nothing.
    """
    before, after = dict(old or {}), dict(new or {})
    told = [
        f"{key} {_show(before.get(key))} -> {_show(after.get(key))}"
        for key in {**after, **before}
        # bands and range are settings of extract, whose change is told
        if key not in ("about", "classes", "bands", "range") and before.get(key) != after.get(key)
    ]
    classes = [each.get("classes") or [] for each in (before, after)]
    if len(classes[0]) != len(classes[1]):
        told.append(f"{len(classes[0])} -> {len(classes[1])} classes")
    else:
        told += [
            f"{key} of class {index} {_show(first[key])} -> {_show(second[key])}"
            for index, (first, second) in enumerate(zip(*classes, strict=True))
            for key in ("name", "ids", "colour")
            if first[key] != second[key]
        ]
    more = [f"{len(told) - MOST} more"] if len(told) > MOST else []
    return ", ".join([*told[:MOST], *more])


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]" if len(value) < 9 else f"{len(value)} values"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} in {_show(to)}" for key, to in value.items())
    return "none" if value is None else str(value)
