"""Views that are added and dropped, through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.run.corrections import Corrections
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, read_record
from pipeline.run.manifest import read_manifest
from pipeline.storage.arrays import read_group
from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree, list_times, write_scenes
from tests.end_to_end.test_staleness import make_run, read_status


def test_views_that_were_dropped_are_not_missed(invoke: Invoke, tmp_path: Path) -> None:
    write_scenes(tmp_path, 2)
    run, root = tmp_path / "run", tmp_path / "photographs"
    options = ["--dataset", "folder", "--root", root, "--backbone", "handcrafted"]
    options += ["--size", 64, "--shard-size", 6, "--no-progress"]
    invoke("extract", run, *options, "--views", "clean,photometric", "--crops", "five")
    write_scenes(tmp_path, 3)
    invoke("extract", run, *options, "--views", "clean", "--crops", "five")
    assert not list((run / "features.zarr").glob("photometric*"))
    assert "all as written" in invoke("verify", run).output
    assert (run / "state/views/crops/stage.json").is_file()
    # wanted again they are there again
    invoke("extract", run, *options, "--views", "clean,photometric", "--crops", "five")
    assert "all as written" in invoke("verify", run).output


def test_a_view_that_is_added_leaves_what_reads_the_others_fresh(
    invoke: Invoke, extract_options: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    invoke("extract", run, *extract_options, "--views", "clean,photometric")
    invoke("masks", run, "--crf", "none", "--no-progress")
    invoke("em", run, "--classes", 3, *FAST_EM, "--no-progress")
    times = list_times(run / "features.zarr/photometric_1")
    invoke("extract", run, "--crops", "five", "--no-progress")
    assert list_times(run / "features.zarr/photometric_1") == times
    rows = json.loads(invoke("status", run, "--json").stdout)
    fresh = [row["stage"] for row in rows if row["state"] == "fresh"]
    assert fresh == ["extract", "views/crops", "views/photometric_1", "masks", "em/default"]
    assert "em/default: fresh, nothing to do" in invoke("em", run, "--no-progress").output


def test_a_fit_labels_the_fine_view(invoke: Invoke, tmp_path: Path) -> None:
    run, quiet = make_run(tmp_path, invoke), "--no-progress"
    fine = ("em", run, "--method", "robust", "--classes", 3, "--clusters", 6, "--fine", quiet)
    refused = invoke(*fine, code=2).output
    assert f"run `primaps-pipe extract {run} --views clean,fine:PX` first" in refused
    times = list_times(run / "features.zarr/clean")
    invoke("extract", run, "--views", "clean,fine:48", quiet)
    assert list_times(run / "features.zarr/clean") == times
    assert read_status(run, invoke)["evaluate/default"][0] == "fresh"
    assert "leave out one of two" in invoke(*fine, "--head", "none", code=2).output
    # what is said of an image reaches the fine grid, too
    directory = RunDirectory(run)
    image = read_manifest(directory).images[0]
    said = np.full((image.height, image.width), 254, np.uint8)
    said[:, : image.width // 2] = 0
    Corrections(directory).write_map(image, said, ["moss"])
    invoke(*fine, "--labels-from", "corrections")
    arrays, facts = read_group(directory.em, "default")
    assert facts["view"] == "fine"
    # 6 x 6 positions of a window in place of 4 x 4: up to its middle the image has 20 pixels of the
    # first window and 11 of the second, which begins at 9
    assert arrays["known_count"].sum() == facts["labels_used"]["positions"] == 6 * (4 + 2)
    assert arrays["moments_count"].sum() > len(read_manifest(directory).windows) * 4 * 4
    # a method that pins does so on the clean view, and what it knows is summed on the fine one
    pinned = ("--name", "pinned", "--labels-from", "corrections", "--clusters", 6, "--fine")
    invoke("em", run, *pinned, "--method", "kmeans", "--classes", 3, *FAST_EM, quiet)
    arrays, facts = read_group(directory.em, "pinned")
    assert facts["pinned_names"] == ["moss"] and arrays["known_count"].sum() == 6 * (4 + 2)
    assert arrays["moments_count"].sum() > len(read_manifest(directory).windows) * 4 * 4
    (run / "corrections/names.yaml").write_text("0: left\n1: right\n2: moss\n")
    invoke("evaluate", run, "--crf", "none", quiet)
    metrics = json.loads((run / "report/metrics.json").read_text())
    assert metrics["view"] == "fine"
    before = hash_tree(run / "labels")
    # a lost shard of the view makes what labels it stale, and comes back as it was
    shard = run / "features.zarr/fine/c/0/0/0/0"
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    assert "features.zarr/fine" in invoke("verify", run, code=1).output
    assert "views/fine: 1 of 2 shards to compute" in invoke("extract", run, quiet).output
    assert shard.read_bytes() == content
    assert "all as written" in invoke("verify", run).output
    # at other sizes it is another view
    invoke("extract", run, "--views", "clean,fine:40", quiet)
    assert read_status(run, invoke)["em/default"][0] == "stale"
    invoke("em", run, quiet)
    invoke("evaluate", run, quiet)
    assert hash_tree(run / "labels") != before


def test_views_of_an_earlier_version_are_taken_over(
    invoke: Invoke, extract_options: list[object], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    invoke("extract", path, *extract_options, "--views", "clean,photometric", "--crops", "five")
    invoke("masks", path, "--crf", "none", "--no-progress")
    # that version had one ledger for all parts beside theirs, which had no settings
    run = RunDirectory(path)
    for name in run.names("views"):
        part = read_record(run, f"views/{name}")
        Ledger(run.state(f"views/{name}")).write_stage(replace(part, settings={}))
    facts = {"views": ["photometric_1"], "crops": 5, "attention": False}
    Ledger(run.state("views")).write_stage(replace(part, facts=facts, files={}))
    for shard in Ledger(run.state("views/crops")).read_shards().values():
        Ledger(run.state("views")).commit(shard)
    assert "all as written" in invoke("verify", path).output
    refused = invoke("em", path, "--classes", 3, *FAST_EM, "--no-progress", code=None)
    assert refused.exit_code != 0
    assert "views" in refused.output
    assert "run `primaps-pipe extract" in refused.output
    before = hash_tree(path / "features.zarr")
    assert "to compute" not in invoke("extract", path, "--no-progress").output
    assert hash_tree(path / "features.zarr") == before
    assert not (path / "state/views/stage.json").exists()
    invoke("em", path, "--classes", 3, *FAST_EM, "--no-progress")
    assert "all as written" in invoke("verify", path).output
