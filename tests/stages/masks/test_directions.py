"""Principal directions: against a float64 SVD, and in the cases where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.masks.directions import find_principal_directions

ENOUGH = 1 - 1e-5


def make_points(windows: int, positions: int, channels: int, seed: int) -> Tensor:
    """Draw points whose variances fall by a half from axis to axis, rotated and off the origin."""
    generator = np.random.default_rng(seed)
    falling = 0.7 ** np.arange(channels)
    points = generator.normal(size=(windows, positions, channels)) * falling
    rotation, _ = np.linalg.qr(generator.normal(size=(channels, channels)))
    return torch.from_numpy(points @ rotation + generator.normal(size=channels)).float()


def decompose(points: Tensor, active: Tensor) -> np.ndarray:
    chosen = points[active].double().numpy()
    return np.linalg.svd(chosen - chosen.mean(axis=0), full_matrices=False)[2][0]


@given(
    windows=st.integers(1, 4),
    positions=st.integers(12, 70),
    channels=st.integers(2, 24),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_agrees_with_a_float64_svd(windows: int, positions: int, channels: int, seed: int) -> None:
    points = make_points(windows, positions, channels, seed)
    active = torch.from_numpy(np.random.default_rng(seed).random((windows, positions)) < 0.6)
    active[:, :3] = True
    found = find_principal_directions(points, active).double().numpy()
    for window in range(windows):
        expected = decompose(points[window], active[window])
        assert abs(found[window] @ expected) >= ENOUGH
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_batch_is_its_windows_one_by_one() -> None:
    points = make_points(6, 50, 20, seed=1)
    active = torch.rand(6, 50, generator=torch.Generator().manual_seed(2)) < 0.5
    together = find_principal_directions(points, active)
    for window in range(6):
        alone = find_principal_directions(points[window : window + 1], active[window : window + 1])
        torch.testing.assert_close(alone[0], together[window], atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, -7.0, 1e30])
def test_positions_that_do_not_count_have_no_influence(value: float) -> None:
    points = make_points(3, 40, 10, seed=3)
    active = torch.arange(40).expand(3, 40) % 3 > 0
    expected = find_principal_directions(points, active)
    elsewhere = torch.where(active.unsqueeze(-1), points, torch.tensor(value))
    assert torch.equal(find_principal_directions(elsewhere, active), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_equal_features_give_some_finite_unit_vector(count: int) -> None:
    points = torch.full((2, 40, 12), 0.3)
    active = (torch.arange(40) < count).expand(2, 40)
    found = find_principal_directions(points, active)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_positions_give_some_finite_unit_vector(count: int) -> None:
    points = make_points(2, 30, 12, seed=4)
    found = find_principal_directions(points, (torch.arange(30) < count).expand(2, 30))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_two_positions_give_their_difference() -> None:
    points = make_points(1, 2, 5, seed=5)
    found = find_principal_directions(points, torch.ones(1, 2, dtype=torch.bool))[0]
    difference = torch.nn.functional.normalize(points[0, 0] - points[0, 1], dim=0)
    assert abs(float(found @ difference)) >= ENOUGH


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3])
def test_close_eigenvalues_still_give_a_direction_of_their_plane(gap: float) -> None:
    generator = np.random.default_rng(6)
    basis, _ = np.linalg.qr(generator.normal(size=(60, 15)))
    basis, _ = np.linalg.qr(basis - basis.mean(axis=0))
    axes, _ = np.linalg.qr(generator.normal(size=(16, 16)))
    spread = np.concatenate([[1, 1 - gap], np.full(13, 0.3)])
    points = torch.from_numpy((basis * spread) @ axes[:15]).float()[None]
    found = find_principal_directions(points, torch.ones(1, 60, dtype=torch.bool))[0]
    assert np.linalg.norm(axes[:2] @ found.double().numpy()) >= ENOUGH


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**12])
def test_units_do_not_matter(factor: float) -> None:
    points, active = make_points(2, 40, 10, seed=7), torch.ones(2, 40, dtype=torch.bool)
    expected = find_principal_directions(points, active)
    torch.testing.assert_close(find_principal_directions(factor * points, active), expected)
