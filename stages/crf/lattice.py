"""The permutohedral lattice: Gaussian filtering of many pixels at once, in any few dimensions.

Sources: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010 (embedding, splat, blur, slice); Krähenbühl and Koltun, "Efficient Inference in
Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011 (the symmetric normalisation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.crf.definition import (
    TOO_NARROW,
    CrfError,
    Floats,
    Ints,
    Longs,
    bound_coordinates,
    pack_strides,
    scale_axes,
)
from stages.crf.vectors import (
    compile_kernel,
    less,
    load,
    maximum,
    minimum,
    prefetch,
    spread,
    store,
    take_scratch,
    zeros,
)

# Pixels that are embedded together: one vector holds one coordinate of all of them.
BLOCK = 16
# Adding and subtracting 1.5 * 2^23 rounds a float32 below 2^22 to the nearest integer, ties to
# even, and costs two additions where a call of rint costs ten times that.
ROUNDER = np.float32(1.5 * 2**23)
KEY_BITS = 62
# The hash table begins with so many slots, and grows as vertices come.
FIRST_SLOTS = 2**14
# Odd multipliers that spread the keys over the hash table (the second is 2^64 / golden ratio).
HASH_HIGH, HASH_LOW = 0x2545F4914F6CDD1D, -7046029254386353131


class Embedding(NamedTuple):
    """Pixels in the lattice."""

    # int32 [pixel, corner]: the vertices of the simplex that encloses each pixel, numbered in order
    # of appearance
    vertices: Ints
    weights: Floats  # [pixel, corner]: barycentric weights of the pixel in its simplex
    sums: Floats  # [vertex]: sum of each vertex's weights
    keys: Longs  # [word, vertex]: each vertex's coordinates, packed into two integers
    # int64 [word, axis]: what is added to a vertex's key to get that of its neighbour along each
    steps: Longs


def embed_pixels(features: Floats) -> Embedding:
    """Embed the pixels' features in the lattice.

    In scratch memory: it holds until the thread embeds other pixels.
    """
    dimension, pixels = features.shape
    count = dimension + 1
    scale = scale_axes(dimension)
    smallest, largest = features.min(axis=1), features.max(axis=1)
    offset, highest = bound_coordinates(smallest.astype(np.float64), largest.astype(np.float64))
    # The last coordinate follows from the others, as they sum to 0.
    packed = pack_strides((highest - offset)[:-1].tolist(), KEY_BITS)
    if len(packed) > 2:
        raise CrfError(TOO_NARROW)
    # The second integer stays 0 unless the kernel is narrow.
    strides = np.zeros((2, count), np.int64)
    strides[: len(packed), :-1] = packed
    padded = take_scratch("padded", (dimension, -(-pixels // BLOCK) * BLOCK), np.float32)
    padded[:, :pixels] = features
    padded[:, pixels:] = features[:, -1:]
    vertices = take_scratch("vertices", (pixels, count), np.int32)
    weights = take_scratch("weights", (pixels, count), np.float32)
    sums = take_scratch("sums", (pixels * count,), np.float32)
    keys = take_scratch("keys", (2, pixels * count), np.int64)
    # At most half full, and a power of two.
    table = take_scratch("table", (1 << (2 * pixels * count + FIRST_SLOTS).bit_length(),), np.int32)
    size = _embed(padded, scale, offset, strides, vertices, weights, sums, keys, table)
    steps = strides.sum(axis=1, keepdims=True) - count * strides
    return Embedding(vertices, weights, sums[:size], keys[:, :size], steps)


@compile_kernel
def _enclose(
    features: Floats,
    first: int,
    scale: Floats,
    origins: Floats,
    ranks: Floats,
    shares: Floats,
    barycentric: Floats,
) -> None:
    """Find the simplices that enclose a block of pixels.

    Writes their 0-coloured vertices [axis, pixel], the ranks of the pixels' offsets from these
    along the axes, 0 being the largest [axis, pixel], these offsets in falling order, in cells
    [place, pixel], and the barycentric weights [colour, pixel].
    """
    dimension, padded = features.shape
    count = dimension + 1
    cell = np.float32(count)
    per_cell = np.float32(1.0) / cell
    like = total = excess = zeros(BLOCK)
    for axis in range(dimension, -1, -1):
        elevated = total
        if axis > 0:
            scaled = load(features, (axis - 1) * padded + first, like) * scale[axis - 1]
            elevated = total - scaled * np.float32(axis)
            total = total + scaled
        rounded = (elevated * per_cell + ROUNDER) - ROUNDER
        excess = excess + rounded
        store(origins, axis * BLOCK, rounded * cell)
        store(shares, axis * BLOCK, elevated - rounded * cell)
        store(ranks, axis * BLOCK, spread(np.float32(0.0), like))
    for axis in range(count):
        here = load(shares, axis * BLOCK, like)
        rank = load(ranks, axis * BLOCK, like)
        for other in range(axis + 1, count):
            smaller = less(here, load(shares, other * BLOCK, like))
            rank = rank + smaller
            theirs = load(ranks, other * BLOCK, like)
            store(ranks, other * BLOCK, theirs + (np.float32(1.0) - smaller))
        store(ranks, axis * BLOCK, rank)
    # Rounding every coordinate alone may leave the plane: those that were rounded furthest go
    # back by one cell, until the sum is 0 again.
    for axis in range(count):
        rank = load(ranks, axis * BLOCK, like) + excess
        back = less(rank, np.float32(0.0)) - less(np.float32(dimension), rank)
        origin = load(origins, axis * BLOCK, like)
        share = load(shares, axis * BLOCK, like)
        store(ranks, axis * BLOCK, rank + back * cell)
        store(origins, axis * BLOCK, origin + back * cell)
        store(shares, axis * BLOCK, (share - back * cell) * per_cell)
    # Insertion sort, the largest first; neighbouring differences are the barycentric weights.
    for axis in range(1, count):
        for other in range(axis, 0, -1):
            above = load(shares, (other - 1) * BLOCK, like)
            below = load(shares, other * BLOCK, like)
            store(shares, (other - 1) * BLOCK, maximum(above, below))
            store(shares, other * BLOCK, minimum(above, below))
    largest = load(shares, 0, like)
    smallest = load(shares, dimension * BLOCK, like)
    for place in range(dimension):
        above = load(shares, place * BLOCK, like)
        below = load(shares, (place + 1) * BLOCK, like)
        store(barycentric, (dimension - place) * BLOCK, above - below)
    store(barycentric, 0, (np.float32(1.0) + smallest) - largest)


@compile_kernel
def _order_axes(ranks: Floats, lane: int, order: Longs) -> None:
    """List the axes in the order in which a pixel's vertices step back along them."""
    count = len(ranks)
    for axis in range(count):
        order[count - 1 - np.int64(ranks[axis, lane])] = axis


@compile_kernel
def _list_keys(
    origins: Floats, lane: int, order: Longs, offset: Longs, strides: Longs, keys: Longs
) -> None:
    """Write one word of the keys of a pixel's vertices, by colour, to its place in its block."""
    count = len(origins)
    key = np.int64(0)
    forward = np.int64(0)
    for axis in range(count - 1):
        key += (np.int64(origins[axis, lane]) - offset[axis]) * strides[axis]
        forward += strides[axis]
    for colour in range(count):
        keys[lane * count + colour] = key
        # The next colour's vertex is one step on along all axes, but for the axis whose turn it
        # is, which steps back by what the others gain.
        key += forward - count * strides[order[colour]]


@compile_kernel
def _hash(low: int, high: int, slots: int) -> int:
    """Return the first slot to look for a key in."""
    mixed = (low ^ (high * HASH_HIGH)) * HASH_LOW
    return (mixed ^ (mixed >> 29)) & (slots - 1)


@compile_kernel
def _fill(table: Ints, slots: int, keys: Longs, size: int) -> None:
    """Fill the first slots of the table with all vertices there are."""
    table[:slots] = -1
    for vertex in range(size):
        slot = _hash(keys[0, vertex], keys[1, vertex], slots)
        while table[slot] >= 0:
            slot = (slot + 1) & (slots - 1)
        table[slot] = vertex


@compile_kernel
def _embed(
    features: Floats,
    scale: Floats,
    offset: Longs,
    strides: Longs,
    vertices: Ints,
    weights: Floats,
    sums: Floats,
    keys: Longs,
    table: Ints,
) -> int:
    """Embed whole blocks of pixels; write what `Embedding` holds, return the number of vertices."""
    dimension, padded = features.shape
    pixels = len(vertices)
    count = dimension + 1
    origins = np.empty((count, BLOCK), np.float32)
    ranks = np.empty((count, BLOCK), np.float32)
    shares = np.empty((count, BLOCK), np.float32)
    barycentric = np.empty((count, BLOCK), np.float32)
    order = np.empty(count, np.int64)
    low = np.zeros(BLOCK * count, np.int64)
    high = np.zeros(BLOCK * count, np.int64)
    starts = np.empty(BLOCK * count, np.int64)
    wide = strides[1].any()
    slots = FIRST_SLOTS
    size = 0
    _fill(table, slots, keys, size)
    for first in range(0, padded, BLOCK):
        _enclose(features, first, scale, origins, ranks, shares, barycentric)
        lanes = min(BLOCK, pixels - first)
        for lane in range(lanes):
            _order_axes(ranks, lane, order)
            _list_keys(origins, lane, order, offset, strides[0], low)
            if wide:
                _list_keys(origins, lane, order, offset, strides[1], high)
        while 2 * (size + lanes * count) > slots:
            # the table has room for all vertices, though it may be smaller than the next step
            slots = min(4 * slots, len(table))
            _fill(table, slots, keys, size)
        # The slots are in the cache by the time they are looked at.
        for entry in range(lanes * count):
            starts[entry] = _hash(low[entry], high[entry], slots)
            prefetch(table, starts[entry])
        for lane in range(lanes):
            for colour in range(count):
                entry = lane * count + colour
                slot = starts[entry]
                vertex = table[slot]
                while vertex >= 0 and (
                    keys[0, vertex] != low[entry] or (wide and keys[1, vertex] != high[entry])
                ):
                    slot = (slot + 1) & (slots - 1)
                    vertex = table[slot]
                if vertex < 0:
                    vertex = size
                    table[slot] = vertex
                    keys[0, vertex] = low[entry]
                    keys[1, vertex] = high[entry]
                    sums[vertex] = np.float32(0.0)
                    size += 1
                vertices[first + lane, colour] = vertex
                weights[first + lane, colour] = barycentric[colour, lane]
                sums[vertex] += barycentric[colour, lane]
    return size


@dataclass(frozen=True)
class Lattice:
    """The vertices that some pixel touches, and how pixels and vertices are tied to each other."""

    vertices: Ints  # [pixel, corner]: as those of `Embedding`
    weights: Floats  # [pixel, corner]: times the pixel's kernel normalisation
    # int32 [entry]: for every lattice axis in turn, the runs of two or more vertices that neighbour
    # each other along it; the last vertex v of a run is stored as -1 - v
    chains: Ints
    axes: Longs  # [axis + 1]: where the runs of each axis begin and end in `chains`
    size: int  # number of vertices


def build_lattice(features: Floats) -> Lattice:
    """Build the lattice of the pixels' features, normalised symmetrically.

    Filtering with it is D^-1/2 K D^-1/2, where D holds the sums of the kernel K over pixels (found
    by filtering ones on the same lattice). The papers' factor of the slice, 1 / (1 + 2^-d), cancels
    in it. In scratch memory: it holds until the thread builds another. Features are float32
    [dimension, pixel], in units of the kernel's standard deviation.
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
    keys: Longs, names: Longs, step: int, following: Ints, preceded: NDArray[np.bool_]
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
    low: Longs,
    high: Longs,
    names: Longs,
    step_low: int,
    step_high: int,
    following: Ints,
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
    following: Ints, preceded: NDArray[np.bool_], starts: Ints, chains: Ints, entry: int
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
def _blur_numbers(chains: Ints, axes: Longs, values: Floats) -> None:
    """Blur one number per vertex, in place; see `stages.crf.mean_field.RowKernels.blur`."""
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
def _normalise_weights(vertices: Ints, weights: Floats, sums: Floats) -> None:
    """Multiply the weights by 1 / sqrt(K1 + 1e-20), in place, K1 being the slice of `sums`."""
    pixels, count = vertices.shape
    for pixel in range(pixels):
        total = np.float32(0.0)
        for corner in range(count):
            total += weights[pixel, corner] * sums[vertices[pixel, corner]]
        norm = np.float32(1.0) / np.sqrt(total + np.float32(1e-20))
        for corner in range(count):
            weights[pixel, corner] *= norm
