"""Simplices and vertex numbers against a float64 reference, pixel by pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.crf.embedding import embed_pixels
from tests.stages.crf.reference import find_simplex


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


def test_so_many_vertices_that_the_table_grows() -> None:
    features = np.random.default_rng(2).uniform(0.0, 400.0, (5, 4000)).astype(np.float32)
    embedding = embed_pixels(features)
    vertices = len(embedding.sums)
    assert vertices > 2**14
    assert np.unique(embedding.keys, axis=1).shape == (2, vertices)
