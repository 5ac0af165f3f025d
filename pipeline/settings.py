"""Settings of stages: their defaults, what values they may have, and both in words for people."""

from __future__ import annotations

import operator
import re
import reprlib
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function

from pipeline.errors import UsageError, did_you_mean
from pipeline.registry import Registry
from pipeline.storage.places import is_remote, parse_place

# Of a change that is shown as a whole.
_LONGEST = 300
_DIGEST = re.compile(r"'[0-9a-f]{32,}'")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
}
# Comparison -> the end of a range that it holds for, and its words.
_ENDS = {
    "ge": ("least", "at least"),
    "gt": ("above", "more than"),
    "le": ("most", "at most"),
    "lt": ("below", "less than"),
}


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; None where it is open. ``above`` and ``below`` are not in it."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def _ends(self) -> dict[str, float]:
        ends = {name: getattr(self, field) for name, (field, _) in _ENDS.items()}
        return {name: end for name, end in ends.items() if end is not None}

    def hold(self, value: float) -> bool:
        """Whether a number is in the range."""
        return all(getattr(operator, name)(value, end) for name, end in self._ends.items())

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return " and ".join(f"{_ENDS[name][1]} {end:g}" for name, end in self._ends.items())


class OneOf:
    """Rule of a setting that is one of the names of a registry: ``Annotated[str, OneOf(names)]``.

    The names are looked up when they are asked for: other packages may bring some.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return no_info_before_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if not isinstance(value, str) or value not in self.names:
            raise PydanticCustomError("literal_error", "Input should be one of the known names")
        return value


@dataclass(frozen=True)
class Values:
    """What a setting may be: of a kind, in a range, or one of some words; one, or any number."""

    kind: Any
    bounds: Bounds | None
    words: Collection[str]
    many: bool


def read_values(field: FieldInfo) -> Values:
    """Read off a field what it may be, ``None`` apart."""
    kinds: list[Any] = []
    words: list[str] = []
    rules, many = [*field.metadata], False
    parts = [field.annotation]
    for part in parts:
        origin, inner = get_origin(part), get_args(part)
        if origin in (Union, types.UnionType):
            parts += inner
        elif origin is Annotated:
            parts.append(inner[0])
            rules += inner[1:]
        elif origin is tuple:
            parts.append(inner[0])
            many = True
        elif origin is Literal:
            words += map(str, inner)
        elif part is not types.NoneType:
            kinds.append(part)
    range_ = {
        end: getattr(each, name)
        for rule in rules
        for each in (rule, *getattr(rule, "metadata", ()))
        for name, (end, _) in _ENDS.items()
        if hasattr(each, name)
    }
    return Values(
        kind=kinds[0] if kinds else str,
        bounds=Bounds(**range_) if range_ else None,
        words=next((rule.names for rule in rules if isinstance(rule, OneOf)), tuple(words)),
        many=many,
    )


def explain(field: FieldInfo, option: str, kind: str, value: Any) -> str:
    """Say what an option must be that is not, by pydantic's ``kind`` of error; or nothing."""
    values = read_values(field)
    close = did_you_mean(str(value), values.words)
    if values.words and values.kind in (int, float):
        wanted = f"{values.bounds or 'a number'}, or {' or '.join(values.words)}{close}"
    elif values.words and kind == "literal_error":
        wanted = f"one of {', '.join(values.words)}{close}"
    elif values.bounds is not None and kind.startswith(("greater_than", "less_than")):
        wanted = str(values.bounds)
    else:
        wanted = next((said for name, said in _KINDS.items() if kind.startswith(name)), "")
    return f"{option} must be {wanted}" if wanted else ""


S = TypeVar("S", bound="StageSettings")


def setting(
    default: Any,
    description: str,
    *,
    affects_output: bool = True,
    option: str | None = None,
    **kwargs: Any,
) -> Any:
    """Declare a setting that changes what its stage writes (a default of ``...`` means required).

    ``option`` overrides the name of the command-line option made from the field.
    """
    extra: JsonDict = {"affects_output": affects_output, "option": option}
    return Field(default, description=description, json_schema_extra=extra, **kwargs)


def execution_setting(default: Any, description: str, **kwargs: Any) -> Any:
    """Declare a setting that changes how a stage runs, but not what it writes."""
    return setting(default, description, affects_output=False, **kwargs)


class StageSettings(BaseModel):
    """Base of every stage's settings.

    Attributes
    ----------
    version
        Version of what the stage computes; raised when the same settings give another output.
    stage_class
        ``module:Class`` of the stage, which is loaded when it is run.
    optional
        Whether a run may do without the stage.
    follows
        The stage after which this one is run by the same verb, with the rest of its options.
    """

    version: ClassVar[int] = 1
    stage_class: ClassVar[str] = ""
    optional: ClassVar[bool] = False
    follows: ClassVar[str] = ""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, coerce_numbers_to_str=True
    )

    @classmethod
    def list_artefacts(cls, name: str) -> list[str]:
        """Return the files and folders, relative to the run, that are written under a name.

        A part of a zarr store that has the name is one of several, and the store is all theirs;
        of any other store, the first stage that writes into it writes its metadata.
        """
        return []

    def output_settings(self) -> dict[str, Any]:
        """Return the settings that change what the stage writes, as plain YAML values."""
        values = self.model_dump(mode="json")
        return {n: values[n] for n in values if field_extra(type(self), n, "affects_output")}

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with some settings changed."""
        given = self.model_dump(include=self.model_fields_set)
        return type(self).model_validate({**given, **changes})


def field_extra(settings: type[StageSettings], name: str, key: str) -> Any:
    """Return what ``setting`` or ``execution_setting`` noted beside a field."""
    extra = settings.model_fields[name].json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


def option_name(settings: type[StageSettings], field: str) -> str:
    """Return the command-line option of a field, for instance ``--shard-size``."""
    return field_extra(settings, field, "option") or "--" + field.replace("_", "-")


def make_settings(cls: type[S], stage: str, *layers: Mapping[str, Any]) -> S:
    """Build settings from layers of values by field name, later layers winning over earlier ones.

    An unknown name, a missing value or one that is out of range is a UsageError that names the
    stage, the setting and its option.
    """
    values: dict[str, Any] = {}
    names = {option_name(cls, name)[2:].replace("-", "_"): name for name in cls.model_fields}
    for layer in layers:
        values.update({names.get(name, name): value for name, value in layer.items()})
    cls = choose_class(cls, stage, values)
    for name in values:
        if name not in cls.model_fields:
            raise UsageError(
                f"{stage} has no setting {name!r}{did_you_mean(name, cls.model_fields)}; "
                f"its settings are {', '.join(cls.model_fields)}."
            )
        if get_origin(cls.model_fields[name].annotation) is tuple and isinstance(
            values[name], str | int | float
        ):
            values[name] = (values[name],)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            # of the settings together, not of one of them
            raise UsageError(f"{stage} {message}.") from None
        field, *inner = first["loc"]
        option = option_name(cls, str(field))
        if first["type"] == "missing":
            raise UsageError(f"{stage} needs {option} (setting {stage}.{field}).") from None
        # of a value that may be of several kinds, the location also names the kind
        name = ".".join([stage, str(field), *(str(p) for p in inner if isinstance(p, int))])
        wanted = explain(cls.model_fields[str(field)], option, first["type"], first["input"])
        shown = show_value(first["input"])
        raise UsageError(f"{name} = {shown}: {wanted or message}.") from None


def choose_class(cls: type[S], stage: str, values: Mapping[str, Any]) -> type[S]:
    """Return the class of some values: a variant of another package may have one of its own."""
    for name, field in cls.model_fields.items():
        value, variants = values.get(name), read_values(field).words
        if not isinstance(variants, Registry) or not isinstance(value, str):
            continue
        if value not in variants:
            # before its own settings, which nobody knows without it, are called unknown
            wanted = explain(field, option_name(cls, name), "literal_error", value)
            raise UsageError(f"{stage}.{name} = {show_value(value)}: {wanted}.")
        if variants.brings(value):
            return variants[value].settings_class  # type: ignore[no-any-return]
    return cls


def show_value(value: Any) -> str:
    """Return a value as an error shows it: short, whatever a few words of YAML stand for."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 200, 200
    return short.repr(value)


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Parse ``stage.option=value`` strings; values are read as YAML scalars."""
    parsed: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        stage, dot, name = target.partition(".")
        if not (equals and dot and stage and name):
            raise UsageError(f"--set {assignment!r} is not of the form stage.option=value.")
        try:
            value = yaml.safe_load(text) if text.strip() else text
        except (yaml.YAMLError, ValueError):  # ValueError: 2024-13-45 looks like a date
            value = text
        parsed.setdefault(stage, {})[name.replace("-", "_")] = value
    return parsed


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the settings that differ between two mappings, as ``name old -> new`` if readable."""
    changes = []
    for name in (name for name in {**new, **old} if old.get(name) != new.get(name)):
        text = f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        readable = len(text) < _LONGEST and not _DIGEST.search(text)
        changes.append(text if readable else f"{name} has changed")
    return changes


def _parse_setting(value: Any) -> Path:
    if not isinstance(value, str | Path) and not is_remote(value):
        raise ValueError("give a path or an s3:// URL")
    if "\0" in str(value):
        raise ValueError("it holds a zero byte")
    return parse_place(value)


def _refuse_remote(value: Any) -> Any:
    place = _parse_setting(value)
    if is_remote(place):
        raise ValueError("must lie on a local file system: copy it there first")
    return place


_AS_TEXT = PlainSerializer(str, return_type=str, when_used="json")

Place = Annotated[Path, PlainValidator(_parse_setting), _AS_TEXT]
"""The type of a setting that names a local folder or a prefix of an object store."""

LocalPlace = Annotated[Path, BeforeValidator(_refuse_remote)]
"""The type of a setting that names a file or folder of a local file system."""
