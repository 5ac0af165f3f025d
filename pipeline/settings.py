"""Settings of stages: typed, frozen, hashed; the one place where a default stands.

What values a setting may have: ranges and choices, said in words once, for help and errors.
"""

from __future__ import annotations

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

from pipeline.errors import UsageError
from pipeline.storage.places import is_remote, parse_place
from pipeline.wording import did_you_mean

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
}


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; None where it is open. ``above`` and ``below`` are not in it."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Whether a number is in the range."""
        return not (
            (self.least is not None and not value >= self.least)
            or (self.most is not None and not value <= self.most)
            or (self.above is not None and not value > self.above)
            or (self.below is not None and not value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        named = (
            ("at least", self.least),
            ("more than", self.above),
            ("at most", self.most),
            ("less than", self.below),
        )
        return " and ".join(f"{words} {value:g}" for words, value in named if value is not None)


def find_bounds(field: FieldInfo) -> Bounds | None:
    """Return the range of a setting that is a number, or None where it has none."""
    found: dict[str, Any] = {}
    for rule in [*field.metadata, *_list_metadata(field.annotation)]:
        names = (("ge", "least"), ("le", "most"), ("gt", "above"), ("lt", "below"))
        rules = [rule, *getattr(rule, "metadata", ())]
        for each in rules:
            found |= {to: getattr(each, name) for name, to in names if hasattr(each, name)}
    return Bounds(**found) if found else None


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


def find_choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that a setting may be, which may also be a number; empty: any."""
    for rule in field.metadata:
        if isinstance(rule, OneOf):
            return tuple(rule.names)
    return tuple(
        str(word)
        for part in _list_parts(field.annotation)
        if get_origin(part) is Literal
        for word in get_args(part)
    )


def explain(field: FieldInfo, option: str, kind: str, value: Any) -> str:
    """Say in a sentence what an option must be that cannot be what it is.

    Parameters
    ----------
    field
        The setting.
    option
        Its option on the command line.
    kind
        Pydantic's name of the error.
    value
        What was given.

    Returns
    -------
    str
        Empty for an error of another kind.
    """
    bounds, words = find_bounds(field), find_choices(field)
    close = did_you_mean(str(value), words)
    of_range = bounds is not None and kind.startswith(("greater_than", "less_than"))
    if words and _takes_numbers(field):
        return f"{option} must be {bounds or 'a number'}, or {' or '.join(words)}{close}"
    if words and kind == "literal_error":
        return f"{option} must be one of {', '.join(words)}{close}"
    kinds = (wanted for name, wanted in _KINDS.items() if kind.startswith(name))
    wanted = str(bounds) if of_range else next(kinds, "")
    return f"{option} must be {wanted}" if wanted else ""


def _takes_numbers(field: FieldInfo) -> bool:
    return any(
        (get_args(part)[0] if get_origin(part) is Annotated else part) in (int, float)
        for part in _list_parts(field.annotation)
    )


def _list_parts(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for part in get_args(annotation) if part is not type(None)]
    return [annotation]


def _list_metadata(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for part in _list_parts(annotation):
        if get_origin(part) is Annotated:
            found += get_args(part)[1:]
    return found


S = TypeVar("S", bound="StageSettings")


def setting(default: Any, description: str, **kwargs: Any) -> Any:
    """Declare a setting that changes what its stage writes (a default of ``...`` means required).

    ``option`` overrides the name of the command-line option made from the field.
    """
    return _field(default, description, affects_output=True, **kwargs)


def execution_setting(default: Any, description: str, **kwargs: Any) -> Any:
    """Declare a setting that changes how a stage runs, but not what it writes."""
    return _field(default, description, affects_output=False, **kwargs)


def _field(
    default: Any,
    description: str,
    *,
    affects_output: bool,
    option: str | None = None,
    **kwargs: Any,
) -> Any:
    extra: JsonDict = {"affects_output": affects_output, "option": option}
    return Field(default, description=description, json_schema_extra=extra, **kwargs)


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
    def choose(cls, values: Mapping[str, Any]) -> type[Self]:
        """Return the class of some values: a variant of another package may have one of its own.

        Raises a UsageError where nobody has the variant.
        """
        return cls

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
        return {name: values[name] for name in values if field_extra(self, name, "affects_output")}

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with some settings changed."""
        given = self.model_dump(include=self.model_fields_set)
        return type(self).model_validate({**given, **changes})


def field_extra(settings: StageSettings | type[StageSettings], name: str, key: str) -> Any:
    """Return what ``setting`` or ``execution_setting`` noted beside a field."""
    fields = (settings if isinstance(settings, type) else type(settings)).model_fields
    extra = fields[name].json_schema_extra
    return extra.get(key) if isinstance(extra, dict) else None


def option_name(settings: type[StageSettings], field: str) -> str:
    """Return the command-line option of a field, for instance ``--shard-size``."""
    return field_extra(settings, field, "option") or "--" + field.replace("_", "-")


def make_settings(
    cls: type[S],
    stage: str,
    *layers: Mapping[str, Any],
) -> S:
    """Build settings from layers of values, later layers winning.

    Parameters
    ----------
    cls
        The settings class; its field defaults are the lowest layer.
    stage
        Name of the stage, for the message of an error.
    *layers
        Mappings of field name to value: what ``run.yaml`` remembers, what a recipe says, what the
        command line says.

    Raises
    ------
    UsageError
        An unknown name, a missing value, or a value out of range.
    """
    values: dict[str, Any] = {}
    names = {option_name(cls, name)[2:].replace("-", "_"): name for name in cls.model_fields}
    for layer in layers:
        values.update({names.get(name, name): value for name, value in layer.items()})
    cls = cls.choose(values)
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
        # of a value that may be of several kinds, the location also names the kind
        kept = [str(p) for n, p in enumerate(first["loc"]) if n == 0 or isinstance(p, int)]
        name = ".".join(kept)
        if first["type"] == "missing":
            option = option_name(cls, name)
            raise UsageError(f"{stage} needs {option} (setting {stage}.{name}).") from None
        message = first["msg"].removeprefix("Value error, ")
        known = cls.model_fields.get(str(first["loc"][0])) if first["loc"] else None
        if known is not None:
            option = option_name(cls, str(first["loc"][0]))
            message = explain(known, option, first["type"], first["input"]) or message
        if not first["loc"]:
            # of the settings together, not of one of them
            raise UsageError(f"{stage} {message}.") from None
        raise UsageError(f"{stage}.{name} = {show_value(first['input'])}: {message}.") from None


def show_value(value: Any) -> str:
    """Return a value as an error shows it: short, whatever a few words of YAML stand for."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 200, 200
    return short.repr(value)


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Parse ``stage.option=value`` strings; values are read as YAML scalars.

    Raises
    ------
    UsageError
        A string that is not of that form.
    """
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
    """List the settings that differ between two mappings, as ``name old -> new``."""
    names = [*new, *(name for name in old if name not in new)]
    return [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in names
        if old.get(name) != new.get(name)
    ]


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
