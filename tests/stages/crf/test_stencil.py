"""The spatial stencil against the lattice that it multiplies out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.compilation import compile_kernel
from pipeline.vectors import zeros
from stages.crf.lattice import build_lattice
from stages.crf.mean_field import build_spatial_operator, spatial_features
from stages.crf.rows import pad_labels
from stages.crf.stencil import BAND, REACH, choose_row, gather_band, multiply_out
from tests.stages.crf.reference import kernel_matrix


@compile_kernel
def gather(posterior: NDArray[np.float32], stencil: NDArray[np.float32], y: int, band) -> None:
    gather_band(posterior, stencil, y, band, zeros(8))


def send_messages(
    posterior: NDArray[np.float32], stencil: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Gather the messages [y, x, label] of a posterior [y, x, label], band by band."""
    height, width, labels = posterior.shape
    padded = np.zeros((height + 2 * REACH, width + 2 * REACH, pad_labels(labels)), np.float32)
    padded[REACH:-REACH, REACH:-REACH, :labels] = posterior
    messages = np.zeros((-(-height // BAND), BAND, width, pad_labels(labels)), np.float32)
    for band, rows in enumerate(messages):
        gather(padded, stencil, band * BAND, rows)
    return messages.reshape(-1, *messages.shape[2:])[:height, :, :labels]


@pytest.mark.parametrize("height", [1, 2, 5, 12, 13, 14, 17, 24, 27])
@pytest.mark.parametrize("labels", [1, 24])
def test_equals_the_dense_matrix_at_any_height(height: int, labels: int) -> None:
    width = 9
    rows, columns = np.indices((height, width)).reshape(2, -1)
    matrix = kernel_matrix(np.stack([columns, rows], axis=1).astype(np.float64))
    posterior = np.random.default_rng(height).random((height, width, labels)).astype(np.float32)
    found = send_messages(posterior, build_spatial_operator(height, width, 1.0))
    expected = (matrix @ posterior.reshape(-1, labels)).reshape(posterior.shape)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_row_far_from_the_borders_repeats() -> None:
    lattice = build_lattice(spatial_features(30, 40, 1.0))
    stencil = multiply_out(lattice, 30, 40)
    np.testing.assert_allclose(
        stencil[6:-6], np.broadcast_to(stencil[14], (18, 40, 7, 7)), atol=1e-6
    )
    assert np.abs(stencil[5] - stencil[14]).max() > 1e-6


def test_no_weight_stands_outside_the_stencil() -> None:
    # A stencil's messages add up to those of the lattice, whose kernel may not reach further.
    lattice = build_lattice(spatial_features(20, 21, 1.0))
    stencil = multiply_out(lattice, 20, 21)
    assert (stencil[:, :, [0, 0, 1, 1, 5, 5, 6, 6], [0, 6, 0, 6, 0, 6, 0, 6]] == 0.0).all()
    assert (np.abs(stencil) > 0).any(axis=(0, 1)).sum() == 41


def test_rows_are_counted_from_the_nearer_border() -> None:
    assert [choose_row(y, 20, 13) for y in range(20)] == [
        *range(6),
        *[6] * 8,
        *range(7, 13),
    ]
    assert [choose_row(y, 9, 9) for y in range(9)] == list(range(9))
