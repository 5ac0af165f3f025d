"""What the report suggests."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import main
from pipeline.run.directory import RunDirectory
from pipeline.run.subject import name_subject
from stages.report.suggestions import suggest_steps

RUN = RunDirectory(Path("a run"))


def suggest(*, accuracy: float | None, usage: list[float], named: bool = False) -> Any:
    metrics = {"accuracy": accuracy, "classes": len(usage), "class_usage": usage}
    return suggest_steps(RUN, name_subject("default", None), metrics, named=named)


def test_clusters_that_nobody_uses_want_fewer_classes() -> None:
    steps = suggest(accuracy=50.0, usage=[50, 30, 20, 0.05, 0])
    assert steps[0][0].startswith("2 clusters hardly used: fit fewer")
    assert steps[0][1][0] == "primaps-pipe em 'a run' --classes 3 --name k3"
    assert "--em default --em k3" in steps[0][1][2]


def test_clusters_that_are_used_may_be_more() -> None:
    (more, export) = suggest(accuracy=50.0, usage=[50, 30, 10, 10])
    assert more[1][0].endswith("--classes 6 --name k6")
    assert "--format mmseg" in export[1][0]
    assert suggest(accuracy=50.0, usage=[0.4] * 255)[0][1][0].endswith("--classes 255 --name k255")


def test_names_are_asked_for_where_nothing_else_says_them() -> None:
    assert "names.yaml" in suggest(accuracy=None, usage=[50, 50])[0][0]
    assert "names.yaml" not in str(suggest(accuracy=None, usage=[50, 50], named=True))
    assert "names.yaml" not in str(suggest(accuracy=9.0, usage=[50, 50]))


def test_a_head_is_not_told_to_fit_another_number() -> None:
    metrics = {"accuracy": 1.0, "classes": 2, "class_usage": [50, 50]}
    (export,) = suggest_steps(RUN, name_subject(None, "stego"), metrics, named=False)
    assert "--head stego" in export[1][0]


@pytest.mark.parametrize("accuracy", [None, 50.0])
def test_the_command_line_takes_what_is_suggested(accuracy: float | None) -> None:
    for _, commands in suggest(accuracy=accuracy, usage=[60, 40]):
        for command in commands:
            program, verb, *rest = shlex.split(command)
            assert program == "primaps-pipe"
            found = main.get_command(None, verb)  # type: ignore[arg-type]
            assert found is not None
            assert found.make_context(verb, rest).params
    assert CliRunner().invoke(main, ["--help"]).exit_code == 0
