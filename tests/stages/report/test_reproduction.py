"""Options as a shell takes them: read back by the command line's own parser."""

from __future__ import annotations

import shlex
from typing import Any

import click
from click.testing import CliRunner

from commands.options import given_settings, settings_options
from pipeline.settings import StageSettings
from stages.em.settings import EmSettings
from stages.evaluate.settings import EvaluateSettings
from stages.extract.settings import ExtractSettings
from stages.report.reproduction import write_options
from stages.report.settings import ReportSettings

HOSTILE = 'a b\'; rm -rf ~ "$HOME" ünï'


def parse(settings: type[StageSettings], text: str) -> dict[str, Any]:
    """Return what the command line makes of some options."""
    found: dict[str, Any] = {}

    @click.command()
    @settings_options(settings)
    def verb(**values: Any) -> None:
        found.update(given_settings(settings, values))

    result = CliRunner().invoke(verb, shlex.split(text))
    assert result.exit_code == 0, result.output
    return {name: str(v) if name in ("root", "labels") else v for name, v in found.items()}


def test_what_was_given_is_given_again() -> None:
    given = {"dataset": "folder", "root": f"/d/{HOSTILE}", "splits": ["a", "b c"], "overlap": 0.5}
    text = write_options(ExtractSettings, given)
    assert text.startswith(" --dataset folder --root ")
    assert parse(ExtractSettings, text) == given | {"splits": ("a", "b c")}


def test_switches_have_two_words() -> None:
    assert write_options(EmSettings, {"mirror": False, "classes": 3}) == " --no-mirror --classes 3"
    assert write_options(EvaluateSettings, {"linear_probe": True}) == " --linear-probe"


def test_a_stage_is_named_once_and_the_default_never() -> None:
    given = {"name": "k12", "classes": 12}
    assert write_options(EmSettings, given, " --name k12") == " --name k12 --classes 12"
    assert write_options(EvaluateSettings, {"em": "default", "head": None, "splits": []}) == ""
    assert write_options(ReportSettings, {"no_longer": 3, "gallery": 0}) == " --gallery 0"
