"""Command-line options made from a settings class, so that a default is said once."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from commands.verbs import HOW, WHAT, Option
from pipeline.errors import UsageError
from pipeline.registry import Registry
from pipeline.settings import (
    Bounds,
    StageSettings,
    field_extra,
    find_bounds,
    find_choices,
    option_name,
)
from pipeline.storage.places import is_remote, parse_place
from pipeline.wording import did_you_mean

C = TypeVar("C", bound=Callable[..., Any])
Completer = Callable[[click.Context, click.Parameter, str], list[Any]]


class ChoiceType(click.ParamType):
    """One of some names; a wrong one is told which it may have been meant for."""

    name = "choice"

    def __init__(self, names: Sequence[str] | Callable[[], Iterable[str]]) -> None:
        self._names = names

    @property
    def choices(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self._names() if callable(self._names) else self._names)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the names as the help page shows them."""
        return f"[{'|'.join(self.choices)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name, or end the command."""
        if value not in self.choices:
            known, close = ", ".join(self.choices), did_you_mean(value, self.choices)
            self.fail(f"{value!r}{close} is none of {known}.", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete a name."""
        return [CompletionItem(name) for name in self.choices if name.startswith(incomplete)]


class NumberType(click.ParamType):
    """A number in a range, or one of some words."""

    def __init__(
        self, kind: type[int] | type[float], bounds: Bounds | None, words: Sequence[str] = ()
    ) -> None:
        self.kind, self.bounds, self.words = kind, bounds, tuple(words)
        number = "integer" if kind is int else "float"
        self.name = "|".join((number, *self.words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number or the word, or end the command."""
        if value in self.words:
            return value
        try:
            number = self.kind(value)
        except (TypeError, ValueError):
            wanted = " or ".join(
                ("a whole number" if self.kind is int else "a number", *self.words)
            )
            close = did_you_mean(str(value), self.words)
            self.fail(f"it must be {wanted}, not {value!r}{close}.", param, ctx)
        if self.bounds is not None and not self.bounds.hold(number):
            wanted = ", or ".join((str(self.bounds), *self.words))
            self.fail(f"it must be {wanted}, not {value}.", param, ctx)
        return number

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete a word."""
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class PlaceType(click.ParamType):
    """A local path or an object-store URL on the command line, as :func:`parse_place` reads it."""

    name = "path"

    def __init__(self, *, folder: bool = False) -> None:
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the place, or end the command with the reason why it is none."""
        try:
            place = parse_place(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        if self.folder and not is_remote(place) and place.is_file():
            self.fail(f"Directory {str(place)!r} is a file.", param, ctx)
        return place

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete names of files, or of folders alone."""
        return [CompletionItem(incomplete, type="dir" if self.folder else "file")]


def settings_options(
    settings: type[StageSettings],
    types_by_name: Mapping[str, click.ParamType] | None = None,
    *,
    names: Sequence[str] | None = None,
    section: str = WHAT,
    sections: Mapping[str, str] | None = None,
    completers: Mapping[str, Completer] | None = None,
) -> Callable[[C], C]:
    """Give a command one option per field of a settings class, or for some of them.

    An option that is not given stays out of the settings: what ``run.yaml`` remembers, or else the
    class's default, holds.
    """

    def decorate(command: C) -> C:
        for name in reversed(names or tuple(settings.model_fields)):
            kind = (types_by_name or {}).get(name)
            complete = (completers or {}).get(name)
            place = section if field_extra(settings, name, "affects_output") else HOW
            place = (sections or {}).get(name, place)
            words, facts = _describe_option(settings, name, kind, place, complete)
            command = click.option(*words, cls=Option, **facts)(command)
        return command

    return decorate


def variant_options(
    variants: Registry[Any], settings: type[StageSettings]
) -> list[click.Parameter]:
    """Make options of the settings that variants of other packages have of their own."""
    found: dict[str, click.Parameter] = {}
    for variant in variants.brought:
        try:
            theirs: type[StageSettings] = variants[variant].settings_class
        except UsageError:
            continue  # why it cannot be imported is said when it is asked for
        section = f"Of the {variants.kind} {variant}"
        for name in theirs.model_fields:
            if name in settings.model_fields or name in found:
                continue
            words, facts = _describe_option(theirs, name, None, section, None)
            found[name] = Option(words, **facts)
    return list(found.values())


def given_settings(settings: type[StageSettings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the command line gives, out of all its values."""
    return {
        name: values[name] for name in settings.model_fields if values.get(name) not in (None, ())
    }


def _describe_option(
    settings: type[StageSettings],
    name: str,
    kind: click.ParamType | None,
    section: str,
    complete: Completer | None,
) -> tuple[list[str], dict[str, Any]]:
    """Return the words and the facts of the option of a setting, as click takes them."""
    field = settings.model_fields[name]
    annotation, multiple = _strip(field.annotation)
    option, default = option_name(settings, name), field.default
    if annotation is bool:
        # both words, so that what run.yaml remembers can be taken back
        off = "--no-" + option.removeprefix("--")
        default = option if default else off
        option = f"{option}/{off}"
    facts = []
    if field.is_required():
        facts.append("required at first")
    elif field.default not in (None, ()):
        facts.append(f"default: {default}")
    bounds = find_bounds(field)
    if bounds is not None:
        facts.append(str(bounds))
    text = field.description or ""
    return [option, name], {
        "section": section,
        "type": kind or _click_type(annotation, bounds, find_choices(field)),
        "multiple": multiple,
        "default": None,
        "shell_complete": complete,
        "help": f"{text}  [{'; '.join(facts)}]" if facts else text,
    }


def _strip(annotation: Any) -> tuple[Any, bool]:
    """Take ``None`` out of a union, the element out of a tuple, and what pydantic alone reads."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        # of a number or a word, the number
        numbers = [part for part in parts if get_origin(part) is not Literal]
        return _strip(numbers[0]) if len(numbers) == 1 else (annotation, False)
    if get_origin(annotation) is tuple:
        return _strip(get_args(annotation)[0])[0], True
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0], False
    return annotation, False


def _click_type(annotation: Any, bounds: Bounds | None, words: Sequence[str]) -> click.ParamType:
    if annotation in (int, float):
        return NumberType(annotation, bounds, words)
    if get_origin(annotation) is Literal:
        # of a list of words
        words = [str(word) for word in get_args(annotation)]
    if words:
        return ChoiceType(words)
    if annotation is Path:
        # not click's own, which makes s3:/bucket of s3://bucket
        return PlaceType()
    return click.BOOL if annotation is bool else click.STRING
