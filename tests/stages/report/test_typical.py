"""Typical parts: regions, ratings and choices by hand, and cut-outs that show what they are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.labelling import Classifier, classify
from stages.report.typical import (
    PART,
    choose_typical,
    draw_cutout,
    find_regions,
    rate_parts,
)


def make_parts(clusters: list[int], images: list[int], similarities: list[float]) -> np.ndarray:
    parts = np.zeros(len(clusters), PART)
    parts["window"] = np.arange(len(clusters))
    parts["cluster"], parts["image"], parts["similarity"] = clusters, images, similarities
    return parts


def test_regions_are_connected() -> None:
    labels = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]], np.uint8)
    regions = find_regions(labels)
    assert regions.min() == 1
    pairs = [((0, 0), (1, 1)), ((0, 2), (2, 1))]
    assert all(regions[one] == regions[other] for one, other in pairs)
    assert len(np.unique(regions)) == 4, "corners do not connect"
    assert find_regions(np.zeros((1, 1), np.uint8)).tolist() == [[1]]


def rate(
    ids: np.ndarray, features: np.ndarray, classifier: Classifier, smallest: float = 0
) -> np.ndarray:
    grid = torch.from_numpy(features)
    logits = classify(grid[None], classifier)[0]
    return rate_parts(ids, grid, logits, classifier.prototypes, smallest)


def test_parts_by_hand() -> None:
    # two rows of two positions: the upper ones point along x, the lower left along y
    features = np.array([[[2, 0], [4, 0]], [[0, 3], [3, 3]]], np.float32)
    prototypes = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    ids = np.zeros((4, 4), np.uint8)
    ids[:2] = 1  # both upper positions
    ids[2:, :2] = 3  # the lower left one
    ids[3, 3] = 4  # a quarter of the lower right one
    parts = rate(ids, features, Classifier(prototypes))
    numbers, clusters, similarities = (parts[k] for k in ("number", "cluster", "similarity"))
    assert numbers.tolist() == [1, 3, 4]
    assert clusters.tolist() == [0, 1, 0]
    np.testing.assert_allclose(similarities, [1, 1, np.sqrt(0.5)], rtol=1e-6)
    assert rate(ids, features, Classifier(prototypes), 1)["number"].tolist() == [1, 3]
    biased = Classifier(prototypes, bias=torch.tensor([0.0, 100.0]))
    assert rate(ids, features, biased, 1)["cluster"].tolist() == [1, 1]


def test_the_pooled_feature_is_the_mean_of_unit_features() -> None:
    features = np.array([[[1, 0], [0, 100]]], np.float32)
    cosine = Classifier(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), logits="cosine", gain=2.0)
    found = rate(np.ones((3, 6), np.uint8), features, cosine)
    assert found["cluster"].tolist() == [0]
    np.testing.assert_allclose(found["similarity"], 1, rtol=1e-6)


def test_no_part_no_rating() -> None:
    features = np.ones((2, 2, 3), np.float32)
    found = rate(np.zeros((4, 4), np.uint8), features, Classifier(torch.ones(2, 3)))
    assert len(found) == 0
    assert len(choose_typical(np.zeros(0, PART), 10, 2)) == 0


def test_the_nearest_are_chosen_and_two_of_an_image() -> None:
    parts = make_parts(
        clusters=[1, 0, 0, 0, 0, 0, 1],
        images=[9, 5, 5, 5, 6, 7, 9],
        similarities=[0.1, 0.9, 0.8, 0.95, 0.8, 0.2, 0.3],
    )
    chosen = choose_typical(parts, 3, 2)
    assert chosen["window"].tolist() == [3, 1, 4, 6, 0]
    assert choose_typical(parts, 1, 1)["window"].tolist() == [3, 6]


@given(seed=st.integers(0, 10**6), count=st.integers(0, 60))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_choices_are_those_of_a_slow_search(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    parts = make_parts(
        generator.integers(0, 4, count).tolist(),
        generator.integers(0, 5, count).tolist(),
        (generator.integers(0, 9, count) / 8).tolist(),
    )
    expected = []
    for cluster in range(4):
        taken: list[int] = []
        own = [i for i in range(count) if parts["cluster"][i] == cluster]
        for i in sorted(own, key=lambda i: (-parts["similarity"][i], i)):
            same = sum(parts["image"][j] == parts["image"][i] for j in taken)
            if same < 2 and len(taken) < 5:
                taken.append(i)
        expected += taken
    assert choose_typical(parts, 5, 2)["window"].tolist() == expected


def test_a_cutout_shows_its_part_bright_and_the_rest_dark() -> None:
    frame = np.full((100, 100, 3), (200, 100, 0), np.uint8)
    mask = np.zeros((10, 10), np.bool_)
    mask[1:3, 6:9] = True
    cutout = draw_cutout(frame, mask, 48)
    assert cutout.shape == (48, 48, 3)
    assert (cutout == (200, 100, 0)).all(axis=-1).mean() > 0.25
    assert (cutout == (255, 255, 255)).all(axis=-1).any(), "an outline"
    assert (cutout[0, 0] == 90).all(), "grey, and as dark as was said"


def test_specks_far_away_do_not_make_a_cutout_small() -> None:
    frame = np.full((100, 100, 3), 200, np.uint8)
    mask = np.zeros((100, 100), np.bool_)
    mask[10:40, 20:50] = True
    alone = draw_cutout(frame, mask)
    mask[99, 99] = mask[0, 99] = True
    np.testing.assert_array_equal(draw_cutout(frame, mask), alone)


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (64, 64), (3, 3)])
@pytest.mark.parametrize("window", [(64, 64), (64, 40), (5, 64)])
def test_any_part_can_be_cut_out(shape: tuple[int, int], window: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*window, 3)).astype(np.uint8)
    for corner in ((0, 0), (-1, -1), (0, -1), (shape[0] // 2, 0)):
        mask = np.zeros(shape, np.bool_)
        mask[corner] = True
        if not mask[np.arange(window[0]) * shape[0] // window[0]].any():
            continue
        if not mask[:, np.arange(window[1]) * shape[1] // window[1]].any():
            continue
        cutout = draw_cutout(frame, mask)
        assert max(cutout.shape[:2]) == 128
        assert min(cutout.shape[:2]) >= 1
