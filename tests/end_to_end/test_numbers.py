"""Numbers: images that hold nothing, features that are not finite, and the same bytes again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pipeline.run.runner
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger
from pipeline.storage.arrays import open_arrays, read_group
from stages.extract import handcrafted
from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import FAST_EM, Invoke, draw_scene, hash_tree

SIDE = 64
QUIET = ("--no-progress",)


def draw(kind: str) -> np.ndarray:
    """Draw an image of a kind, uint8 [y, x, rgb]."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    if kind == "white":
        pixels[:] = 255
    elif kind == "pixel":
        pixels[SIDE // 2, SIDE // 2] = 255
    elif kind == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    elif kind.startswith("scene"):
        pixels, _ = draw_scene(int(kind.removeprefix("scene")), SIDE, SIDE)
    return pixels


def write_images(folder: Path, *kinds: str) -> Path:
    folder.mkdir()
    for kind in kinds:
        Image.fromarray(draw(kind)).save(folder / f"{kind}.png")
    return folder


def list_options(root: Path, *more: object) -> tuple[object, ...]:
    return (
        *("--dataset", "folder", "--root", root, "--backbone", "handcrafted"),
        *("--size", SIDE, "--shard-size", 2, *more, *QUIET),
    )


def read_counts(run: Path, name: str = "report") -> dict[str, Any]:
    metrics = json.loads((run / name / "metrics.json").read_text())
    counts: dict[str, Any] = metrics["counts"]
    return counts


def read_manifest_rows(run: Path) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in pq.read_table(run / "manifest.parquet").to_pylist()}


@pytest.mark.parametrize(
    "kinds",
    [
        ("black",),
        ("noise",),
        ("black", "white"),
        ("black", "white", "pixel", "noise", "scene 0"),
    ],
)
def test_images_that_hold_nothing_go_through(
    kinds: tuple[str, ...], invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    labels = tmp_path / "labels"
    labels.mkdir()
    for kind in kinds:
        # every label is ignored: there is nothing to score
        Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(labels / f"{kind}.png")
    root = write_images(tmp_path / "images", *kinds)
    invoke("extract", run, *list_options(root, "--labels", labels))
    invoke("masks", run, *QUIET)
    for name, more in (("default", FAST_EM), ("kmeans", ("--method", "kmeans", "--epochs", 2))):
        invoke("em", run, "--name", name, "--classes", 5, *more, *QUIET)
        arrays, _ = read_group(run / "em.zarr", name)
        assert all(np.isfinite(array).all() for array in arrays.values())
        output = invoke("evaluate", run, "--em", name, *QUIET).output
        assert "images without a labelled pixel" in output
    for zarr in ("features.zarr", "masks.zarr"):
        names = ("clean", "mirror") if zarr == "features.zarr" else ("pooled", "proposals", "area")
        for array in open_arrays(run / zarr, names).values():
            assert np.isfinite(np.asarray(array[:])).all()
    counts = read_counts(run)
    assert counts["windows"] == len(kinds)
    assert counts["windows_constant"] == len({"black", "white"} & set(kinds))
    assert counts["windows_without_proposal"] == 0
    assert counts["windows_with_one_proposal"] >= counts["windows_constant"]
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    unused = [k for k, share in enumerate(metrics["class_usage"]) if not share]
    assert set(counts["classes_unused"]) <= set(unused)
    assert counts["classes_unused"] or len(kinds) > 2
    assert metrics["accuracy"] is None and metrics["labelled_images"] == len(kinds)
    page = (run / "report" / "index.html").read_text()
    assert "windows whose features are all equal" in page or not counts["windows_constant"]
    assert "give the same bytes" in page
    # a K-means fit has no proposals to count
    assert read_counts(run, "report-kmeans")["windows_constant"] is None


def test_the_robust_fit_and_the_number_of_classes_say_what_lacks(
    invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    root = write_images(tmp_path / "images", "black", "white", "noise")
    invoke("extract", run, *list_options(root))
    invoke("masks", run, *QUIET)
    output = invoke("em", run, "--classes", 200, "--method", "robust", *QUIET, code=2).output
    assert "--classes 200: the windows hold only" in output
    output = invoke("em", run, "--classes", "auto", "--name", "auto", *QUIET, code=1).output
    assert "too few, or too alike, to count their classes" in output


Break = Callable[[Callable[[torch.Tensor], torch.Tensor]], None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[Break]:
    """Make the backbone give features as a function of the images says."""
    from stages.extract.backbones import load_backbone

    whole = handcrafted.compute_features

    def replace_features(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        load_backbone.cache_clear()
        monkeypatch.setattr(
            handcrafted, "compute_features", lambda images: whole(images) * change(images)
        )

    yield replace_features
    monkeypatch.undo()
    load_backbone.cache_clear()


def give_nan_for_white(images: torch.Tensor) -> torch.Tensor:
    factor = torch.ones(len(images), SIDE // 8, SIDE // 8, 1)
    factor[images.amin(dim=(1, 2, 3)) == 1, 0, 0] = float("nan")
    return factor


def test_an_image_without_finite_features_is_rejected_and_the_others_go_on(
    invoke: Invoke, tmp_path: Path, spoil: Break
) -> None:
    run = tmp_path / "run"
    root = write_images(tmp_path / "images", "scene 0", "scene 1", "scene 2", "white")
    spoil(give_nan_for_white)
    output = invoke("extract", run, *list_options(root)).output
    assert "1 of 4 images were rejected" in output
    rows = read_manifest_rows(run)
    assert rows["white.png"]["reason"] == ("its features are not finite (NaN in 1 of 64 positions)")
    assert {path for path, row in rows.items() if row["state"] == "ok"} == {
        *("scene 0.png", "scene 1.png", "scene 2.png")
    }
    arrays = open_arrays(run / "features.zarr", ("clean", "mirror"))
    for array in arrays.values():
        assert not np.asarray(array[3]).any()
        assert np.asarray(array[2]).any(), "it lies in the same shard"
    # it is not tried again as long as nothing changes
    assert "nothing to do" in invoke("extract", run, *list_options(root)).output
    invoke("masks", run, *QUIET)
    invoke("em", run, "--classes", 3, *FAST_EM, *QUIET)
    invoke("evaluate", run, *QUIET)
    assert len(list((run / "labels").rglob("*.png"))) == 3
    counts = read_counts(run)
    assert counts["images_rejected"] == 1 and counts["windows_not_finite"] == 1
    assert counts["rejected_for"] == {"its features are not finite": 1}
    page = (run / "report" / "index.html").read_text()
    assert "windows whose features are not finite" in page
    spoil(lambda images: torch.ones(1))
    output = invoke("extract", run, *list_options(root), "--force").output
    assert "rejected" not in output
    assert read_manifest_rows(run)["white.png"]["state"] == "ok"


def test_where_every_image_is_so_the_weights_are_named(
    invoke: Invoke, tmp_path: Path, spoil: Break
) -> None:
    root = write_images(tmp_path / "images", "scene 0", "scene 1", "white")
    spoil(lambda images: torch.full((1,), torch.nan))
    output = invoke("extract", tmp_path / "run", *list_options(root), code=1).output
    assert "even a plain grey picture has features that are not finite" in output
    only_white = write_images(tmp_path / "white", "white")
    spoil(give_nan_for_white)
    output = invoke("extract", tmp_path / "other", *list_options(only_white), code=1).output
    assert "of 1 image none has features that are finite (the first: white.png" in output
    assert "--weights" in output


def test_a_damaged_weight_is_named(invoke: Invoke, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    state = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    state["blocks.11.mlp.fc2.bias"][3] = torch.nan
    save_file(state, tmp_path / "weights.safetensors")
    root = write_images(tmp_path / "images", "scene 0", "scene 1")
    output = invoke(
        *("extract", tmp_path / "run", "--dataset", "folder", "--root", root, "--size", 32),
        *("--backbone", name, "--weights", tmp_path / "weights.safetensors", *QUIET),
        code=1,
    ).output
    assert "are damaged: 1 parameter with values that are not finite" in output
    assert "(blocks.11.mlp.fc2.bias); take another file." in output


def test_views_that_are_not_finite_name_their_images(
    invoke: Invoke, tmp_path: Path, spoil: Break
) -> None:
    root = write_images(tmp_path / "images", "scene 0", "scene 1")
    invoke("extract", tmp_path / "run", *list_options(root))
    spoil(lambda images: torch.full((1,), torch.inf))
    output = invoke(
        *("extract", tmp_path / "run", *list_options(root), "--views", "clean,photometric"), code=1
    ).output
    assert "views: the features of 2 images are not finite in float16" in output
    assert "scene 0.png, scene 1.png" in output


def test_without_any_proposal_em_stops_with_one_sentence(
    invoke: Invoke, tmp_path: Path, spoil: Break
) -> None:
    run = tmp_path / "run"
    root = write_images(tmp_path / "images", "scene 0", "scene 1", "scene 2")
    spoil(lambda images: torch.zeros(1))
    invoke("extract", run, *list_options(root))
    assert "no window has a proposal" in invoke("masks", run, *QUIET).output
    output = invoke("em", run, "--classes", 3, *FAST_EM, *QUIET, code=1).output
    assert "em: no window of the splits all has a proposal" in output
    output = invoke("em", run, "--classes", "auto", *FAST_EM, *QUIET, code=1).output
    assert "0 proposals are too few" in output
    invoke("em", run, "--classes", 3, "--method", "kmeans", "--name", "k", "--epochs", 2, *QUIET)
    invoke("evaluate", run, "--em", "k", *QUIET)
    assert read_counts(run, "report-k")["classes_unused"] == [1, 2]


def test_windows_without_a_proposal_are_counted(
    invoke: Invoke, tmp_path: Path, spoil: Break
) -> None:
    run = tmp_path / "run"
    root = write_images(tmp_path / "images", "scene 0", "scene 1", "scene 2", "white")
    spoil(lambda images: give_nan_for_white(images).nan_to_num(0)[:, :1, :1])
    invoke("extract", run, *list_options(root))
    invoke("masks", run, *QUIET)
    invoke("em", run, "--classes", 3, *FAST_EM, *QUIET)
    invoke("evaluate", run, *QUIET)
    counts = read_counts(run)
    assert counts["windows_without_proposal"] == counts["windows_constant"] == 1
    page = (run / "report" / "index.html").read_text()
    assert "windows without a proposal" in page


# The same bytes


ARTEFACTS = ("features.zarr", "masks.zarr", "em.zarr", "labels", "manifest.parquet")
FIT = ("--classes", 3, *FAST_EM)


def hash_artefacts(run: Path) -> dict[str, dict[str, str]]:
    """Hash what the stages wrote, by artefact; the report names the run and is left out."""
    hashed = {name: hash_tree(run / name) for name in ARTEFACTS if (run / name).is_dir()}
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    return hashed | {"metrics": {"": json.dumps(metrics)}}


def run_all(invoke: Invoke, run: Path, extract_options: list[object], *more: object) -> None:
    invoke("extract", run, *extract_options, *more)
    invoke("masks", run, *QUIET, *more)
    invoke("em", run, *FIT, *QUIET, *more)
    invoke("evaluate", run, *QUIET, *more)


@pytest.mark.parametrize(
    ("workers", "stages"),
    [
        (1, ("masks",)),
        (2, ("extract",)),
        pytest.param(3, ("extract", "masks", "em", "evaluate"), marks=pytest.mark.slow),
    ],
)
def test_any_number_of_workers_writes_the_same_bytes(
    workers: int, stages: tuple[str, ...], finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for stage in stages:
        # nothing that is there already may be taken for what was computed
        places = {"extract": "features.zarr", "evaluate": "labels"}
        shutil.rmtree(run / places.get(stage, f"{stage}.zarr"))
        invoke(stage, run, "--workers", workers, "--force", *QUIET)
    assert hash_artefacts(run) == hash_artefacts(finished)


@pytest.mark.parametrize("turn", [0, 1])
def test_any_order_of_the_shards_writes_the_same_bytes(
    turn: int,
    finished: Path,
    invoke: Invoke,
    extract_options: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute_shards = pipeline.run.runner.compute_shards
    orders = []

    def shuffle(function: Any, calls: Any, *args: Any, names: Any = None, **how: Any) -> Any:
        order = np.roll(np.arange(len(calls))[::-1], turn).tolist()
        orders.append(order)
        chosen = None if names is None else [names[i] for i in order]
        for done in compute_shards(function, [calls[i] for i in order], *args, names=chosen, **how):
            yield replace(done, index=order[done.index])

    monkeypatch.setattr(pipeline.run.runner, "compute_shards", shuffle)
    run = tmp_path / "run"
    run_all(invoke, run, extract_options)
    assert any(order != sorted(order) for order in orders)
    assert hash_artefacts(run) == hash_artefacts(finished)
    records = Ledger(RunDirectory(run).state("masks")).read_shards()
    assert list(records) == sorted(records)


COMMANDS = """
import json, sys
from click.testing import CliRunner
from cli import main
for command in json.load(sys.stdin):
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_and_any_hash_seed_write_the_same_bytes(
    threads: int, finished: Path, extract_options: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    commands: list[tuple[object, ...]] = [
        ("extract", run, *extract_options),
        ("masks", run, *QUIET),
        ("em", run, *FIT, *QUIET),
        ("evaluate", run, *QUIET),
    ]
    number = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps([[str(word) for word in command] for command in commands]),
        cwd=REPOSITORY,
        env={**os.environ, **dict.fromkeys(names, number)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hash_artefacts(run) == hash_artefacts(finished)


@pytest.mark.parametrize("size", [1, 64])
def test_the_size_of_the_shards_changes_no_label(
    size: int, finished: Path, invoke: Invoke, extract_options: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_all_sizes = [*extract_options, "--shard-size", size]
    run_all(invoke, run, run_all_sizes)
    first, second = hash_artefacts(run), hash_artefacts(finished)
    assert first["labels"] == second["labels"]
    # other windows go through the backbone together, which may round the last digit otherwise
    ours, theirs = (
        read_group(folder / "em.zarr", "default")[0]["momentum_prototypes"]
        for folder in (run, finished)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
