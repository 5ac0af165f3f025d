"""Recipes: YAML files that name a dataset, a backbone, and the settings of every stage."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipeline.compute.scheduler import Execution
from pipeline.errors import UsageError, count_of, did_you_mean
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import StageRecord, inspect_stage
from pipeline.settings import StageSettings, describe_changes, make_settings, show_value
from stages import (
    FOLLOWED_BY,
    OPTIONAL,
    SETTINGS,
    load_stage,
    recall_settings,
    run_stage,
    share_settings,
)

Recipe = dict[str, dict[str, Any]]


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the install."""
    files = resources.files("workflows").iterdir()
    return sorted(Path(f.name).stem for f in files if f.name.endswith(".yaml"))


def describe_recipes() -> dict[str, str]:
    """Return a line on each of the recipes that come with the install, by its name."""
    recipes = {name: read_recipe(name) for name in list_recipes()}
    return {
        name: f"dataset {recipe['extract']['dataset']}, {recipe['em']['classes']} classes"
        for name, recipe in recipes.items()
    }


def read_recipe(given: str) -> Recipe:
    """Read a recipe."""
    path = Path(given)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif given in list_recipes():
        text = (resources.files("workflows") / f"{given}.yaml").read_text(encoding="utf-8")
    else:
        names = list_recipes()
        raise UsageError(
            f"--workflow {given}: no such file, and no recipe of that name"
            f"{did_you_mean(given, names)}; there are {', '.join(names)}."
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{given} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{given} is not a recipe: it holds no stages.")
    recipe: Recipe = {}
    for stage, values in content.items():
        _require_stage(stage, given)
        if values is not None and not isinstance(values, dict):
            raise UsageError(f"{given}: {stage} must hold settings, not {show_value(values)}.")
        recipe[stage] = dict(values or {})
    return recipe


def _require_stage(stage: Any, place: str) -> None:
    if stage not in SETTINGS:
        raise UsageError(
            f"{place}: no stage {stage!r}{did_you_mean(str(stage), SETTINGS)}; "
            f"there are {', '.join(SETTINGS)}."
        )


def resolve_recipe(recipe: Recipe, changes: Recipe) -> dict[str, StageSettings]:
    """Build the settings of the stages to run from a recipe and what ``--set`` changes.

    Of the stages that a run may do without, those are run that the recipe or a change names; a head
    is followed by ``encode``.
    """
    for stage in changes:
        _require_stage(stage, f"--set {stage}.…")
    layers: dict[str, tuple[dict[str, Any], ...]] = {
        stage: (recipe.get(stage, {}), changes.get(stage, {})) for stage in SETTINGS
    }
    for verb, following in FOLLOWED_BY.items():
        shared = tuple(share_settings(following, layer) for layer in layers[verb])
        layers[following] = (*shared, *layers[following])
        layers[verb] = tuple(share_settings(verb, layer) for layer in layers[verb])
    named = recipe.keys() | changes.keys()
    if "head" in named:
        head = make_settings(SETTINGS["head"], "head", *layers["head"]).model_dump()
        layers["encode"] = ({"head": head["name"] or head["method"]}, *layers["encode"])
        named.add("encode")
    settings = {
        stage: make_settings(cls, stage, *layers[stage])
        for stage, cls in SETTINGS.items()
        if stage not in OPTIONAL or stage in named
    }
    evaluate = settings["evaluate"]
    given = evaluate.model_dump()
    if given["em"] is None and given["head"] is None:
        # the recipe's own fit, whatever other fits the run holds
        settings["evaluate"] = evaluate.replace(em=settings["em"].model_dump()["name"])
    subject = settings["evaluate"].model_dump(include={"em", "head"})
    settings["report"] = settings["report"].replace(**subject)
    return settings


def _foresee(name: str, run: RunDirectory, settings: StageSettings, first: str) -> str:
    """Say what becomes of a stage that comes after one which is not up to date.

    Its shards are planned from what that one writes, so how many will be computed is not known.
    """
    key = load_stage(name).key(settings)
    condition = inspect_stage(run, key, SETTINGS)
    if condition.record is None:
        return f"{key}: after {first}, for the first time; its shards are planned then"
    done, total = condition.done, count_of(condition.total, "shards")
    changes = describe_changes(condition.record.settings, _list_known(settings, condition.record))
    if changes:
        return f"{key}: after {first}, all of {total} again: {'; '.join(changes)}"
    return (
        f"{key}: after {first}; {done} of {total} are finished, and those that {first} changes are "
        "computed again"
    )


def _list_known(settings: StageSettings, record: StageRecord) -> dict[str, Any]:
    """Return the settings given, among those of a record; what ``auto`` will mean is not known."""
    given = settings.model_fields_set
    return {
        name: value if name in given and value != "auto" else record.settings.get(name)
        for name, value in settings.output_settings().items()
    }


def run_recipe(
    run: RunDirectory, settings: dict[str, StageSettings], execution: Execution, screen: Screen
) -> Path:
    """Bring the stages of a recipe up to date, in their order."""
    # on a dry run: the first stage that would compute something
    first = ""
    for name in SETTINGS:
        chosen = settings.get(name)
        if chosen is None and name == "views" and run.names(name):
            # views of another time keep step with the images
            chosen = recall_settings(name, run, {}, forget=False)
        if chosen is None:
            continue
        if first:
            for part in load_stage(name).divide(chosen):
                screen.note(_foresee(name, run, part, first))
        elif run_stage(name, run, chosen, execution, screen) is None:
            first = name
    if first:
        screen.note(f"dry run: {first} would be run, and what comes after it as said")
    evaluated = settings["evaluate"].model_dump()
    return run.report(evaluated["em"] or f"head-{evaluated['head']}") / "index.html"
