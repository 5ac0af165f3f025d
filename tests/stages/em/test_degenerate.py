"""Fits on data that hold too little: everything stays finite, and the same again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.datasets.definition import IGNORE
from pipeline.errors import UsageError
from stages.clustering import cluster_loss, list_unused, measure_clusters
from stages.em.methods import FitState
from stages.em.pieces import FitBatch, make_prototypes
from stages.em.pixels import assign_proposals, differentiate, sum_probabilities, weigh_classes
from stages.em.robust import fit_robust
from stages.em.settings import METHODS, EmSettings
from stages.em.start import estimate_classes
from tests.fakes import HeldPiece

GRID, SCALE, CHANNELS = 4, 3, 6
KINDS = ("zeros", "constant", "line", "two values", "one position")


def make_features(kind: str, windows: int, seed: int) -> Tensor:
    generator = np.random.default_rng(seed)
    basis = generator.normal(size=(2, CHANNELS))
    shares = np.zeros((windows, GRID, GRID, 2))
    if kind == "constant":
        shares[..., 0] = 1
    elif kind == "line":
        shares[..., 0] = generator.normal(size=shares.shape[:3])
    elif kind == "two values":
        shares = np.eye(2)[generator.integers(0, 2, shares.shape[:3])]
    elif kind == "one position":
        shares[0, 1, 2, 0] = 1
    return torch.from_numpy(shares @ basis).float()


def make_proposals(kind: str, windows: int) -> Tensor:
    """No proposals, one that covers all, or none in all windows but the last."""
    ids = torch.zeros(windows, GRID * SCALE, GRID * SCALE, dtype=torch.uint8)
    if kind == "all":
        ids[:] = 1
    elif kind == "last":
        ids[-1, :, :5] = 7
    return ids


def fit(features: Tensor, proposals: Tensor, **given: Any) -> FitState:
    chosen = EmSettings(**{"classes": 4, "epochs": 12, "init_steps": 4, "batch_size": 2} | given)

    def read_epoch(epoch: int) -> Iterator[list[FitBatch]]:
        for rows in torch.arange(len(features)).split(chosen.batch_size):
            yield [FitBatch(features[rows], proposals[rows])]

    method = METHODS[chosen.method]()
    state = method.initialise(lambda: [features], read_epoch, 2, chosen)
    for _ in method.run_epochs(state, read_epoch, chosen):
        pass
    return state


@given(
    kind=st.sampled_from(KINDS),
    proposals=st.sampled_from(["none", "all", "last"]),
    method=st.sampled_from(["primaps", "kmeans"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_prototypes_stay_finite_and_are_the_same_again(
    kind: str, proposals: str, method: str, seed: int
) -> None:
    features, ids = make_features(kind, 3, seed), make_proposals(proposals, 3)
    state, again = (fit(features, ids, method=method) for _ in range(2))
    for name in ("running", "momentum", "initial"):
        weight = getattr(state, name).weight()
        assert weight.isfinite().all()
        assert torch.equal(weight, getattr(again, name).weight())
    assert np.isfinite(state.loss).all() and np.isfinite(state.usage).all()
    labelled = method == "kmeans" or proposals != "none"
    assert sum(state.usage[-1]) == pytest.approx(1.0 if labelled else 0.0)


def test_a_class_that_dies_keeps_a_finite_prototype() -> None:
    features = make_features("two values", 4, seed=3)
    state = fit(features, make_proposals("all", 4), classes=6)
    dead = list_unused(state.usage[-1])
    assert dead and len(dead) < 6
    lengths = state.momentum.weight().norm(dim=1)
    assert lengths.isfinite().all() and (lengths[dead] > 0).all()


def test_windows_without_proposals_are_ignored_by_hand() -> None:
    logits = torch.tensor([[[[1.0]], [[3.0]]], [[[2.0]], [[1.0]]]])
    proposals = torch.zeros(2, 2, 2, dtype=torch.uint8)
    nothing = assign_proposals(logits, proposals)
    assert (nothing.labels == IGNORE).all() and nothing.usage.tolist() == [0, 0]
    softmax = sum_probabilities(logits, nothing.labels)
    weight = weigh_classes(softmax.sums.sum(dim=0), nothing.labels.numel(), 2.0)
    gradient = differentiate(softmax, weight)
    assert not gradient.loss.any() and not gradient.logits.any()
    proposals[1] = 200
    one = assign_proposals(logits, proposals)
    assert one.labels[0].unique().tolist() == [IGNORE] and one.labels[1].unique().tolist() == [0]
    assert one.usage.tolist() == [4, 0]


def test_a_feature_of_zero_length_has_no_cosine() -> None:
    direction = torch.eye(3, requires_grad=True)
    features = torch.zeros(1, 1, 2, 3)
    features[0, 0, 1] = torch.tensor([0.0, 4.0, 3.0])
    loss, usage = cluster_loss(features, direction)
    # by hand: cosines 0 and 4/5
    assert float(loss.detach()) == pytest.approx(-0.4)
    assert usage.tolist() == [1, 1, 0]
    loss.backward()
    assert direction.grad is not None and direction.grad.isfinite().all()
    found = measure_clusters(features.flatten(1, 2), torch.eye(3))
    assert found[0].tolist() == pytest.approx([-0.4]) and found[2].tolist() == [[1, 1, 0]]
    # by hand: a position of no length pulls nowhere, the other pulls by half its direction
    expected = torch.tensor([[[0.0, 0.0, 0.0], [0.0, -0.4, -0.3], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(found[1], expected)
    assert make_prototypes(torch.zeros(2, 3)).weight().isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proposals", ["none", "all", "last"])
def test_the_robust_fit_is_finite_or_one_sentence(kind: str, proposals: str) -> None:
    piece = HeldPiece(make_features(kind, 3, 0), make_proposals(proposals, 3), np.arange(3), 3)
    pieces = [[piece]] * 4
    chosen: Any = {"classes": 2, "seed": 0, "clusterings": 10, "shrinkage": 0.0, "codebook": 9}
    if proposals != "all":
        held = {"none": 0, "last": 1}[proposals]
        with pytest.raises(UsageError, match=f"hold only {held} proposals"):
            fit_robust(*pieces, **chosen)
        return
    fits = [fit_robust(*pieces, **chosen) for _ in range(2)]
    for found in fits:
        assert found.prototypes.isfinite().all() and found.bias.isfinite().all()
        assert float(found.groups.sum()) == pytest.approx(1)
        assert float(found.usage.sum()) == pytest.approx(1)
    assert torch.equal(fits[0].prototypes, fits[1].prototypes)


@pytest.mark.parametrize("different", [0, 1, 2])
def test_too_few_different_proposals_have_no_number_of_classes(different: int) -> None:
    pooled = np.eye(8, dtype=np.float32)[
        np.arange(60) % different if different else np.zeros(0, int)
    ]
    with pytest.raises(ValueError, match="too few, or too alike"):
        estimate_classes(pooled, seed=0, most=20)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("different", [3, 5])
def test_a_few_different_proposals_are_as_many_classes(different: int) -> None:
    pooled = np.eye(8, dtype=np.float32)[np.arange(120) % different]
    found = estimate_classes(pooled, seed=0, most=20)
    assert found.classes == different
    assert np.isfinite([score for _, score in found.curve]).all()
