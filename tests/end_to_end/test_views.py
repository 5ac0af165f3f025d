"""Views that are added and dropped, through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger, read_record
from tests.end_to_end.conftest import FAST_EM, Invoke, hash_tree, list_times, write_scenes


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
