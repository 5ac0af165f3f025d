"""Interpolation: torch's own in float64, and the transpose by its definition.

How batches reach the compiled loops.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.em.interpolation import (
    LANES,
    NEVER,
    allocate_rows,
    downsample,
    find_taps,
    map_windows,
    narrow_row,
    pad_classes,
    runs_compiled,
    split_windows,
    upsample,
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
