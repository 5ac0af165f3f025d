"""The permutohedral lattice: Gaussian filtering of many pixels at once, in any few dimensions.

Sources: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010 (embedding, splat, blur, slice); Krähenbühl and Koltun, "Efficient Inference in
Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011 (the symmetric normalisation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compilation import compile_kernel
from stages.crf.embedding import embed_pixels


@dataclass(frozen=True)
class Lattice:
    """The vertices that some pixel touches, and how pixels and vertices are tied to each other.

    Parameters
    ----------
    vertices : int32 [pixel, corner]
        The vertices of the simplex that encloses each pixel, numbered in order of appearance.
    weights : float32 [pixel, corner]
        Barycentric weights of the pixel in its simplex, times the pixel's kernel normalisation.
    chains : int32 [entry]
        For every lattice axis in turn, the runs of two or more vertices that neighbour each other
        along it; the last vertex v of a run is stored as -1 - v.
    axes : int64 [axis + 1]
        Where the runs of each axis begin and end in `chains`.
    size : int
        Number of vertices.
    """

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    chains: NDArray[np.int32]
    axes: NDArray[np.int64]
    size: int


def build_lattice(features: NDArray[np.float32]) -> Lattice:
    """Build the lattice of the pixels' features, normalised symmetrically.

    Parameters
    ----------
    features : float32 [dimension, pixel]
        Positions in a space where the kernel is a Gaussian of standard deviation 1.

    Returns
    -------
    Lattice
        Filtering with it is D^-1/2 K D^-1/2, where D holds the sums of the kernel K over pixels
        (found by filtering ones on the same lattice). The papers' factor of the slice,
        1 / (1 + 2^-d), cancels in it.

    Raises
    ------
    CrfError
        A coordinate is so large that float32 cannot tell neighbouring vertices apart.
    """
    vertices, weights, sums, keys, steps = embed_pixels(features)
    ranking = np.lexsort(keys.T) if keys[:, 1].any() else np.argsort(keys[:, 0])
    chains, axes = _chain_vertices(keys[ranking], ranking.astype(np.int32), steps)
    _blur_numbers(chains, axes, sums)
    _normalise_weights(vertices, weights, sums)
    return Lattice(vertices, weights, chains, axes, len(keys))


@compile_kernel
def _chain_vertices(
    keys: NDArray[np.int64], names: NDArray[np.int32], steps: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """List the runs of neighbouring vertices along each axis.

    The keys [place, word] ascend and `names` [place] are their vertices. A neighbour's key is
    larger by a constant, so that one sweep of two pointers finds all neighbours along an axis.
    """
    size = len(keys)
    count = steps.shape[1]
    chains = np.empty(size * count, np.int32)
    axes = np.zeros(count + 1, np.int64)
    following = np.empty(size + 1, np.int32)
    preceded = np.empty(size + 1, np.bool_)
    entry = 0
    for axis in range(count):
        preceded[:] = False
        following[:] = -1
        _find_following(keys, steps[0, axis], steps[1, axis], following, preceded)
        for place in range(size):
            if preceded[place] or following[place] < 0:
                continue
            current = place
            while following[current] >= 0:
                chains[entry] = names[current]
                entry += 1
                current = following[current]
            chains[entry] = -1 - names[current]
            entry += 1
        axes[axis + 1] = entry
    return chains[:entry].copy(), axes


@compile_kernel
def _find_following(
    keys: NDArray[np.int64],
    step_low: int,
    step_high: int,
    following: NDArray[np.int32],
    preceded: NDArray[np.bool_],
) -> None:
    """Set each vertex's neighbour on one side, and mark those that are a neighbour.

    Both pointers advance by the outcome of a comparison and not by a branch: which of them
    advances is as good as random, and a branch guessed wrong costs more than the step itself.
    """
    size = len(keys)
    place = other = 0
    while place < size and other < size:
        low = keys[place, 0] + step_low
        high = keys[place, 1] + step_high
        other_low = keys[other, 0]
        other_high = keys[other, 1]
        same = (low == other_low) & (high == other_high)
        following[place] = other if same else -1
        preceded[other] |= same
        less = (high < other_high) | ((high == other_high) & (low < other_low))
        place += less | same
        other += not less


@compile_kernel
def _blur_numbers(
    chains: NDArray[np.int32], axes: NDArray[np.int64], values: NDArray[np.float32]
) -> None:
    """Blur one number per vertex, in place; see `stages.crf.rows.RowKernels.blur`."""
    before = np.float32(0.0)
    for entry in range(axes[-1]):
        vertex = chains[entry]
        after = np.float32(0.0)
        if vertex < 0:
            vertex = -1 - vertex
            own = values[vertex]
            values[vertex] = own + np.float32(0.5) * before
            before = np.float32(0.0)
        else:
            link = chains[entry + 1]
            after = values[link if link >= 0 else -1 - link]
            own = values[vertex]
            values[vertex] = own + np.float32(0.5) * (before + after)
            before = own


@compile_kernel
def _normalise_weights(
    vertices: NDArray[np.int32],
    weights: NDArray[np.float32],
    sums: NDArray[np.float32],
) -> None:
    """Multiply the weights by 1 / sqrt(K1 + 1e-20), in place, K1 being the slice of `sums`."""
    pixels, count = vertices.shape
    for pixel in range(pixels):
        total = np.float32(0.0)
        for corner in range(count):
            total += weights[pixel, corner] * sums[vertices[pixel, corner]]
        norm = np.float32(1.0) / np.sqrt(total + np.float32(1e-20))
        for corner in range(count):
            weights[pixel, corner] *= norm
