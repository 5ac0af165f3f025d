"""Inline SVG of the report."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from stages.report.plots import (
    draw_confusion,
    draw_scores,
    draw_series,
    draw_usage,
    order_clusters,
)

CONFUSION = np.array([[0, 90, 10], [60, 0, 0], [5, 5, 30], [0, 0, 0]])
ASSIGNMENT = [1, 0, 2, None]


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def read_texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in parse(svg).iter("text")]


def draw_all() -> list[str]:
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    return [
        draw_series("Loss", [3.0, 2.0, 1.5]),
        draw_scores([(3, 0.1), (5, 0.4), (9, 0.3)], 5),
        draw_usage([[0.25] * 4, [0.4, 0.3, 0.2, 0.1]], palette),
        draw_series("consistency", (1.0, 2.0, 2.5)),
        draw_confusion(CONFUSION, ASSIGNMENT, ["sky", "road", "tree"]),
    ]


def test_clusters_are_ordered_by_class_with_unmatched_ones_last():
    assert order_clusters([None, 2, 0, None, 1]) == [2, 4, 1, 0, 3]


def test_confusion_shows_row_shares_and_matches():
    texts = read_texts(draw_confusion(CONFUSION, ASSIGNMENT, ["sky", "road", "tree"]))
    assert texts[:3] == ["sky", "road", "tree"]
    assert texts[3:7] == ["1 → sky", "0 → road", "2 → tree", "3 (unmatched)"]
    # rows in the order of the classes; the row without pixels has no share
    assert texts[7:] == ["100", "90", "10", "12", "12", "75"]


def test_confusion_shades_by_share_and_frames_the_matches():
    svg = draw_confusion(CONFUSION, ASSIGNMENT, ["sky", "road", "tree"])
    opacities = re.findall(r"fill: var\(--heat\)(?:; fill-opacity: ([\d.]+))?", svg)
    assert [float(opacity or 1) for opacity in opacities] == [1, 0.9, 0.1, 0.12, 0.12, 0.75]
    assert svg.count("fill: none; stroke: currentColor") == 3


@pytest.mark.parametrize("size", [(1, 1), (27, 27), (40, 27), (3, 90)])
def test_confusion_of_any_size_stays_modest(size: tuple[int, int]):
    clusters, classes = size
    counts = np.random.default_rng(0).integers(0, 50, size)
    names = [f"class {i}" for i in range(classes)]
    matched = [k if k < classes else None for k in range(clusters)]
    svg = draw_confusion(counts, matched, names)
    width, height = map(float, parse(svg).attrib["viewBox"].split()[2:])
    assert width < 1150 and height < 1150
    assert len(svg) < 260_000


def test_names_are_text_and_nothing_else():
    names = ["$x^2$", "<script>alert(1)</script>", 'a" id="b --><b>& url(#0a0b1c)']
    svg = draw_confusion(CONFUSION, ASSIGNMENT, names)
    texts = read_texts(svg)
    assert texts[0] == "$x^2$"
    assert texts[1] == "<script>alert(1)</script>"
    assert texts[2].startswith('a" id="b --><b>& url(#')
    assert {element.tag for element in parse(svg).iter()} <= {"svg", "g", "defs", "path", "text"}


def test_long_names_are_cut():
    texts = read_texts(draw_confusion(CONFUSION, ASSIGNMENT, ["a " * 90, "b", "c"]))
    assert len(texts[0]) == 26 and texts[0].endswith("…")


def test_one_epoch_is_shown():
    assert parse(draw_series("Loss", [1.0])).findall(".//use")
    svg = draw_usage([[3.0, 1.0]], [(255, 0, 0), (0, 0, 255)])
    assert "#ff0000" in svg and "#0000ff" in svg


def test_usage_is_stacked_to_the_whole():
    palette = [(255, 0, 0), (0, 0, 255)]
    assert draw_usage([[3, 1], [1, 1]], palette) == draw_usage([[75, 25], [0.5, 0.5]], palette)
    assert "nan" not in draw_usage([[0, 0], [1, 1]], palette)


def test_loss_that_breaks_down_is_still_drawn():
    assert "nan" not in draw_series("Loss", [2.0, float("nan"), 1.0])


def test_plots_stand_alone_and_side_by_side():
    page = "".join(draw_all())
    assert "http" not in page and "<style" not in page and "DejaVu" not in page
    assert not re.search(r"#0a0b\wc", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"#(\w{11})\b", page)) <= set(ids)


def test_plots_are_the_same_again_and_leave_the_settings_alone():
    before = dict(matplotlib.rcParams)
    first = draw_all()
    assert draw_all() == first
    assert dict(matplotlib.rcParams) == before


def test_scores_of_numbers_of_classes_are_in_order_with_the_chosen_one_marked() -> None:
    scores = [(12, 0.5), (3, 0.25), (7, 0.75)]
    svg = draw_scores(scores, 7)
    assert svg == draw_scores(sorted(scores), 7)
    assert svg != draw_scores(scores)
    assert draw_scores(scores, 5) == draw_scores(scores)
    assert "classes" in read_texts(svg)
    assert "nan" not in draw_scores([(4, 1.0)], 4)


def test_a_series_leaves_out_what_is_not_finite():
    svg = draw_series("silhouette", (0.1, float("nan"), 0.3, 0.2), "round")
    assert "round" in read_texts(svg)
    assert "nan" not in svg.lower()
    assert parse(svg).get("aria-label") == "silhouette of 4 times one round"
