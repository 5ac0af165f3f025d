"""Named classes: more clusters than classes, named many to one, in parts, with what is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import Run
from pipeline.run.corrections import Corrections, Point
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import read_manifest
from pipeline.storage.arrays import read_group
from stages.em.labels import read_labels
from stages.em.settings import EmSettings
from stages.evaluate import names
from tests.end_to_end.conftest import Invoke, hash_tree, write_scenes
from tests.end_to_end.test_staleness import make_run, read_status
from workflows.review.session import Review

QUIET = "--no-progress"
NAMES = "0: left\n1: right\n2: left\n3: ignore\n"


@pytest.fixture
def run(invoke: Invoke, tmp_path: Path) -> Path:
    """A run of six scenes, in whose fit are more clusters than classes, labelled by them."""
    run = make_run(tmp_path, invoke)
    invoke("em", run, "--method", "robust", "--classes", 3, "--clusters", 5, QUIET)
    invoke("evaluate", run, "--crf", "none", QUIET)
    return run


def write_names(run: Path, text: str) -> None:
    (run / "corrections").mkdir(exist_ok=True)
    (run / "corrections/names.yaml").write_text(text)


def read_metrics(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "report/metrics.json").read_text())
    return metrics


def read_maps(run: Path) -> np.ndarray:
    files = sorted((run / "labels").rglob("*.png"))
    return np.concatenate([np.array(Image.open(file)).ravel() for file in files])


def test_names_join_clusters_and_reach_all_that_is_made(
    run: Path, invoke: Invoke, tmp_path: Path
) -> None:
    assert "label_names" not in read_metrics(run)
    before, fit = read_maps(run), hash_tree(run / "em.zarr")
    write_names(run, NAMES)
    output = invoke("evaluate", run, QUIET).output
    assert "clusters are joined to 2 named classes" in output
    assert "1 cluster without a name" in output
    metrics, after = read_metrics(run), read_maps(run)
    assert metrics["label_names"] == ["left", "right", "ignore"]
    # a class that is left out is no correction of any image
    assert "corrected" not in metrics
    assert set(np.unique(after)) <= {0, 1, 255}
    assert set(np.unique(before)) <= set(range(5))
    # one cluster of a name, most of whose pixels are of it still
    assert (after[before == 1] == 1).mean() > 0.5
    assert hash_tree(run / "em.zarr") == fit
    invoke("export", run, "--format", "mmseg", "--out", tmp_path / "out", "--ids", "clusters")
    classes = json.loads((tmp_path / "out/classes.json").read_text())["classes"]
    assert [each["name"] for each in classes] == ["left", "right"]
    invoke("export", run, "--format", "prototypes", "--out", tmp_path / "mine.safetensors")
    same = hash_tree(run / "labels")
    invoke("evaluate", run, QUIET)
    assert hash_tree(run / "labels") == same
    assert read_status(run, invoke)["evaluate/default"][0] == "fresh"


def test_clusters_without_a_name_may_stay_their_own(run: Path, invoke: Invoke) -> None:
    write_names(run, "0: left\n1: right\n")
    assert "warning" in invoke("evaluate", run, QUIET).output
    assert read_metrics(run)["label_names"] == ["left", "right"]
    invoke("evaluate", run, "--unnamed", "own", QUIET)
    names = ["left", "right", "cluster 2", "cluster 3", "cluster 4"]
    assert read_metrics(run)["label_names"] == names


def test_a_part_has_a_name_of_its_own(run: Path, invoke: Invoke) -> None:
    write_names(run, "0: left\n1: right\n")
    invoke("evaluate", run, QUIET)
    before = read_maps(run)
    write_names(run, "0: left\n1: right\n0.1: right\n")
    invoke("evaluate", run, QUIET)
    assert (read_maps(run) != before).any()
    write_names(run, "0: left\n1: right\n0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0: right\n")
    assert "has no part 0.0" in invoke("evaluate", run, QUIET, code=1).output
    # of groups of proposals, too, and with how sure it is
    (run / "corrections/names.yaml").unlink()
    invoke("em", run, "--codebook", 9, QUIET)
    invoke("evaluate", run, QUIET)
    clusters = read_group(run / "em.zarr", "default")[0]["moments_cluster"]
    largest = int(np.bincount(clusters).argmax())
    assert len(clusters) <= 9
    write_names(run, f"{largest}: left\n{largest}.1: right\n")
    invoke("evaluate", run, "--confidence", QUIET)
    assert read_metrics(run)["label_names"] == ["left", "right"]


@pytest.mark.parametrize("method", ["kmeans", "primaps"])
def test_every_fit_on_proposals_keeps_parts_and_is_calibrated(
    run: Path, invoke: Invoke, method: str
) -> None:
    invoke("em", run, "--method", method, "--clusters", 4, "--epochs", 2, QUIET)
    clusters = read_group(run / "em.zarr", "default")[0]["moments_cluster"]
    most = int(np.bincount(clusters).argmax())
    empty = sorted({*range(4)} - set(clusters.tolist()))
    names = dict.fromkeys((most, *empty), "left")
    write_names(run, "".join(f"{k}: {name}\n" for k, name in names.items()) + f"{most}.1: right\n")
    invoke("evaluate", run, "--confidence", QUIET)
    assert read_metrics(run)["label_names"] == ["left", "right"]
    assert set(np.unique(read_maps(run))) >= {0, 1}


def test_without_proposals_clusters_are_joined_and_have_no_parts(
    invoke: Invoke, tmp_path: Path
) -> None:
    write_scenes(tmp_path / "data", 6)
    run, fit = tmp_path / "run", ("--method", "kmeans", "--classes", 3, "--clusters", 4)
    options = ["--root", tmp_path / "data/photographs", "--dataset", "folder", "--size", 32]
    invoke("extract", run, *options, "--backbone", "handcrafted", QUIET)
    invoke("em", run, *fit, "--epochs", 2, QUIET)
    write_names(run, "0: left\n1: right\n")
    invoke("evaluate", run, QUIET)
    write_names(run, "0: left\n1.0: right\n")
    assert "keeps no parts" in invoke("evaluate", run, QUIET, code=1).output


@pytest.mark.parametrize(("method", "codebook"), [("kmeans", 4096), ("primaps", 9)])
def test_what_is_known_pins_its_clusters(
    run: Path, invoke: Invoke, method: str, codebook: int
) -> None:
    directory = RunDirectory(run)
    image = read_manifest(directory).images[0]
    truth = Run(run).ground_truth(image.id)
    names = read_metrics(run)["class_names"]
    said = np.where(truth == 255, 254, truth)
    Corrections(directory).write_map(image, said, names)
    options = ["em", run, "--method", method, "--clusters", 6, "--labels-from", "corrections"]
    options += ["--codebook", codebook]
    output = invoke(*options[:5], 2, *options[6:], "--classes", 2, QUIET, code=2).output
    assert "give --classes 3, or --clusters with as many or more" in output
    invoke(*options, "--epochs", 3, QUIET)
    arrays, attributes = read_group(run / "em.zarr", "default")
    present = [names[k] for k in np.unique(truth[truth != 255]).tolist()]
    assert attributes["pinned_names"] == present
    # every proposal that is mostly of a class is of its cluster
    labels = read_labels(
        directory, EmSettings(labels_from="corrections", classes=3, splits=("all",)), proposals=True
    )
    proposals = arrays["moments_proposal"]
    windows, numbers = np.divmod(proposals, 256)
    pinned = labels.pin(windows).proposals.numpy()[np.arange(len(windows)), numbers]
    known = pinned < 255
    assert known.sum() > 2
    units = arrays.get("moments_unit", np.arange(len(proposals)))
    assert (len(arrays["moments_cluster"]) < len(proposals)) == (codebook == 9)
    assert (arrays["moments_cluster"][units][known] == pinned[known]).all()
    invoke("evaluate", run, QUIET)
    assert set(read_metrics(run)["label_names"]) == set(present)
    cards = Review(directory, None, None).list_clusters()["clusters"]
    assert [card["known"] for card in cards][: len(present) + 1] == [*present, None]
    # a person's name counts for more, and stays
    write_names(run, "0: other\n")
    invoke("evaluate", run, QUIET)
    assert "other" in read_metrics(run)["label_names"]
    assert (run / "corrections/names.yaml").read_text() == "0: other\n"
    before = read_group(run / "em.zarr", "default")[0]["momentum_prototypes"]
    invoke(*options, "--epochs", 3, "--force", "--workers", 2, QUIET)
    after = read_group(run / "em.zarr", "default")[0]["momentum_prototypes"]
    np.testing.assert_array_equal(after, before)


def test_names_follow_by_their_classes(run: Path, invoke: Invoke) -> None:
    write_names(run, NAMES + "4: right\n")
    invoke("evaluate", run, QUIET)
    before = read_maps(run)
    invoke("em", run, "--clusters", 7, "--seed", 3, QUIET)
    output = invoke("evaluate", run, QUIET).output
    assert "names carried over to the new em/default" in output
    assert "was written after em/default was made anew" not in output
    same = read_maps(run) == before
    assert same.mean() > 0.8


def test_names_between_a_new_fit_and_its_evaluation_are_told(
    run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_names(run, NAMES)
    output = invoke("evaluate", run, QUIET).output
    assert "stale: the names, or what is known of the clusters, have changed" in output
    invoke("em", run, "--clusters", 6, "--seed", 4, QUIET)
    write_names(run, NAMES + "4: right\n")
    compare, compared = names._compare, []
    monkeypatch.setattr(names, "_compare", lambda *two: compared.append(two) or compare(*two))
    output = invoke("evaluate", run, QUIET).output
    assert len(compared) == 1, "what an evaluation is planned by it ends by"
    assert "was written after em/default was made anew" in " ".join(output.split())


def test_what_is_known_joins_by_its_name_and_is_said(run: Path, invoke: Invoke) -> None:
    output = invoke("em", run, "--labels-from", "corrections", QUIET, code=2).output
    assert "holds no corrections" in output
    directory = RunDirectory(run)
    image = read_manifest(directory).images[0]
    corrections = Corrections(directory)
    said = np.full((image.height, image.width), 254, np.uint8)
    said[:, : image.width // 2], said[0, 0] = 0, 255
    corrections.write_map(image, said, ["moss"])
    corrections.add_points(image, [Point(image.width - 1, 0, None, None, "stone")])
    invoke("em", run, "--labels-from", "corrections", QUIET)
    assert "the fit saw labels (1 image of corrections)" in invoke("evaluate", run, QUIET).output
    metrics = read_metrics(run)
    assert metrics["label_names"] == ["moss", "stone"]
    assert "the fit saw labels" in (run / "report/index.html").read_text()
    assert metrics["labels_used"]["images"] == 1
    labels = np.array(Image.open(run / "labels" / image.split / f"{image.id}.png"))
    # what is said counts, to the pixel
    assert (labels[said == 0] == 0).all()
    assert labels[0, 0] == 255
    assert labels[0, -1] == 1
    assert read_status(run, invoke)["evaluate/default"][0] == "fresh"
    corrections.add_points(image, [Point(image.width - 1, image.height - 1, None, None, "moss")])
    state, reason = read_status(run, invoke)["evaluate/default"]
    assert state == "stale"
    assert "corrections" in reason


def test_corrections_win_over_the_clusters_of_any_fit(invoke: Invoke, tmp_path: Path) -> None:
    run = make_run(tmp_path, invoke)
    before, directory = read_metrics(run), RunDirectory(run)
    names = before["class_names"]
    image = read_manifest(directory).images[0]
    truth = Run(run).ground_truth(image.id)
    Corrections(directory).write_map(image, np.where(truth == 255, 254, truth), names)
    invoke("evaluate", run, QUIET)
    labels = np.array(Image.open(run / "labels" / image.split / f"{image.id}.png"))
    after, clusters = read_metrics(run), before["classes"]
    assert after["label_names"] == [*[None] * clusters, *names]
    assert (labels[truth != 255] == clusters + truth[truth != 255]).all()
    # the scores are those of the labels before, though a person has named every class
    assert (after["accuracy"], after["miou"]) == (before["accuracy"], before["miou"])
    assert after["assignment"][:clusters] == before["assignment"]
    assert after["corrected"]["accuracy"] > before["accuracy"]


def test_labels_that_a_fit_cannot_learn_from_are_told(invoke: Invoke, tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 6)
    labels = sorted((tmp_path / "data/labels").rglob("*.png"))
    (tmp_path / "data/labels/classes.txt").write_text("sky\ngrass\nroad\n")
    run = tmp_path / "run"
    options = ["--root", tmp_path / "data/photographs", "--labels", tmp_path / "data/labels"]
    options += ["--dataset", "folder", "--backbone", "handcrafted", "--size", 32, QUIET]
    invoke("extract", run, *options)
    invoke("masks", run, "--crf", "none", QUIET)
    labels[0].write_bytes(labels[0].read_bytes()[:100])
    fit = ("--method", "robust", "--classes", 3, "--labels-from", "split:all", QUIET)
    output = invoke("em", run, *fit).output
    assert "5 images of which something is known" in output
    told = output.partition("warning: --labels-from split:all: the label map of ")[2]
    assert told.startswith(str(labels[0].relative_to(tmp_path / "data/labels")))
    split = read_group(run / "em.zarr", "default")[0]
    # the same label maps as a folder of files
    labels[0].rename(labels[0].with_name("other.png"))
    labels[1].with_name("other.png").write_bytes(labels[1].read_bytes())
    output = invoke("em", run, *fit[:-2], tmp_path / "data/labels", QUIET).output
    assert "5 images of which something is known" in output
    assert "1 file of it of no image of the run are left out" in output
    output = invoke("em", run, *fit[:-2], tmp_path / "nowhere", QUIET, code=2).output
    assert "there is no such folder" in output
    folder = read_group(run / "em.zarr", "default")[0]
    np.testing.assert_array_equal(folder["known_count"], split["known_count"])
