"""The report in words: figures, what was unusual, suggestions, options as a shell takes them."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli import main
from commands.options import given_settings, settings_options
from pipeline.run.directory import RunDirectory, name_subject
from pipeline.run.ledger import ShardRecord, StageRecord
from pipeline.settings import StageSettings
from stages.em.settings import EmSettings
from stages.evaluate.metrics import count_unusual
from stages.evaluate.settings import EvaluateSettings
from stages.extract.settings import ExtractSettings
from stages.report.settings import ReportSettings
from stages.report.words import (
    count_effectively,
    describe_repeatability,
    describe_unusual,
    format_number,
    format_percent,
    list_confusions,
    list_others,
    shorten_lines,
    shorten_settings,
    suggest_steps,
    write_options,
)
from tests.report_content import make_block


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ([25, 25, 25, 25], 4),
        ([100, 0, 0], 1),
        ([50, 50, 0], 2),
        ([3.0] * 7, 7),
        ([3, 1], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
        ([], 0),
        ([0, 0], 0),
    ],
)
def test_effective_number_of_classes(usage: list[float], expected: float) -> None:
    assert count_effectively(usage) == pytest.approx(expected)


def test_what_is_scored_beside_the_labels() -> None:
    block = make_block() | {"linear_probe": {"accuracy": 90.0, "miou": 60.0}}
    ((title, scores, note),) = list_others(block)
    assert (title, scores["miou"]) == ("linear probe", 60.0)
    assert "trained on the labels" in note
    assert list_others(make_block()) == []


def test_confusions_by_hand() -> None:
    # cluster 0 is class 0, cluster 1 is class 1, cluster 2 is none
    confusion = [[50, 20], [10, 15], [0, 5]]
    rows = list_confusions(confusion, [0, 1, None], ["sky", "road"], ["sky", "road", "cluster 2"])
    assert [(r["truth"], r["prediction"], r["share"], r["part"]) for r in rows] == [
        ("road", "sky", "20.0", "50"),
        ("sky", "road", "10.0", "17"),
        ("road", "cluster 2", "5.0", "12"),
    ]


def test_rare_confusions_are_left_out() -> None:
    assert list_confusions([[1000, 4], [0, 1000]], [0, 1], ["a", "b"], ["a", "b"]) == []
    assert list_confusions([[0, 0], [0, 0]], [0, 1], ["a", "b"], ["a", "b"]) == []
    many = [[0] * 9, *([0] * 9 for _ in range(8))]
    many[0] = [100] * 9
    assert len(list_confusions(many, [0] + [None] * 8, list("abcdefghi"), list("abcdefghi"))) == 6


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "12"])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    assert format_number(value) == format_percent(value) == "–"


def test_numbers() -> None:
    assert format_number(1.25) == "1.2"
    assert format_number(1.25, 2) == "1.25"
    assert format_percent(99.96) == "100.0 %"


def make_stage(*results: dict[str, Any], **facts: Any) -> tuple[StageRecord, list[ShardRecord]]:
    record = StageRecord("", 1, {}, {}, [], facts)
    return record, [ShardRecord(i, "", 0.0, 4, result) for i, result in enumerate(results)]


def make_masks(**changed: Any) -> dict[str, Any]:
    usual = {"windows": 4, "constant": 0, "empty": 0, "single": 0, "full": 0, "device": "cpu"}
    return usual | changed


def count(**changed: Any) -> dict[str, Any]:
    stages = {
        "extract": make_stage({"device": "cpu"}, {"device": "cpu"}),
        "masks": make_stage(make_masks(), make_masks(), crf="numba"),
        "evaluate/default": make_stage({"device": "cpu"}, crf="numba"),
    }
    given: dict[str, Any] = {
        "rejected": [],
        "listed": 8,
        "stages": stages | changed.pop("stages", {}),
        "usage": [5, 3],
        "left_out": {},
    }
    return count_unusual(**given | changed)


def test_nothing_unusual_is_nothing_to_say() -> None:
    counts = count()
    assert describe_unusual(counts) == []
    assert counts["windows"] == 8 and counts["windows_constant"] == 0
    assert counts["classes_unused"] == []
    assert "the same bytes" in describe_repeatability(counts)
    assert counts["same_bytes_again"] is True


def test_shards_are_summed_and_put_into_words() -> None:
    counts = count(
        rejected=["empty file", "truncated: the file ends early", "truncated: other"],
        listed=11,
        stages={
            "extract": make_stage(
                {"not_finite_windows": 1, "device": "cpu"},
                {"not_finite_windows": 2, "device": "cpu"},
            ),
            "masks": make_stage(
                make_masks(constant=1, empty=1, single=2), make_masks(constant=2, full=3)
            ),
        },
        usage=[0, 4, 0],
        left_out={"a.png": "it is 3 x 3, the image 4 x 4"},
    )
    assert describe_unusual(counts) == [
        ("images rejected", "3 of 11: truncated (2), empty file (1)"),
        ("windows whose features are not finite", "3 of 8; their images are among the rejected"),
        (
            "windows whose features are all equal",
            "3 of 8: nothing in them tells one place from another",
        ),
        ("windows without a proposal", "1 of 8: no class is learned from them"),
        ("windows with exactly one proposal", "2 of 8"),
        (
            "windows with as many proposals as --max-proposals allows",
            "3 of 8: they may hold more",
        ),
        ("classes that no pixel was given", "2 of 3: 0, 2"),
        ("label maps left out of the scores", "1 in all: it is 3 x 3, the image 4 x 4 (1)"),
    ]


def test_a_fit_without_proposals_counts_none() -> None:
    stages = {key: make_stage({"device": "cpu"}) for key in ("extract", "em/km")}
    counts = count_unusual([], 4, stages, [1], {})
    assert counts["windows_without_proposal"] is None
    assert describe_unusual(counts) == []


def test_long_lists_end() -> None:
    counts = count(usage=[0] * 60)
    (row,) = describe_unusual(counts)
    assert row[1].endswith(", 18, 19 and 40 more")


def test_every_stage_that_left_the_processor_is_named() -> None:
    counts = count(
        stages={
            "em/default": make_stage({"device": "cuda"}),
            "masks": make_stage(make_masks(), crf="cuda"),
            "evaluate/default": make_stage({"device": "cpu"}, {"device": "cuda"}),
            "head/old": make_stage({}),
        }
    )
    assert counts["same_bytes_again"] is False
    text = describe_repeatability(counts)
    assert text.startswith(
        "Not promised to give the same bytes again: masks (cuda), evaluate/default (cuda), "
        "em/default (cuda), head/old (an unknown device)."
    )


def test_long_texts_are_cut() -> None:
    lines = [f"{n} " + "y" * 5000 for n in range(1000)]
    short = shorten_lines(lines, "more are in the file")
    assert len(short) == 201
    assert short[-1] == "800 more are in the file"
    assert max(map(len, short)) < 700
    assert shorten_lines(["a"], "b") == ["a"]
    assert shorten_settings("a: 1", "run.yaml") == "a: 1"
    assert "the rest is in run.yaml" in shorten_settings("y" * 10**6, "run.yaml")[-100:]


RUN = RunDirectory(Path("a run"))


def suggest(*, accuracy: float | None, usage: list[float], named: bool = False, **more: Any) -> Any:
    metrics = {"accuracy": accuracy, "classes": len(usage), "class_usage": usage}
    return suggest_steps(RUN, name_subject("default", None), metrics, named=named, **more)


def test_of_a_number_that_was_estimated_no_larger_one_is_suggested() -> None:
    (export,) = suggest(accuracy=50.0, usage=[50, 30, 10, 10], counted=True)
    assert "--format mmseg" in export[1][0]
    assert len(suggest(accuracy=50.0, usage=[100, 0])) == 1, "with one dead of two neither"
    fewer = suggest(accuracy=50.0, usage=[50, 30, 10, 10], counted=True, unused=[3])
    assert fewer[0][1][0].endswith("--classes 3 --name k3")


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
