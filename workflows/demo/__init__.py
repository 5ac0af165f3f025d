"""The demo: all stages on photographs that come with the install."""

from __future__ import annotations

from pathlib import Path

from pipeline.compute.scheduler import Execution
from pipeline.errors import WeightsError
from pipeline.progress import Screen
from pipeline.run.directory import DEFAULT_NAME, RunDirectory
from workflows.demo.photographs import write_photographs
from workflows.recipes import Recipe, read_recipe, resolve_recipe, run_recipe


def run_demo(run: RunDirectory, execution: Execution, screen: Screen) -> Path:
    """Run all four stages on the photographs in scikit-image's and scikit-learn's wheels.

    Where no source of pretrained weights answers, it goes on with hand-crafted features, and says
    so on the screen and in the report's first line.
    """
    folder = run.path / "photographs"
    if execution.dry_run and not folder.is_dir():
        screen.note(f"dry run: the photographs would be written to {folder}, and all stages run")
        return run.report(DEFAULT_NAME) / "index.html"
    run.create()
    photographs = write_photographs(folder)
    recipe = read_recipe("demo")
    places: Recipe = {
        "extract": {"root": photographs.images, "labels": photographs.labels},
    }
    settings = resolve_recipe(recipe, places)
    try:
        return run_recipe(run, settings, execution, screen)
    except WeightsError as error:
        screen.warn(str(error))
        screen.warn("going on with hand-crafted features: expect far weaker classes.")
    places["extract"]["backbone"] = "handcrafted"
    return run_recipe(run, resolve_recipe(recipe, places), execution, screen)
