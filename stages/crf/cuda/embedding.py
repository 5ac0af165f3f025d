"""Where pixels lie in the permutohedral lattice: their simplices and barycentric weights.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.crf.definition import scale_axes


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

    Parameters
    ----------
    features : float32 [dimension, pixel]
        Positions in a space where the kernel is a Gaussian of standard deviation 1.

    Returns
    -------
    Simplices
        On the features' device.
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
