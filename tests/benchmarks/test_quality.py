"""The comparison of systems: its table, and the page that it goes into."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from benchmarks.quality import CLASSES, SYSTEMS, Score, replace_table, tabulate


def make_score(accuracy: list[float]) -> Score:
    return Score(
        accuracy=accuracy,
        miou=[value / 2 for value in accuracy],
        minutes=[1.0] * len(accuracy),
        least_usage=[0.5] * len(accuracy),
    )


def test_a_row_has_mean_and_spread_for_each_dataset() -> None:
    systems = SYSTEMS[:1]
    scores = {
        systems[0].name: {
            name: make_score([70.0, 72.0, 74.0] if name == "camvid" else [40.0]) for name in CLASSES
        }
    }
    header, rule, row = tabulate(scores, systems).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert "72.0 ± 2.0 / 36.0 ± 1.0" in row
    assert "40.0 / 20.0 | - | 0.50 | 1.00" in row


def test_the_table_goes_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    for _ in range(2):
        replace_table(page, "| new |")
    assert page.read_text() == (
        "before\n<!-- table: begin -->\n| new |\n<!-- table: end -->\nafter\n"
    )
    page.write_text("no marks")
    with pytest.raises(click.UsageError, match="marks"):
        replace_table(page, "| new |")


def test_names_are_unique() -> None:
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
