"""Evidence accumulation: against counts and merges by hand, and on groups that K-means cuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.em import consensus
from stages.em.consensus import cluster_directions, cluster_units, count_agreement, link_units


def draw_groups(sizes: list[int], seed: int, spread: float = 0.1) -> tuple[Tensor, np.ndarray]:
    """Draw points about orthogonal directions, and say which each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = torch.eye(len(sizes), 8, dtype=torch.float64)
    noise = torch.randn(len(truth), 8, generator=generator, dtype=torch.float64)
    return centres[truth] + spread * noise, truth.numpy()


def assert_same_partition(found: np.ndarray, truth: np.ndarray) -> None:
    np.testing.assert_array_equal(found[:, None] == found[None], truth[:, None] == truth[None])


def test_average_linkage_by_hand() -> None:
    # 0-1 agree most; 2-3 next; then 4 agrees with {0, 1} by (0.3 + 0.5) / 2 = 0.4 and with {2, 3}
    # by (0.45 + 0.25) / 2 = 0.35, though its best single friend after 1 is 2
    agreement = np.eye(5, dtype=np.float32)
    pairs = {(0, 1): 0.9, (2, 3): 0.8, (0, 4): 0.3, (1, 4): 0.5, (2, 4): 0.45, (3, 4): 0.25}
    for (a, b), share in pairs.items():
        agreement[a, b] = agreement[b, a] = share
    assert link_units(agreement, 5).tolist() == [0, 1, 2, 3, 4]
    assert link_units(agreement, 4).tolist() == [0, 0, 1, 2, 3]
    assert link_units(agreement, 3).tolist() == [0, 0, 1, 1, 2]
    assert link_units(agreement, 2).tolist() == [0, 0, 1, 1, 0]
    assert link_units(agreement, 1).tolist() == [0] * 5


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("classes", range(1, 8))
def test_equal_agreements_still_give_all_classes(share: float, classes: int) -> None:
    agreement = np.full((7, 7), share, np.float32)
    assert set(link_units(agreement, classes)) == set(range(classes))


def test_agreement_is_the_share_of_clusterings(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[0, 0, 1], [0, 1, 1], [2, 2, 2], [0, 1, 2]])
    monkeypatch.setattr(
        consensus, "cluster_directions", lambda *_: torch.tensor(next(answers), dtype=torch.int64)
    )
    units = torch.eye(3, dtype=torch.float64)
    found = count_agreement(units, torch.zeros_like(units), 1, clusterings=4, seed=0)
    np.testing.assert_array_equal(found, [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])


def test_context_is_taken_off_in_part_and_clusters_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def remember(points: Tensor, clusters: int, generator: np.random.Generator) -> Tensor:
        seen.append((points, clusters))
        return torch.zeros(len(points), dtype=torch.int64)

    monkeypatch.setattr(consensus, "cluster_directions", remember)
    units = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(20, 1)
    context = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand_as(units)
    count_agreement(units, context, 4, clusterings=200, seed=0)
    assert {clusters for _, clusters in seen} == set(range(4, 13))
    # (1, -a) at unit length has the slope -a
    shares = np.array([float(-points[0, 1] / points[0, 0]) for points, _ in seen])
    assert shares.min() < 0.05 and shares.max() > 0.95 and abs(shares.mean() - 0.5) < 0.1
    for points, _ in seen:
        torch.testing.assert_close(points.norm(dim=1), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_unequal_size_are_found(seed: int) -> None:
    units, truth = draw_groups([200, 40, 12, 5], seed)
    found = cluster_units(units, torch.zeros_like(units), 4, clusterings=40, seed=seed)
    assert_same_partition(found, truth)


def test_the_context_of_scenes_does_not_split_an_object() -> None:
    units, truth = draw_groups([30, 30, 30], 0, spread=0.05)
    scene = torch.zeros_like(units)
    scene[::2, 6], scene[1::2, 7] = 1.2, 1.2
    found = cluster_units(units + scene, scene, 3, clusterings=60, seed=0)
    assert_same_partition(found, truth)


def test_same_seed_same_groups_and_another_seed_other_draws() -> None:
    units, _ = draw_groups([50, 50], 1, spread=0.6)
    context = units.mean(dim=0).expand_as(units)
    first, again = (count_agreement(units, context, 3, 10, seed) for seed in (5, 5))
    other = count_agreement(units, context, 3, 10, 6)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@given(order=st.permutations(range(30)), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_linkage_follows_the_order_of_units(order: list[int], seed: int) -> None:
    drawn = np.random.default_rng(seed).uniform(size=(30, 30)).astype(np.float32)
    agreement = (drawn + drawn.T) / 2
    np.fill_diagonal(agreement, 1)
    found = link_units(agreement[np.ix_(order, order)], 5)
    assert_same_partition(found, link_units(agreement, 5)[order])


def test_kmeans_by_hand() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 1.5, 1.6, 1.7], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    for seed in range(10):
        labels = cluster_directions(points, 2, np.random.default_rng(seed)).numpy()
        assert_same_partition(labels, np.array([0, 0, 0, 1, 1, 1]))


@given(points=st.integers(1, 12), clusters=st.integers(1, 12), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_kmeans_ends_with_the_nearest_centres(points: int, clusters: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    drawn = F.normalize(torch.from_numpy(generator.normal(size=(points, 3))), dim=1)
    clusters = min(clusters, points)
    labels = cluster_directions(drawn, clusters, generator)
    sums = F.one_hot(labels, clusters).double().T @ drawn
    used = labels.unique()
    nearest = (drawn @ F.normalize(sums[used], dim=1).T).argmax(dim=1)
    torch.testing.assert_close(used[nearest], labels)


def test_equal_points_are_one_cluster() -> None:
    points = torch.ones(9, 4, dtype=torch.float64) / 2
    assert cluster_directions(points, 3, np.random.default_rng(0)).unique().numel() == 1
    found = cluster_units(points, torch.zeros_like(points), 3, clusterings=5, seed=0)
    assert set(found) == {0, 1, 2}


def test_units_that_are_their_context_have_no_direction_and_do_no_harm() -> None:
    units, _ = draw_groups([4, 4], 0)
    found = cluster_units(units, units, 2, clusterings=5, seed=0)
    assert set(found) == {0, 1}
