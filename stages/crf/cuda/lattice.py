"""The permutohedral lattice of a batch of images, built by one sort.

Sources: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010; Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
Gaussian Edge Potentials", NeurIPS 2011 (the symmetric normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.crf.cuda.embedding import Simplices, embed_features
from stages.crf.cuda.keys import KeyPlan, fold_words, look_up, plan_keys
from stages.crf.cuda.passes import CROWD, Lattice, Passes, filter_values
from stages.crf.definition import LARGEST_COORDINATE, TOO_NARROW, scale_axes
from stages.crf.inputs import CrfError


def build_lattice(
    features: Tensor, extents: Sequence[float], images: int, passes: Passes
) -> Lattice:
    """Build the lattice of the pixels' features, normalised symmetrically.

    Parameters
    ----------
    features : float32 [dimension, pixel]
        Positions in a space where the kernel is a Gaussian of standard deviation 1; the pixels of
        one image follow those of the one before.
    extents : sequence of float
        Bounds of each feature, from 0 to here: known beforehand, they need not be read back from
        the device.
    images : int
        Number of images, of equally many pixels each; those of different images share no vertex.
    passes : Passes
        The sweeps to normalise with.

    Returns
    -------
    Lattice
        Filtering with it is D^-1/2 K D^-1/2, where D holds the sums of the kernel K over pixels.

    Raises
    ------
    CrfError
        A coordinate is so large that float32 cannot tell neighbouring vertices apart.
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
