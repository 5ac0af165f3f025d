"""Interpolation: torch's own in float64, and the transpose by its definition.

How batches reach the compiled loops.

The E-step: classes of pixels, votes of proposals.

The compiled E-step against up-sampling, argmax and bincount in float64.

The M-step: loss and gradient against autograd of the formula over the whole batch at once.

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
from stages.em.pieces import compute_logits
from stages.em.pixels import (
    LANES,
    LONGEST,
    NEVER,
    REACH,
    Gradient,
    Softmax,
    _differentiate_on_device,
    allocate_rows,
    assign_proposals,
    differentiate,
    downsample,
    exponentiate,
    find_taps,
    map_windows,
    narrow_row,
    pad_classes,
    predict_pixels,
    runs_compiled,
    split_windows,
    sum_probabilities,
    take_logarithms,
    upsample,
    vote_proposals,
    weigh_classes,
    widen_row,
)

cells = st.integers(1, 9)
pixels = st.integers(1, 70)


def test_taps_by_hand() -> None:
    # centres of 6 pixels on 3 cells of 2 pixels: -1/4, 1/4, 3/4, 5/4, 7/4, 9/4
    taps = find_taps(3, 6)
    assert taps.first.tolist() == [0, 0, 1, 2]
    assert taps.second.tolist() == [0, 1, 2, 2]
    assert taps.starts.tolist() == [0, 1, 3, 5, 6]
    assert taps.share.tolist() == [0.75, 0.25, 0.75, 0.25, 0.75, 0.25]


@given(cells=cells, pixels=pixels, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_widened_row_is_torch_s(cells: int, pixels: int, seed: int) -> None:
    row = torch.randn(3, cells, generator=torch.Generator().manual_seed(seed))
    wide = allocate_rows(3, pixels)
    widen_row(row.numpy(), find_taps(cells, pixels), wide)
    expected = F.interpolate(row[None].double(), pixels, mode="linear", align_corners=False)[0]
    np.testing.assert_allclose(wide[:, :pixels], expected, atol=2e-6)
    assert (wide[:, pixels:] == wide[:, pixels - 1 : pixels]).all()


@given(cells=cells, pixels=pixels, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_narrowing_is_the_transpose(cells: int, pixels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    row = generator.normal(size=(2, cells)).astype(np.float32)
    weights = allocate_rows(2, pixels)
    weights[:] = generator.normal(size=weights.shape)
    wide, narrow = allocate_rows(2, pixels), np.ones_like(row)
    taps = find_taps(cells, pixels)
    widen_row(row, taps, wide)
    narrow_row(weights, taps, narrow)
    there = (wide[:, :pixels] * weights[:, :pixels]).sum(axis=1)
    np.testing.assert_allclose(((narrow - 1) * row).sum(axis=1), there, rtol=1e-4, atol=1e-4)


@given(rows=cells, columns=cells, height=pixels, width=pixels)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_products_interpolate_as_torch_does(
    rows: int, columns: int, height: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(rows + columns)
    logits = torch.randn(2, 3, rows, columns, generator=generator, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    expected = F.interpolate(leaf, (height, width), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(logits, (height, width)), expected.detach())
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    transposed = torch.autograd.grad(expected, leaf, gradient)[0]
    torch.testing.assert_close(downsample(gradient, (rows, columns)), transposed)


def test_rows_start_at_cache_lines() -> None:
    for shape in [(1,), (3, 5), (2, 3, 322)]:
        rows = allocate_rows(*shape)
        assert rows.shape == (*shape[:-1], -(-shape[-1] // LANES) * LANES)
        assert rows.ctypes.data % 64 == 0
        assert rows.strides[-1] == 4


def test_windows_are_split_without_loss() -> None:
    logits = torch.arange(5.0).reshape(5, 1, 1, 1)
    parts = [logits[run] for run in split_windows(logits, (1, 1))]
    assert torch.equal(torch.cat(parts), logits)


def test_only_float32_on_the_processor_is_compiled() -> None:
    assert runs_compiled(torch.zeros(1))
    assert not runs_compiled(torch.zeros(1, dtype=torch.float64))
    assert not runs_compiled(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_classes_are_padded_to_an_even_number(classes: int) -> None:
    logits = torch.randn(2, 3, 4, classes).permute(0, 3, 1, 2)
    padded = pad_classes(logits)
    assert padded.flags.c_contiguous
    assert padded.shape == (2, classes + classes % 2, 3, 4)
    np.testing.assert_array_equal(padded[:, :classes], logits)
    assert (padded[:, classes:] == NEVER).all()


@pytest.mark.parametrize("threads", ["1", "2", "3", "7"])
@pytest.mark.parametrize("windows", [1, 2, 5, 8])
def test_every_window_once(monkeypatch: pytest.MonkeyPatch, threads: str, windows: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    visits = np.zeros(windows, int)
    runs = []

    def visit(run: slice) -> None:
        visits[run] += 1
        runs.append(run)

    map_windows(visit, windows)
    assert visits.tolist() == [1] * windows
    assert len(runs) == min(int(threads), windows)


def test_an_error_in_a_thread_is_raised() -> None:
    def fail(run: slice) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        map_windows(fail, 3)


def test_a_vote_by_hand() -> None:
    predictions = torch.tensor([[[0, 1, 1], [2, 1, 0], [2, 2, 0]]])
    proposals = torch.tensor([[[1, 1, 1], [2, 2, 0], [2, 2, 0]]], dtype=torch.uint8)
    expected = torch.tensor([[[1, 1, 1], [2, 2, IGNORE], [2, 2, IGNORE]]])
    assert torch.equal(vote_proposals(predictions, proposals, 3), expected)


def test_of_equally_frequent_classes_the_smallest_wins() -> None:
    predictions = torch.tensor([[[3, 1, 1, 3]]])
    voted = vote_proposals(predictions, torch.ones(1, 1, 4, dtype=torch.uint8), 4)
    assert voted.tolist() == [[[1, 1, 1, 1]]]


def test_windows_vote_for_themselves() -> None:
    # the same proposal numbers, and not the same number of proposals
    proposals = torch.tensor([[[1, 1, 2]], [[1, 1, 0]], [[0, 0, 0]]], dtype=torch.uint8)
    predictions = torch.tensor([[[0, 0, 1]], [[1, 1, 0]], [[1, 1, 1]]])
    assert vote_proposals(predictions, proposals, 2).tolist() == [
        [[0, 0, 1]],
        [[1, 1, IGNORE]],
        [[IGNORE, IGNORE, IGNORE]],
    ]


@given(
    windows=st.integers(1, 4),
    side=st.integers(1, 7),
    most=st.integers(0, 254),
    classes=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_votes_agree_with_a_loop(
    windows: int, side: int, most: int, classes: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (windows, side, side)
    predictions = generator.integers(0, classes, size=shape)
    proposals = generator.choice([0, 1, 2, most], size=shape).astype(np.uint8)
    expected = np.full(shape, IGNORE)
    for window in range(windows):
        for proposal in set(proposals[window].ravel().tolist()) - {0}:
            inside = proposals[window] == proposal
            expected[window][inside] = np.bincount(predictions[window][inside]).argmax()
    voted = vote_proposals(torch.from_numpy(predictions), torch.from_numpy(proposals), classes)
    np.testing.assert_array_equal(voted, expected)


def test_upsampled_logits_are_the_logits_of_upsampled_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 5, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    size = (24, 35)
    large = upsample(features.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    logits = compute_logits(features, weight)
    torch.testing.assert_close(upsample(logits, size), compute_logits(large, weight))
    normalised = torch.nn.functional.normalize(large, dim=-1)
    expected = compute_logits(normalised, weight).argmax(dim=1)
    assert torch.equal(predict_pixels(logits, size), expected)


def make_case(windows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(windows, classes, 5, 4, generator=generator)
    proposals = torch.randint(0, 7, (windows, 5, 4), generator=generator, dtype=torch.uint8)
    return logits, proposals.repeat_interleave(9, dim=1).repeat_interleave(11, dim=2)


@pytest.mark.parametrize("classes", [2, 3, 27, 255])
def test_both_ways_assign_the_same(classes: int) -> None:
    # float32 goes through the compiled loops; float64 through torch, which CUDA does too
    logits, proposals = make_case(4, classes, seed=classes)
    found, other = (assign_proposals(kind, proposals) for kind in (logits, logits.double()))
    assert found.labels.dtype == other.labels.dtype == torch.uint8
    assert torch.equal(found.labels, other.labels)
    assert torch.equal(found.usage, other.usage)
    assert int(found.agreed) == int(other.agreed) > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_usage_counts_the_labelled_pixels(kind: torch.dtype) -> None:
    logits, proposals = make_case(3, 4, seed=1)
    assignment = assign_proposals(logits.to(kind), proposals)
    assert assignment.usage.tolist() == [int((assignment.labels == k).sum()) for k in range(4)]
    assert int(assignment.usage.sum()) == int((proposals > 0).sum())


def test_any_number_of_threads_assigns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, proposals = make_case(7, 5, seed=2)
    results = []
    for threads in "125":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(assign_proposals(logits, proposals))
    for other in results[1:]:
        assert torch.equal(other.labels, results[0].labels)
        assert torch.equal(other.usage, results[0].usage)
        assert torch.equal(other.agreed, results[0].agreed)


def vote(logits: np.ndarray, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tensors = (
        torch.from_numpy(np.ascontiguousarray(logits, np.float32)),
        torch.from_numpy(proposals),
    )
    found = [assign_proposals(*pair) for pair in zip(*(t.split(1) for t in tensors), strict=True)]
    labels, usage, agreed = zip(*found, strict=True)
    return torch.cat(labels).numpy(), torch.stack(usage).numpy(), torch.stack(agreed).numpy()


def spread(of_pixels: list[list[list[int]]]) -> np.ndarray:
    """Give each pixel, on a grid as large as the image, the class that it is to have."""
    return np.eye(4, dtype=np.float32)[np.array(of_pixels)].transpose(0, 3, 1, 2)


def test_a_vote_by_hand_votes() -> None:
    logits = spread([[[0, 1, 1], [2, 1, 0], [2, 2, 0]]])
    proposals = np.array([[[1, 1, 1], [2, 2, 0], [2, 2, 0]]], np.uint8)
    labels, usage, agreed = vote(logits, proposals)
    assert labels.tolist() == [[[1, 1, 1], [2, 2, IGNORE], [2, 2, IGNORE]]]
    assert usage.tolist() == [[0, 3, 4, 0]]
    assert agreed.tolist() == [2 + 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pinned_proposal_keeps_its_class(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(spread([[[0, 1, 1], [2, 1, 0], [2, 2, 0]]] * 2)).to(dtype)
    proposals = torch.tensor([[[1, 1, 1], [2, 2, 0], [2, 2, 0]]] * 2, dtype=torch.uint8)
    pins = torch.full((2, 256), IGNORE, dtype=torch.uint8)
    # the first window alone; a number that no proposal has says nothing
    pins[0, 2], pins[0, 9] = 3, 0
    found = assign_proposals(logits, proposals, pins)
    kept = [[1, 1, 1], [2, 2, IGNORE], [2, 2, IGNORE]]
    assert found.labels.tolist() == [[[1, 1, 1], [3, 3, IGNORE], [3, 3, IGNORE]], kept]
    assert found.usage.tolist() == [0, 6, 4, 4]
    assert int(found.agreed) == 2 + (2 + 3)


def test_of_equally_frequent_classes_the_smallest_wins_votes() -> None:
    labels, *_ = vote(spread([[[3, 1, 1, 3]]]), np.ones((1, 1, 4), np.uint8))
    assert labels.tolist() == [[[1, 1, 1, 1]]]


@pytest.mark.parametrize("classes", [2, 4, 6])
def test_of_equal_logits_the_smallest_class_wins(classes: int) -> None:
    row = np.random.default_rng(classes).normal(size=(1, 1, 3, 3))
    for first in range(classes):
        logits = np.repeat(row, classes, axis=1)
        logits[:, :first] -= 1
        labels, *_ = vote(logits, np.ones((1, 20, 17), np.uint8))
        assert np.unique(labels).tolist() == [first]


def test_windows_vote_for_themselves_votes() -> None:
    logits = spread([[[0, 0, 1]], [[1, 1, 0]], [[1, 1, 1]]])
    proposals = np.array([[[1, 1, 2]], [[1, 1, 0]], [[0, 0, 0]]], np.uint8)
    labels, usage, agreed = vote(logits, proposals)
    assert labels.tolist() == [[[0, 0, 1]], [[1, 1, IGNORE]], [[IGNORE, IGNORE, IGNORE]]]
    assert usage.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]
    assert agreed.tolist() == [3, 2, 0]


@given(
    classes=st.sampled_from([2, 4, 12, 28]),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    most=st.sampled_from([1, 3, 12, 255]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_votes_agree_with_float64(
    classes: int, grid: tuple[int, int], size: tuple[int, int], most: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(2, classes, *grid)).astype(np.float32)
    proposals = generator.integers(0, most + 1, size=(2, *size)).astype(np.uint8)
    labels, usage, agreed = vote(logits, proposals)
    large = F.interpolate(
        torch.from_numpy(logits).double(), size, mode="bilinear", align_corners=False
    ).numpy()
    ranked = np.sort(large, axis=1)
    unsure = ranked[:, -1] - ranked[:, -2] < 1e-5
    assert ((labels == IGNORE) == (proposals == 0)).all()
    for window in range(2):
        for proposal in np.unique(proposals[window][proposals[window] > 0]):
            inside = proposals[window] == proposal
            (label,) = np.unique(labels[window][inside])
            votes = np.bincount(large[window].argmax(axis=0)[inside], minlength=classes)
            assert votes[label] + 2 * unsure[window][inside].sum() >= votes.max()
            if not unsure[window][inside].any():
                assert label == votes.argmax()
        counted = [(labels[window] == label).sum() for label in range(classes)]
        assert usage[window].tolist() == counted
        right = (labels[window] == large[window].argmax(axis=0)).sum()
        assert abs(agreed[window] - right) <= 2 * unsure[window].sum()


def test_numbers_that_are_none_do_no_harm() -> None:
    logits = np.full((1, 4, 3, 3), np.nan, np.float32)
    labels, *_ = vote(logits, np.ones((1, 9, 9), np.uint8))
    assert (labels < 4).all()


def compute_gradient(logits: Tensor, labels: Tensor, *, focus: float) -> Gradient:
    """Make both passes over one batch, and divide by its pixels as the formula does."""
    softmax = sum_probabilities(logits, labels)
    weight = weigh_classes(softmax.sums.sum(dim=0), labels.numel(), focus)
    found = differentiate(softmax, weight)
    return Gradient(
        found.loss.sum().to(logits.dtype) / labels.numel(), found.logits / labels.numel()
    )


def make_step(
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
    logits, labels = make_step(windows, classes, rows, columns, scale, seed)
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
    logits, labels = make_step(2, 3, 2, 2, 3, seed=4)
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
    logits, labels = make_step(2, 3, 2, 2, 2, seed=2)
    found = compute_gradient(logits.to(kind), torch.full_like(labels, IGNORE), focus=2)
    assert float(found.loss) == 0
    assert not found.logits.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_given_are_left_alone(kind: torch.dtype) -> None:
    logits, labels = make_step(1, 2, 2, 2, 2, seed=3)
    leaf, before = logits.to(kind).requires_grad_(), logits.detach().to(kind)
    found = compute_gradient(leaf, labels, focus=2)
    assert leaf.grad is None
    assert torch.equal(leaf.detach(), before)
    assert not found.loss.requires_grad


def test_both_ways_are_the_same() -> None:
    logits, labels = make_step(3, 5, 6, 4, 14, seed=8)
    logits = logits.float()
    softmax = sum_probabilities(logits, labels.to(torch.uint8))
    assert softmax.normaliser is not None
    weight = torch.rand(5, generator=torch.Generator().manual_seed(1))
    found = differentiate(softmax, weight)
    other = _differentiate_on_device(Softmax(softmax.sums, logits, labels), weight)
    torch.testing.assert_close(found.loss, other.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.logits, other.logits, rtol=1e-4, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = make_step(7, 5, 4, 4, 9, seed=9)
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
