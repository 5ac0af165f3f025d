"""Options: one per setting, and what is not given stays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from pipeline.options import given_settings, settings_options
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
    primer: bool = setting(False, "prime the wall")
    masking_tape: bool = setting(True, "mask the frames", option="--tape")


def invoke(*arguments: str) -> tuple[Any, dict[str, Any]]:
    seen: dict[str, Any] = {}

    @click.command()
    @click.option("--other", default=3)
    @settings_options(Paint, {"brush": click.Choice(["wide", "fine"])})
    def paint(**options: Any) -> None:
        seen.update(options)

    return CliRunner().invoke(paint, list(arguments), catch_exceptions=False), seen


def test_what_is_not_given_stays_out() -> None:
    result, seen = invoke()
    assert result.exit_code == 0
    assert seen["other"] == 3
    assert given_settings(Paint, seen) == {}


def test_values_have_the_types_of_the_settings() -> None:
    arguments = "--colour red --coats 0 --gloss 0 --wall a --wall b --folder x/y --limit 4"
    result, seen = invoke(*arguments.split(), "--brush", "fine")
    assert result.exit_code == 0
    given = given_settings(Paint, seen)
    assert given == {
        "colour": "red",
        "coats": 0,
        "gloss": 0.0,
        "walls": ("a", "b"),
        "folder": Path("x/y"),
        "limit": 4,
        "brush": "fine",
    }
    assert make_settings(Paint, "paint", given, {"coats": 1}).walls == ("a", "b")


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


def test_the_help_says_every_default_once() -> None:
    result, _ = invoke("--help")
    text = " ".join(result.output.split())
    assert "--colour [red|blue] the colour [required at first]" in text
    assert "--coats INTEGER number of coats [default: 2]" in text
    assert "--gloss FLOAT share of light [default: 0.0]" in text
    assert "--wall TEXT wall, repeatable --folder PATH where to --limit" in text
    assert "--brush [wide|fine] the brush [default: wide]" in text
    assert "--primer / --no-primer prime the wall [default: --no-primer]" in text
    assert "--tape / --no-tape mask the frames [default: --tape]" in text
    assert text.index("--colour") < text.index("--coats") < text.index("--brush")
