"""The dense CRF in float64 and dense matrices, for images of a few dozen pixels.

Written for the tests from Adams, Baek and Davis 2010 and Krähenbühl and Koltun 2011, as matrices
rather than as sweeps: K = slice . blur_d ... blur_0 . splat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.crf.settings import CrfSettings

Matrix = NDArray[np.float64]


def kernel_matrix(features: Matrix) -> Matrix:
    """Give the normalised kernel matrix [pixel, pixel] of features [pixel, dimension]."""
    pixels, dimension = features.shape
    corners = [find_simplex(feature) for feature in features]
    names: dict[tuple[int, ...], int] = {}
    for keys, _ in corners:
        for key in keys:
            names.setdefault(key, len(names))
    splat = np.zeros((len(names), pixels))
    for pixel, (keys, weights) in enumerate(corners):
        for key, weight in zip(keys, weights, strict=True):
            splat[names[key], pixel] += weight
    values = splat
    for axis in range(dimension + 1):
        step = np.ones(dimension + 1, int)
        step[axis] = -dimension
        blur = np.eye(len(names))
        for key, vertex in names.items():
            for sign in (-1, 1):
                neighbour = names.get(tuple((np.array(key) + sign * step).tolist()))
                if neighbour is not None:
                    blur[vertex, neighbour] += 0.5
        values = blur @ values
    kernel = splat.T @ values / (1.0 + 2.0**-dimension)
    norm = 1.0 / np.sqrt(kernel.sum(axis=1) + 1e-20)
    normalised: Matrix = norm[:, None] * kernel * norm[None, :]
    return normalised


def find_simplex(feature: Matrix) -> tuple[list[tuple[int, ...]], Matrix]:
    """Give the vertices of the enclosing simplex and the barycentric weights of one feature."""
    dimension = len(feature)
    count = dimension + 1
    axis = np.arange(dimension)
    scaled = feature * np.sqrt(2 / 3) * count / np.sqrt((axis + 1) * (axis + 2))
    basis = np.triu(np.ones((count, dimension)))
    basis[np.arange(1, count), axis] = -np.arange(1, count)
    elevated = basis @ scaled
    nearest = np.round(elevated / count).astype(int)
    # Stable: of two equal differentials the first axis counts as the larger.
    falling = np.argsort(-(elevated - nearest * count), kind="stable")
    excess = nearest.sum()
    if excess > 0:
        nearest[falling[count - excess :]] -= 1
    elif excess < 0:
        nearest[falling[:-excess]] += 1
    origin = nearest * count
    differential = elevated - origin
    falling = np.argsort(-differential, kind="stable")
    sorted_differential = differential[falling]
    weights = np.empty(count)
    weights[1:] = (sorted_differential[:-1] - sorted_differential[1:])[::-1] / count
    weights[0] = 1.0 - weights[1:].sum()
    vertices = []
    for colour in range(count):
        vertex = origin + colour
        vertex[falling[count - colour :]] -= count
        vertices.append(tuple(vertex.tolist()))
    return vertices, weights


def infer_reference(
    unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
) -> Matrix:
    """Infer the posterior [label, y, x] by dense matrices."""
    labels, height, width = unary.shape
    energies = unary.reshape(labels, -1).astype(np.float64)
    rows, columns = np.indices((height, width)).reshape(2, -1)
    positions = np.stack([columns, rows], axis=1).astype(np.float64)
    colours = image.reshape(-1, 3).astype(np.float64)
    near = kernel_matrix(positions / settings.spatial_sxy)
    alike = kernel_matrix(
        np.hstack([positions / settings.bilateral_sxy, colours / settings.bilateral_srgb])
    )
    kernel = settings.spatial_weight * near + settings.bilateral_weight * alike

    posterior = _softmax(-energies)
    for _ in range(settings.iterations):
        posterior = _softmax(-energies + posterior @ kernel.T)
    return posterior.reshape(labels, height, width)


def _softmax(logits: Matrix) -> Matrix:
    powers = np.exp(logits - logits.max(axis=0))
    shares: Matrix = powers / powers.sum(axis=0)
    return shares
