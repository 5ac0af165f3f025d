"""Simplices and barycentric weights against the float64 reference, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.crf.cuda.embedding import Simplices, embed_features
from tests.stages.crf.reference import find_simplex


def list_vertices(simplices: Simplices, pixel: int) -> list[tuple[int, ...]]:
    """List the coordinates of one pixel's vertices, colour by colour."""
    vertex = simplices.origins[:, pixel].long().clone()
    found = []
    for axis in reversed(simplices.axes[:, pixel].tolist()):
        found.append(tuple(vertex.tolist()))
        vertex += 1
        vertex[axis] -= len(vertex)
    return found


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("spread", [0.3, 10.0])
def test_equals_the_reference(dimension: int, spread: float) -> None:
    features = np.random.default_rng(dimension).normal(0.0, spread, (dimension, 80))
    simplices = embed_features(torch.from_numpy(features.astype(np.float32)))
    for pixel in range(80):
        vertices, weights = find_simplex(features[:, pixel])
        assert list_vertices(simplices, pixel) == vertices
        np.testing.assert_allclose(simplices.weights[pixel], weights, atol=1e-5)


def test_one_dimension_by_hand() -> None:
    # d = 1: the scale is sqrt(2/3) * 2 / sqrt(2) = 1.1547, cells are 2 wide. 0.5 lies at 0.577,
    # between the vertices (0, 0) and (1, -1): a share of 0.577 goes to the second.
    simplices = embed_features(torch.tensor([[0.0, 0.5]]))
    assert list_vertices(simplices, 0) == list_vertices(simplices, 1) == [(0, 0), (1, -1)]
    torch.testing.assert_close(
        simplices.weights, torch.tensor([[1.0, 0.0], [0.42265, 0.57735]]), atol=1e-5, rtol=0
    )


def test_axes_are_a_permutation_also_where_differentials_are_equal() -> None:
    features = torch.zeros(5, 7)
    features[0] = torch.arange(7) * 3.0
    simplices = embed_features(features)
    assert (simplices.axes.sort(dim=0).values == torch.arange(6)[:, None]).all()
    assert (simplices.origins.sum(dim=0) == 0).all()
