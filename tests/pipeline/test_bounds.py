"""Bounds: both ends of every kind of range, and their words."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from pipeline.bounds import Bounds, explain, find_bounds, find_choices


class Model(BaseModel):
    """Fields of all kinds."""

    closed: int = Field(2, ge=2, le=255)
    half: float = Field(0.5, ge=0, lt=1)
    open: float = Field(0.5, gt=0)
    top: int | None = Field(None, le=9)
    free: float = 1.0
    word: Literal["a", "b"] | None = None
    flag: bool = True


FIELDS = Model.model_fields


@pytest.mark.parametrize(
    ("name", "words", "inside", "outside"),
    [
        ("closed", "2 to 255", (2, 255), (1, 256)),
        ("half", "at least 0 and less than 1", (0, 0.999), (-1e-9, 1)),
        ("open", "more than 0", (1e-9, 1e9), (0, -1)),
        ("top", "at most 9", (9, -100), (10,)),
    ],
)
def test_the_ends_of_a_range(
    name: str, words: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    bounds = find_bounds(FIELDS[name])
    assert bounds is not None
    assert str(bounds) == words
    assert all(map(bounds.hold, inside))
    assert not any(map(bounds.hold, outside))


@pytest.mark.parametrize(
    "bounds", [Bounds(least=0), Bounds(most=0), Bounds(above=0), Bounds(below=0)]
)
def test_nothing_holds_what_is_no_number(bounds: Bounds) -> None:
    assert not bounds.hold(float("nan"))


def test_what_has_no_range_has_none() -> None:
    assert find_bounds(FIELDS["free"]) is None
    assert find_bounds(FIELDS["word"]) is None


def test_choices() -> None:
    assert find_choices(FIELDS["word"]) == ("a", "b")
    assert find_choices(FIELDS["closed"]) == ()


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("closed", "less_than_equal", "--x must be 2 to 255"),
        ("closed", "int_parsing", "--x must be a whole number"),
        ("free", "float_parsing", "--x must be a number"),
        ("flag", "bool_parsing", "--x must be true or false"),
        ("word", "literal_error", "--x must be one of a, b"),
        ("free", "value_error", ""),
    ],
)
def test_what_a_setting_must_be(name: str, kind: str, sentence: str) -> None:
    assert explain(FIELDS[name], "--x", kind, "?") == sentence
