"""Settings of stages: typed, frozen, hashed; the one place where a default stands."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from pipeline.bounds import explain
from pipeline.errors import UsageError
from pipeline.wording import did_you_mean

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
    """

    version: ClassVar[int] = 1

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, coerce_numbers_to_str=True
    )

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
