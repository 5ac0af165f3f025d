"""Verbs of the stages: errors of one sentence, exit codes, dry runs, waiting, events.

run and demo: recipes, and what a dry run foresees.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.progress import SCHEMA
from pipeline.run.directory import RunDirectory
from tests.commands.conftest import Call
from tests.scenes import FAST_EM, hash_tree, write_scenes

FOLDER = ("extract", "{run}", "--dataset", "folder", "--root", ".")


def read_events(output: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in output.splitlines()]
    for event in events:
        assert set(event) == {"event", "time", *SCHEMA[event["event"]]}
    return events


@pytest.fixture
def extract(tmp_path: Path) -> tuple[object, ...]:
    """Extract two scenes into a run that is not there yet."""
    write_scenes(tmp_path, 2)
    place = ("--dataset", "folder", "--root", tmp_path / "photographs")
    return ("extract", tmp_path / "run", *place, "--backbone", "handcrafted", "--size", 64)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("extract", "{run}"), 2, ("extract needs --dataset",)),
        (("extract", "{run}", "--dataset", "camvi", "--root", "."), 2, ("camvi", "'camvid'")),
        ((*FOLDER[:-1], "a.jpg", "b.jpg", "c.jpg"), 2, ("b.jpg c.jpg", "--include", "list:")),
        (
            ("extract", "{run}", "--dataset", "folder", "--root", "{run}/no where"),
            1,
            ("no where",),
        ),
        (
            (*FOLDER, "--backbone", "vit_smal_patch8_224.dino"),
            2,
            ("vit_smal_patch8_224.dino", "vit_small_patch8_224.dino"),
        ),
        ((*FOLDER, "--backbone", "handcrafted", "--size", "65"), 2, ("65", "64")),
        ((*FOLDER, "--backbone", "handcrafted", "--device", "cuda:99"), 2, ("cuda:99",)),
        (("masks", "{run}"), 1, ("no run directory", "primaps-pipe extract")),
        (
            ("masks", "{run}", "--threshold", "2"),
            2,
            ("'--threshold': it must be more than 0 and at most 1, not 2.",),
        ),
        (("em", "{run}", "--classes", "1"), 2, ("'--classes': it must be 2 to 255, or auto",)),
        (("em", "{run}", "--classes", "3", "--name", "../x"), 2, ("'../x'",)),
        (("evaluate", "{run}"), 1, ("no run directory",)),
        (("status", "{run}"), 1, ("no run directory",)),
    ],
)
def test_wrong_use_gets_one_clear_sentence(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "run"
    result = call(*(argument.format(run=run) for argument in arguments))
    assert result.exit_code == code, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert not run.exists(), "a refused command leaves nothing behind"


def test_a_value_that_run_yaml_or_a_recipe_holds_is_explained_alike(
    call: Call, tmp_path: Path
) -> None:
    run = ("run", tmp_path / "run", "--workflow", "camvid", "--set", "extract.root=.")
    result = call(*run, "--set", "masks.threshold=2")
    assert result.exit_code == 2
    text = "masks.threshold = 2: --threshold must be more than 0 and at most 1."
    assert text in " ".join(result.output.split())


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cli", "masks", str(tmp_path / "none"), "-v"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_dry_run_writes_nothing(call: Call, extract: tuple[object, ...], tmp_path: Path) -> None:
    result = call(*extract, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "1 of 1 shard to compute" in result.output
    assert not (tmp_path / "run").exists()


def test_events_are_all_that_is_printed(call: Call, extract: tuple[object, ...]) -> None:
    run = extract[1]
    result = call(*extract, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    events = read_events(result.stdout)
    assert events[0]["command"] == "extract"
    assert events[0]["run"] == str(run)
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["task"], last["done"], last["total"]) == ("extract", last["total"], last["total"])
    assert last["rate_unit"] == "images"
    assert last["device"]
    assert last["bytes"] > 1000
    assert (events[-1]["event"], events[-1]["exit_code"]) == ("done", 0)
    em = call("em", run, "--classes", 2, *FAST_EM, "--json")
    assert em.exit_code == 1
    events = read_events(em.stdout)
    assert (events[-1]["event"], events[-1]["exit_code"]) == ("error", 1)
    assert "masks has not been run" in events[-1]["message"]
    # for people, who look at what a program has left behind
    assert events[-1]["message"] in em.stderr


def test_the_last_event_names_what_came_out(call: Call, finished: Path) -> None:
    last = read_events(call("evaluate", finished, "--json").stdout)[-1]
    assert last["results"] == {
        "report": str(finished / "report/index.html"),
        "metrics": str(finished / "report/metrics.json"),
        "labels": str(finished / "labels"),
    }
    assert all(Path(place).exists() for place in last["results"].values())


def test_wrong_use_is_an_event_too(call: Call, tmp_path: Path) -> None:
    result = call("masks", tmp_path, "--threshold", 3, "--json")
    assert result.exit_code == 2
    (event,) = read_events(result.stdout)
    assert event["exit_code"] == 2
    assert "more than 0 and at most 1" in event["message"]


def test_events_without_progress_hold_no_counts(call: Call, extract: tuple[object, ...]) -> None:
    events = read_events(call(*extract, "--json", "--no-progress").stdout)
    assert "progress" not in {event["event"] for event in events}


def test_a_stage_waits_for_another_process_where_it_is_told_to(
    call: Call, extract: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.locks.SAY_AFTER_S", 0.05)
    run = RunDirectory(Path(str(extract[1])))
    run.create()
    release = threading.Event()
    held = threading.Event()

    def hold() -> None:
        with run.lock("extract", wait=False):
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(10)
        refused = call(*extract, "--no-progress")
        assert refused.exit_code == 1
        assert "another process is computing extract" in refused.output
        timer = threading.Timer(0.5, release.set)
        timer.start()
        waited = call(*extract, "--no-progress", "--wait")
    finally:
        release.set()
        holder.join()
    assert waited.exit_code == 0, waited.output
    assert "waiting for extract" in waited.output


def test_an_option_that_is_not_given_does_not_touch_a_finished_run(
    call: Call, finished: Path
) -> None:
    before = hash_tree(finished)
    assert "fresh, nothing to do (1 shard, 3 epochs)" in call("em", finished).output
    assert hash_tree(finished) == before


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
    later = ["masks", "em/default", "evaluate/default", "report/default"]
    assert [line.partition(":")[0] for line in lines[1:5]] == later
    assert all("after extract, for the first time" in line for line in lines[1:5])
    assert lines[-1].startswith("dry run: extract would be run")
    result = call(*run_scenes)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "run/report/index.html")
    again = call(*run_scenes, "--dry-run").output
    assert again.count("nothing to do") == 5
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
