"""The verbs that compute: extract, masks, head, em, evaluate, and all of them: run, demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from commands.completion import complete_datasets, complete_fits, complete_heads, complete_recipes
from commands.options import (
    ChoiceType,
    PlaceType,
    given_settings,
    settings_options,
    variant_options,
)
from commands.shared import CRF_TYPE, RUN, RUN_TEXT, execution_options, run_one
from commands.verbs import FINE, WHAT, Argument, how, verb, what
from pipeline.compute.scheduler import Execution
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.subject import name_subject
from pipeline.settings import field_extra
from stages import SETTINGS
from stages.em.settings import METHODS

FORGET = how(
    "--forget",
    is_flag=True,
    help="forget the options that were given to this stage of the run before",
)
CRF = {"crf": CRF_TYPE}


def _sort(stage: str, first: Sequence[str]) -> dict[str, str]:
    """Return the sections of a stage's settings: those that people come for, and fine points.

    How a stage runs is left out: it has a section of its own.
    """
    cls = SETTINGS[stage]
    rest = [name for name in cls.model_fields if field_extra(cls, name, "affects_output")]
    return {**dict.fromkeys(rest, FINE), **dict.fromkeys(first, WHAT)}


@verb(
    examples=(
        (
            "primaps-pipe extract runs/mine --dataset folder --root runs/demo/photographs/images",
            "The photographs of `primaps-pipe demo`; name a folder of your own.",
        ),
        (
            "primaps-pipe extract runs/mine --views clean,photometric --crops five",
            "More views may be added at any time; what was made of the clean one stays valid.",
        ),
    ),
)
@RUN
@settings_options(
    SETTINGS["extract"],
    # where images and weights lie does not count as what is computed, but says what is
    sections=_sort(
        "extract",
        (
            *("dataset", "root", "labels", "splits", "backbone", "weights"),
            *("size", "frame", "limit"),
        ),
    ),
    completers={"dataset": complete_datasets},
)
@settings_options(SETTINGS["views"], section="Further views of every image")
@FORGET
@execution_options
def extract(run: Path, forget: bool, execution: Execution, screen: Screen, **options: Any) -> None:
    """Extract the frozen ViT features of every image, and of its mirror image.

    The first stage: it lists the images, places square windows on them, and caches what the
    backbone makes of each. Options once given are remembered in run.yaml.
    """
    how: dict[str, Any] = {"forget": forget, "execution": execution, "screen": screen}
    record = run_one("extract", run, given_settings(SETTINGS["extract"], options), **how)
    # extra views are a stage of their own, which most runs do without
    given = given_settings(SETTINGS["views"], options)
    if record is not None and (given or RunDirectory(run).names("views")):
        run_one("views", run, given, **how)


@verb(
    examples=(
        ("primaps-pipe masks runs/demo", "With the settings of the paper."),
        ("primaps-pipe masks runs/demo --threshold 0.5", "Smaller proposals, and more of them."),
    ),
)
@RUN
@settings_options(SETTINGS["masks"], CRF, sections=_sort("masks", ("threshold", "crf")))
@FORGET
@execution_options
def masks(run: Path, forget: bool, execution: Execution, screen: Screen, **options: Any) -> None:
    """Split every image into principal mask proposals.

    The second stage: needs what extract has cached.
    """
    given = given_settings(SETTINGS["masks"], options)
    run_one("masks", run, given, forget=forget, execution=execution, screen=screen)


@verb(
    examples=(
        (
            "primaps-pipe head runs/demo --method stego --classes 6 --steps 200",
            "Trains a STEGO head; a few steps, to try it out.",
        ),
        ("primaps-pipe evaluate runs/demo --head stego", "Labels from the head's own clusters."),
        (
            "primaps-pipe em runs/demo --head stego --name on-stego",
            "PriMaPs-EM on the head's codes; evaluate it with --em on-stego.",
        ),
    ),
)
@RUN
@settings_options(
    SETTINGS["head"],
    sections=_sort("head", ("method", "name", "classes", "dim", "steps", "seed", "splits")),
)
@FORGET
@execution_options
def head(run: Path, forget: bool, execution: Execution, screen: Screen, **options: Any) -> None:
    """Train a head on the frozen features (STEGO, HP), and make codes of them with it.

    An extra between extract and em, which most runs do without.
    """
    how: dict[str, Any] = {"forget": forget, "execution": execution, "screen": screen}
    record = run_one("head", run, given_settings(SETTINGS["head"], options), **how)
    if record is not None:
        run_one("encode", run, {"head": record.settings["name"]}, **how)


@verb(
    examples=(
        ("primaps-pipe em runs/demo --classes 6", "PriMaPs-EM with six classes."),
        (
            "primaps-pipe em runs/demo --classes auto --name auto",
            "Estimates the number of classes; a run holds as many fits as there are names.",
        ),
    ),
    more=lambda: variant_options(METHODS, SETTINGS["em"]),
)
@RUN
@settings_options(
    SETTINGS["em"],
    {"method": ChoiceType(lambda: METHODS)},
    sections=_sort(
        "em",
        ("classes", "method", "head", "student", "epochs", "seed", "name", "splits"),
    ),
    completers={"head": complete_heads},
)
@FORGET
@execution_options
def em(run: Path, forget: bool, execution: Execution, screen: Screen, **options: Any) -> None:
    """Fit class prototypes to the cached features and proposals.

    The third stage: needs what extract and masks have made.
    """
    # those of a method of another package, too
    given = {name: value for name, value in options.items() if value not in (None, ())}
    run_one("em", run, given, forget=forget, execution=execution, screen=screen)


@verb(
    examples=(
        (
            "primaps-pipe evaluate runs/demo",
            "Labels in runs/demo/labels, the report at runs/demo/report/index.html.",
        ),
        (
            "primaps-pipe evaluate runs/demo --em auto",
            "Another fit of the run, by its name: labels in runs/demo/labels-auto.",
        ),
    ),
)
@RUN
@settings_options(
    SETTINGS["evaluate"],
    CRF,
    sections=_sort("evaluate", ("em", "head", "splits", "crf", "linear_probe")),
    completers={"em": complete_fits, "head": complete_heads},
)
@settings_options(SETTINGS["report"], names=("gallery",))
@FORGET
@execution_options
def evaluate(run: Path, forget: bool, execution: Execution, screen: Screen, **options: Any) -> None:
    """Write label PNGs, metrics and a report.

    The fourth stage: needs a fit of em, or a head.
    """
    given = given_settings(SETTINGS["evaluate"], options)
    how: dict[str, Any] = {"forget": forget, "execution": execution, "screen": screen}
    record = run_one("evaluate", run, given, **how)
    if record is not None:
        subject = {n: record.settings[n] for n in ("em", "head") if record.settings[n]}
        shown = given_settings(SETTINGS["report"], options)
        record = run_one("report", run, {**shown, **subject}, **how)
    if record is not None:
        place = RunDirectory(run)
        title = name_subject(record.settings["em"], record.settings["head"]).title
        folder = place.report(title)
        screen.found(
            report=folder / "index.html",
            metrics=folder / "metrics.json",
            labels=place.labels(title),
        )


def _list_tables() -> dict[str, dict[str, str]]:
    from workflows.recipes import describe_recipes

    return {"Recipes that come with the install": describe_recipes()}


@verb(
    lists=_list_tables,
    examples=(
        (
            "primaps-pipe run runs/mine --workflow folder --set em.classes=6 "
            "--set extract.root=runs/demo/photographs/images",
            "All stages on a folder of photographs.",
        ),
    ),
)
@RUN
@what(
    "--workflow",
    required=True,
    metavar="FILE",
    shell_complete=complete_recipes,
    help="a recipe (YAML), or the name of one below",
)
@what(
    "--set",
    "assignments",
    multiple=True,
    metavar="STAGE.OPTION=VALUE",
    help="change a setting of the recipe, repeatable",
)
@execution_options
def run(
    run: Path, workflow: str, assignments: tuple[str, ...], execution: Execution, screen: Screen
) -> None:
    """Run all four stages from a recipe.

    Stages that are up to date are passed over: the same command goes on after an interruption.
    """
    from pipeline.settings import parse_assignments
    from workflows.recipes import read_recipe, resolve_recipe, run_recipe

    settings = resolve_recipe(read_recipe(workflow), parse_assignments(assignments))
    report = run_recipe(RunDirectory(run), settings, execution, screen)
    if not execution.dry_run:
        screen.result(str(report), report=report)


@verb(
    examples=(("primaps-pipe demo", "Then open runs/demo/report/index.html in a browser."),),
)
@click.argument(
    "run",
    cls=Argument,
    type=PlaceType(folder=True),
    default="runs/demo",
    text=f"{RUN_TEXT}  [default: runs/demo]",
)
@execution_options
def demo(run: Path, execution: Execution, screen: Screen) -> None:
    """Run all four stages on photographs that come with the install."""
    from workflows.demo import run_demo

    report = run_demo(RunDirectory(run), execution, screen)
    if not execution.dry_run:
        place = report.absolute()
        screen.result(f"the report is at {place}", report=place)
