"""Linear discriminants: by hand, against scikit-learn, joined, and where the data say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from stages.discriminants import GAINS, Moments, find_discriminant, measure_gains


def sum_up(features: Tensor, labels: Tensor, classes: int, origin: Tensor | None = None) -> Moments:
    moments = Moments.make_empty(features.mean(dim=0) if origin is None else origin, classes)
    moments.add(features, labels)
    return moments


def draw(seed: int, positions: int = 300) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, positions, p=[0.6, 0.3, 0.1])
    labels[:3] = range(3)
    mixing = generator.normal(size=(4, 4))
    features = (
        generator.normal(size=(3, 4))[labels] + generator.normal(size=(positions, 4)) @ mixing
    )
    return torch.from_numpy(features + 5), torch.from_numpy(labels)


def test_by_hand() -> None:
    # means (0, 0) and (4, 2); within the classes x varies by 1, y by 4, and they do not covary
    features = torch.tensor(
        [[-1, -2], [-1, 2], [1, -2], [1, 2], [3, 0], [3, 4], [5, 0], [5, 4]], dtype=torch.float64
    )
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = find_discriminant(sum_up(features, labels, 2), shrinkage=0)
    # S^-1 = diag(1, 1/4): the difference of the weights is (4, 1/2); the border goes through the
    # midpoint (2, 1), where 4 * 2 + 1/2 * 1 = 8.5
    weight, bias = found.weight[1] - found.weight[0], found.bias[1] - found.bias[0]
    torch.testing.assert_close(weight, torch.tensor([4, 0.5], dtype=torch.float64))
    torch.testing.assert_close(bias, torch.tensor(-8.5, dtype=torch.float64))


def test_by_hand_shrunk_and_with_unequal_shares() -> None:
    features = torch.tensor([[-1.0], [1.0], [-1.0], [1.0], [3.0], [5.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    found = find_discriminant(sum_up(features, labels, 2), shrinkage=0.5)
    # one channel: the identity's scale is the variance itself, 1, and nothing changes
    assert float(found.weight[1] - found.weight[0]) == pytest.approx(4)
    assert float(found.bias[1] - found.bias[0]) == pytest.approx(np.log(2 / 4) - 8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_agrees_with_scikit_learn(seed: int, shrinkage: float) -> None:
    features, labels = draw(seed)
    found = find_discriminant(sum_up(features, labels, 3), shrinkage=shrinkage)
    means = np.stack([features[labels == k].numpy().mean(axis=0) for k in range(3)])
    within = np.mean(
        [
            np.outer(x - means[k], x - means[k])
            for x, k in zip(features.numpy(), labels, strict=True)
        ],
        axis=0,
    )

    class Given:
        """Hands scikit-learn a covariance: its own shrinks after scaling the channels."""

        covariance_ = (1 - shrinkage) * within + shrinkage * np.trace(within) / 4 * np.eye(4)

        def fit(self, _: np.ndarray) -> None:
            """Have it already."""

    theirs = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Given())
    theirs.fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(
        found.classify(features).softmax(dim=1), theirs.predict_proba(features.numpy()), atol=1e-6
    )


@given(cuts=st.lists(st.integers(1, 299), max_size=5, unique=True), shift=st.floats(-10, 10))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_neither_parts_nor_origin_matter(cuts: list[int], shift: float) -> None:
    features, labels = draw(7)
    whole = find_discriminant(sum_up(features, labels, 3), shrinkage=0.1)
    moments = Moments.make_empty(features.mean(dim=0) + shift, 3)
    parts = (torch.tensor_split(part, sorted(cuts)) for part in (features, labels))
    for some, theirs in zip(*parts, strict=True):
        moments.add(some, theirs)
    split = find_discriminant(moments, shrinkage=0.1)
    difference = whole.classify(features) - split.classify(features)
    # logits are free up to a constant of the position
    torch.testing.assert_close(
        difference - difference[:, :1], torch.zeros_like(difference), atol=1e-8, rtol=0
    )


def test_a_class_without_positions_never_wins() -> None:
    features, labels = draw(0)
    found = find_discriminant(sum_up(features, labels, 5), shrinkage=0.1)
    probabilities = found.classify(features).softmax(dim=1)
    assert torch.isfinite(found.weight).all() and torch.isfinite(found.bias).all()
    assert (probabilities[:, 3:] == 0).all()
    known = find_discriminant(sum_up(features, labels, 3), shrinkage=0.1)
    torch.testing.assert_close(probabilities[:, :3], known.classify(features).softmax(dim=1))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_features_that_do_not_vary_are_told_apart_by_frequency(value: float) -> None:
    features = torch.full((6, 4), value, dtype=torch.float64)
    labels = torch.tensor([1, 1, 1, 1, 0, 0])
    found = find_discriminant(sum_up(features, labels, 2), shrinkage=0.1)
    expected = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(found.classify(features[0]).softmax(dim=0), expected)


def test_one_class() -> None:
    features, _ = draw(0)
    labels = torch.zeros(len(features), dtype=torch.int64)
    found = find_discriminant(sum_up(features, labels, 1), shrinkage=0.1)
    assert torch.isfinite(found.classify(features)).all()


def test_rescaled_features_give_the_same_probabilities() -> None:
    features, labels = draw(3)
    one = find_discriminant(sum_up(features, labels, 3), shrinkage=0.1)
    other = find_discriminant(sum_up(1000 * features, labels, 3), shrinkage=0.1)
    torch.testing.assert_close(
        other.classify(1000 * features).softmax(dim=1), one.classify(features).softmax(dim=1)
    )


def test_gains_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    found = measure_gains(logits, torch.tensor([0, 0]))
    at = GAINS.index(0.5)
    # -log softmax: of (1, 0) at the first, of (0, 2) at the second position
    assert float(found[at]) == pytest.approx(np.log1p(np.exp(-1)) + np.log1p(np.exp(2)))


@pytest.mark.parametrize("sure", [0.25, 1.0, 8.0, 32.0])
def test_the_best_gain_undoes_a_factor(sure: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()
    best = GAINS[int(measure_gains(sure * logits, labels).argmin())]
    assert best == pytest.approx(min(1 / sure, max(GAINS)), rel=0.2)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_joined_classes_are_those_of_joined_labels(seed: int) -> None:
    features, labels = draw(seed)
    groups = [1, 0, 1]
    joined = sum_up(features, labels, 3).join(groups, 2)
    again = sum_up(features, torch.tensor(groups)[labels], 2)
    for name in ("origin", "count", "total", "scatter"):
        torch.testing.assert_close(getattr(joined, name), getattr(again, name), atol=0, rtol=1e-12)


def test_merged_moments_are_those_of_all_positions() -> None:
    features, labels = draw(0)
    origin = features.mean(dim=0)
    half = len(labels) // 2
    parts = [
        sum_up(features[part], labels[part], 3, origin)
        for part in (slice(None, half), slice(half, None))
    ]
    merged, whole = parts[0].merge(parts[1]), sum_up(features, labels, 3, origin)
    torch.testing.assert_close(merged.scatter, whole.scatter)
    torch.testing.assert_close(merged.total, whole.total)
    assert torch.equal(merged.count, whole.count)


def test_classes_in_another_order() -> None:
    features, labels = draw(0)
    moments, order = sum_up(features, labels, 3), torch.tensor([2, 0, 1])
    assert torch.equal(moments.take(order).count, moments.count[order])
    assert torch.equal(moments.take(order).total, moments.total[order])


def test_positions_that_count_twice() -> None:
    features, labels = draw(0)
    moments = sum_up(features, labels, 3)
    twice = moments.merge(moments)
    for name in ("count", "total", "scatter"):
        torch.testing.assert_close(getattr(moments.weigh(2), name), getattr(twice, name))
