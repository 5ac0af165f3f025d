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
from stages.crf.inputs import CrfError

# Adding and subtracting 1.5 * 2^23 rounds a float32 below 2^22 to the nearest integer, ties to
# even, and costs two additions where a call of rint costs ten times that.
ROUNDER = np.float32(1.5 * 2**23)
LARGEST_COORDINATE = 2**22
KEY_BITS = 62
# Odd multipliers that spread the keys over the hash table (the second is 2^64 / golden ratio).
HASH_HIGH, HASH_LOW = 0x2545F4914F6CDD1D, -7046029254386353131
TOO_NARROW = (
    "the dense CRF's kernel is too narrow for an image of this size: "
    "raise spatial_sxy, bilateral_sxy or bilateral_srgb, or make the image smaller"
)


@dataclass(frozen=True)
class Lattice:
    """The vertices that some pixel touches, and how pixels and vertices are tied to each other.

    Parameters
    ----------
    vertices : int32 [pixel, corner]
        The vertices of the simplex that encloses each pixel.
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
    features : float32 [pixel, dimension]
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
    pixels, dimension = features.shape
    axis = np.arange(dimension)
    deviation = np.sqrt(2.0 / 3.0) * (dimension + 1)
    scale = (deviation / np.sqrt((axis + 1.0) * (axis + 2.0))).astype(np.float32)
    # Elevated coordinate j sums the scaled features from j on, less j times the one before.
    reach = float(np.abs(features).max(axis=0) @ ((axis + 2) * scale))
    if not reach < LARGEST_COORDINATE:
        raise CrfError(TOO_NARROW)
    corners, order, weights, lowest, highest = _embed(features, scale)
    strides, offset = _pack_strides(lowest, highest)
    vertices, keys = _number_vertices(corners, order, offset, strides)
    ranking = np.lexsort(keys) if strides[1].any() else np.argsort(keys[0])
    chains, axes = _chain_vertices(keys[:, ranking], ranking.astype(np.int32), strides)
    size = keys.shape[1]
    sums = np.zeros((size, 1), np.float32)
    splat(vertices, weights, np.ones((pixels, 1), np.float32), sums)
    blur(chains, axes, sums)
    _normalise_weights(vertices, weights, sums)
    return Lattice(vertices, weights, chains, axes, size)


def _pack_strides(
    lowest: NDArray[np.int32], highest: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Give each coordinate but the last its place in a key of two integers.

    With room left for a vertex's neighbours, two neighbours' keys differ by a constant of the axis
    between them, with no carry from one coordinate into the next. The last coordinate follows from
    the others, as they sum to 0. The second integer stays 0 unless the kernel is narrow.
    """
    dimension = len(lowest) - 1
    margin = 2 * (dimension + 1)
    strides = np.zeros((2, dimension + 1), np.int64)
    word, used = 0, 0
    for axis in range(dimension):
        bits = (int(highest[axis]) - int(lowest[axis]) + 2 * margin).bit_length()
        if used + bits > KEY_BITS:
            word, used = word + 1, 0
        if word == len(strides):
            raise CrfError(TOO_NARROW)
        strides[word, axis] = 1 << used
        used += bits
    return strides, lowest - np.int32(margin)


@compile_kernel
def _embed(
    features: NDArray[np.float32], scale: NDArray[np.float32]
) -> tuple[
    NDArray[np.int32],
    NDArray[np.int8],
    NDArray[np.float32],
    NDArray[np.int32],
    NDArray[np.int32],
]:
    """Find the simplex that encloses each pixel.

    Returns its 0-coloured vertex [pixel, axis], the order in which its other vertices step back
    along the axes [pixel, colour], the barycentric weights [pixel, colour], and the lowest and
    highest coordinate of any 0-coloured vertex [axis].
    """
    pixels, dimension = features.shape
    count = dimension + 1
    origins = np.empty((pixels, count), np.int32)
    order = np.empty((pixels, count), np.int8)
    weights = np.empty((pixels, count), np.float32)
    lowest = np.full(count, 2**30, np.int32)
    highest = np.full(count, -(2**30), np.int32)
    elevated = np.empty(count, np.float32)
    nearest = np.empty(count, np.float32)
    rank = np.empty(count, np.int64)
    barycentric = np.empty(count + 1, np.float32)
    cell = np.float32(count)
    per_cell = np.float32(1.0) / cell
    for pixel in range(pixels):
        total = np.float32(0.0)
        for axis in range(dimension, 0, -1):
            scaled = features[pixel, axis - 1] * scale[axis - 1]
            elevated[axis] = total - np.float32(axis) * scaled
            total += scaled
        elevated[0] = total
        excess = np.int64(0)
        for axis in range(count):
            rounded = (elevated[axis] * per_cell + ROUNDER) - ROUNDER
            nearest[axis] = rounded * cell
            excess += np.int64(rounded)
            rank[axis] = 0
        for first in range(count):
            here = elevated[first] - nearest[first]
            for second in range(first + 1, count):
                if here < elevated[second] - nearest[second]:
                    rank[first] += 1
                else:
                    rank[second] += 1
        # Rounding every coordinate alone may leave the plane: those that were rounded furthest
        # go back by one cell, until the sum is 0 again.
        for axis in range(count):
            moved = rank[axis] + excess
            if moved < 0:
                moved += count
                nearest[axis] += cell
            elif moved >= count:
                moved -= count
                nearest[axis] -= cell
            rank[axis] = moved
        barycentric[:] = 0.0
        for axis in range(count):
            share = (elevated[axis] - nearest[axis]) * per_cell
            barycentric[dimension - rank[axis]] += share
            barycentric[count - rank[axis]] -= share
            order[pixel, dimension - rank[axis]] = axis
            coordinate = np.int32(nearest[axis])
            origins[pixel, axis] = coordinate
            lowest[axis] = min(lowest[axis], coordinate)
            highest[axis] = max(highest[axis], coordinate)
        barycentric[0] += np.float32(1.0) + barycentric[count]
        weights[pixel] = barycentric[:count]
    return origins, order, weights, lowest, highest


@compile_kernel
def _number_vertices(
    origins: NDArray[np.int32],
    order: NDArray[np.int8],
    offset: NDArray[np.int32],
    strides: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Give the distinct vertices numbers in order of appearance, by an open-addressing table.

    Returns each pixel's vertices [pixel, colour] and the vertices' keys [word, vertex].
    """
    pixels, count = origins.shape
    slots = 1024
    while slots < pixels * count * 3 // 2:
        slots *= 2
    table = np.full(slots, -1, np.int32)
    vertices = np.empty((pixels, count), np.int32)
    keys = np.empty((pixels * count, 2), np.int64)
    step_low = strides[0].sum()
    step_high = strides[1].sum()
    size = 0
    for pixel in range(pixels):
        low = np.int64(0)
        high = np.int64(0)
        for axis in range(count - 1):
            place = np.int64(origins[pixel, axis]) - np.int64(offset[axis])
            low += place * strides[0, axis]
            high += place * strides[1, axis]
        for colour in range(count):
            mixed = (low ^ (high * HASH_HIGH)) * HASH_LOW
            slot = (mixed ^ (mixed >> 29)) & (slots - 1)
            vertex = table[slot]
            while vertex >= 0 and (keys[vertex, 0] != low or keys[vertex, 1] != high):
                slot = (slot + 1) & (slots - 1)
                vertex = table[slot]
            if vertex < 0:
                vertex = size
                table[slot] = vertex
                keys[vertex, 0] = low
                keys[vertex, 1] = high
                size += 1
            vertices[pixel, colour] = vertex
            # The next colour's vertex is one step on along all axes, but for the axis whose turn
            # it is, which steps back by what the others gain.
            axis = order[pixel, colour]
            low += step_low - count * strides[0, axis]
            high += step_high - count * strides[1, axis]
    return vertices, keys[:size].T.copy()


@compile_kernel
def _chain_vertices(
    keys: NDArray[np.int64], names: NDArray[np.int32], strides: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """List the runs of neighbouring vertices along each axis.

    The keys [word, place] ascend and `names` [place] are their vertices. A neighbour's key is
    larger by a constant, so that one sweep of two pointers finds all neighbours along an axis.
    """
    size = keys.shape[1]
    count = strides.shape[1]
    low, high = keys[0], keys[1]
    chains = np.empty(size * count, np.int32)
    axes = np.zeros(count + 1, np.int64)
    following = np.empty(size, np.int32)
    preceded = np.empty(size, np.bool_)
    entry = 0
    for axis in range(count):
        step_low = strides[0].sum() - count * strides[0, axis]
        step_high = strides[1].sum() - count * strides[1, axis]
        preceded[:] = False
        following[:] = -1
        other = 0
        for place in range(size):
            wanted_low = low[place] + step_low
            wanted_high = high[place] + step_high
            while other < size and (
                high[other] < wanted_high
                or (high[other] == wanted_high and low[other] < wanted_low)
            ):
                other += 1
            if other < size and high[other] == wanted_high and low[other] == wanted_low:
                following[place] = other
                preceded[other] = True
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
def splat(
    vertices: NDArray[np.int32],
    weights: NDArray[np.float32],
    source: NDArray[np.float32],
    values: NDArray[np.float32],
) -> None:
    """Add every pixel's row, weighted, to the rows of its vertices.

    Parameters
    ----------
    vertices, weights : int32 and float32 [pixel, corner]
        As in `Lattice`.
    source : float32 [pixel, label]
        What to filter.
    values : float32 [vertex, label]
        Added to; the caller sets it to 0.
    """
    pixels, count = vertices.shape
    labels = source.shape[1]
    for pixel in range(pixels):
        for corner in range(count):
            vertex = vertices[pixel, corner]
            weight = weights[pixel, corner]
            for label in range(labels):
                values[vertex, label] += weight * source[pixel, label]


@compile_kernel
def blur(chains: NDArray[np.int32], axes: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Blur along one axis after the other, in place: v + (n1 + n2) / 2, absent vertices being 0.

    Parameters
    ----------
    chains, axes : int32 [entry] and int64 [axis + 1]
        As in `Lattice`. A vertex without neighbours along an axis is in no chain: the blur leaves
        it as it is.
    values : float32 [vertex, label]
        Changed in place.
    """
    labels = values.shape[1]
    half = np.float32(0.5)
    before = np.zeros(labels, np.float32)
    for entry in range(axes[-1]):
        vertex = chains[entry]
        if vertex >= 0:
            after = chains[entry + 1]
            if after < 0:
                after = -1 - after
            for label in range(labels):
                own = values[vertex, label]
                values[vertex, label] = own + half * (before[label] + values[after, label])
                before[label] = own
        else:
            vertex = -1 - vertex
            for label in range(labels):
                values[vertex, label] += half * before[label]
                before[label] = np.float32(0.0)


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
            total += weights[pixel, corner] * sums[vertices[pixel, corner], 0]
        norm = np.float32(1.0) / np.sqrt(total + np.float32(1e-20))
        for corner in range(count):
            weights[pixel, corner] *= norm
