"""The M-step: loss and gradient against autograd of the formula over the whole batch at once.

The compiled M-step against softmax and autograd in float64.

Exponential and logarithm against NumPy's in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.datasets.definition import IGNORE
from stages.em import maximisation
from stages.em.maximisation import (
    LONGEST,
    REACH,
    Gradient,
    Softmax,
    differentiate,
    exponentiate,
    sum_probabilities,
    take_logarithms,
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
    other = maximisation._differentiate_on_device(Softmax(softmax.sums, logits, labels), weight)
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


Result = tuple[np.ndarray, np.ndarray, np.ndarray]


def compute(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Result:
    """Return sums of softmax [window, class], losses [window] and gradient, as compiled."""
    softmax = sum_probabilities(torch.from_numpy(logits), torch.from_numpy(labels))
    found = differentiate(softmax, torch.from_numpy(weight[: logits.shape[1]]))
    return softmax.sums.numpy(), found.loss.numpy(), found.logits.numpy()


def compute_exactly(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Result:
    """Return the same by autograd in float64."""
    leaf = torch.from_numpy(logits).double().requires_grad_()
    large = F.interpolate(leaf, labels.shape[1:], mode="bilinear", align_corners=False)
    target = torch.from_numpy(labels).long()
    classes = logits.shape[1]
    losses = F.cross_entropy(
        large,
        target.where(target < classes, -1),
        torch.from_numpy(weight[:classes]).double(),
        ignore_index=-1,
        reduction="none",
    ).sum(dim=(1, 2))
    gradient = torch.autograd.grad(losses.sum(), leaf)[0]
    sums = large.detach().softmax(dim=1).sum(dim=(2, 3))
    return sums.numpy(), losses.detach().numpy(), gradient.numpy()


def make_case_cross_entropy(
    windows: int,
    classes: int,
    grid: tuple[int, int],
    size: tuple[int, int],
    slope: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = (slope * generator.normal(size=(windows, classes, *grid))).astype(np.float32)
    labels = generator.integers(0, classes + 1, size=(windows, *size))
    weight = np.zeros(256, np.float32)
    weight[:classes] = generator.uniform(size=classes)
    return logits, np.where(labels == classes, IGNORE, labels).astype(np.uint8), weight


def assert_close(found: Result, expected: Result, pixels: int, slope: float) -> None:
    rounding = 2e-6 * max(1.0, slope)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=rounding * pixels)
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-6, atol=rounding)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=rounding * pixels)


@given(
    windows=st.integers(1, 3),
    classes=st.sampled_from([2, 4, 6, 28]),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    slope=st.sampled_from([0.0, 0.1, 3.0, 30.0, 300.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_sums_losses_and_gradients_are_those_of_float64(
    windows: int,
    classes: int,
    grid: tuple[int, int],
    size: tuple[int, int],
    slope: float,
    seed: int,
) -> None:
    case = make_case_cross_entropy(windows, classes, grid, size, slope, seed)
    assert_close(compute(*case), compute_exactly(*case), size[0] * size[1], slope)


@pytest.mark.parametrize("slope", [1.0, 10.0, 100.0])
def test_the_published_size(slope: float) -> None:
    case = make_case_cross_entropy(2, 28, (23, 23), (322, 322), slope, seed=1)
    found, expected = compute(*case), compute_exactly(*case)
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    scale = np.abs(expected[2]).max()
    np.testing.assert_allclose(found[2] / scale, expected[2] / scale, atol=2e-6)


def test_by_hand() -> None:
    # softmax (0.8, 0.2) at every pixel
    share = np.array([0.8, 0.2])
    logits = np.log(share).astype(np.float32).reshape(1, 2, 1, 1)
    weight = np.zeros(256, np.float32)
    weight[:2] = 3, 5
    sums, losses, gradient = compute(logits, np.array([[[0, 1, IGNORE]]], np.uint8), weight)
    np.testing.assert_allclose(sums, [[2.4, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(losses, [-3 * np.log(0.8) - 5 * np.log(0.2)], rtol=1e-6)
    np.testing.assert_allclose(gradient.ravel(), [3 * -0.2 + 5 * 0.8, 3 * 0.2 - 5 * 0.8], rtol=1e-5)


@pytest.mark.parametrize("fall", [0.0, 1.0, 20.0, 60.0, 150.0, 1000.0])
def test_classes_that_trade_places_between_two_rows(fall: float) -> None:
    # half-way both are far below the largest of either end, and share the probability
    ends = np.array([[fall, 0.0], [0.0, fall], [-1e30, -1e30], [-fall, -3 * fall]], np.float32)
    logits = ends.reshape(1, 4, 2, 1)
    labels = np.zeros((1, 61, 5), np.uint8)
    weight = np.ones(256, np.float32)
    found, expected = compute(logits, labels, weight), compute_exactly(logits, labels, weight)
    assert_close(found, expected, 305, fall)
    np.testing.assert_allclose(found[0][0, :2], expected[0][0, :2], rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST + 1])
def test_any_number_of_rows_between_two_of_the_grid(rows: int) -> None:
    for slope in (0.5, float(REACH), 3 * float(REACH)):
        case = make_case_cross_entropy(1, 4, (3, 2), (3 * rows, 7), slope, seed=rows)
        assert_close(compute(*case), compute_exactly(*case), 21 * rows, slope)


def test_a_padding_class_takes_no_part() -> None:
    logits, labels, weight = make_case_cross_entropy(2, 4, (3, 3), (12, 12), 2.0, seed=5)
    logits[:, 3] = -1e30
    labels[labels == 3] = IGNORE
    sums, losses, gradient = compute(logits, labels, weight)
    expected = compute_exactly(logits[:, :3].copy(), labels, weight)
    assert_close((sums[:, :3], losses, gradient[:, :3]), expected, 144, 2.0)
    assert sums[:, 3].max() < 1e-12
    assert np.abs(gradient[:, 3]).max() < 1e-12


def test_a_constant_added_to_all_classes_changes_nothing() -> None:
    logits, labels, weight = make_case_cross_entropy(1, 4, (3, 3), (15, 15), 2.0, seed=6)
    logits = np.round(logits * 64) / 64
    found, moved = compute(logits, labels, weight), compute(logits + 4096, labels, weight)
    for one, other in zip(found, moved, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)


def test_numbers_that_are_none_come_out_as_none() -> None:
    logits, labels, weight = make_case_cross_entropy(1, 4, (3, 3), (15, 15), 2.0, seed=7)
    logits[0, 1, 1, 1] = np.nan
    assert np.isnan(compute(logits, labels, weight)[1]).all()


def test_the_exponential_is_right_to_the_last_digit() -> None:
    exponents = np.linspace(-87, 87, 100_001, dtype=np.float32)
    found = exponents.copy()
    exponentiate(found)
    np.testing.assert_allclose(found, np.exp(exponents.astype(np.float64)), rtol=1.2e-7)


def test_known_exponentials() -> None:
    values = np.array([0.0, 1.0, -1.0], np.float32)
    exponentiate(values)
    np.testing.assert_allclose(values, [1.0, np.e, 1 / np.e], rtol=1e-7)
    assert values[0] == 1


def test_the_logarithm_is_right_to_the_last_digits() -> None:
    far = np.exp(np.random.default_rng(0).uniform(-80, 80, 100_000))
    numbers = np.concatenate([far, np.linspace(0.5, 2.5, 100_001)]).astype(np.float32)
    found = numbers.copy()
    take_logarithms(found)
    expected = np.log(numbers.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1.1e-7, atol=1.1e-7)


def test_known_logarithms() -> None:
    values = np.array([1.0, 2.0, 0.25], np.float32)
    take_logarithms(values)
    np.testing.assert_allclose(values, [0, np.log(2), -2 * np.log(2)], rtol=1e-7)
    assert values[0] == 0
