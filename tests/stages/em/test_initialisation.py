"""Initialisation: against numpy's PCA in float64, and the rule of signs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.em.initialisation import find_initial_directions


def make_sample(seed: int, positions: int = 400, channels: int = 12) -> Tensor:
    """Draw skewed features whose variances fall, rotated and far from the origin."""
    generator = np.random.default_rng(seed)
    skewed = generator.gamma(1.5, size=(positions, channels)) * 0.7 ** np.arange(channels)
    rotation, _ = np.linalg.qr(generator.normal(size=(channels, channels)))
    return torch.from_numpy(skewed @ rotation + 5 * generator.normal(size=channels)).float()


def find_by_hand(sample: Tensor, classes: int) -> np.ndarray:
    points = sample.double().numpy()
    points = points - points.mean(axis=0)
    directions = np.linalg.svd(points, full_matrices=False)[2][:classes]
    skewness = ((points @ directions.T) ** 3).sum(axis=0)
    return directions * np.where(skewness < 0, -1, 1)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_numpy_signs_included(seed: int) -> None:
    sample = make_sample(seed)
    found = find_initial_directions(lambda: [sample], 5)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, find_by_hand(sample, 5), atol=1e-5)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)


def test_signs_point_to_the_longer_tail() -> None:
    few, bulk = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.1], [0.0, -0.1]]).repeat(8, 1)
    found = find_initial_directions(lambda: [torch.cat([few, bulk])], 1)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]), atol=1e-3, rtol=0)
    turned = find_initial_directions(lambda: [-torch.cat([few, bulk])], 1)
    torch.testing.assert_close(turned, -found)


@given(
    cuts=st.lists(st.integers(1, 399), max_size=6, unique=True),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_blocks_do_not_matter(cuts: list[int], seed: int) -> None:
    sample = make_sample(seed)
    blocks = torch.tensor_split(sample, sorted(cuts))
    whole = find_initial_directions(lambda: [sample], 4)
    split = find_initial_directions(lambda: iter(blocks), 4)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)


def test_a_far_away_mean_costs_no_digits() -> None:
    sample = (make_sample(7) * 1024).round() / 1024
    far = sample.double() + 2.0**20
    blocks = far.split(100)
    found = find_initial_directions(lambda: blocks, 4)
    np.testing.assert_allclose(found, find_by_hand(sample, 4), atol=1e-5)


def test_windows_are_flattened() -> None:
    sample = make_sample(8)
    windows = sample.reshape(4, 10, 10, 12)
    expected = find_initial_directions(lambda: [sample], 3)
    torch.testing.assert_close(find_initial_directions(lambda: [windows], 3), expected)


def test_more_classes_than_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="13 classes"):
        find_initial_directions(lambda: [make_sample(1)], 13)


def test_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="no features"):
        find_initial_directions(list, 2)
