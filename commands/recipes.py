"""The verbs that run all stages: run, demo."""

from __future__ import annotations

from pathlib import Path

import click

from commands.completion import complete_recipes
from commands.shared import RUN, RUN_TEXT, execution_options
from commands.verbs import Argument, verb, what
from pipeline.compute.scheduler import Execution
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.storage.places import PlaceType


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
    from workflows.demo.job import run_demo

    report = run_demo(RunDirectory(run), execution, screen)
    if not execution.dry_run:
        place = report.absolute()
        screen.result(f"the report is at {place}", report=place)
