"""Settings: layers, one-sentence errors, and which of them name an output.

Bounds: both ends of every kind of range, and their words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from pipeline.errors import UsageError, did_you_mean
from pipeline.settings import (
    Bounds,
    StageSettings,
    describe_changes,
    execution_setting,
    explain,
    field_extra,
    make_settings,
    option_name,
    parse_assignments,
    read_values,
    setting,
)


class Paint(StageSettings):
    """Settings of a stage that does not exist."""

    colour: Literal["red", "blue"] = setting(..., "colour")
    coats: int = setting(2, "number of coats", ge=1)
    thinner: float = setting(0.5, "share of thinner", gt=0, le=1)
    hours: Annotated[int, Field(ge=1, le=24)] | Literal["auto"] = setting("auto", "drying time")
    walls: tuple[str, ...] = setting((), "walls", option="--wall")
    folder: Path | None = setting(None, "where to")
    batch_size: int = execution_setting(8, "walls at once", ge=1)

    @field_validator("walls")
    @classmethod
    def _no_roof(cls, walls: tuple[str, ...]) -> tuple[str, ...]:
        if "roof" in walls:
            raise ValueError("the roof is no wall")
        return walls


def test_later_layers_win() -> None:
    made = make_settings(Paint, "paint", {"colour": "red", "coats": 3}, {"coats": 4}, {})
    assert made == Paint(colour="red", coats=4)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Paint(colour="red").coats = 3  # type: ignore[misc]


def test_replace_validates() -> None:
    made = Paint(colour="red")
    assert made.replace(coats=5).coats == 5
    assert made.coats == 2
    with pytest.raises(ValidationError):
        made.replace(coats=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"colour": "red", "coat": 3},
            "paint has no setting 'coat' (did you mean 'coats'?); "
            "its settings are colour, coats, thinner, hours, walls, folder, batch_size.",
        ),
        ({}, "paint needs --colour (setting paint.colour)."),
        (
            {"colour": "red", "coats": 0},
            "paint.coats = 0: --coats must be at least 1.",
        ),
        ({"colour": "red", "walls": ("roof",)}, "paint.walls = ('roof',): the roof is no wall."),
        (
            {"colour": "green"},
            "paint.colour = 'green': --colour must be one of red, blue.",
        ),
        (
            {"colour": "bleu"},
            "paint.colour = 'bleu': --colour must be one of red, blue (did you mean 'blue'?).",
        ),
        ({"colour": "red", "coats": "x"}, "paint.coats = 'x': --coats must be a whole number."),
        (
            {"colour": "red", "thinner": 1.5},
            "paint.thinner = 1.5: --thinner must be more than 0 and at most 1.",
        ),
        (
            {"colour": "red", "hours": 99},
            "paint.hours = 99: --hours must be 1 to 24, or auto.",
        ),
        (
            {"colour": "red", "hours": "atuo"},
            "paint.hours = 'atuo': --hours must be 1 to 24, or auto (did you mean 'auto'?).",
        ),
        (
            {"colour": "red", "walls": ["a", None]},
            "paint.walls.1 = None: --wall must be text.",
        ),
    ],
)
def test_bad_values_give_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_settings(Paint, "paint", values)
    assert str(caught.value) == message


def test_output_settings_leave_out_how_a_stage_runs() -> None:
    made = Paint(colour="red", walls=("a", "b"), folder=Path("x/y"), batch_size=1)
    plain = {"colour": "red", "coats": 2, "walls": ["a", "b"], "folder": "x/y"}
    plain |= {"thinner": 0.5, "hours": "auto"}
    assert made.output_settings() == plain
    assert field_extra(Paint, "batch_size", "affects_output") is False
    assert field_extra(Paint, "walls", "option") == "--wall"


def test_option_names() -> None:
    assert option_name(Paint, "batch_size") == "--batch-size"
    assert option_name(Paint, "walls") == "--wall"


def test_did_you_mean() -> None:
    assert did_you_mean("tain", ("train", "val")) == " (did you mean 'train'?)"
    assert did_you_mean("zzz", ("train", "val")) == ""


def test_assignments() -> None:
    given = ("em.classes=12", "em.batch-size=4", "extract.root=a=b", "masks.crf=", "em.x=[a, 1]")
    assert parse_assignments(given) == {
        "em": {"classes": 12, "batch_size": 4, "x": ["a", 1]},
        "extract": {"root": "a=b"},
        "masks": {"crf": ""},
    }


@pytest.mark.parametrize("text", ["[", "2024-99-99", "!!python/object/apply:os.getcwd []", "{a"])
def test_what_is_no_yaml_is_text(text: str) -> None:
    assert parse_assignments((f"em.name={text}",)) == {"em": {"name": text}}


@pytest.mark.parametrize("text", ["em.classes", "classes=3", ".classes=3", "em.=3", ""])
def test_bad_assignments(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not of the form stage\.option=value\.$"):
        parse_assignments((text,))


def test_changes_are_described_in_the_order_of_the_new() -> None:
    assert describe_changes({"a": 1, "gone": 0, "same": 2}, {"same": 2, "new": "x", "a": 3}) == [
        "new None -> 'x'",
        "a 1 -> 3",
        "gone 0 -> None",
    ]


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
    bounds = read_values(FIELDS[name]).bounds
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
    assert read_values(FIELDS["free"]).bounds is None
    assert read_values(FIELDS["word"]).bounds is None


def test_choices() -> None:
    assert read_values(FIELDS["word"]).words == ("a", "b")
    assert read_values(FIELDS["closed"]).words == ()


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
