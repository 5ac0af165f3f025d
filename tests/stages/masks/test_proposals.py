"""Mask proposals: against the method written out in float64, and what must hold of any of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from scipy.special import log_softmax
from torch import Tensor

from stages.masks import proposals as module
from stages.masks.proposals import (
    Proposals,
    find_constant,
    pool_proposals,
    propose_masks,
    score_proposals,
)

METHOD: dict[str, Any] = {"threshold": 0.4, "leave": 0.05, "max_proposals": 32}


def cluster_features(windows: int, side: int, channels: int, clusters: int, seed: int) -> Tensor:
    """Draw features around a few centres, each a compact part of the grid."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    features = np.empty((windows, side, side, channels))
    for window in range(windows):
        centres = generator.normal(size=(clusters, channels))
        places = generator.uniform(0, side, size=(clusters, 2))
        nearest = np.square(grid[:, :, None] - places).sum(axis=-1).argmin(axis=-1)
        noise = 0.05 * generator.normal(size=(side, side, channels))
        features[window] = centres[nearest] + noise
    return torch.from_numpy(features).float()


def random_features(windows: int, side: int, channels: int, seed: int) -> Tensor:
    generator = np.random.default_rng(seed)
    falling = 0.8 ** np.arange(channels)
    return torch.from_numpy(
        generator.normal(size=(windows, side, side, channels)) * falling
    ).float()


def propose_by_hand(
    features: Tensor, threshold: float, leave: float, max_proposals: int
) -> np.ndarray:
    """Follow the method word by word for one window; give soft [proposal, row, column]."""
    points = features.double().numpy().reshape(-1, features.shape[-1])
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit = points / np.where(length > 0, length, 1)
    active = np.flatnonzero(length)
    planes: list[np.ndarray] = []
    while len(active) > leave * len(points) and len(planes) < max_proposals:
        centred = points[active] - points[active].mean(axis=0)
        first = np.linalg.svd(centred, full_matrices=False)[2][0]
        seed = active[np.abs(unit[active] @ first).argmax()]
        similarity = unit[active] @ unit[seed]
        inside = similarity >= threshold * similarity.max()
        plane = np.zeros(len(points))
        plane[active[inside]] = similarity[inside] / similarity.max()
        planes.append(plane)
        active = active[~inside]
    return np.reshape(planes, (-1, *features.shape[:2]))


def draw_ids(soft: np.ndarray) -> np.ndarray:
    return ((soft > 0) * np.arange(1, len(soft) + 1)[:, None, None]).sum(axis=0)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_clustered_features_give_the_method_s_proposals(seed: int, together: bool) -> None:
    features = cluster_features(6, 10, 24, clusters=3 + seed, seed=seed)
    found = propose_masks(features, **METHOD, together=together)
    for window in range(6):
        expected = propose_by_hand(features[window], **METHOD)
        assert found.count[window] == len(expected)
        soft = found.soft[window].numpy()
        np.testing.assert_array_equal(draw_ids(soft), draw_ids(expected))
        np.testing.assert_allclose(soft[: len(expected)], expected, atol=1e-5)
        assert not soft[len(expected) :].any()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("threshold", [0.25, 0.4, 0.9])
def test_random_features_give_the_method_s_proposals_nearly_everywhere(
    threshold: float, together: bool
) -> None:
    method = {**METHOD, "threshold": threshold, "together": together}
    features = random_features(40, 8, 24, seed=11)
    found = propose_masks(features, **method)
    same = [
        draw_ids(found.soft[window].numpy())
        == draw_ids(propose_by_hand(one, threshold, METHOD["leave"], METHOD["max_proposals"]))
        for window, one in enumerate(features)
    ]
    assert np.mean(same) >= 0.99


def test_the_sign_of_the_direction_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features(5, 9, 16, seed=3)
    expected = propose_masks(features, **METHOD)
    find = module.find_principal_directions
    monkeypatch.setattr(
        module, "find_principal_directions", lambda *given, **how: -find(*given, **how)
    )
    turned = propose_masks(features, **METHOD)
    assert torch.equal(turned.soft, expected.soft)
    assert torch.equal(turned.count, expected.count)


@given(
    windows=st.integers(1, 3),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    channels=st.integers(1, 12),
    threshold=st.floats(0.05, 1),
    leave=st.floats(0, 0.9),
    most=st.integers(1, 12),
    together=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_what_holds_of_any_proposals(
    windows: int,
    rows: int,
    columns: int,
    channels: int,
    threshold: float,
    leave: float,
    most: int,
    together: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(windows, rows, columns, channels, generator=generator)
    found = propose_masks(
        features, threshold=threshold, leave=leave, max_proposals=most, together=together
    )
    assert found.soft.shape == (windows, found.count.max(), rows, columns)
    assert found.count.min() >= 1
    assert found.count.max() <= most
    assert ((found.soft >= 0) & (found.soft <= 1)).all()
    taken = found.soft > 0
    assert (taken.sum(dim=1) <= 1).all(), "disjoint"
    for window, count in enumerate(found.count.tolist()):
        peaks = found.soft[window].amax(dim=(1, 2))
        assert (peaks[:count] == 1).all(), "the seed is in its own proposal"
        assert (peaks[count:] == 0).all()
        inside = found.soft[window][taken[window]]
        assert (inside >= threshold - 1e-6).all()
        left = rows * columns - int(taken[window].sum())
        assert count == most or left <= leave * rows * columns + 1e-4
        before_last = left + int(taken[window, count - 1].sum())
        assert before_last > leave * rows * columns - 1e-4, "it stops in time"


@pytest.mark.parametrize("together", [False, True])
def test_a_window_does_not_depend_on_its_companions(together: bool) -> None:
    features = torch.cat(
        [cluster_features(2, 8, 16, 2, seed=1), cluster_features(2, 8, 16, 6, seed=2)]
    )
    found = propose_masks(features, **METHOD, together=together)
    assert len(set(found.count.tolist())) > 1
    for window in range(4):
        alone = propose_masks(features[window : window + 1], **METHOD)
        count = int(alone.count)
        assert count == found.count[window]
        torch.testing.assert_close(alone.soft[0], found.soft[window, :count], atol=1e-5, rtol=0)


def test_equal_features_are_one_proposal() -> None:
    found = propose_masks(torch.full((1, 4, 4, 8), 0.5), **METHOD)
    assert found.count.tolist() == [1]
    torch.testing.assert_close(found.soft, torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("together", [False, True])
def test_features_of_zero_length_are_in_no_proposal(together: bool) -> None:
    found = propose_masks(torch.zeros(2, 3, 3, 4), **METHOD, together=together)
    assert found.count.tolist() == [0, 0]
    assert found.soft.shape == (2, 0, 3, 3)
    for seed in range(3):
        features = cluster_features(3, 8, 16, 3, seed=seed)
        features[torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.4] = 0
        features[1] = 0
        found = propose_masks(features, **METHOD, together=together)
        for window in range(3):
            expected = propose_by_hand(features[window], **METHOD)
            assert found.count[window] == len(expected)
            np.testing.assert_array_equal(draw_ids(found.soft[window].numpy()), draw_ids(expected))


@pytest.mark.parametrize("together", [False, True])
def test_a_single_position_that_is_not_zero_is_one_proposal(together: bool) -> None:
    features = torch.zeros(1, 4, 4, 3)
    features[0, 2, 1] = torch.tensor([0.0, -3.0, 4.0])
    found = propose_masks(features, **METHOD, together=together)
    assert found.count.tolist() == [1]
    assert found.soft[0, 0].nonzero().tolist() == [[2, 1]]
    # one of 25 positions is less than 5 %: it is left, as any rest of the grid that small is
    found = propose_masks(
        torch.nn.functional.pad(features, (0, 0, 0, 1, 0, 1)), **METHOD, together=together
    )
    assert found.count.tolist() == [0]


@given(
    kind=st.sampled_from(["constant", "line", "plane", "two values"]),
    exponent=st.integers(-20, 13),
    zeros=st.floats(0, 1),
    together=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_degenerate_features_have_defined_proposals(
    kind: str, exponent: int, zeros: float, together: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    side, channels = 6, 12
    basis = generator.normal(size=(2, channels))
    shares = {
        "constant": np.tile([1.0, 0.5], (side * side, 1)),
        "line": generator.choice([-1.0, 1.0], (side * side, 1)) * [1.0, 0.0],
        "plane": generator.normal(size=(side * side, 2)),
        "two values": np.eye(2)[generator.integers(0, 2, side * side)],
    }[kind]
    points = (shares @ basis) * 2.0**exponent
    points[generator.uniform(size=side * side) < zeros] = 0
    points = points.clip(-65504, 65504)
    # what a shard can hold: from the smallest float16 to nearly the largest
    features = torch.from_numpy(points.astype(np.float16).reshape(1, side, side, channels))
    wide = features.float()
    found = propose_masks(wide, **METHOD, together=together)
    again = propose_masks(wide.clone(), **METHOD, together=together)
    assert torch.equal(found.soft, again.soft)
    assert found.soft.isfinite().all()
    expected = {
        frozenset(np.flatnonzero(plane)) for plane in propose_by_hand(wide[0], **METHOD) > 0
    }
    sets = {frozenset(np.flatnonzero(plane > 0)) for plane in found.soft[0].flatten(1).numpy()}
    # in a plane of all directions a border may fall on a position; elsewhere nothing is close
    if kind != "plane":
        assert sets == expected
    taken = (found.soft > 0).any(dim=1)
    assert not (taken & ~wide.any(dim=-1)).any()
    scores = score_proposals(found, gain=10)
    assert not scores.isnan().any()
    ids = scores.argmax(dim=1)
    pooled, area = pool_proposals(ids, wide, proposals=32)
    assert pooled.isfinite().all()
    assert not pooled[area == 0].any()


def test_constant_windows_are_found() -> None:
    features = torch.randn(4, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    features[1] = features[1, 0, 0]
    features[3] = 0
    assert find_constant(features).tolist() == [False, True, False, True]
    features[1, 2, 2, 4] += 1e-3
    assert find_constant(features).tolist() == [False, False, False, True]


@pytest.mark.parametrize("gain", [1.0, 10.0])
def test_scores_agree_with_scipy_and_the_formula(gain: float) -> None:
    features = random_features(5, 9, 12, seed=8)
    found = propose_masks(features, **METHOD)
    assert len(set(found.count.tolist())) > 1
    scores = score_proposals(found, gain=gain).numpy()
    for window, count in enumerate(found.count.tolist()):
        soft = found.soft[window, :count].double().numpy()
        values = np.stack([median_filter(plane, size=3, mode="mirror") for plane in soft])
        values = np.clip(gain * values, 0, 1)
        background = np.clip(values[values > 0].mean() - values.sum(axis=0), 0, 1)
        expected = log_softmax(np.concatenate([background[None], values]), axis=0)
        np.testing.assert_allclose(scores[window, : count + 1], expected, atol=1e-5)
        assert np.isneginf(scores[window, count + 1 :]).all()


def test_a_grid_of_one_position() -> None:
    found = propose_masks(torch.randn(2, 1, 1, 6), **METHOD)
    assert found.count.tolist() == [1, 1]
    scores = score_proposals(found, gain=10)
    expected = torch.tensor([0.0, 1.0]).log_softmax(dim=0).reshape(1, 2, 1, 1).expand(2, 2, 1, 1)
    torch.testing.assert_close(scores, expected)
    pooled, area = pool_proposals(torch.ones(2, 4, 4).long(), torch.ones(2, 1, 1, 6), proposals=1)
    assert area.tolist() == [[16], [16]]
    torch.testing.assert_close(pooled, torch.full((2, 1, 6), 6**-0.5))


def test_windows_without_proposals_are_background() -> None:
    empty = Proposals(torch.zeros(2, 0, 3, 3), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(score_proposals(empty, gain=10), torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("scale", [1, 4])
def test_pooling_agrees_with_a_loop(scale: int) -> None:
    generator = np.random.default_rng(5)
    features = generator.normal(size=(3, 4, 5, 7))
    ids = generator.integers(0, 6, size=(3, 4 * scale, 5 * scale))
    ids[ids == 3] = 0
    pooled, area = pool_proposals(torch.from_numpy(ids), torch.from_numpy(features), proposals=8)
    for window in range(3):
        for proposal in range(1, 9):
            total, count = np.zeros(7), 0
            for y, x in zip(*np.nonzero(ids[window] == proposal), strict=True):
                feature = features[window, y // scale, x // scale]
                total += feature / np.linalg.norm(feature)
                count += 1
            expected = total / np.linalg.norm(total) if count else total
            assert area[window, proposal - 1] == count
            np.testing.assert_allclose(pooled[window, proposal - 1], expected, atol=1e-12)
