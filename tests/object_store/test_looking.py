"""Runs and photographs on an S3 server are compared and inspected like those on disk."""

from __future__ import annotations

from pathlib import Path

from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.storage.places import parse_place
from stages.report.comparison import compare_runs
from stages.report.inspection import inspect_image
from tests.scenes import FAST_EM, Invoke, write_scenes


def test_compare_and_inspect_a_run_in_a_store(bucket: str, tmp_path: Path, invoke: Invoke) -> None:
    write_scenes(tmp_path, 3)
    run = f"{bucket}/some runs/mine"
    root = parse_place(f"{bucket}/photographs")
    for file in (tmp_path / "photographs").rglob("*.png"):
        (root / file.name).write_bytes(file.read_bytes())
    options = ("--backbone", "handcrafted", "--size", 64, "--no-progress")
    invoke("extract", run, "--dataset", "folder", "--root", root, *options)
    for name, classes in (("default", 3), ("few", 2)):
        fit = ("--classes", classes, "--method", "kmeans", "--name", name, *FAST_EM)
        invoke("em", run, *fit, "--no-progress")
        invoke("evaluate", run, "--em", name, "--crf", "none", "--no-progress")
    place = RunDirectory(parse_place(run))
    subjects = [(place, name, None) for name in ("default", "few")]
    out = compare_runs(subjects, tmp_path / "a.html", images=2, screen=Screen(progress=False))
    page = out.read_text(encoding="utf-8")
    assert page.count('<li class="panel"') == 2
    assert page.count("data:image/jpeg") == 2, "photographs are read from the store"
    picture = inspect_image(place, "scene 1.png", tmp_path / "a.png", em="few", head=None)
    assert picture.read_bytes().startswith(b"\x89PNG")
