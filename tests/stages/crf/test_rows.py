"""Rows of labels: their length and layout, and vertices that are set before they are added to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.crf.rows import arrange_logits, collect_labels, compile_rows, pad_labels
from stages.crf.stencil import REACH


@given(st.integers(1, 2000))
def test_rows_hold_all_labels_in_whole_registers(labels: int) -> None:
    lanes = pad_labels(labels)
    assert labels <= lanes < max(9, 2 * labels)
    assert lanes % 8 == 0 and lanes.bit_count() == 1


def test_one_length_is_compiled_once() -> None:
    assert compile_rows(16) is compile_rows(16)


@pytest.mark.parametrize("pixels", [1, 255, 257, 600])
def test_logits_are_the_lowest_energy_less_each(pixels: int) -> None:
    unary = np.random.default_rng(0).normal(0, 5, (3, pixels)).astype(np.float32)
    unary[1, 0] = 3e38
    logits = np.full((pixels, 8), np.nan, np.float32)
    arrange_logits(unary, logits)
    assert logits[0, 1] == np.float32(-1e30)
    assert (logits[:, 3:] == np.float32(-1e30)).all()
    assert (logits.max(axis=1) == 0).all()
    np.testing.assert_array_equal(logits[1:, :3], (unary.min(axis=0) - unary).T[1:])


def test_planes_are_collected_without_the_border() -> None:
    posterior = np.random.default_rng(0).random((5 + 2 * REACH, 4 + 2 * REACH, 8))
    planes = np.empty((3, 5, 4), np.float32)
    collect_labels(posterior.astype(np.float32), planes)
    inner = posterior.astype(np.float32)[REACH:-REACH, REACH:-REACH, :3]
    np.testing.assert_array_equal(planes, inner.transpose(2, 0, 1))


def test_splat_sets_new_rows_and_adds_to_known_ones() -> None:
    # Two pixels that share vertex 1; the rows hold rubbish before.
    corners = (
        np.array([[0, 1], [1, 2]], np.int32),
        np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
    )
    posterior = np.zeros((1 + 2 * REACH, 2 + 2 * REACH, 8), np.float32)
    posterior[REACH, REACH] = 1.0
    posterior[REACH, REACH + 1] = 10.0
    values = np.full((4, 8), np.nan, np.float32)
    values[-1] = 0.0
    compile_rows(8).splat(corners, posterior, values)
    assert values[:, 0].tolist() == [0.25, 5.75, 5.0, 0.0]


def test_blur_by_hand() -> None:
    # One axis with the runs 2-0-1 and 4-3; vertex 5 is alone.
    chains = np.array([2, 0, -2, 4, -4], np.int32)
    axes = np.array([0, 5], np.int64)
    values = np.zeros((7, 8), np.float32)
    values[:6] = np.arange(1, 7, dtype=np.float32)[:, None]
    compile_rows(8).blur(chains, axes, values)
    # v + (before + after) / 2, with the values before the blur on both sides.
    assert values[:, 7].tolist() == [
        1 + (3 + 2) / 2,
        2 + 1 / 2,
        3 + 1 / 2,
        4 + 5 / 2,
        5 + 4 / 2,
        6,
        0,
    ]
