"""Principal directions: against a float64 SVD, and in the cases where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.masks import proposals as module
from stages.masks.proposals import find_direction, find_leading_vectors, find_principal_directions

ENOUGH = 1 - 1e-5
BOTH = pytest.mark.parametrize("together", [False, True])


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
    together=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_agrees_with_a_float64_svd(
    windows: int, positions: int, channels: int, together: bool, seed: int
) -> None:
    points = make_points(windows, positions, channels, seed)
    active = torch.from_numpy(np.random.default_rng(seed).random((windows, positions)) < 0.6)
    active[:, :3] = True
    found = find_principal_directions(points, active, together=together).double().numpy()
    for window in range(windows):
        expected = decompose(points[window], active[window])
        assert abs(found[window] @ expected) >= ENOUGH
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@BOTH
def test_a_batch_is_its_windows_one_by_one(together: bool) -> None:
    points = make_points(6, 50, 20, seed=1)
    active = torch.rand(6, 50, generator=torch.Generator().manual_seed(2)) < 0.5
    found = find_principal_directions(points, active, together=together)
    for window in range(6):
        alone = find_principal_directions(points[window : window + 1], active[window : window + 1])
        sign = torch.sign(alone[0] @ found[window])
        torch.testing.assert_close(sign * alone[0], found[window], atol=3e-5, rtol=0)


@BOTH
@pytest.mark.parametrize("value", [0.0, -7.0, 1e30])
def test_positions_that_do_not_count_have_no_influence(value: float, together: bool) -> None:
    points = make_points(3, 40, 10, seed=3)
    active = torch.arange(40).expand(3, 40) % 3 > 0
    expected = find_principal_directions(points, active, together=together)
    elsewhere = torch.where(active.unsqueeze(-1), points, torch.tensor(value))
    found = find_principal_directions(elsewhere, active, together=together)
    assert torch.equal(found, expected)


@BOTH
@pytest.mark.parametrize("value", [0.3, 0.0])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_equal_features_give_some_finite_unit_vector(
    count: int, value: float, together: bool
) -> None:
    points = torch.full((2, 40, 12), value)
    active = (torch.arange(40) < count).expand(2, 40)
    found = find_principal_directions(points, active, together=together)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


@BOTH
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_positions_give_some_finite_unit_vector(count: int, together: bool) -> None:
    points = make_points(2, 30, 12, seed=4)
    active = (torch.arange(30) < count).expand(2, 30)
    found = find_principal_directions(points, active, together=together)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


@BOTH
@pytest.mark.parametrize("channels", [1, 5, 384])
def test_two_positions_give_their_difference(channels: int, together: bool) -> None:
    points = make_points(1, 2, channels, seed=5)
    active = torch.ones(1, 2, dtype=torch.bool)
    found = find_principal_directions(points, active, together=together)[0]
    difference = torch.nn.functional.normalize(points[0, 0] - points[0, 1], dim=0)
    assert abs(float(found @ difference)) >= ENOUGH


def spread_points(spread: np.ndarray, positions: int, offset: float, seed: int) -> Tensor:
    """Draw centred points with the given singular values, on random axes, and add an offset."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.normal(size=(positions, len(spread))))
    basis, _ = np.linalg.qr(basis - basis.mean(axis=0))
    axes, _ = np.linalg.qr(generator.normal(size=(len(spread) + 1, len(spread) + 1)))
    centre = offset * generator.normal(size=len(spread) + 1)
    return torch.from_numpy((basis * spread) @ axes[:-1] + centre).float()[None]


@BOTH
@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3])
def test_close_eigenvalues_still_give_a_direction_of_their_plane(
    gap: float, together: bool
) -> None:
    points = spread_points(np.array([1, 1 - gap, *[0.3] * 13]), 60, 0, seed=6)
    found = find_principal_directions(
        points, torch.ones(1, 60, dtype=torch.bool), together=together
    )
    centred = (points[0] - points[0].mean(dim=0)).double().numpy()
    plane = np.linalg.svd(centred, full_matrices=False)[2][:2]
    assert np.linalg.norm(plane @ found[0].double().numpy()) >= ENOUGH


@BOTH
@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("gap", [0.3, 0.03, 0.003])
def test_the_seed_is_that_of_a_float64_svd(gap: float, offset: float, together: bool) -> None:
    active = torch.ones(1, 200, dtype=torch.bool)
    for seed in range(5):
        spread = np.concatenate([[1], (1 - gap) * 0.95 ** np.arange(60)])
        points = spread_points(spread, 200, offset, seed)
        found = find_principal_directions(points, active, together=together)[0]
        expected = decompose(points[0], active[0])
        unit = found.double().numpy() / np.linalg.norm(found.double().numpy())
        sine = np.linalg.norm(unit - (unit @ expected) * expected)
        # float32 itself cannot tell directions closer than its rounding over the gap
        assert sine <= max(2 * module.SETTLED, 3e-7 / gap)


@BOTH
def test_it_takes_as_many_steps_as_it_needs(together: bool) -> None:
    """Slow decay and many channels: a dozen steps are too few."""
    points = spread_points(0.995 ** np.arange(150), 400, 0, seed=9)
    active = torch.ones(1, 400, dtype=torch.bool)
    found = find_principal_directions(points, active, together=together)[0].double().numpy()
    assert abs(found @ decompose(points[0], active[0])) >= 1 - 1e-3


def test_squaring_gives_the_leading_eigenvectors() -> None:
    generator = np.random.default_rng(0)
    diagonal, beside = 1 + generator.random((5, 9)), generator.random((5, 8)) / 3
    found = find_leading_vectors(torch.from_numpy(diagonal), torch.from_numpy(beside)).numpy()
    for one, d, e in zip(found, diagonal, beside, strict=True):
        leading = np.linalg.eigh(np.diag(d) + np.diag(e, 1) + np.diag(e, -1))[1][:, -1]
        assert abs(one @ leading) == pytest.approx(1, abs=1e-12)
    assert not find_leading_vectors(torch.zeros(1, 4), torch.zeros(1, 3)).any()


@pytest.mark.parametrize(("decay", "enough"), [(0.5, True), (0.99, False)])
def test_it_stops_where_the_direction_has_settled(decay: float, enough: bool) -> None:
    points = spread_points(decay ** np.arange(60), 200, 0, seed=1)[0].numpy()
    active = np.ones(200, np.bool_)
    start = np.full(61, 61**-0.5, np.float32)
    eight = find_direction(points, active, start, (8,), 0.0)
    assert np.array_equal(find_direction(points, active, start, (8, 40), 1e-3), eight) == enough


def test_steps_beyond_the_last_direction_do_no_harm() -> None:
    """Three eigenvalues are found in three steps; what the next ones find is rounding error."""
    points = spread_points(np.array([1, 0.9, *[0.3] * 13]), 60, 0, seed=6)[0]
    active, start = np.ones(60, np.bool_), np.full(16, 0.25, np.float32)
    found = find_direction(points.numpy(), active, start, (16,), 0.0)
    assert abs(found @ decompose(points, torch.from_numpy(active))) >= ENOUGH


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**12])
@BOTH
def test_units_do_not_matter(factor: float, together: bool) -> None:
    points, active = make_points(2, 40, 10, seed=7), torch.ones(2, 40, dtype=torch.bool)
    expected = find_principal_directions(points, active, together=together)
    found = find_principal_directions(factor * points, active, together=together)
    torch.testing.assert_close(found, expected)
