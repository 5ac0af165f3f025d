"""Staleness: what has changed makes stale what depends on it, and nothing else; status says why."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.settings import StageSettings, option_name
from stages import SETTINGS
from tests.end_to_end.conftest import FAST_EM, Invoke, draw_scene, list_times, write_scenes

STAGES = ("extract", "masks", "em/default", "evaluate/default", "report/default")


@pytest.fixture
def run(invoke: Invoke, tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    return make_run(tmp_path, invoke)


def make_run(folder: Path, invoke: Invoke) -> Path:
    """Run the four stages on six scenes of their own."""
    write_scenes(folder / "data", 6)
    run = folder / "run"
    options = ["--root", folder / "data/photographs", "--labels", folder / "data/labels"]
    options += ["--dataset", "folder", "--backbone", "handcrafted", "--size", 32]
    invoke("extract", run, *options, "--shard-size", 6, "--no-progress")
    invoke("masks", run, "--crf", "none", "--no-progress")
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--crf", "none", "--no-progress")
    return run


def read_status(run: Path, invoke: Invoke) -> dict[str, tuple[str, str]]:
    """Return the state of every stage and the reason."""
    rows = json.loads(invoke("status", run, "--json").stdout)
    return {row["stage"]: (row["state"], row["reason"]) for row in rows}


def assert_stale(run: Path, invoke: Invoke, first: str, reason: str) -> None:
    """Check that a stage and all that follow it are stale for that reason, and no others."""
    status = read_status(run, invoke)
    place = STAGES.index(first)
    for number, stage in enumerate(STAGES):
        state, why = status[stage]
        assert state == ("stale" if number >= place else "fresh"), (stage, state, why)
        assert reason in why if number == place else True, why


def rerun(run: Path, invoke: Invoke, *stages: str) -> None:
    for stage in stages:
        invoke(stage, run, "--no-progress")
    assert {state for state, _ in read_status(run, invoke).values()} == {"fresh"}


# A value other than the one that the run was made with, for every setting of the four stages.
OTHERS: dict[str, dict[str, object]] = {
    "extract": {
        "splits": None,  # a folder has one
        "dataset": None,
        "limit": 4,
        "size": 48,
        "frame": "centre",
        "overlap": 0.8,
        "shard_size": 5,
        "precision": None,  # that of the handcrafted channels is float32
        "backbone": None,  # needs weights: tests/end_to_end/test_backbone.py
        "batch_size": 3,
        "device": "cpu",
        "root": None,
        "labels": None,
        "weights": None,
        # which files, and what of each: tests/pipeline/datasets/test_masks.py, and
        # tests/pipeline/images/test_reading.py
        "include": None,
        "exclude": None,
        "range": None,
        "bands": None,
        "pages": None,
        "max_pixels": None,
    },
    "masks": {
        "threshold": 0.6,
        "leave": 0.3,
        "max_proposals": 7,
        "gain": 9,
        "crf": "numba",
        "batch_size": 3,
        "device": "cpu",
    },
    "em": {
        "classes": 4,
        "clusters": 5,
        "labels_from": None,  # the classes of the run's labels have no names
        "known_weight": None,  # counts where something is known
        "most_classes": 9,
        "method": "kmeans",
        "head": None,
        "student": None,
        "mirror": False,
        "epochs": 4,
        "seed": 1,
        "keep": True,
        "name": None,
        "splits": None,
        "learning_rate": 0.1,
        "batch_size": 5,
        "init_epochs": 3,
        "init_steps": 7,
        "sample": 3,
        "focus": 1.5,
        "momentum_every": 2,
        "momentum": 0.5,
        "clusterings": 3,
        "codebook": None,  # counts where proposals are summed
        "fine": None,  # the run has no finer view
        "stability": None,  # of a fit by the robust method
        "shrinkage": 0.2,
        "device": "cpu",
    },
    "evaluate": {
        "em": None,
        "head": None,
        "splits": None,
        "crf": "numba",
        "cosine_gain": 3,
        "unnamed": "own",
        "confidence": None,  # of a fit whose clusters are named alone
        "min_confidence": None,  # the same
        "linear_probe": None,  # is trained on a split that the run has not
        "linear_probe_sample": 7,
        "device": "cpu",
    },
    "report": {
        "em": None,
        "head": None,
        "gallery": 2,
        "device": "cpu",
    },
}

# Stages that another's verb runs, after its own.
VERBS = {"report": "evaluate"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """A finished run that no test changes."""
    return make_run(tmp_path_factory.mktemp("kept"), invoke)


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage in OTHERS for name in OTHERS[stage]]
)
def test_every_setting_makes_stale_what_it_changes(
    kept: Path, invoke: Invoke, stage: str, name: str
) -> None:
    value = OTHERS[stage][name]
    if value is None:
        pytest.skip("the run has no other value of it")
    settings = SETTINGS[stage]
    option = option_name(settings, name)
    if isinstance(value, bool):
        given = [option if value else "--no-" + option.removeprefix("--")]
    else:
        given = [option, str(value)]
    verb = VERBS.get(stage, stage)
    output = invoke(verb, kept, *given, "--dry-run", "--no-progress").output
    # each stage of the verb says how it stands
    output = output[output.index(f"{stage}/" if verb != stage else stage) :]
    changed = name in {f for f in settings.model_fields if is_output(settings, f)}
    assert ("nothing to do" in output) != changed, output
    if changed:
        assert " stale: " in output, output
        assert name in output or "input files" in output or "windows" in output, output


def is_output(settings: type[StageSettings], name: str) -> bool:
    """Whether a setting changes what its stage writes, as its class says."""
    extra = settings.model_fields[name].json_schema_extra
    return bool(isinstance(extra, dict) and extra["affects_output"])


def test_every_setting_is_tried() -> None:
    for stage, others in OTHERS.items():
        assert set(others) == set(SETTINGS[stage].model_fields)


def test_a_changed_image(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    image = tmp_path / "data/photographs/part 0/scene 2.png"
    Image.fromarray(draw_scene(77, 150, 100)[0]).save(image)
    assert_stale(run, invoke, "extract", "1 image is changed (part 0/scene 2.png)")
    rerun(run, invoke, "extract", "masks", "em", "evaluate")


def test_a_touched_image_of_the_same_bytes_costs_nothing(
    run: Path, invoke: Invoke, tmp_path: Path
) -> None:
    before = list_times(run / "features.zarr")
    os.utime(tmp_path / "data/photographs/part 0/scene 2.png")
    assert_stale(run, invoke, "extract", "1 image is changed")
    rerun(run, invoke, "extract")
    assert list_times(run / "features.zarr") == before


def test_images_that_come_and_go(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "data/photographs/part 1"
    shutil.copy(folder / "scene 1.png", folder / "scene 9.png")
    assert_stale(run, invoke, "extract", "1 image is new (part 1/scene 9.png)")
    (folder / "scene 1.png").unlink()
    assert_stale(run, invoke, "extract", "1 image is gone (part 1/scene 1.png), 1 image is new")
    rerun(run, invoke, "extract", "masks", "em", "evaluate")
    assert not list((run / "labels").rglob("scene 1.png"))


def test_a_changed_label_map(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    label = tmp_path / "data/labels/part 0/scene 0.png"
    shutil.copy(tmp_path / "data/labels/part 0/scene 2.png", label)
    assert_stale(run, invoke, "evaluate/default", "label maps have changed")
    rerun(run, invoke, "evaluate")


def test_another_setting(run: Path, invoke: Invoke) -> None:
    invoke("masks", run, "--threshold", 0.6, "--no-progress")
    assert_stale(run, invoke, "em/default", "masks has changed")
    message = invoke("evaluate", run, "--no-progress", code=1).output
    assert "em/default is stale" in message
    assert "masks has changed" in message
    rerun(run, invoke, "em", "evaluate")


@pytest.mark.parametrize("stage", ["extract", "masks", "em", "evaluate", "report"])
def test_another_version(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    version = SETTINGS[stage].version
    monkeypatch.setattr(SETTINGS[stage], "version", version + 1)
    key = stage if stage in STAGES else f"{stage}/default"
    assert_stale(run, invoke, key, f"{stage} is now version {version + 1}, was {version}")


def test_a_run_of_another_format_is_refused_with_the_way_on(run: Path, invoke: Invoke) -> None:
    file = run / "run.yaml"
    lines = file.read_text().replace("format: 2", "format: 1").splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    for verb in ("extract", "masks", "em", "evaluate", "status"):
        message = invoke(verb, run, code=1).output
        assert "written by another version (format 1, this one reads 2)" in message
        assert "make a new run directory" in message
