"""Recipes: what ships, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset_names import DATASET_NAMES
from pipeline.datasets import get_dataset
from pipeline.errors import UsageError
from pipeline.settings import parse_assignments
from workflows.recipes import list_recipes, read_recipe, resolve_recipe

ROOT = {"extract": {"root": "/data"}}


def test_every_dataset_has_a_recipe() -> None:
    assert {*DATASET_NAMES, "demo"} == set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_resolve(name: str) -> None:
    settings = resolve_recipe(read_recipe(name), ROOT)
    assert list(settings) == ["extract", "masks", "em", "evaluate", "report"]
    dataset = get_dataset(settings["extract"].model_dump()["dataset"])
    names = dataset.class_names()
    if names:
        assert settings["em"].model_dump()["classes"] == len(names)


def test_recipes_state_no_default_again() -> None:
    for name in list_recipes():
        for stage, values in read_recipe(name).items():
            defaults = type(resolve_recipe(read_recipe(name), ROOT)[stage]).model_fields
            same = [k for k, v in values.items() if v == defaults[k].default and k != "backbone"]
            assert not same, f"{name}: {stage} repeats the default of {same}"


def test_set_wins_over_the_recipe() -> None:
    settings = resolve_recipe(read_recipe("camvid"), {**ROOT, "em": {"classes": 5, "seed": 3}})
    assert settings["em"].model_dump()["classes"] == 5
    assert settings["em"].model_dump()["seed"] == 3


def test_set_takes_the_names_of_options_and_single_values() -> None:
    changes = parse_assignments(("evaluate.split=val", "extract.shard-size=8", "em.name=12"))
    changes["extract"] |= ROOT["extract"]
    settings = {
        k: v.model_dump() for k, v in resolve_recipe(read_recipe("camvid"), changes).items()
    }
    assert settings["evaluate"]["splits"] == ("val",)
    assert settings["extract"]["shard_size"] == 8
    assert settings["em"]["name"] == settings["evaluate"]["em"] == "12"


def test_evaluation_follows_the_recipes_own_fit() -> None:
    settings = resolve_recipe(read_recipe("camvid"), {**ROOT, "em": {"name": "k11"}})
    assert settings["evaluate"].model_dump()["em"] == "k11"
    assert settings["report"].model_dump()["em"] == "k11"


def test_the_report_takes_its_settings_from_the_section_of_evaluate() -> None:
    given = {"evaluate": {"gallery": 3, "crf": "none", "head": "stego"}}
    settings = resolve_recipe(read_recipe("camvid"), {**ROOT, **given})
    shown = settings["report"].model_dump()
    assert (shown["gallery"], shown["em"], shown["head"]) == (3, None, "stego")
    settings = resolve_recipe(read_recipe("camvid"), {**ROOT, **given, "report": {"gallery": 5}})
    assert settings["report"].model_dump()["gallery"] == 5


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("- 1\n", "no stages"),
        ("extrat: {}\n", "did you mean 'extract'"),
        ("em: 5\n", "must hold settings"),
        ("em: [\n", "not YAML"),
        ("em: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_broken_recipes_get_a_sentence(text: str, word: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=word):
        read_recipe(str(file))


def test_a_missing_root_names_the_option() -> None:
    with pytest.raises(UsageError, match="--root"):
        resolve_recipe(read_recipe("camvid"), {})
