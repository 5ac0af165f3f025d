"""The batch's lattice against dense float64 matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.crf.cuda.lattice import build_lattice
from stages.crf.cuda.passes import TORCH_PASSES, Lattice, filter_values
from stages.crf.inputs import CrfError
from tests.stages.crf.reference import kernel_matrix

Features = NDArray[np.float32]


def build(features: Features, images: int = 1) -> Lattice:
    """Build the lattice of features [pixel, dimension], 0 or more."""
    columns = torch.from_numpy(np.ascontiguousarray(features.T, np.float32))
    return build_lattice(columns, features.max(axis=0).tolist(), images, TORCH_PASSES)


def lattice_matrix(lattice: Lattice) -> NDArray[np.float32]:
    """Give the kernel matrix by filtering unit impulses."""
    pixels = len(lattice.vertices)
    buffers = (lattice.allocate_values(1, pixels), lattice.allocate_values(1, pixels))
    values = filter_values(TORCH_PASSES, lattice, torch.eye(pixels)[None], buffers)[0]
    sliced = torch.einsum("pc,pcl->pl", lattice.weights, values[lattice.vertices.long()])
    return sliced.numpy()


def draw_features(dimension: int, spread: float, pixels: int = 60) -> Features:
    features = np.random.default_rng(dimension).normal(0.0, spread, (pixels, dimension))
    return (features - features.min(axis=0)).astype(np.float32)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.3, 1.5, 10.0])
def test_filter_equals_dense_matrices(dimension: int, spread: float) -> None:
    features = draw_features(dimension, spread)
    np.testing.assert_allclose(
        lattice_matrix(build(features)), kernel_matrix(features.astype(np.float64)), atol=1e-5
    )


def test_images_share_no_vertex() -> None:
    features = draw_features(5, 1.5, 30)
    alone = lattice_matrix(build(features))
    both = lattice_matrix(build(np.concatenate([features, features]), images=2))
    assert both.tobytes() == np.kron(np.eye(2), alone).astype(np.float32).tobytes()


def test_keys_of_several_words_filter_alike() -> None:
    # A far pixel makes every coordinate so wide that five of them need two words.
    features = draw_features(5, 1.5, 40)
    far = np.concatenate([features, [[2.0**16, 0, 2.0**16, 0, 2.0**16]]]).astype(np.float32)
    matrix = lattice_matrix(build(far))
    np.testing.assert_allclose(matrix[:40, :40], lattice_matrix(build(features)), atol=1e-6)
    assert (matrix[40, :40] == 0.0).all() and matrix[40, 40] == pytest.approx(1.0)


def test_six_axes_as_wide_as_float32_allows() -> None:
    signs = np.stack(np.meshgrid(*[[0.0, 1.0]] * 6), axis=-1).reshape(-1, 6)
    lattice = build((1.03e5 * signs).astype(np.float32))
    np.testing.assert_allclose(lattice_matrix(lattice), np.eye(64), atol=1e-5)


def test_coordinates_beyond_float32_are_refused() -> None:
    with pytest.raises(CrfError, match="too narrow"):
        build(np.array([[0.0, 0.0], [1e9, 0.0]], np.float32))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 30), st.floats(0.01, 50.0), st.integers(0, 2**32 - 1))
@example(6, 6, 39.0, 5)  # its coordinates fill an integer to the last bit
def test_pixels_and_vertices_are_tied_both_ways(
    dimension: int, pixels: int, spread: float, seed: int
) -> None:
    features = np.random.default_rng(seed).normal(0.0, spread, (pixels, dimension))
    lattice = build((features - features.min(axis=0)).astype(np.float32))
    size, vertices = lattice.size, lattice.vertices.numpy()
    counts = lattice.starts.diff()
    owners = np.repeat(np.arange(size), counts)
    pairs = zip(owners, lattice.entries.numpy(), lattice.shares.numpy(), strict=True)
    expected = [
        (vertex, pixel, weight)
        for pixel, (row, weights) in enumerate(zip(vertices, lattice.weights.numpy(), strict=True))
        for vertex, weight in zip(row, weights, strict=True)
    ]
    assert list(pairs) == sorted(expected, key=lambda pair: pair[:2])
    assert counts.min() >= 1
    following, preceding = lattice.neighbours.unbind(dim=1)
    for ahead, back in zip(following.tolist(), preceding.tolist(), strict=True):
        assert all(back[other] == v for v, other in enumerate(ahead) if other < size)
        assert all(ahead[other] == v for v, other in enumerate(back) if other < size)


def test_a_crowd_is_listed() -> None:
    lattice = build(np.zeros((33, 2), np.float32))
    assert lattice.starts.diff().tolist() == [33, 33, 33]
    assert lattice.crowded.tolist() == [0, 1, 2]
    assert len(build(np.zeros((32, 2), np.float32)).crowded) == 0
