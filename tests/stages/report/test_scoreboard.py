"""Large figures, and the list of confusions."""

from __future__ import annotations

import math

import pytest

from stages.report.scoreboard import count_effectively, list_confusions, make_split_row, make_tiles
from tests.report_content import make_block


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ([25, 25, 25, 25], 4),
        ([100, 0, 0], 1),
        ([50, 50, 0], 2),
        ([3, 1], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
        ([], 0),
        ([0, 0], 0),
    ],
)
def test_effective_number_of_classes(usage: list[float], expected: float) -> None:
    assert count_effectively(usage) == pytest.approx(expected)


def test_tiles_without_labels() -> None:
    tiles = make_tiles(make_block(labels=False))
    assert [tile["name"] for tile in tiles] == ["Coverage", "Confidence", "Class balance"]


def test_tiles_with_labels_that_refinement_made() -> None:
    accuracy, miou, *_ = make_tiles(make_block())
    assert (accuracy["value"], miou["value"]) == ("78.2", "42.1")
    assert accuracy["detail"] == "with CRF; 76.5 % without"


def test_rows_of_a_split() -> None:
    block = make_block() | {"linear_probe": {"accuracy": 90.0, "miou": 60.0}}
    row = make_split_row("val", block)
    assert (row["accuracy"], row["miou"]) == ("78.2", "42.1")
    assert [other["name"] for other in row["others"]] == ["without CRF", "linear probe"]
    assert make_split_row("val", make_block(crf=False))["others"] == []


def test_confusions_by_hand() -> None:
    # cluster 0 is class 0, cluster 1 is class 1, cluster 2 is none
    confusion = [[50, 20], [10, 15], [0, 5]]
    rows = list_confusions(confusion, [0, 1, None], ["sky", "road"], ["sky", "road", "cluster 2"])
    assert [(r["truth"], r["prediction"], r["share"], r["part"]) for r in rows] == [
        ("road", "sky", "20.0", "50"),
        ("sky", "road", "10.0", "17"),
        ("road", "cluster 2", "5.0", "12"),
    ]


def test_rare_confusions_are_left_out() -> None:
    assert list_confusions([[1000, 4], [0, 1000]], [0, 1], ["a", "b"], ["a", "b"]) == []
    assert list_confusions([[0, 0], [0, 0]], [0, 1], ["a", "b"], ["a", "b"]) == []
    many = [[0] * 9, *([0] * 9 for _ in range(8))]
    many[0] = [100] * 9
    assert len(list_confusions(many, [0] + [None] * 8, list("abcdefghi"), list("abcdefghi"))) == 6
