"""The permutohedral lattice against dense float64 matrices and against the true Gaussian.

Simplices and vertex numbers against a float64 reference, pixel by pixel.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.crf.definition import CrfError
from stages.crf.lattice import Lattice, build_lattice, embed_pixels
from stages.crf.mean_field import REACH, compile_rows, pad_labels
from tests.stages.crf.reference import find_simplex, kernel_matrix


def filter_rows(lattice: Lattice, source: NDArray[np.float32]) -> NDArray[np.float32]:
    """Filter [pixel, channel] with the lattice, slice included."""
    pixels, channels = source.shape
    kernels = compile_rows(pad_labels(channels))
    rows = np.zeros((1 + 2 * REACH, pixels + 2 * REACH, pad_labels(channels)), np.float32)
    rows[REACH, REACH:-REACH, :channels] = source
    values = np.full((lattice.size + 1, rows.shape[2]), np.nan, np.float32)
    values[-1] = 0.0
    kernels.splat((lattice.vertices, lattice.weights), rows, values)
    kernels.blur(lattice.chains, lattice.axes, values)
    sliced = np.einsum("pc,pcl->pl", lattice.weights, values[lattice.vertices])
    return np.asarray(sliced[:, :channels], np.float32)


def lattice_matrix(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the kernel matrix of a lattice of features [pixel, dimension] by filtering impulses."""
    lattice = build_lattice(np.ascontiguousarray(features.T))
    pixels = len(features)
    impulses = np.eye(pixels, dtype=np.float32)
    parts = [
        filter_rows(lattice, impulses[:, first : first + 32]) for first in range(0, pixels, 32)
    ]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.3, 1.5, 10.0])
def test_filter_equals_dense_matrices(dimension: int, spread: float) -> None:
    generator = np.random.default_rng(dimension)
    features = generator.normal(0.0, spread, (60, dimension)).astype(np.float32)
    np.testing.assert_allclose(
        lattice_matrix(features), kernel_matrix(features.astype(np.float64)), atol=1e-5
    )


def test_one_dimension_by_hand() -> None:
    # d = 1: the scale is sqrt(2/3) * 2 / sqrt(2), vertices lie on a line. A pixel on the origin
    # splats 1 to the vertex (0, 0) and 0 to (1, -1); the blur along two axes gives the first
    # 1 + 1/2 * 0, then 1 + 1/2 * (0 + 1/2 ...); after normalisation a lone pixel keeps its value.
    lattice = build_lattice(np.zeros((1, 1), np.float32))
    assert lattice.size == 2
    assert filter_rows(lattice, np.ones((1, 1), np.float32))[0, 0] == pytest.approx(1.0)


def test_far_apart_clusters_need_wide_keys_and_do_not_meet() -> None:
    generator = np.random.default_rng(3)
    cluster = generator.normal(0.0, 1.0, (20, 5)).astype(np.float32)
    far = np.float32(2.0**15) * np.array([1, -1, 1, -1, 1], np.float32)
    features = np.concatenate([cluster, far + np.round(cluster * 8) / 8]).astype(np.float32)
    matrix = lattice_matrix(features)
    assert (matrix[:20, 20:] == 0.0).all()
    np.testing.assert_allclose(matrix, kernel_matrix(features.astype(np.float64)), atol=0.02)
    np.testing.assert_allclose(matrix[:20, :20], lattice_matrix(cluster), atol=1e-6)


def test_keys_that_differ_in_the_second_integer_alone_are_told_apart() -> None:
    # Forty clusters whose lattice coordinates differ in axes 3 and 4 only; a far pixel makes the
    # keys so wide that these two axes are all that the second integer holds. So many, that some
    # of them meet in the hash table.
    count = 6
    axis = np.arange(count - 1)
    basis = np.triu(np.ones((count, count - 1)))
    basis[axis + 1, axis] = -(axis + 1)
    step = 8 * count * np.array([0, 0, 0, 1, -1, 0])
    scale = np.sqrt(2 / 3) * count / np.sqrt((axis + 1) * (axis + 2))
    shift = basis.T @ step / (basis**2).sum(axis=0) / scale
    cluster = np.random.default_rng(5).normal(0.0, 0.4, (3, 5))
    clusters = (np.arange(40)[:, None, None] * shift + cluster).reshape(120, 5)
    far = 2.0**15 * np.array([[1, -1, 1, -1, 1]])
    matrix = lattice_matrix(np.concatenate([clusters, far]).astype(np.float32))
    alone = lattice_matrix(cluster.astype(np.float32))
    np.testing.assert_allclose(matrix[:120, :120], np.kron(np.eye(40), alone), atol=1e-3)


def test_filter_looks_like_the_gaussian() -> None:
    rows, columns = np.indices((41, 41)).reshape(2, -1)
    features = (np.stack([columns, rows], axis=1) / 4.0).astype(np.float32)
    impulse = np.zeros((41 * 41, 1), np.float32)
    impulse[41 * 20 + 20] = 1.0
    response = filter_rows(build_lattice(np.ascontiguousarray(features.T)), impulse)[:, 0]
    distance = ((features - features[41 * 20 + 20]) ** 2).sum(axis=1)
    gaussian = np.exp(-distance / 2)
    response /= response.sum()
    gaussian /= gaussian.sum()
    variance = float(response @ distance) / 2
    assert variance == pytest.approx(1.0, abs=0.15)
    assert np.abs(response - gaussian).max() < 0.25 * gaussian.max()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 30), st.floats(0.01, 50.0), st.integers(0, 2**32 - 1))
def test_weights_and_chains_are_well_formed(
    dimension: int, pixels: int, spread: float, seed: int
) -> None:
    features = np.random.default_rng(seed).normal(0.0, spread, (pixels, dimension))
    lattice = build_lattice(np.ascontiguousarray(features.T, np.float32))
    assert set(np.unique(lattice.vertices)) == set(range(lattice.size))
    assert (lattice.weights > -1e-3).all()
    for first, last in zip(lattice.axes[:-1], lattice.axes[1:], strict=True):
        run = lattice.chains[first:last]
        vertices = np.where(run < 0, -1 - run, run)
        assert len(np.unique(vertices)) == len(vertices)
        assert len(run) == 0 or run[-1] < 0
    distinct = {key for feature in features for key in find_simplex(feature.astype(np.float32))[0]}
    assert abs(len(distinct) - lattice.size) <= 0.1 * lattice.size


def test_coordinates_beyond_float32_are_refused() -> None:
    with pytest.raises(CrfError, match="too narrow"):
        build_lattice(np.array([[0.0, 1e9], [0.0, 0.0]], np.float32))


def test_keys_of_more_than_two_integers_are_refused() -> None:
    signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 6), axis=-1).reshape(-1, 6)
    with pytest.raises(CrfError, match="too narrow"):
        build_lattice(np.ascontiguousarray(1.03e5 * signs.T, np.float32))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 40), st.floats(0.05, 300.0), st.integers(0, 2**32 - 1))
def test_simplices_are_those_of_the_reference(
    dimension: int, pixels: int, spread: float, seed: int
) -> None:
    features = np.random.default_rng(seed).normal(0.0, spread, (dimension, pixels))
    features = features.astype(np.float32)
    embedding = embed_pixels(features)
    names: dict[tuple[int, ...], int] = {}
    for pixel in range(pixels):
        keys, weights = find_simplex(features[:, pixel].astype(np.float64))
        tolerance = 1e-5 * (1.0 + spread)
        np.testing.assert_allclose(embedding.weights[pixel], weights, atol=tolerance)
        # Where a weight is next to 0, float32 may choose the simplex on the other side.
        if weights.min() > tolerance:
            for key, vertex in zip(keys, embedding.vertices[pixel].tolist(), strict=True):
                assert names.setdefault(key, vertex) == vertex
    assert len(set(names.values())) == len(names)


def test_vertices_are_numbered_in_order_of_appearance() -> None:
    features = np.random.default_rng(0).normal(0.0, 20.0, (5, 500)).astype(np.float32)
    embedding = embed_pixels(features)
    seen = np.maximum.accumulate(embedding.vertices.ravel())
    assert (np.diff(seen, prepend=-1) <= 1).all()
    assert seen[-1] + 1 == embedding.keys.shape[1] == len(embedding.sums)


def test_sums_are_those_of_the_weights() -> None:
    features = np.random.default_rng(1).normal(0.0, 2.0, (3, 333)).astype(np.float32)
    embedding = embed_pixels(features)
    expected = np.bincount(embedding.vertices.ravel(), embedding.weights.ravel().astype(np.float64))
    np.testing.assert_allclose(embedding.sums, expected, rtol=1e-5)
    np.testing.assert_allclose(embedding.weights.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("pixels", [4000, 6000])  # the latter fill it to more than half
def test_so_many_vertices_that_the_table_grows(pixels: int) -> None:
    features = np.random.default_rng(2).uniform(0.0, 400.0, (5, pixels)).astype(np.float32)
    embedding = embed_pixels(features)
    vertices = len(embedding.sums)
    assert vertices > 2**14
    assert np.unique(embedding.keys, axis=1).shape == (2, vertices)
