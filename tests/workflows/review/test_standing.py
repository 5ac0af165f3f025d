"""What the named set gives: shares, images and scores by hand; a brush in pixels; the cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.run.manifest import Image
from stages.labelling import Classifier
from workflows.review.pictures import Cache, draw_strokes, find_size
from workflows.review.standing import NamedSet, Sample, describe_clusters, measure_standing

CLASSES = ("sky", "field", "road")


def make_sample(clusters: list[list[int]], truth: list[list[int]] | None) -> Sample:
    """Make windows of one row, whose positions are each of one cluster."""
    features = np.eye(4, dtype=np.float16)[np.array(clusters)][:, None]
    known = None if truth is None else np.array(truth, np.uint8)[:, None]
    return Sample(features, known, np.arange(len(clusters)) // 2, 9)


def make_named(names: dict[int, str], table: list[int], named: set[int]) -> NamedSet:
    full = np.full(256, 255, np.uint8)
    full[: len(table)] = table
    palette = np.zeros((256, 3), np.uint8)
    classifier = Classifier(torch.eye(4))
    return NamedSet(classifier, full, names, frozenset(named), palette, False, "")


def test_shares_images_and_scores_by_hand() -> None:
    sample = make_sample(
        [[0, 0, 1, 3], [0, 0, 2, 3], [2, 2, 2, 2]], [[0, 0, 1, 1], [0, 1, 2, 255], [2, 2, 2, 2]]
    )
    # 1 has no name, 3 is left out
    named = make_named({0: "sky", 1: "cluster 1", 2: "road"}, [0, 1, 2, 255], {0, 2})
    found = measure_standing(sample, named, CLASSES)
    assert [each["share"] for each in found["classes"]] == [4 / 12, 1 / 12, 5 / 12]
    assert [each["images"] for each in found["classes"]] == [1, 1, 2]
    assert found["ignored_share"] == 2 / 12
    assert found["images"] == 2
    # sky 3 of 4, road 5 of 5, and no cluster is a field
    ious = [each["iou"] for each in found["classes"]]
    assert ious == [pytest.approx(75), None, pytest.approx(100)]
    assert found["unfound"] == ["field"]
    assert found["miou"] == pytest.approx(175 / 3)
    assert found["accuracy"] == pytest.approx(100 * 8 / 11)


def test_a_name_that_is_no_class_is_wrong_and_none_is_scored_without_labels() -> None:
    sample = make_sample([[0, 1]], [[0, 1]])
    found = measure_standing(sample, make_named({0: "sky", 1: "lamp"}, [0, 1], {0, 1}), CLASSES)
    assert found["accuracy"] == 50
    nothing = measure_standing(
        make_sample([[0, 1]], None), make_named({0: "sky"}, [0, 0], {0}), CLASSES
    )
    assert nothing["miou"] is None
    assert nothing["unfound"] == []


def test_a_class_that_is_found_where_none_is_counts_as_evaluate_counts_it() -> None:
    sample = make_sample([[0, 1]], [[0, 0]])
    found = measure_standing(sample, make_named({0: "sky", 1: "road"}, [0, 1], {0, 1}), CLASSES)
    assert [each["iou"] for each in found["classes"]] == [50, 0]
    assert found["miou"] == 25


def test_clusters_are_described_by_their_positions() -> None:
    facts = describe_clusters(make_sample([[0, 0, 1, 2]], None), Classifier(torch.eye(4)))
    assert facts.shares.tolist() == [0.5, 0.25, 0.25, 0]
    assert facts.nearest[:3].tolist() == [1, 2, 1]
    assert facts.nearest[3] == -1, "an empty cluster is near to none"


def make_image(width: int, height: int) -> Image:
    return Image(0, "a", "all", "a.png", None, width, height, 1, 1, "")


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    x=st.integers(0, 59),
    y=st.integers(0, 59),
    radius=st.floats(0.5, 80),
)
def test_a_dot_of_the_brush_stays_in_the_photograph(
    width: int, height: int, x: int, y: int, radius: float
) -> None:
    x, y = x % width, y % height
    mask, (left, top) = draw_strokes([[(x, y)]], radius, make_image(width, height))
    assert mask[y - top, x - left]
    assert min(left, top) >= 0
    assert left + mask.shape[1] <= width
    assert top + mask.shape[0] <= height


def test_a_stroke_has_no_gaps_and_none_lies_outside() -> None:
    mask, corner = draw_strokes([[(5, 5), (30, 5)]], 2, make_image(40, 12))
    assert corner == (2, 2)
    assert mask[3, 3:28].all()
    with pytest.raises(UsageError, match="outside of the photograph"):
        draw_strokes([[(500, 5)]], 2, make_image(40, 12))


def test_what_is_shown_is_never_larger_than_it_is() -> None:
    assert find_size(make_image(4000, 1000), 1280) == (1280, 320)
    assert find_size(make_image(30, 20), 1280) == (30, 20)


def test_the_cache_forgets_what_is_used_least() -> None:
    cache, made = Cache(10), []

    def get(key: str) -> bytes:
        def make() -> bytes:
            made.append(key)
            return b"1234"

        return cache.get(key, make)

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]
    assert cache.held <= 10
