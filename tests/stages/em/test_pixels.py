"""Interpolation: torch's own in float64, and the transpose by its definition.

How batches reach the compiled loops.

The E-step: classes of pixels, votes of proposals.

The compiled E-step against up-sampling, argmax and bincount in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.definition import IGNORE
from stages.em.pieces import compute_logits
from stages.em.pixels import (
    LANES,
    NEVER,
    allocate_rows,
    assign_proposals,
    downsample,
    find_taps,
    map_windows,
    narrow_row,
    pad_classes,
    predict_pixels,
    runs_compiled,
    split_windows,
    upsample,
    vote_proposals,
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
