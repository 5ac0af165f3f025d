"""The robust fit: pooling by hand, groups found again, and data that say little.

Evidence accumulation: against counts and merges by hand, and on groups that K-means cuts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from pipeline.errors import UsageError
from stages.discriminants import GAINS, Moments, find_discriminant
from stages.em import robust, sums
from stages.em.codebook import pool_units
from stages.em.pieces import FitBatch
from stages.em.robust import (
    RobustFit,
    cluster_directions,
    count_agreement,
    fit_robust,
    link_average,
    link_units,
)
from stages.em.sums import number_proposals, read_positions
from tests.fakes import HeldPiece

GRID, PATCH, CHANNELS = 6, 3, 8


def make_settings(
    classes: int,
    seed: int = 0,
    clusterings: int = 100,
    shrinkage: float = 0.1,
    codebook: int = 4096,
) -> dict[str, Any]:
    return {
        "codebook": codebook,
        "classes": classes,
        "seed": seed,
        "clusterings": clusterings,
        "shrinkage": shrinkage,
    }


def draw_windows(
    windows: int, classes: int, seed: int, spread: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw features, proposals and true classes of windows with a class in every quarter."""
    generator = torch.Generator().manual_seed(seed)
    quarter = torch.tensor([[0, 1], [2, 3]])
    quarters = quarter.repeat_interleave(GRID // 2, 0).repeat_interleave(GRID // 2, 1)
    of_quarter = torch.randint(classes, (windows, 4), generator=generator)
    truth = of_quarter[:, quarters]
    centres = 3 * torch.eye(classes, CHANNELS) + 1
    noise = torch.randn(windows, GRID, GRID, CHANNELS, generator=generator)
    proposals = (quarters + 1).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    return (
        centres[truth] + spread * noise,
        proposals.to(torch.uint8).repeat(windows, 1, 1),
        truth,
    )


def serve(features: Tensor, proposals: Tensor, size: int = 4, piece: int = 64) -> Any:
    """Give all windows, the draw of them, all as labelled, and the sample, in pieces."""
    windows = np.arange(len(features))
    pieces = [
        HeldPiece(features, proposals, windows[low : low + piece], size)
        for low in range(0, len(windows), piece)
    ]
    return pieces, pieces, pieces, pieces


def predict(fit: RobustFit, features: Tensor) -> Tensor:
    return (features @ fit.prototypes.T + fit.bias).argmax(dim=-1)


def assert_one_to_one(prediction: Tensor, truth: Tensor) -> None:
    pairs = set(zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_found_again(seed: int) -> None:
    features, proposals, truth = draw_windows(24, 3, seed)
    fit = fit_robust(*serve(features, proposals), **make_settings(3, seed, clusterings=20))
    assert_one_to_one(predict(fit, features), truth)
    assert fit.prototypes.shape == (3, CHANNELS) and fit.bias.shape == (3,)
    assert fit.prototypes.dtype == fit.bias.dtype == torch.float32
    shares = torch.bincount(truth.flatten()).double().sort(descending=True).values / truth.numel()
    torch.testing.assert_close(fit.usage, shares)
    torch.testing.assert_close(fit.groups, shares)
    assert len(fit.sums.clusters) == 24 * 4


def test_positions_outside_proposals_are_not_learned_from_but_are_counted() -> None:
    features, proposals, _ = draw_windows(12, 2, 0)
    proposals[proposals == 4] = 0
    fit = fit_robust(*serve(features, proposals), **make_settings(2, clusterings=10))
    features[:, GRID // 2 :, GRID // 2 :] = 1e3
    changed = fit_robust(*serve(features, proposals), **make_settings(2, clusterings=10))
    assert len(fit.sums.clusters) == len(changed.sums.clusters) == 12 * 3
    # only through the mean of the window, which moves no proposal to another group here
    torch.testing.assert_close(changed.groups, fit.groups)
    assert float(fit.usage.sum()) == pytest.approx(1)


def test_the_classifier_is_that_of_the_view_that_is_labelled() -> None:
    features, proposals, truth = draw_windows(24, 3, 4)
    # four positions for every one, and what they look like is no more what it was
    finer = features.repeat_interleave(2, 1).repeat_interleave(2, 2).flip(-1) - 2
    asked = make_settings(3, clusterings=20)
    coarse = fit_robust(*serve(features, proposals), **asked)
    # what is clustered, and then what is labelled
    fit = fit_robust(*serve(features, proposals)[:2], *serve(finer, proposals)[2:], **asked)
    assert torch.equal(fit.sums.clusters, coarse.sums.clusters)
    torch.testing.assert_close(fit.sums.moments.count, 4 * coarse.sums.moments.count)
    assert_one_to_one(predict(fit, finer)[:, ::2, 1::2], truth)
    # the discriminants of the same positions, summed at once
    points = finer.double().flatten(0, 2)
    moments = Moments.make_empty(points.mean(dim=0), 3)
    moments.add(points, predict(fit, finer).flatten())
    found = find_discriminant(moments, shrinkage=asked["shrinkage"])
    # what all classes share depends on the origin, and decides nothing
    made, right = (w - w.mean(dim=0) for w in (fit.prototypes, fit.sums.gain * found.weight))
    torch.testing.assert_close(made.double(), right, rtol=1e-4, atol=1e-4)


def test_positions_by_hand() -> None:
    proposals = torch.tensor([[[1, 1, 0, 0], [1, 2, 2, 0], [2, 2, 0, 0], [2, 2, 0, 3]]])
    features = torch.arange(8.0).view(1, 2, 2, 2)
    batch = FitBatch(features, proposals.to(torch.uint8))
    found, numbers = read_positions(batch)
    # patches of 2 x 2 pixels: the centre lies where four pixels meet, and the last is taken
    assert numbers.tolist() == [[2, 0, 2, 3]]
    assert found.tolist() == [[[0, 1], [2, 3], [4, 5], [6, 7]]]
    units = pool_units(found, number_proposals(numbers, np.array([5])))
    assert units.number.tolist() == [5 * 256 + 2, 5 * 256 + 3]
    assert units.feature.tolist() == [[2, 3], [6, 7]]
    assert units.context.tolist() == [[3, 4], [3, 4]]


@given(size=st.integers(1, 24), seed=st.integers(0, 5))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_batches_do_not_matter(size: int, seed: int) -> None:
    features, proposals, _ = draw_windows(24, 3, seed, spread=1.5)
    asked = make_settings(3, seed, clusterings=5)
    whole = fit_robust(*serve(features, proposals, 24), **asked)
    parts = fit_robust(*serve(features, proposals, size), **asked)
    torch.testing.assert_close(parts.prototypes, whole.prototypes)
    torch.testing.assert_close(parts.bias, whole.bias)
    torch.testing.assert_close(parts.usage, whole.usage)


def test_same_seed_same_bytes_in_any_number_of_threads() -> None:
    features, proposals, _ = draw_windows(40, 4, 0, spread=1.5)
    threads, fits = torch.get_num_threads(), []
    try:
        for number in (1, 1, 2):
            torch.set_num_threads(number)
            fits.append(fit_robust(*serve(features, proposals), **make_settings(4, 3)))
    finally:
        torch.set_num_threads(threads)
    for fit in fits[1:]:
        assert torch.equal(fit.prototypes, fits[0].prototypes)
        assert torch.equal(fit.bias, fits[0].bias)


def test_mirrored_windows_give_the_same_classes() -> None:
    features, proposals, _ = draw_windows(20, 3, 1)
    asked = make_settings(3, clusterings=10)
    plain = fit_robust(*serve(features, proposals), **asked)
    mirrored = fit_robust(*serve(features.flip(2), proposals.flip(2)), **asked)
    there, back = predict(plain, features), predict(mirrored, features.flip(2)).flip(2)
    assert_one_to_one(there, back)


def test_as_many_classes_as_proposals_and_one_more() -> None:
    features, proposals, _ = draw_windows(2, 4, 0)
    fit = fit_robust(*serve(features, proposals), **make_settings(8, clusterings=5))
    assert torch.isfinite(fit.prototypes).all() and (fit.groups > 0).all()
    with pytest.raises(UsageError, match=r"--classes 9: .* only 8 proposals"):
        fit_robust(*serve(features, proposals), **make_settings(9, clusterings=5))


def test_one_class_one_image() -> None:
    features, proposals, _ = draw_windows(1, 3, 0)
    fit = fit_robust(*serve(features, proposals), **make_settings(1, clusterings=3))
    assert fit.usage.tolist() == [1] and torch.isfinite(fit.prototypes).all()


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_constant_image_collapses_and_says_so(value: float) -> None:
    features, proposals, _ = draw_windows(3, 3, 0)
    fit = fit_robust(
        *serve(torch.full_like(features, value), proposals), **make_settings(3, clusterings=5)
    )
    assert torch.isfinite(fit.prototypes).all() and torch.isfinite(fit.bias).all()
    assert sorted(fit.usage.tolist()) == [0, 0, 1]


def test_no_proposal_at_all() -> None:
    features, proposals, _ = draw_windows(3, 3, 0)
    with pytest.raises(UsageError, match="only 0 proposals"):
        fit_robust(*serve(features, torch.zeros_like(proposals)), **make_settings(3))


class NoProposals(HeldPiece):
    def read(self, windows: np.ndarray) -> FitBatch:
        return FitBatch(self.features[windows])


def test_a_reader_without_proposals_is_refused() -> None:
    features, _, _ = draw_windows(3, 3, 0)
    with pytest.raises(ValueError, match="needs proposals"):
        piece = NoProposals(features, features, np.arange(3), 3)
        fit_robust(*[[piece]] * 4, **make_settings(3))
    with pytest.raises(ValueError, match="needs batches"):
        fit_robust(*[[]] * 4, **make_settings(3))


def test_classes_come_by_falling_size() -> None:
    features, proposals, _ = draw_windows(24, 3, 4)
    groups = fit_robust(*serve(features, proposals), **make_settings(3, clusterings=10)).groups
    assert np.all(np.diff(groups.numpy()) <= 0)


def test_the_best_gain_is_in_the_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    features, proposals, _ = draw_windows(12, 3, 0)

    def fit_at(best: int) -> RobustFit:
        costs = torch.ones(len(GAINS), dtype=torch.float64)
        costs[best] = 0
        monkeypatch.setattr(sums, "measure_gains", lambda *_: costs)
        return fit_robust(*serve(features, proposals), **make_settings(3, clusterings=5))

    plain, halved = fit_at(GAINS.index(1.0)), fit_at(GAINS.index(0.5))
    torch.testing.assert_close(halved.prototypes, plain.prototypes / 2)
    torch.testing.assert_close(halved.bias, plain.bias / 2)
    assert torch.equal(halved.usage, plain.usage)


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
    assert link_units(agreement, 5)[0].tolist() == [0, 1, 2, 3, 4]
    assert link_units(agreement, 4)[0].tolist() == [0, 0, 1, 2, 3]
    assert link_units(agreement, 3)[0].tolist() == [0, 0, 1, 1, 2]
    assert link_units(agreement, 2)[0].tolist() == [0, 0, 1, 1, 0]
    assert link_units(agreement, 1)[0].tolist() == [0] * 5


@given(units=st.integers(2, 40), levels=st.integers(1, 20), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_average_linkage_is_that_of_scipy_and_of_units_given_so_often(
    units: int, levels: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, levels + 1, (units, units)) / np.float32(levels)
    agreement = (np.triu(drawn, 1) + np.triu(drawn, 1).T + np.eye(units)).astype(np.float32)
    tree = linkage(squareform(1 - agreement, checks=False), method="average")
    found = link_average(1 - agreement, np.ones(units, np.int64))
    np.testing.assert_array_equal(found, tree[:, :2])
    # without equals, whose order is any
    drawn = generator.uniform(size=(units, units))
    agreement = (np.triu(drawn, 1) + np.triu(drawn, 1).T + np.eye(units)).astype(np.float32)
    weight = generator.integers(1, 5, units)
    often = np.repeat(np.arange(units), weight)
    classes = int(generator.integers(1, units + 1))
    expected, _ = link_units(agreement[np.ix_(often, often)], classes)
    assert_same_partition(link_units(agreement, classes, weight)[0][often], expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("classes", range(1, 8))
def test_equal_agreements_still_give_all_classes(share: float, classes: int) -> None:
    agreement = np.full((7, 7), share, np.float32)
    assert set(link_units(agreement, classes)[0]) == set(range(classes))


def test_agreement_is_the_share_of_clusterings(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[0, 0, 1], [0, 1, 1], [2, 2, 2], [0, 1, 2]])
    monkeypatch.setattr(
        robust, "cluster_directions", lambda *_: torch.tensor(next(answers), dtype=torch.int64)
    )
    units = torch.eye(3, dtype=torch.float64)
    found = count_agreement(units, torch.zeros_like(units), 1, clusterings=4, seed=0)
    np.testing.assert_array_equal(found, [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])


def test_context_is_taken_off_in_part_and_clusters_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def remember(points: Tensor, clusters: int, *_: Any) -> Tensor:
        seen.append((points, clusters))
        return torch.zeros(len(points), dtype=torch.int64)

    monkeypatch.setattr(robust, "cluster_directions", remember)
    units = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(20, 1)
    context = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand_as(units)
    count_agreement(units, context, 4, clusterings=200, seed=0)
    assert {clusters for _, clusters in seen} == set(range(4, 13))
    # (1, -a) at unit length has the slope -a
    shares = np.array([float(-points[0, 1] / points[0, 0]) for points, _ in seen])
    assert shares.min() < 0.05 and shares.max() > 0.95 and abs(shares.mean() - 0.5) < 0.1
    for points, _ in seen:
        torch.testing.assert_close(points.norm(dim=1), torch.ones(40, dtype=torch.float64))


def cluster_units(
    units: Tensor, context: Tensor, classes: int, *, clusterings: int, seed: int
) -> np.ndarray:
    return link_units(count_agreement(units, context, classes, clusterings, seed), classes)[0]


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
    found, _ = link_units(agreement[np.ix_(order, order)], 5)
    assert_same_partition(found, link_units(agreement, 5)[0][order])


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
