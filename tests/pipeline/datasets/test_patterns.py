"""Patterns find what their stars stand for, and never anything outside the root."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.patterns import fill_stars, find_fault, find_paths, list_stars


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_stars_by_hand(tmp_path: Path) -> None:
    touch(tmp_path, "a/x_1_i.png", "a/x__i.png", "a/.x_2_i.png", "b c/x_é_i.png", "a/y_1_i.png")
    touch(tmp_path, "a/in/x_3_i.png", ".h/x_4_i.png", "x_5_i.png")
    assert find_paths(tmp_path, "*/x_*_i.png") == [
        ("a/x_1_i.png", ("a", "1")),
        ("b c/x_é_i.png", ("b c", "é")),
    ]
    assert find_paths(tmp_path, "a/in/x_*_i.png") == [("a/in/x_3_i.png", ("3",))]
    assert find_paths(tmp_path, "no/*.png") == []
    assert find_paths(tmp_path, "a/*") == [
        *((f"a/{name}", (name,)) for name in ("x_1_i.png", "x__i.png", "y_1_i.png"))
    ], "files alone"


def test_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "t/a.png", "t/u/b.png", "t/u/v/c.png", "t/.h/d.png", "e.png")
    (tmp_path / "t" / "circle").symlink_to(tmp_path / "t")
    found = dict(find_paths(tmp_path, "t/**/*.png"))
    assert found == {
        "t/a.png": ("", "a"),
        "t/u/b.png": ("u", "b"),
        "t/u/v/c.png": ("u/v", "c"),
    }
    assert fill_stars("l/**/*.txt", ("u/v", "c")) == "l/u/v/c.txt"
    assert fill_stars("l/**/*.txt", ("", "a")) == "l/a.txt"


def test_a_star_never_stands_for_dots(tmp_path: Path) -> None:
    touch(tmp_path, "x...png", "x.a.png", "x..png")
    assert find_paths(tmp_path, "x*.png") == [("x.a.png", (".a",))]


def test_a_star_stands_for_something(tmp_path: Path) -> None:
    touch(tmp_path, "aba", "ab-ba")
    assert find_paths(tmp_path, "ab*ba") == [("ab-ba", ("-",))]


@pytest.mark.parametrize("pattern", ["*.png", "a/**/x_*.png", "{split}/*", "[a] b/*.jpg"])
def test_patterns(pattern: str) -> None:
    assert find_fault(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    ["", "/a/*", "a//*", "../*", "a/../*", "./*", "a*b*", "***/a", "a/**", "a?", "{x}/*", "a\\*"],
)
def test_faults(pattern: str) -> None:
    assert find_fault(pattern)


def test_stars_are_listed_in_order() -> None:
    assert list_stars("**/a_*/*.png") == ["**", "*", "*"]
