"""The four stages on a small dataset, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, ShardRecord, StageRecord, read_record
from pipeline.storage.arrays import (
    ArraySpec,
    open_arrays,
    prepare_arrays,
    read_group,
    write_group,
    write_shard,
)
from stages import SETTINGS
from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree, list_times, write_scenes


def test_every_image_has_an_indexed_label_map_of_its_own_size(finished: Path, scenes: Path) -> None:
    files = sorted((finished / "labels" / "all").rglob("*.png"))
    photographs = sorted((scenes / "photographs").rglob("*.png"))
    assert [f.relative_to(finished / "labels" / "all") for f in files] == [
        p.relative_to(scenes / "photographs") for p in photographs
    ]
    for file, photograph in zip(files, photographs, strict=True):
        with Image.open(file) as label, Image.open(photograph) as image:
            assert label.mode == "P"
            assert label.size == image.size
            assert set(np.unique(np.asarray(label))) <= {0, 1, 2}


def test_metrics_hold_what_is_promised_and_find_the_scenes(finished: Path) -> None:
    metrics = json.loads((finished / "report" / "metrics.json").read_text())
    assert {
        *("split", "images", "classes", "accuracy", "miou", "accuracy_crf", "miou_crf"),
        *("per_class", "assignment"),
    } <= metrics.keys()
    assert metrics["images"] == 9
    assert metrics["classes"] == 3
    assert sorted(metrics["assignment"]) == [0, 1, 2]
    assert metrics["per_class"][0].keys() == {"name", "iou", "iou_crf"}
    # sky, field and road differ in colour and texture alone: chance would give a third
    assert metrics["accuracy_crf"] > 85
    assert "<html" in (finished / "report" / "index.html").read_text()


def test_the_report_says_first_that_the_features_are_handcrafted(finished: Path) -> None:
    page = (finished / "report" / "index.html").read_text()
    assert "without pretrained weights" in page.split("<table")[0]


def test_arrays_open_in_xarray_with_named_axes(finished: Path) -> None:
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = xarray.open_zarr(finished / "features.zarr")
    assert features["clean"].dims == ("window", "row", "column", "channel")
    assert features["clean"].dtype == np.float16
    assert set(features) == {"clean", "mirror"}
    masks = xarray.open_zarr(finished / "masks.zarr")
    assert masks["proposals"].dims == ("window", "y", "x")
    fit = xarray.open_zarr(finished / "em.zarr", group="default")
    assert fit["momentum_prototypes"].dims == ("class", "channel")
    assert fit["loss"].shape == (3,)


def test_one_file_per_shard(finished: Path) -> None:
    windows = pq.read_table(finished / "windows.parquet").num_rows
    files = list((finished / "features.zarr" / "clean" / "c").rglob("*"))
    assert len([f for f in files if f.is_file()]) == -(-windows // 6)


def test_whole_frames_cover_the_image(finished: Path) -> None:
    table = pq.read_table(finished / "windows.parquet").to_pylist()
    by_image: dict[int, list[dict[str, int]]] = {}
    for row in table:
        by_image.setdefault(row["image"], []).append(row)
    for rows in by_image.values():
        assert min(r["left"] for r in rows) == 0
        assert max(r["left"] for r in rows) + 64 == rows[0]["width"]
    assert [row["index"] for row in table] == list(range(len(table)))


def test_pooled_features_are_unit_vectors_of_the_proposals(finished: Path) -> None:
    masks = zarr.open_group(finished / "masks.zarr", mode="r")
    ids, area = np.asarray(masks["proposals"][:]), np.asarray(masks["area"][:])
    pooled = np.asarray(masks["pooled"][:], np.float32)
    for window in range(len(ids)):
        counts = np.bincount(ids[window].ravel(), minlength=area.shape[1] + 1)[1:]
        np.testing.assert_array_equal(counts, area[window])
    lengths = np.linalg.norm(pooled, axis=-1)
    np.testing.assert_allclose(lengths[area > 0], 1, atol=2e-3)
    assert (lengths[area == 0] == 0).all()


def test_the_same_commands_again_touch_nothing(
    finished: Path, invoke: Invoke, extract_options: list[object]
) -> None:
    before = list_times(finished)
    for arguments in (
        ("extract", finished, *extract_options),
        ("extract", finished),
        ("masks", finished),
        ("em", finished, "--classes", 3, *FAST_EM),
        ("em", finished),
        ("evaluate", finished),
    ):
        assert "nothing to do" in invoke(*arguments).output
    assert list_times(finished) == before


def test_a_second_fit_reads_the_cache_and_leaves_the_first_alone(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    kept = ("features.zarr", "masks.zarr", "labels", "report", "manifest.parquet")
    before = {name: list_times(run / name) for name in kept}
    invoke("em", run, "--classes", 4, "--name", "k4", *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--em", "k4", "--no-progress")
    assert {name: list_times(run / name) for name in kept} == before
    metrics = json.loads((run / "report-k4" / "metrics.json").read_text())
    assert metrics["classes"] == 4
    assert metrics["assignment"].count(None) == 1
    assert len(list((run / "labels-k4").rglob("*.png"))) == 9


def test_kmeans_needs_no_masks(
    invoke: Invoke, extract_options: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    invoke("extract", run, *extract_options)
    invoke("em", run, "--classes", 3, "--method", "kmeans", *FAST_EM, "--no-progress")
    invoke("evaluate", run, "--crf", "none", "--no-progress")
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["accuracy"] > 60
    assert metrics["accuracy_crf"] is None


def test_without_labels_no_score_is_made_up(invoke: Invoke, scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "extract: {dataset: folder, backbone: handcrafted, size: 64}\n"
        "em: {classes: 3, epochs: 2, init_steps: 4}\n"
    )
    result = invoke(
        *("run", run, "--workflow", recipe, "--no-progress"),
        *("--set", f"extract.root={scenes / 'photographs'}", "--set", "extract.limit=3"),
    )
    assert str(run / "report" / "index.html") in result.output
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["images"] == 3
    for score in ("accuracy", "miou", "accuracy_crf", "miou_crf", "assignment"):
        assert metrics[score] is None
    assert metrics["coverage"] == 100
    assert sum(metrics["class_usage"]) == pytest.approx(100, abs=0.1)


def test_workers_give_the_same_bytes(
    finished: Path, invoke: Invoke, extract_options: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    workers = ("--workers", 2, "--no-progress")
    invoke("extract", run, *extract_options[:-1], *workers)
    invoke("masks", run, *workers)
    invoke("em", run, "--classes", 3, *FAST_EM, *workers)
    invoke("evaluate", run, *workers)
    for name in ("features.zarr", "masks.zarr", "em.zarr", "labels"):
        assert hash_tree(run / name) == hash_tree(finished / name), name


def test_a_running_cluster_computes_the_shards_too(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "masks.zarr")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        output = invoke(
            "masks", run, "--scheduler", cluster.scheduler_address, "--no-progress"
        ).output
    assert "finished shards wrote is gone" in output
    assert hash_tree(run / "masks.zarr") == hash_tree(finished / "masks.zarr")


def test_lost_label_maps_are_seen_and_written_again(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "labels")
    rows = {row["stage"]: row for row in json.loads(invoke("status", run, "--json").stdout)}
    assert rows["evaluate/default"]["state"] == "incomplete"
    assert "labels is gone" in rows["evaluate/default"]["reason"]
    invoke("evaluate", run, "--no-progress")
    assert hash_tree(run / "labels") == hash_tree(finished / "labels")


def test_a_lost_report_is_written_again(finished: Path, invoke: Invoke, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "report")
    before = list_times(run / "labels")
    output = invoke("evaluate", run, "--no-progress").output
    assert "the summary is made again" in output
    assert (run / "report" / "index.html").is_file()
    assert list_times(run / "labels") == before


def test_options_hold_on_until_they_are_forgotten(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    invoke("evaluate", run, "--crf", "none", "--no-progress")
    assert "nothing to do" in invoke("evaluate", run).output
    output = invoke("evaluate", run, "--forget", "--no-progress").output
    assert "crf 'none' -> 'numba'" in output


def test_another_root_with_like_files_is_not_the_same_data(invoke: Invoke, tmp_path: Path) -> None:
    for name, value in (("first", 10), ("second", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), (value, value, value)).save(tmp_path / name / "a.bmp")
        os.utime(tmp_path / name / "a.bmp", (1, 1))
    options = ("--dataset", "folder", "--backbone", "handcrafted", "--size", 64, "--no-progress")
    invoke("extract", tmp_path / "run", *options, "--root", tmp_path / "first")
    output = invoke("extract", tmp_path / "run", *options, "--root", tmp_path / "second").output
    assert "1 shard is stale" in output


def test_a_damaged_shard_is_said_and_replaced(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "features.zarr" / "clean" / "c" / "0" / "0" / "0" / "0"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    message = invoke("masks", run, "--force", "--no-progress", code=1).output
    assert "damaged" in message
    assert "verify" in message
    # shorter than it was written: the stage itself notices
    invoke("extract", run, "--no-progress")
    assert file.read_bytes() == content


def test_a_fit_without_masks_is_reported_without_stale_proposals(
    finished: Path, invoke: Invoke, scenes: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished, run)
    shutil.copytree(scenes, data)
    for place in ("photographs", "labels"):
        shutil.copy(data / place / "part 0" / "scene 0.png", data / place / "another.png")
    new = ("--root", data / "photographs", "--labels", data / "labels", "--no-progress")
    invoke("extract", run, *new)
    options = ("--method", "kmeans", "--name", "km", *FAST_EM, "--no-progress")
    invoke("em", run, "--classes", 3, *options)
    invoke("evaluate", run, "--em", "km", "--crf", "none", "--no-progress")
    page = (run / "report-km" / "index.html").read_text()
    assert "another" in page
    assert ">proposals<" not in page


def test_root_and_run_may_be_links(
    invoke: Invoke, scenes: Path, extract_options: list[object], tmp_path: Path
) -> None:
    (tmp_path / "real run").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real run")
    (tmp_path / "photographs").symlink_to(scenes / "photographs")
    invoke("extract", tmp_path / "run", *extract_options, "--root", tmp_path / "photographs")
    assert (tmp_path / "real run" / "features.zarr").is_dir()
    assert pq.read_table(tmp_path / "run" / "manifest.parquet").num_rows == 9


def test_changed_settings_are_named_and_make_later_stages_stale(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    output = invoke("masks", run, "--threshold", 0.6, "--crf", "none", "--no-progress").output
    assert "threshold 0.4 -> 0.6" in output
    stages = {row["stage"]: row for row in json.loads(invoke("status", run, "--json").stdout)}
    assert stages["extract"]["state"] == stages["masks"]["state"] == "fresh"
    assert stages["em/default"]["state"] == stages["evaluate/default"]["state"] == "stale"
    assert "masks has changed" in stages["em/default"]["reason"]
    message = invoke("evaluate", run, code=1).output
    assert "em/default is stale" in message
    assert "primaps-pipe em" in message


def test_a_replaced_photograph_costs_its_own_shard_only(
    invoke: Invoke, scenes: Path, extract_options: list[object], tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(scenes, data)
    options = [
        str(o).replace(str(scenes), str(data)) if isinstance(o, Path) else o
        for o in extract_options
    ]
    invoke("extract", run, *options)
    before = list_times(run / "features.zarr" / "clean" / "c")
    photograph = sorted((data / "photographs").rglob("*.png"))[-1]
    with Image.open(photograph) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(photograph)
    assert "1 of" in invoke("extract", run, *options).output
    after = list_times(run / "features.zarr" / "clean" / "c")
    assert [name for name in after if after[name] != before[name]] == [max(before)]


def test_adding_labels_later_keeps_the_features(
    invoke: Invoke, scenes: Path, extract_options: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    without = [o for o in extract_options if o not in ("--labels", scenes / "labels")]
    invoke("extract", run, *without)
    before = list_times(run / "features.zarr")
    output = invoke("extract", run, "--labels", scenes / "labels", "--no-progress").output
    assert "shards are fresh" in output
    assert list_times(run / "features.zarr") == before
    rows = pq.read_table(run / "manifest.parquet").to_pylist()
    assert all(row["label"] for row in rows)


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled scenes in the splits train and val."""
    folder = tmp_path_factory.mktemp("divided")
    for split, count in (("train", 6), ("val", 3)):
        write_scenes(folder / split, count)
        for kind in ("photographs", "labels"):
            (folder / kind).mkdir(exist_ok=True)
            shutil.move(folder / split / kind, folder / kind / split)
        (folder / split).rmdir()
    return folder


def extract_divided(invoke: Invoke, run: Path, data: Path) -> None:
    """Extract the splits train and val, and fit three classes to the first."""
    invoke(
        *("extract", run, "--dataset", "folder", "--root", data / "photographs"),
        *("--labels", data / "labels", "--split", "train", "--split", "val"),
        *("--backbone", "handcrafted", "--size", 64, "--shard-size", 6, "--no-progress"),
    )
    invoke("em", run, "--classes", 3, "--method", "kmeans", *FAST_EM, "--no-progress")


def test_a_linear_probe_is_trained_on_one_split_and_scored_on_all(
    invoke: Invoke, divided: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(divided, data)
    extract_divided(invoke, run, data)
    shutil.copytree(run, tmp_path / "other")
    options = ("--linear-probe", "--crf", "none", "--no-progress")
    output = invoke("evaluate", run, *options).output
    assert "a linear probe is trained on the labels first" in output
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    for split in ("train", "val"):
        block = metrics["splits"][split]
        assert block["linear_probe"]["accuracy"] > max(90, block["accuracy"])
        assert f"linear probe {block['linear_probe']['accuracy']:.1f}" in output
    assert metrics["linear_probe"] == metrics["splits"]["val"]["linear_probe"]
    assert "linear probe" in (run / "report" / "index.html").read_text()

    before = list_times(run)
    assert "nothing to do" in invoke("evaluate", run).output
    assert list_times(run) == before
    invoke("evaluate", tmp_path / "other", *options, "--workers", 2)
    for name in ("labels", "report/metrics.json", "state/evaluate/default/linear_probe.npz"):
        one, other = run / name, tmp_path / "other" / name
        same = hash_tree(one) == hash_tree(other) if one.is_dir() else None
        assert same or one.read_bytes() == other.read_bytes(), name

    # labels of the train split change what is scored on every other one
    label, odd = sorted((data / "labels" / "train").rglob("*.png"))[:2]
    ids = np.array(Image.open(odd))
    ids[:2, :3] = 254
    Image.fromarray(ids).save(odd)
    (data / "labels" / "classes.txt").write_text("sky\nfield\nroad\n")
    output = invoke("evaluate", run, "--split", "val", "--no-progress").output
    assert "the linear probe learns without some pixels: of " in output
    assert "6 (0.0 %) have values that no class has: 254 (6 pixels)" in " ".join(output.split())
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(label)
    output = invoke("evaluate", run, "--no-progress").output
    assert "shards are stale: linear_probe" in output
    assert "a linear probe is trained" in output
    assert f"label map of train/{label.relative_to(data / 'labels' / 'train')}" in output


def test_a_linear_probe_needs_a_labelled_train_split(finished: Path, invoke: Invoke) -> None:
    output = invoke("evaluate", finished, "--linear-probe", code=2).output
    assert "--linear-probe: it is trained on the labels of the split train" in output
    assert "its splits: all" in output


def test_running_prototypes_are_scored_as_a_fit_of_their_own(
    finished: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    arrays, attributes = read_group(run / "em.zarr", "default")
    # half of the way back to the beginning, so that they differ from those of the labels
    running = (arrays["prototypes"] + arrays["initial_prototypes"]) / 2
    axes = ("class", "channel")
    kept = {name: (arrays[name], axes) for name in ("momentum_prototypes", "initial_prototypes")}
    kept["loss"] = (arrays["loss"], ("epoch",))
    kept["class_usage"] = (arrays["class_usage"], ("epoch", "class"))
    for name in ("two", "one"):
        shutil.copytree(run / "state" / "em" / "default", run / "state" / "em" / name)
    write_group(run / "em.zarr", "two", kept | {"prototypes": (running, axes)}, attributes)
    kept["momentum_prototypes"] = (running, axes)
    write_group(run / "em.zarr", "one", kept, attributes)
    metrics = {}
    for name in ("two", "one"):
        invoke("evaluate", run, "--em", name, "--crf", "none", "--no-progress")
        metrics[name] = json.loads((run / f"report-{name}" / "metrics.json").read_text())
    assert metrics["two"]["running_prototypes"] == {
        key: metrics["one"][key] for key in ("accuracy", "miou", "miou_interval", "assignment")
    }
    assert metrics["two"]["accuracy"] != metrics["one"]["accuracy"]
    assert "running_prototypes" not in metrics["one"]


def make_head(run: RunDirectory, fit: str, name: str) -> None:
    """Make codes of the features that are these in another order, and of a fit a head's probe."""
    arrays, attributes = read_group(run.em, fit)
    axes = ("window", "row", "column", "channel")
    features = open_arrays(run.features, ["clean", "mirror"])
    blocks = {view: np.roll(np.asarray(array[:]), 3, axis=-1) for view, array in features.items()}
    spec = ArraySpec(blocks["clean"].shape[1:], axes, "float16", compress=False)
    length = len(blocks["clean"])
    run.codes(name).parent.mkdir()
    prepare_arrays(run.codes(name), dict.fromkeys(blocks, spec), length, length, {})
    write_shard(run.codes(name), blocks, 0, length)
    probe = np.roll(arrays["momentum_prototypes"], 3, axis=-1)
    history = {
        "loss": (arrays["loss"], ("epoch",)),
        "class_usage": (arrays["class_usage"], ("epoch", "class")),
    }
    attributes |= {"method": "stego", "features": f"codes/{name}"}
    write_group(run.heads, name, {"probe": (probe, ("class", "dim")), **history}, attributes)
    prototypes = {"momentum_prototypes": (probe, ("class", "channel"))}
    write_group(run.em, "on-codes", prototypes | history, attributes | {"method": "kmeans"})
    made: dict[str, str] = {"extract": read_record(run, "extract").digest}
    for key in (f"head/{name}", f"encode/{name}", "em/on-codes"):
        stage = key.partition("/")[0]
        ledger = Ledger(run.state(key))
        ledger.commit(ShardRecord(0, "made by hand", 1.0, 1))
        record = StageRecord(
            stage=stage,
            version=SETTINGS[stage].version,
            settings={},
            inputs=dict(made),
            shards=["made by hand"],
            facts={},
            options={"head": f" --name {name}", "em": " --name on-codes"}.get(stage, ""),
            # as the stage itself has it: the head's command encodes
            verb={"encode": "head"}.get(stage, ""),
            finished=True,
        )
        ledger.write_stage(record)
        made[key] = record.digest


def test_a_head_and_a_fit_on_its_codes_are_evaluated_on_them(
    invoke: Invoke, divided: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    extract_divided(invoke, run, divided)
    make_head(RunDirectory(run), "default", "stego")
    options = ("--linear-probe", "--crf", "none", "--no-progress")
    invoke("evaluate", run, "--em", "default", *options)
    output = invoke("evaluate", run, "--head", "stego", *options).output
    assert str(run / "report-head-stego" / "index.html") in output
    invoke("evaluate", run, "--em", "on-codes", *options)
    metrics = {
        name: json.loads((run / f"report{name}" / "metrics.json").read_text())
        for name in ("", "-head-stego", "-on-codes")
    }
    for name in ("-head-stego", "-on-codes"):
        # the same channels in another order
        assert metrics[name]["accuracy"] == pytest.approx(metrics[""]["accuracy"], abs=0.1)
        for key in ("accuracy", "miou"):
            probe = metrics[""]["linear_probe"][key]
            assert metrics[name]["linear_probe"][key] == pytest.approx(probe, abs=0.5)
    assert (metrics["-head-stego"]["em"], metrics["-head-stego"]["head"]) == (None, "stego")
    assert len(list((run / "labels-head-stego").rglob("*.png"))) == 9
    page = (run / "report-head-stego" / "index.html").read_text()
    again = page[page.index('id="reproduction"') :]
    commands = [line for line in again.splitlines() if "primaps-pipe " in line]
    commands = [line for line in commands if "primaps-pipe review" not in line]
    assert [line.split("primaps-pipe ")[1].split()[0] for line in commands] == [
        *("extract", "head", "evaluate"),
    ]
    assert "--head stego" in commands[-1]
    assert "nothing to do" in invoke("evaluate", run, "--head", "stego").output

    message = invoke("evaluate", run, "--head", "stego", "--em", "default", code=2).output
    assert "give one of them" in message
    assert "did you mean 'stego'" in invoke("evaluate", run, "--head", "steg", code=2).output


def test_the_robust_fit_labels_the_scenes(finished: Path, invoke: Invoke, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    output = invoke("em", run, "--classes", 3, "--method", "robust", "--no-progress").output
    assert "em: 3 prototypes from" in output
    assert "proposals of" in output
    invoke("evaluate", run, "--no-progress")
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    # chance would give a third
    assert metrics["accuracy_crf"] > 60
    assert "running_prototypes" not in metrics
    before = hash_tree(run / "em.zarr" / "default")
    invoke("em", run, "--force", "--no-progress")
    assert hash_tree(run / "em.zarr" / "default") == before
    output = invoke("em", run, "--classes", 250, "--no-progress", code=2).output
    assert "--classes 250" in output
