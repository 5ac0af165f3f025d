"""Corrections of a run in an object store: read, merged and digested as on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.progress import Screen
from pipeline.run.corrections import Corrections, Point
from pipeline.run.directory import RunDirectory
from pipeline.storage.places import find_files, parse_place
from tests.pipeline.run.test_corrections import A, B, C, make_run, paint
from workflows.correct.job import correct_run

CLICK = Point(3, 2, None, None, "road")


def test_corrections_in_a_store(bucket: str, tmp_path: Path) -> None:
    run = RunDirectory(parse_place(f"{bucket}/run")).create()
    make_run(run.path)
    assert Corrections(run).fingerprint() == ""
    Corrections(run).write_map(A, paint(0, 255), ["road"])
    Corrections(run).add_points(B, [CLICK])
    Corrections(run).write_names("default", {1: "road"})
    again = Corrections(run)
    assert again.read_map(A) == pytest.approx(paint(0, 255))
    assert again.read_map(C) is None
    assert again.points_of(B) == [CLICK] and again.said_names() == ("road",)
    assert run.names_file("default").read_text() == "1: road\n"
    first = again.fingerprint(A), again.fingerprint(B), again.fingerprint()
    assert all(first) and again.fingerprint(C) == "" and again.find_strays() == []

    # another's, on a disk, and back again
    other = RunDirectory(tmp_path / "other").create()
    make_run(other.path)
    quiet = Screen(progress=False)
    taken = correct_run(other, run.corrections, screen=quiet)
    assert (taken.images, taken.pixels, taken.points) == (2, 2, 1)
    Corrections(other).write_map(A, paint(254, 254, 0), ["sky"])
    back = correct_run(run, other.corrections, screen=quiet)
    assert (back.images, back.pixels, back.conflicts) == (1, 1, [])
    assert Corrections(run).read_map(A) == pytest.approx(paint(0, 255, 1))
    assert Corrections(run).fingerprint(A) != first[0]
    Corrections(run).write_map(A, paint(), [], replace=True)
    assert [f.name for f in find_files(run.corrections) if f.suffix == ".png"] == []
