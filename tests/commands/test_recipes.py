"""run and demo: recipes, and what a dry run foresees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import Call


@pytest.fixture
def run_scenes(scenes: Path, tmp_path: Path) -> list[object]:
    """All stages on the scenes, in three shards."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "extract: {dataset: folder, backbone: handcrafted, size: 64, shard_size: 6}\n"
        "em: {classes: 3, epochs: 2, init_steps: 6}\n"
    )
    root = f"extract.root={scenes / 'photographs'}"
    return ["run", tmp_path / "run", "--workflow", recipe, "--set", root, "--no-progress"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workflow", "camvit"), ("camvit", "did you mean 'camvid'")),
        (("--workflow", "camvid", "--set", "x"), ("stage.option=value",)),
        (
            (
                *("--workflow", "camvid", "--set", "extract.root=."),
                *("--set", "masks.treshold=1"),
            ),
            ("did you mean 'threshold'",),
        ),
        (("--workflow", "camvid", "--set", "mask.threshold=1"), ("did you mean 'masks'",)),
        ((), ("Missing option '--workflow'",)),
    ],
)
def test_wrong_recipes_get_one_clear_sentence(
    arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    result = call("run", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert not (tmp_path / "run").exists()


def test_the_help_lists_the_recipes(call: Call) -> None:
    text = " ".join(call("run", "--help").output.split())
    assert "camvid dataset camvid, 11 classes" in text


def test_a_dry_run_says_what_becomes_of_every_stage(
    call: Call, run_scenes: list[object], tmp_path: Path
) -> None:
    first = call(*run_scenes, "--dry-run")
    assert first.exit_code == 0, first.output
    assert not (tmp_path / "run").exists()
    lines = first.output.splitlines()
    assert "shards to compute" in lines[0]
    later = ["masks", "em/default", "evaluate/default"]
    assert [line.partition(":")[0] for line in lines[1:4]] == later
    assert all("after extract, for the first time" in line for line in lines[1:4])
    assert lines[-1].startswith("dry run: extract would be run")
    result = call(*run_scenes)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "run/report/index.html")
    again = call(*run_scenes, "--dry-run").output
    assert again.count("nothing to do") == 4
    assert "would be run" not in again
    changed = call(
        *run_scenes, "--set", "masks.threshold=0.5", "--set", "em.epochs=3", "--dry-run"
    ).output
    assert "extract: fresh, nothing to do" in changed
    assert "masks: 3 shards are stale: threshold 0.4 -> 0.5" in changed
    assert "em/default: after masks, all of 1 shard again: epochs 2 -> 3" in changed
    assert "evaluate/default: after masks; 3 of 3 shards are finished" in changed


def test_a_foreign_folder_is_not_written_into(call: Call, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "a.png").write_bytes(b"")
    result = call("demo", tmp_path)
    assert result.exit_code == 1
    assert "is not empty" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "thesis.tex"]
