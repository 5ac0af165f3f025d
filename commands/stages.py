"""The verbs that compute: extract, masks, head, em, evaluate, and all of them: run, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands.options import (
    RUN,
    RUN_TEXT,
    Caller,
    PlaceType,
    complete_recipes,
    execution_options,
    given_settings,
    settings_options,
    stage_options,
    variant_options,
)
from commands.verbs import argument, verb, what
from pipeline.compute.scheduler import Execution
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory, name_subject
from pipeline.settings import parse_assignments
from stages import SETTINGS, share_settings
from stages.em import settings as em_settings
from stages.head import settings as head_settings


@verb(
    examples="""
    primaps-pipe extract runs/mine --dataset folder --root runs/demo/photographs/images
        The photographs of `primaps-pipe demo`; name a folder of your own.
    primaps-pipe extract runs/mine --views clean,photometric --crops five
        More views may be added at any time; what was made of the clean one stays valid.
    """
)
@settings_options(
    SETTINGS["extract"],
    # where images and weights lie does not count as what is computed, but says what is
    ["dataset", "root", "labels", "splits", "backbone", "weights", "size", "frame", "limit"],
)
@settings_options(SETTINGS["views"], section="Further views of every image")
@stage_options
def extract(call: Caller, **options: Any) -> None:
    """Extract the frozen ViT features of every image, and of its mirror image.

    The first stage: it lists the images, places square windows on them, and caches what the
    backbone makes of each. Options once given are remembered in run.yaml.
    """
    record = call("extract", given_settings(SETTINGS["extract"], options))
    # extra views are a stage of their own, which most runs do without
    given = given_settings(SETTINGS["views"], options)
    if record is not None and (given or call.run.names("views")):
        call("views", given)


@verb(
    examples="""
    primaps-pipe masks runs/demo
        With the settings of the paper.
    primaps-pipe masks runs/demo --threshold 0.5
        Smaller proposals, and more of them.
    """
)
@settings_options(SETTINGS["masks"], ("threshold", "crf"))
@stage_options
def masks(call: Caller, **options: Any) -> None:
    """Split every image into principal mask proposals.

    The second stage: needs what extract has cached.
    """
    call("masks", options)


@verb(
    examples="""
    primaps-pipe head runs/demo --method stego --classes 6 --steps 200
        Trains a STEGO head; a few steps, to try it out.
    primaps-pipe evaluate runs/demo --head stego
        Labels from the head's own clusters.
    primaps-pipe em runs/demo --head stego --name on-stego
        PriMaPs-EM on the head's codes; evaluate it with --em on-stego.
    """,
    more=lambda: variant_options(head_settings.METHODS, SETTINGS["head"]),
)
@settings_options(SETTINGS["head"], ("method", "name", "classes", "dim", "steps", "seed", "splits"))
@stage_options
def head(call: Caller, **options: Any) -> None:
    """Train a head on the frozen features (STEGO, HP), and make codes of them with it.

    An extra between extract and em, which most runs do without.
    """
    record = call("head", options)
    if record is not None:
        call("encode", {"head": record.settings["name"]})


@verb(
    examples="""
    primaps-pipe em runs/demo --classes 6
        PriMaPs-EM with six classes.
    primaps-pipe em runs/demo --classes auto --name auto
        Estimates the number of classes; a run holds as many fits as there are names.
    """,
    more=lambda: variant_options(em_settings.METHODS, SETTINGS["em"]),
)
@settings_options(
    SETTINGS["em"], ("classes", "method", "head", "student", "epochs", "seed", "name", "splits")
)
@stage_options
def em(call: Caller, **options: Any) -> None:
    """Fit class prototypes to the cached features and proposals.

    The third stage: needs what extract and masks have made.
    """
    call("em", options)


@verb(
    examples="""
    primaps-pipe evaluate runs/demo
        Labels in runs/demo/labels, the report at runs/demo/report/index.html.
    primaps-pipe evaluate runs/demo --em auto
        Another fit of the run, by its name: labels in runs/demo/labels-auto.
    """
)
@settings_options(SETTINGS["evaluate"], ("em", "head", "splits", "crf", "linear_probe"))
@settings_options(SETTINGS["report"], ("gallery",), names=("gallery",))
@stage_options
def evaluate(call: Caller, **options: Any) -> None:
    """Write label PNGs, metrics and a report.

    The fourth stage: needs a fit of em, or a head.
    """
    record = call("evaluate", share_settings("evaluate", options))
    if record is not None:
        subject = {name: record.settings[name] for name in ("em", "head")}
        record = call("report", {**share_settings("report", options), **subject})
    if record is not None:
        title = name_subject(record.settings["em"], record.settings["head"]).title
        folder = call.run.report(title)
        call.screen.found(
            report=folder / "index.html",
            metrics=folder / "metrics.json",
            labels=call.run.labels(title),
        )


def _list_tables() -> dict[str, dict[str, str]]:
    from workflows.recipes import describe_recipes

    return {"Recipes that come with the install": describe_recipes()}


@verb(
    lists=_list_tables,
    examples="""
    primaps-pipe run runs/mine --workflow folder --set em.classes=6 \
    --set extract.root=runs/demo/photographs/images
        All stages on a folder of photographs.
    """,
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
    from workflows.recipes import read_recipe, resolve_recipe, run_recipe

    settings = resolve_recipe(read_recipe(workflow), parse_assignments(assignments))
    report = run_recipe(RunDirectory(run), settings, execution, screen)
    if not execution.dry_run:
        screen.result(str(report), report=report)


@verb(
    examples="""
    primaps-pipe demo
        Then open runs/demo/report/index.html in a browser.
    """
)
@argument(
    "run",
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
