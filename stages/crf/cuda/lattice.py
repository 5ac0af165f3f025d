"""The permutohedral lattice of a batch of images, built by one sort.

`embed_features` finds the simplex around every pixel, `plan_keys` packs vertices into integers,
which `fold_words` and `look_up` compare without a hash table, and `build_lattice` numbers them.

Sources: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010; Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
Gaussian Edge Potentials", NeurIPS 2011 (the symmetric normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.crf.cuda.passes import CROWD, Lattice, Passes, filter_values
from stages.crf.definition import LARGEST_COORDINATE, TOO_NARROW, CrfError, scale_axes


@dataclass(frozen=True)
class Simplices:
    """The simplices that enclose some pixels.

    Parameters
    ----------
    origins : float32 [axis, pixel]
        The 0-coloured vertex, whole numbers.
    axes : int64 [rank, pixel]
        The lattice axes by rank: along axis 0 the pixel is furthest above the 0-coloured vertex.
        The vertex of colour c + 1 is that of colour c one step on along all axes, but for the one
        of rank d - c, which steps back by what the others gain.
    weights : float32 [pixel, colour]
        Barycentric weights, with a sum of 1.
    """

    origins: Tensor
    axes: Tensor
    weights: Tensor


def embed_features(features: Tensor) -> Simplices:
    """Find the simplex that encloses each pixel.

    Every product and sum is rounded by itself and in the order of the processor's loop: a pixel
    near the border of two simplices falls into the same one.
    """
    dimension = len(features)
    count = dimension + 1
    per_cell = float(np.float32(1.0) / np.float32(count))
    elevated = _elevate(features)
    rounded = torch.round(elevated * per_cell)
    nearest = rounded * float(count)
    excess = rounded.sum(dim=0).to(torch.int8)
    # Rounding every coordinate alone may leave the plane: those that were rounded furthest go
    # back by one cell, until the sum is 0 again.
    ranks = _rank_axes(elevated - nearest) + excess
    low, high = ranks < 0, ranks >= count
    ranks += count * low.to(torch.int8) - count * high.to(torch.int8)
    nearest += float(count) * (low.float() - high.float())
    shares = (elevated - nearest) * per_cell
    numbers = torch.arange(count, device=features.device)[:, None].expand_as(ranks)
    axes = torch.empty_like(numbers, memory_format=torch.contiguous_format)
    # Ranks are a permutation of the axes: no two writes meet.
    axes.scatter_(0, ranks.long(), numbers)
    shares = shares.gather(0, axes)
    weights = torch.empty_like(shares)
    weights[0] = shares[dimension] + (1.0 - shares[0])
    torch.sub(shares.flip(0)[1:], shares.flip(0)[:-1], out=weights[1:])
    return Simplices(nearest, axes, weights.T.contiguous())


def _elevate(features: Tensor) -> Tensor:
    """Map scaled features onto the lattice's plane, float32 [axis, pixel].

    Coordinate j sums those from j on, less j times the one before.
    """
    dimension, pixels = features.shape
    scaled = features * torch.from_numpy(scale_axes(dimension)).to(features.device)[:, None]
    elevated = features.new_empty(dimension + 1, pixels)
    total = features.new_zeros(pixels)
    for axis in range(dimension, 0, -1):
        torch.sub(total, scaled[axis - 1] * float(axis), out=elevated[axis])
        total = total + scaled[axis - 1]
    elevated[0] = total
    return elevated


def _rank_axes(differences: Tensor) -> Tensor:
    """Count for each axis the larger differences, int8 [axis, pixel]; of equals the first leads."""
    count = len(differences)
    later = torch.ones(count, count, dtype=torch.bool, device=differences.device).triu(1)
    less = (differences[:, None] < differences[None]) & later[:, :, None]
    beaten = less.view(torch.int8)
    earlier = torch.arange(count, dtype=torch.int8, device=differences.device)[:, None]
    ranks: Tensor = earlier + beaten.sum(1, dtype=torch.int8) - beaten.sum(0, dtype=torch.int8)
    return ranks


KEY_BITS = 63


@dataclass(frozen=True)
class KeyPlan:
    """How the coordinates of a vertex and the number of its image are packed into integers.

    Parameters
    ----------
    strides : int64 [word, axis + 1]
        What one step along each axis adds to each integer; the last column is the image's. The
        lattice's last coordinate has no place: it follows from the others, as they sum to 0.
    offset : int64 [axis]
        The coordinates that are packed as 0.
    """

    strides: NDArray[np.int64]
    offset: NDArray[np.int64]

    @property
    def steps(self) -> NDArray[np.int64]:
        """What a step to the next vertex along each axis adds, int64 [word, axis].

        It goes on by 1 along all axes, but for one along which it goes back by the others' gain.
        """
        along = self.strides[:, :-1]
        steps: NDArray[np.int64] = along.sum(axis=1, keepdims=True) - along.shape[1] * along
        return steps


def plan_keys(lowest: Sequence[float], highest: Sequence[float], images: int) -> KeyPlan:
    """Give each coordinate its bits, in as many integers as it takes.

    There is room around the bounds for a pixel's vertices and for their neighbours: two
    neighbours' keys differ by a constant of the axis between them, with no carry from one
    coordinate into the next.
    """
    count = len(lowest)
    # A simplex reaches less than 3 cells beyond the pixel in it, a neighbour one more.
    margin = 4 * count
    low = np.floor(np.asarray(lowest, np.float64)).astype(np.int64) - margin
    high = np.ceil(np.asarray(highest, np.float64)).astype(np.int64) + margin
    bits = [int(span).bit_length() for span in (high - low)[:-1]]
    places: list[list[int]] = []
    used = KEY_BITS + 1
    # A single image needs no bit, and the place behind 63 of them would be no integer's.
    last = [(images - 1).bit_length()] if images > 1 else []
    for width in [*bits, *last]:
        if used + width > KEY_BITS:
            places.append([0] * (count + 1))
            used = 0
        axis = sum(1 for word in places for stride in word if stride)
        places[-1][axis if axis < count - 1 else count] = 1 << used
        used += width
    return KeyPlan(np.array(places, np.int64), low)


def fold_words(words: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Turn keys of several integers into keys of one, in the same order.

    `words` is int64 [word, entry], the last the most significant. Also returns the distinct values
    that were replaced by their ranks, for `look_up`; none for one word.
    """
    keys = words[-1]
    tables = []
    for word in reversed(words[:-1].unbind()):
        high, rank = torch.unique(keys, return_inverse=True)
        low, place = torch.unique(word, return_inverse=True)
        # Ranks are below 2^31, the number of entries: their pairs fit one integer.
        keys = rank * len(low) + place
        tables.append((high, low))
    return keys, tables


def look_up(words: Tensor, tables: list[tuple[Tensor, Tensor]], keys: Tensor) -> Tensor:
    """Find keys of several integers in a sorted list of folded ones.

    Returns their places in `keys`, int32 [...]; the number of `keys` where one is absent.
    """
    wanted = words[-1]
    known = torch.ones_like(wanted, dtype=torch.bool)
    for word, (high, low) in zip(reversed(words[:-1].unbind()), tables, strict=True):
        rank, found = _search(high, wanted)
        place, present = _search(low, word)
        known &= found & present
        wanted = rank * len(low) + place
    place, found = _search(keys, wanted)
    return torch.where(known & found, place, len(keys)).int()


def _search(table: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.searchsorted(table, values).clamp_max_(len(table) - 1)
    return places, table[places] == values


def build_lattice(
    features: Tensor, extents: Sequence[float], images: int, passes: Passes
) -> Lattice:
    """Build the lattice of the pixels' features, normalised symmetrically.

    Filtering with it is D^-1/2 K D^-1/2, where D holds the sums of the kernel K over pixels.
    Features are float32 [dimension, pixel], image after image, in a space where the kernel is a
    Gaussian of standard deviation 1; extents bound each from 0 on, so that nothing need be read
    back from the device to know them. Images share no vertex.
    """
    plan = _bound_keys(extents, images)
    simplices = embed_features(features)
    words = _pack_vertices(simplices, plan, images)
    keys, tables = fold_words(words)
    ascending, order = torch.sort(keys, stable=True)
    fresh = torch.ones_like(ascending, dtype=torch.bool)
    torch.ne(ascending[1:], ascending[:-1], out=fresh[1:])
    # The one read-back of a batch: how many vertices there are.
    first = fresh.nonzero().squeeze(1)
    pixels, corners = simplices.weights.shape
    vertices = torch.empty(len(order), dtype=torch.int32, device=order.device)
    # The order is a permutation: no two writes meet.
    vertices.scatter_(0, order, (fresh.cumsum(0) - 1).int())
    starts = torch.cat([first, first.new_full((1,), len(order))])
    steps = torch.from_numpy(plan.steps).to(order.device)
    shifts = torch.stack([steps, -steps], dim=2)[..., None]
    own, distinct = words[:, order[first], None].transpose(1, 2), ascending[first]
    # Axis by axis: six times less memory for the places to look up.
    neighbours = [look_up(own + shifts[:, axis], tables, distinct) for axis in range(corners)]
    bare = Lattice(
        vertices=vertices.reshape(pixels, corners),
        weights=simplices.weights,
        entries=torch.div(order, corners, rounding_mode="floor").int(),
        shares=simplices.weights.flatten()[order],
        starts=starts.int(),
        crowded=(starts.diff() > CROWD).nonzero().squeeze(1).int(),
        neighbours=torch.stack(neighbours),
    )
    return _normalise(bare, order, passes)


def _bound_keys(extents: Sequence[float], images: int) -> KeyPlan:
    dimension = len(extents)
    scaled = scale_axes(dimension).astype(np.float64) * np.asarray(extents, np.float64)
    axis = np.arange(dimension)
    # Elevated coordinate j sums the scaled features from j on, less j times the one before.
    reach = float(((axis + 2) * scaled).sum())
    if not reach < LARGEST_COORDINATE:
        raise CrfError(TOO_NARROW)
    highest = [float(scaled[j:].sum()) for j in range(dimension + 1)]
    lowest = [0.0, *(-(axis + 1) * scaled)]
    return plan_keys(lowest, highest, images)


def _pack_vertices(simplices: Simplices, plan: KeyPlan, images: int) -> Tensor:
    """Name every corner of every simplex, int64 [word, pixel * corner]."""
    count, pixels = simplices.origins.shape
    device = simplices.origins.device
    strides = torch.from_numpy(plan.strides).to(device)
    base = torch.from_numpy(-(plan.strides[:, :-1] * plan.offset).sum(axis=1)).to(device)
    steps = torch.from_numpy(plan.steps).to(device)
    image = torch.arange(images, device=device).repeat_interleave(pixels // images)
    words = torch.empty(len(strides), pixels, count, dtype=torch.int64, device=device)
    for word in range(len(strides)):
        key = base[word] + image * strides[word, -1]
        for axis in range(count - 1):
            if plan.strides[word, axis]:
                key += simplices.origins[axis].long() * strides[word, axis]
        for colour in range(count):
            words[word, :, colour] = key
            key += steps[word][simplices.axes[count - 1 - colour]]
    return words.reshape(len(strides), -1)


def _normalise(lattice: Lattice, order: Tensor, passes: Passes) -> Lattice:
    """Multiply the weights by 1 / sqrt(K1 + 1e-20), K1 being the filtered ones."""
    pixels, corners = lattice.weights.shape
    ones = lattice.weights.new_ones(1, pixels, 1)
    spare = (lattice.allocate_values(1, 1), lattice.allocate_values(1, 1))
    sums = filter_values(passes, lattice, ones, spare).flatten()
    total = lattice.weights.new_zeros(pixels)
    for corner in range(corners):
        # One corner after the other, as on the processor and whatever the number of pixels.
        total += lattice.weights[:, corner] * sums.index_select(0, lattice.vertices[:, corner])
    norm = 1.0 / torch.sqrt(total + 1e-20)
    weights = lattice.weights * norm[:, None]
    return lattice.weigh(weights, weights.flatten()[order])
