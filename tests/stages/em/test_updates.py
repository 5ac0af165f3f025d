"""The M-step: loss and gradient against autograd of the formula over the whole batch at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.datasets import IGNORE
from stages.em import updates
from stages.em.updates import (
    Gradient,
    Softmax,
    differentiate,
    sum_probabilities,
    weigh_classes,
)


def compute_gradient(logits: Tensor, labels: Tensor, *, focus: float) -> Gradient:
    """Make both passes over one batch, and divide by its pixels as the formula does."""
    softmax = sum_probabilities(logits, labels)
    weight = weigh_classes(softmax.sums.sum(dim=0), labels.numel(), focus)
    found = differentiate(softmax, weight)
    return Gradient(
        found.loss.sum().to(logits.dtype) / labels.numel(), found.logits / labels.numel()
    )


def make_case(
    windows: int, classes: int, rows: int, columns: int, scale: int, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(
        windows, classes, rows, columns, generator=generator, dtype=torch.float64
    )
    labels = torch.randint(
        0, classes + 1, (windows, rows * scale, columns * scale), generator=generator
    )
    return logits, labels.masked_fill(labels == classes, IGNORE)


def literal_loss(logits: Tensor, labels: Tensor, focus: float) -> Tensor:
    size = (labels.shape[1], labels.shape[2])
    large = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    mean = large.softmax(dim=1).mean(dim=(0, 2, 3)).detach()
    known = labels != IGNORE
    target = labels.masked_fill(~known, 0)
    chosen = large.log_softmax(dim=1).gather(1, target.unsqueeze(1)).squeeze(1)
    weight = (1 - mean)[target] ** focus
    return -(weight * chosen * known).sum() / known.numel()


# float64 goes through torch, which CUDA does too; float32 through the compiled loops
KINDS = [torch.float64, torch.float32]


@pytest.mark.parametrize("kind", KINDS)
@given(
    windows=st.integers(1, 4),
    classes=st.integers(2, 6),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    scale=st.integers(1, 5),
    focus=st.sampled_from([0.0, 1.0, 2.0, 2.5]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_loss_and_gradient_are_those_of_the_formula(
    kind: torch.dtype,
    windows: int,
    classes: int,
    rows: int,
    columns: int,
    scale: int,
    focus: float,
    seed: int,
) -> None:
    logits, labels = make_case(windows, classes, rows, columns, scale, seed)
    logits = logits.to(kind)
    found = compute_gradient(logits, labels, focus=focus)
    assert found.loss.dtype == found.logits.dtype == kind
    leaf = logits.double().requires_grad_()
    loss = literal_loss(leaf, labels, focus)
    gradient = torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(found.loss, loss.detach().to(kind))
    torch.testing.assert_close(found.logits, gradient.to(kind), rtol=1e-5, atol=1e-7)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    # without focus, because the weight is held fixed
    logits, labels = make_case(2, 3, 2, 2, 3, seed=4)
    found = compute_gradient(logits, labels, focus=0).logits
    step = 1e-6
    for index in range(logits.numel()):
        moved = torch.zeros(logits.numel(), dtype=torch.float64)
        moved[index] = step
        ahead, behind = (
            compute_gradient(logits + side * moved.reshape(logits.shape), labels, focus=0).loss
            for side in (1, -1)
        )
        slope = float(ahead - behind) / (2 * step)
        assert slope == pytest.approx(float(found.flatten()[index]), abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_weight_by_hand(kind: torch.dtype) -> None:
    # softmax (0.8, 0.2) everywhere: weights (1 - 0.8)^2 = 0.04 and (1 - 0.2)^2 = 0.64
    share = torch.tensor([0.8, 0.2], dtype=torch.float64)
    logits = share.log().reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    labels = torch.tensor([[[0, 1], [1, IGNORE]]])
    found = compute_gradient(logits.to(kind), labels, focus=2)
    expected = -(0.04 * share[0].log() + 2 * 0.64 * share[1].log()) / 4
    torch.testing.assert_close(found.loss, expected.to(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_no_gradient(kind: torch.dtype) -> None:
    logits, labels = make_case(2, 3, 2, 2, 2, seed=2)
    found = compute_gradient(logits.to(kind), torch.full_like(labels, IGNORE), focus=2)
    assert float(found.loss) == 0
    assert not found.logits.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_given_are_left_alone(kind: torch.dtype) -> None:
    logits, labels = make_case(1, 2, 2, 2, 2, seed=3)
    leaf, before = logits.to(kind).requires_grad_(), logits.detach().to(kind)
    found = compute_gradient(leaf, labels, focus=2)
    assert leaf.grad is None
    assert torch.equal(leaf.detach(), before)
    assert not found.loss.requires_grad


def test_both_ways_are_the_same() -> None:
    logits, labels = make_case(3, 5, 6, 4, 14, seed=8)
    logits = logits.float()
    softmax = sum_probabilities(logits, labels.to(torch.uint8))
    assert softmax.normaliser is not None
    weight = torch.rand(5, generator=torch.Generator().manual_seed(1))
    found = differentiate(softmax, weight)
    other = updates._differentiate_on_device(Softmax(softmax.sums, logits, labels), weight)
    torch.testing.assert_close(found.loss, other.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.logits, other.logits, rtol=1e-4, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = make_case(7, 5, 4, 4, 9, seed=9)
    results = []
    for threads in "125":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(compute_gradient(logits.float(), labels, focus=2))
    for other in results[1:]:
        assert torch.equal(other.loss, results[0].loss)
        assert torch.equal(other.logits, results[0].logits)
