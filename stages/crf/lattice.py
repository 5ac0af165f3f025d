"""The permutohedral lattice: Gaussian filtering of many pixels at once, in any few dimensions.

Sources: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010 (embedding, splat, blur, slice); Krähenbühl and Koltun, "Efficient Inference in
Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011 (the symmetric normalisation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.compilation import compile_kernel
from pipeline.scratch import take_scratch
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

    def keep(self) -> Lattice:
        """Return a copy in memory of its own."""
        return replace(
            self,
            vertices=self.vertices.copy(),
            weights=self.weights.copy(),
            chains=self.chains.copy(),
        )


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
        1 / (1 + 2^-d), cancels in it. In scratch memory: it holds until the thread builds another;
        `keep` returns one that stays.

    Raises
    ------
    CrfError
        A coordinate is so large that float32 cannot tell neighbouring vertices apart.
    """
    vertices, weights, sums, keys, steps = embed_pixels(features)
    size, axes = len(sums), np.empty(steps.shape[1] + 1, np.int64)
    wide = bool(steps[1].any())
    ranking = np.lexsort(keys) if wide else np.argsort(keys[0])
    low, high = take_scratch("ascending", (2, size), np.int64)
    np.take(keys[0], ranking, out=low)
    np.take(keys[1], ranking, out=high)
    chains = take_scratch("chains", (steps.shape[1] * size,), np.int32)
    following = take_scratch("following", (size,), np.int32)
    preceded = take_scratch("preceded", (size,), np.bool_)
    starts = take_scratch("starts", (size + 1,), np.int32)
    entry = axes[0] = 0
    for axis in range(len(axes) - 1):
        if wide:
            _find_far(low, high, ranking, *steps[:, axis], following, preceded)
        else:
            _find_near(low, ranking, steps[0, axis], following, preceded)
        entry = axes[axis + 1] = _chain_vertices(following, preceded, starts, chains, entry)
    chains = chains[:entry]
    _blur_numbers(chains, axes, sums)
    _normalise_weights(vertices, weights, sums)
    return Lattice(vertices, weights, chains, axes, size)


# The keys ascend, and a neighbour's is larger by a constant of the axis: one sweep of two pointers
# finds all neighbours. Both advance by the outcome of a comparison and not by a branch: which of
# them does is as good as random, and a branch guessed wrong costs more than the step itself.


@compile_kernel
def _find_near(
    keys: NDArray[np.int64],
    names: NDArray[np.int64],
    step: int,
    following: NDArray[np.int32],
    preceded: NDArray[np.bool_],
) -> None:
    """Set each vertex's neighbour along an axis, -1 for none, and mark those that are one.

    The keys are of one integer; `names` are their vertices.
    """
    following[:] = -1
    preceded[:] = False
    place = other = 0
    while place < len(keys) and other < len(keys):
        wanted = keys[place] + step
        same = wanted == keys[other]
        following[names[place]] = names[other] if same else -1
        preceded[names[other]] |= same
        less = wanted < keys[other]
        place += less | same
        other += not less


@compile_kernel
def _find_far(
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    names: NDArray[np.int64],
    step_low: int,
    step_high: int,
    following: NDArray[np.int32],
    preceded: NDArray[np.bool_],
) -> None:
    """Do what `_find_near` does for keys of two integers."""
    following[:] = -1
    preceded[:] = False
    place = other = 0
    while place < len(low) and other < len(low):
        wanted, wanted_high = low[place] + step_low, high[place] + step_high
        even = wanted_high == high[other]
        same = even & (wanted == low[other])
        following[names[place]] = names[other] if same else -1
        preceded[names[other]] |= same
        less = (wanted_high < high[other]) | (even & (wanted < low[other]))
        place += less | same
        other += not less


@compile_kernel
def _chain_vertices(
    following: NDArray[np.int32],
    preceded: NDArray[np.bool_],
    starts: NDArray[np.int32],
    chains: NDArray[np.int32],
    entry: int,
) -> int:
    """List the runs of neighbouring vertices along an axis from an entry on; return the next.

    In the order of their first vertices the runs are a third faster to blur than by key.
    """
    count = 0
    for vertex in range(len(following)):
        # Every vertex is written, and the next one in its place unless it starts a run: no branch.
        starts[count] = vertex
        count += (not preceded[vertex]) & (following[vertex] >= 0)
    for start in range(count):
        current = starts[start]
        after = following[current]
        while after >= 0:
            chains[entry] = current
            entry += 1
            current = after
            after = following[current]
        chains[entry] = -1 - current
        entry += 1
    return entry


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
