"""Command-line options made from a settings class, so that a default is said once."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click

from pipeline.places import PlaceType
from pipeline.settings import StageSettings, option_name

C = TypeVar("C", bound=Callable[..., Any])


def settings_options(
    settings: type[StageSettings], types_by_name: Mapping[str, click.ParamType] | None = None
) -> Callable[[C], C]:
    """Give a command one option per field of a settings class.

    An option that is not given stays out of the settings: what ``run.yaml`` remembers, or else the
    class's default, holds.

    Parameters
    ----------
    settings
        The class.
    types_by_name
        Types of fields whose annotation does not say enough (a choice of names).
    """

    def decorate(command: C) -> C:
        for name in reversed(settings.model_fields):
            command = _make_option(settings, name, (types_by_name or {}).get(name))(command)
        return command

    return decorate


def given_settings(settings: type[StageSettings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the command line gives, out of all its values."""
    return {
        name: values[name] for name in settings.model_fields if values.get(name) not in (None, ())
    }


def _make_option(
    settings: type[StageSettings], name: str, kind: click.ParamType | None
) -> Callable[[C], C]:
    field = settings.model_fields[name]
    annotation, multiple = _strip(field.annotation)
    option, default = option_name(settings, name), field.default
    if annotation is bool:
        # both words, so that what run.yaml remembers can be taken back
        off = "--no-" + option.removeprefix("--")
        default = option if default else off
        option = f"{option}/{off}"
    text = field.description or ""
    if field.is_required():
        text += "  [required at first]"
    elif field.default not in (None, ()):
        text += f"  [default: {default}]"
    return click.option(
        option,
        name,
        type=kind or _click_type(annotation),
        multiple=multiple,
        default=None,
        help=text,
    )


def _strip(annotation: Any) -> tuple[Any, bool]:
    """Take ``None`` out of a union, the element out of a tuple, and what pydantic alone reads."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if len(parts) == 1:
            return _strip(parts[0])
    if get_origin(annotation) is tuple:
        return _strip(get_args(annotation)[0])[0], True
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0], False
    return annotation, False


def _click_type(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return click.Choice([str(value) for value in get_args(annotation)])
    if annotation is Path:
        # not click's own, which makes s3:/bucket of s3://bucket
        return PlaceType()
    return {int: int, float: float, bool: bool}.get(annotation, str)
