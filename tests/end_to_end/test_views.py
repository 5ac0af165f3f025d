"""Views that are added and dropped, through the command line."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.conftest import Invoke, write_scenes


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
