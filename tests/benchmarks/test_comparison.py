"""What a benchmark's table says of the times it was given."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks.comparison import Comparison, Section, race, tabulate
from benchmarks.machine import Machine


def test_ratio_and_fraction_by_hand() -> None:
    comparison = Comparison("L = 6", "china", ours=2.0, theirs=6.0, agreement=100.0, limit=0.5)
    assert comparison.ratio == 3.0
    assert comparison.fraction == 0.25


def test_table_shows_medians_extremes_and_the_worst_agreement() -> None:
    section = Section("title", "rival", "agreement", lambda repeats, machine: iter(()), min)
    comparisons = [
        Comparison("group", str(place), ours=0.010, theirs=theirs, agreement=agreement, limit=0.005)
        for place, (theirs, agreement) in enumerate([(0.02, 99.5), (0.05, 98.0), (0.03, 100.0)])
    ]
    screen = io.StringIO()
    Console(file=screen, width=160).print(tabulate(section, comparisons))
    row = next(line for line in screen.getvalue().splitlines() if "group" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["group", "3", "10", "30", "2.00 / 3.00 / 5.00", "98", "5", "50"]


def test_both_sides_run_in_turn_as_often_as_asked() -> None:
    order: list[str] = []
    ours, theirs, own, other = race(
        lambda: order.append("ours") or 1, lambda: order.append("theirs") or 2, 3
    )
    assert order == ["ours", "theirs"] * 3
    assert (own, other) == (1, 2)
    assert ours >= 0.0 and theirs >= 0.0


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        ({"memory": 20.0}, 2.0),
        ({"cache": 20.0}, 0.2),
        ({"operations": 3000.0}, 3.0),
        ({"memory": 20.0, "cache": 20.0, "operations": 3000.0}, 3.0),
        ({}, 0.0),
    ],
)
def test_the_scarcest_resource_bounds_the_time(work: dict[str, float], seconds: float) -> None:
    machine = Machine(bandwidth=10.0, cache_bandwidth=100.0, flops=1000.0, threads_flops=2000.0)
    assert machine.least_seconds(**work) == pytest.approx(seconds)
