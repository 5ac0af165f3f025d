"""The compiled M-step against softmax and autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import IGNORE
from stages.em.cross_entropy import LONGEST, REACH, differentiate_windows, sum_softmax
from stages.em.interpolation import allocate_rows

Result = tuple[np.ndarray, np.ndarray, np.ndarray]


def compute(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> Result:
    """Return sums of softmax [window, class], losses [window] and gradient, as compiled."""
    windows, height, width = labels.shape
    normaliser = allocate_rows(windows, height, width)
    sums, losses, gradient = np.empty(logits.shape[:2]), np.empty(windows), np.empty_like(logits)
    sum_softmax(logits, width, normaliser, sums)
    differentiate_windows(logits, labels, weight, normaliser, losses, gradient)
    return sums, losses, gradient


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


def make_case(
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
    case = make_case(windows, classes, grid, size, slope, seed)
    assert_close(compute(*case), compute_exactly(*case), size[0] * size[1], slope)


@pytest.mark.parametrize("slope", [1.0, 10.0, 100.0])
def test_the_published_size(slope: float) -> None:
    case = make_case(2, 28, (23, 23), (322, 322), slope, seed=1)
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
        case = make_case(1, 4, (3, 2), (3 * rows, 7), slope, seed=rows)
        assert_close(compute(*case), compute_exactly(*case), 21 * rows, slope)


def test_a_padding_class_takes_no_part() -> None:
    logits, labels, weight = make_case(2, 4, (3, 3), (12, 12), 2.0, seed=5)
    logits[:, 3] = -1e30
    labels[labels == 3] = IGNORE
    sums, losses, gradient = compute(logits, labels, weight)
    expected = compute_exactly(logits[:, :3].copy(), labels, weight)
    assert_close((sums[:, :3], losses, gradient[:, :3]), expected, 144, 2.0)
    assert sums[:, 3].max() < 1e-12
    assert np.abs(gradient[:, 3]).max() < 1e-12


def test_a_constant_added_to_all_classes_changes_nothing() -> None:
    logits, labels, weight = make_case(1, 4, (3, 3), (15, 15), 2.0, seed=6)
    logits = np.round(logits * 64) / 64
    found, moved = compute(logits, labels, weight), compute(logits + 4096, labels, weight)
    for one, other in zip(found, moved, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)


def test_numbers_that_are_none_come_out_as_none() -> None:
    logits, labels, weight = make_case(1, 4, (3, 3), (15, 15), 2.0, seed=7)
    logits[0, 1, 1, 1] = np.nan
    assert np.isnan(compute(logits, labels, weight)[1]).all()
