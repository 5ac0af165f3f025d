"""What values a setting may have: ranges and choices, said in words once, for help and errors."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

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


def find_choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that a setting may be, which may also be a number; empty: any."""
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
