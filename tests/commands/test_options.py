"""Options: one per setting, and what is not given stays out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from commands.options import ChoiceType, given_settings, settings_options
from commands.verbs import HOW
from pipeline.settings import StageSettings, execution_setting, make_settings, setting


class Paint(StageSettings):
    """Settings of a stage that does not exist."""

    colour: Literal["red", "blue"] = setting(..., "the colour")
    coats: int = setting(2, "number of coats", ge=1)
    gloss: float = setting(0.0, "share of light")
    walls: tuple[str, ...] = setting((), "wall, repeatable", option="--wall")
    folder: Path | None = setting(None, "where to")
    limit: int | None = setting(None, "most walls")
    brush: str = execution_setting("wide", "the brush")
    hours: Annotated[int, Field(ge=1, le=24)] | Literal["auto"] | None = setting(None, "to dry")
    sheen: Literal["matt", "silk"] | None = setting(None, "the sheen")
    tins: tuple[Literal["small", "large"], ...] = setting((), "tin, repeatable", option="--tin")
    primer: bool = setting(False, "prime the wall")
    masking_tape: bool = setting(True, "mask the frames", option="--tape")


def invoke(*arguments: str) -> tuple[Any, dict[str, Any]]:
    seen: dict[str, Any] = {}

    @click.command()
    @click.option("--other", default=3)
    @settings_options(Paint, besides={"brush": {"type": ChoiceType(["wide", "fine"])}})
    def paint(**options: Any) -> None:
        seen.update(options)

    return CliRunner().invoke(paint, list(arguments), catch_exceptions=False), seen


def test_what_is_not_given_stays_out() -> None:
    result, seen = invoke()
    assert result.exit_code == 0
    assert seen["other"] == 3
    assert given_settings(Paint, seen) == {}


def test_values_have_the_types_of_the_settings() -> None:
    arguments = "--colour red --coats 1 --gloss 0 --wall a --wall b --folder x/y --limit 4"
    result, seen = invoke(*arguments.split(), "--brush", "fine")
    assert result.exit_code == 0
    given = given_settings(Paint, seen)
    assert given == {
        "colour": "red",
        "coats": 1,
        "gloss": 0.0,
        "walls": ("a", "b"),
        "folder": Path("x/y"),
        "limit": 4,
        "brush": "fine",
    }
    assert make_settings(Paint, "paint", given, {"coats": 3}).walls == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {}),
        (["--primer"], {"primer": True}),
        (["--no-primer"], {"primer": False}),
        (["--no-tape", "--primer"], {"primer": True, "masking_tape": False}),
        (["--primer", "--no-primer"], {"primer": False}),
    ],
)
def test_yes_and_no_are_two_words_and_neither_stays_out(
    arguments: list[str], given: dict[str, bool]
) -> None:
    result, seen = invoke(*arguments)
    assert result.exit_code == 0
    assert given_settings(Paint, seen) == given


@pytest.mark.parametrize(
    "arguments",
    [
        ["--colour", "green"],
        ["--coats", "two"],
        ["--coats", "0"],
        ["--hours", "25"],
        ["--sheen", "gloss"],
        ["--tin", "huge"],
        ["--gloss", "much"],
        ["--limit", "1.5"],
        ["--brush", "none"],
        ["--walls", "a"],
        ["--primer", "yes"],
    ],
)
def test_wrong_values_are_refused(arguments: list[str]) -> None:
    result, seen = invoke(*arguments)
    assert result.exit_code == 2
    assert seen == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--colour", "bleu"],
            "Invalid value for '--colour': 'bleu' (did you mean 'blue'?) is none of red, blue.",
        ),
        (
            ["--brush", "fin"],
            "Invalid value for '--brush': 'fin' (did you mean 'fine'?) is none of wide, fine.",
        ),
        (
            ["--coats", "0"],
            "Invalid value for '--coats': it must be at least 1, not 0.",
        ),
        (
            ["--hours", "25"],
            "Invalid value for '--hours': it must be 1 to 24, or auto, not 25.",
        ),
        (
            ["--hours", "atuo"],
            "Invalid value for '--hours': it must be a whole number or auto, not 'atuo' "
            "(did you mean 'auto'?).",
        ),
        (["--gloss", "x"], "Invalid value for '--gloss': it must be a number, not 'x'."),
    ],
)
def test_a_wrong_value_is_told_what_there_is(arguments: list[str], sentence: str) -> None:
    result, _ = invoke(*arguments)
    assert result.output.splitlines()[-1] == f"Error: {sentence}"


def test_a_number_or_a_word() -> None:
    _, seen = invoke("--hours", "3")
    assert given_settings(Paint, seen) == {"hours": 3}
    _, seen = invoke("--hours", "auto", "--sheen", "silk", "--tin", "small", "--tin", "large")
    given = {"hours": "auto", "sheen": "silk", "tins": ("small", "large")}
    assert given_settings(Paint, seen) == given


def test_options_are_in_sections() -> None:
    sections = {p.name: getattr(p, "section", "") for p in paint_options()}
    assert sections["coats"] == "Pots"
    assert sections["brush"] == HOW


def paint_options() -> list[click.Parameter]:
    @click.command()
    @settings_options(Paint, section="Pots")
    def paint(**options: Any) -> None:
        """Never called."""

    return paint.params


def test_words_and_choices_are_completed_and_names_that_only_the_caller_knows() -> None:
    @click.command()
    @settings_options(Paint, besides={"brush": {"shell_complete": lambda *_: ["wide"]}})
    def paint(**options: Any) -> None:
        """Never called."""

    context = click.Context(paint)
    found = {p.name: [c.value for c in p.shell_complete(context, "")] for p in paint.params}
    assert found["colour"] == ["red", "blue"]
    assert found["hours"] == ["auto"]
    assert found["brush"] == ["wide"]
    assert found["coats"] == []


def test_the_help_says_every_default_once() -> None:
    result, _ = invoke("--help")
    text = " ".join(result.output.split())
    assert "--colour [red|blue] the colour [required at first]" in text
    assert "--coats INTEGER number of coats [default: 2; at least 1]" in text
    assert "--gloss FLOAT share of light [default: 0.0]" in text
    assert "--wall TEXT wall, repeatable --folder PATH where to --limit" in text
    assert "--hours INTEGER|AUTO to dry [1 to 24]" in text
    assert "--brush [wide|fine] the brush [default: wide]" in text
    assert "--primer / --no-primer prime the wall [default: --no-primer]" in text
    assert "--tape / --no-tape mask the frames [default: --tape]" in text
    assert text.index("--colour") < text.index("--coats") < text.index("--brush")
