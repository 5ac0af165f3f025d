"""The permutohedral lattice of a batch of images, built by one sort, and the sweeps over it.

`embed_features` finds the simplex around every pixel, `plan_keys` packs vertices into integers,
which `fold_words` and `look_up` compare without a hash table, and `build_lattice` numbers them. The
mean field sweeps between pixels and vertices, here in plain torch for any device.

Sources: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010; Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
Gaussian Edge Potentials", NeurIPS 2011 (the symmetric normalisation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from stages.crf.definition import NEGLIGIBLE, bound_coordinates, pack_strides, scale_axes

# A vertex of more entries than this is summed by a program of its own.
CROWD = 32


@dataclass(frozen=True)
class Lattice:
    """Vertices and pixels, tied to each other both ways."""

    vertices: Tensor  # int32 [pixel, corner]: those of the simplex that encloses each pixel
    weights: Tensor  # float32 [pixel, corner]: barycentric, times the pixel's normalisation
    entries: Tensor  # int32 [entry]: the pixels around each vertex, ascending, vertex by vertex
    shares: Tensor  # float32 [entry]: their weights
    starts: Tensor  # int32 [vertex + 1]: where the entries of each vertex begin
    crowded: Tensor  # int32 [place]: the vertices of more than `CROWD` entries
    # int32 [axis, 2, vertex]: the next and the previous vertex along each axis; `size` where there
    # is none
    neighbours: Tensor

    @property
    def size(self) -> int:
        """Number of vertices."""
        return len(self.starts) - 1

    @property
    def axes(self) -> int:
        """Number of axes to blur along."""
        return len(self.neighbours)

    def allocate_values(self, images: int, labels: int) -> Tensor:
        """Allocate values, float32 [image, vertex + 1, label], all 0; the last row stays so."""
        return self.weights.new_zeros(images, self.size + 1, labels)


class Message(NamedTuple):
    """What a kernel says to the pixels: blurred values, to be sliced with a factor."""

    lattice: Lattice  # of as many pixels as all the images, or of one image, which they then share
    values: Tensor  # float32 [image, vertex + 1, label]; one "image" for a lattice of all images
    factor: float  # weight of the kernel


class Passes(NamedTuple):
    """The three sweeps, as one kind of device computes them.

    Rows of labels lie together, so that one read fetches a pixel's or a vertex's whole row. Every
    sum is a gather in a fixed order: nothing is added to by two threads, and the same batch, or an
    image of it alone, gives the same bytes every time.
    """

    # (lattice, source, values): set the values of every vertex to the weighted sum of the rows of
    # the pixels around it; source is float32 [image, pixel, label]
    splat: Callable[[Lattice, Tensor, Tensor], None]
    # (lattice, axis, values, blurred): set `blurred` to v + (n1 + n2) / 2 along one axis
    blur: Callable[[Lattice, int, Tensor, Tensor], None]
    # (energies, near, alike, posterior): set the posterior to softmax(-energies + both messages),
    # probabilities below e^-40 of their pixel's largest being 0; float32 [image, pixel, label]
    update: Callable[[Tensor, Message, Message, Tensor], None]


def filter_values(
    passes: Passes, lattice: Lattice, source: Tensor, buffers: tuple[Tensor, Tensor]
) -> Tensor:
    """Splat and blur, in two buffers in turn.

    `source` is float32 [image, pixel, label]; the buffers are float32 [image, vertex + 1, label],
    their last rows 0. Returns the one that holds the blurred values.
    """
    values, spare = buffers
    passes.splat(lattice, source, values)
    for axis in range(lattice.axes):
        passes.blur(lattice, axis, values, spare)
        values, spare = spare, values
    return values


def _splat(lattice: Lattice, source: Tensor, values: Tensor) -> None:
    for rows, sums in zip(source, values, strict=True):
        sums[:-1] = F.embedding_bag(
            lattice.entries,
            rows,
            lattice.starts,
            mode="sum",
            per_sample_weights=lattice.shares,
            include_last_offset=True,
        )


def _blur(lattice: Lattice, axis: int, values: Tensor, blurred: Tensor) -> None:
    following, preceding = lattice.neighbours[axis]
    around = values.index_select(1, following) + values.index_select(1, preceding)
    torch.add(values[:, :-1], around.mul_(0.5), out=blurred[:, :-1])


def _update(energies: Tensor, near: Message, alike: Message, posterior: Tensor) -> None:
    labels = energies.shape[-1]
    logits = -energies.reshape(-1, labels)
    for message in (near, alike):
        vertices = message.lattice.vertices
        weights = message.lattice.weights * message.factor
        targets = logits.reshape(len(message.values), len(vertices), labels)
        for target, values in zip(targets, message.values, strict=True):
            target += F.embedding_bag(vertices, values, mode="sum", per_sample_weights=weights)
    negligible = logits - logits.amax(dim=1, keepdim=True) <= NEGLIGIBLE
    shares = torch.softmax(logits, dim=1).masked_fill_(negligible, 0.0)
    posterior.copy_(shares.reshape(posterior.shape))


TORCH_PASSES = Passes(_splat, _blur, _update)


class Simplices(NamedTuple):
    """The simplices that enclose some pixels."""

    origins: Tensor  # float32 [axis, pixel]: the 0-coloured vertex, whole numbers
    # int64 [rank, pixel]: the lattice axes by rank, along axis 0 the pixel is furthest above the
    # 0-coloured vertex. The vertex of colour c + 1 is that of colour c one step on along all axes,
    # but for the one of rank d - c, which steps back by what the others gain
    axes: Tensor
    weights: Tensor  # float32 [pixel, colour]: barycentric weights, with a sum of 1


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


class KeyPlan(NamedTuple):
    """How the coordinates of a vertex and the number of its image are packed into integers."""

    # int64 [word, axis + 1]: what one step along each axis adds to each integer; the last column is
    # the image's. The lattice's last coordinate has no place: it follows, as all sum to 0
    strides: NDArray[np.int64]
    offset: NDArray[np.int64]  # [axis]: the coordinates that are packed as 0
    # int64 [word, axis]: what a step to the next vertex along each axis adds. It goes on by 1 along
    # all axes, but for one along which it goes back by the others' gain
    steps: NDArray[np.int64]


def plan_keys(low: NDArray[np.int64], high: NDArray[np.int64], images: int) -> KeyPlan:
    """Give each coordinate between two bounds, and the image, its bits."""
    count = len(low)
    strides = pack_strides([*(high - low)[:-1], images - 1], KEY_BITS)
    strides = np.insert(strides, count - 1, 0, axis=1)
    along = strides[:, :-1]
    return KeyPlan(strides, low, along.sum(axis=1, keepdims=True) - count * along)


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
    largest = np.asarray(extents, np.float64)
    plan = plan_keys(*bound_coordinates(np.zeros_like(largest), largest), images)
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
    return replace(lattice, weights=weights, shares=weights.flatten()[order])
