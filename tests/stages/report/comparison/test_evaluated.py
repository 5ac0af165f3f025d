"""Names of the columns of a comparison, and the settings that differ."""

from __future__ import annotations

from pathlib import Path

from stages.report.comparison.evaluated import find_differences, name_columns


def test_fits_of_one_run_are_called_by_their_names() -> None:
    run = Path("/runs/a")
    assert name_columns([(run, "default"), (run, "head stego")]) == ["default", "head stego"]


def test_runs_are_called_by_theirs() -> None:
    places = [(Path("/runs/a"), "default"), (Path("/runs/b"), "default")]
    assert name_columns(places) == ["a", "b"]


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    places = [(Path("/x/here/a"), "default"), (Path("/x/there/a"), "default")]
    assert name_columns(places) == ["here/a", "there/a"]
    places = [(Path("/a"), "default"), (Path("/x/a"), "default")]
    assert len(set(name_columns(places))) == 2


def test_runs_and_fits_are_called_by_both() -> None:
    places = [(Path("/r/a"), "default"), (Path("/r/b"), "default"), (Path("/r/b"), "k12")]
    assert name_columns(places) == ["a · default", "b · default", "b · k12"]


def test_only_what_differs_is_listed() -> None:
    first = {"extract.size": 320, "em.seed": 0, "em.splits": ["train"], "masks.gain": 10.0}
    second = {"extract.size": 320, "em.seed": 1, "em.splits": ["train"], "em.student": "clean"}
    assert find_differences([first, second, first]) == {
        "em.seed": (0, 1, 0),
        "masks.gain": (10.0, None, 10.0),
        "em.student": (None, "clean", None),
    }
    assert find_differences([first, dict(first)]) == {}
