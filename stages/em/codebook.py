"""The codebook: all proposals of all windows as a few thousand weighted centroids.

To cluster by agreement takes a square matrix, so that only some thousand units can be. Where there
are no more proposals, every one is a unit. Else a draw of windows gives the first centroids, by
K-means, and then one pass of K-means over all proposals makes every centroid the mean of all of its
own: no proposal is left out, and one counts as much as any other (mini-batches as of Sculley,
"Web-scale k-means clustering", 2010, but each for a whole pass, so that no order matters).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.compute.scheduler import INLINE, Team
from pipeline.run.frames import count_threads, map_ahead
from stages.em.pieces import add_in_order, one_thread
from stages.em.sums import PROPOSALS, Assigned, Piece, over_batches, sum_units

# Proposals of the draw, for every centroid, and passes over them.
_EACH = 8
_PASSES = 5
# Of the context, the share that is taken off a proposal before it is compared: the mean of what the
# clusterings by agreement take off.
_CONTEXT = 0.5
# Principal axes in which proposals are compared with centroids; what the others add is noise to
# them, and costs as much.
_AXES = 96
# Rows of a product at a time: its result has as many columns as there are centroids. At 4,096 it is
# just so large that its memory is given back when it is freed.
_ROWS = 2048


class Units(NamedTuple):
    """Proposals as points."""

    # int64 [unit], ascending: 256 x row of the window + number of the proposal
    number: Tensor
    feature: Tensor  # float64 [unit, channel]: mean feature of the proposal's positions
    context: Tensor  # float64 [unit, channel]: mean feature of its window

    def find_directions(self) -> Tensor:
        """Return what proposals are compared by, float32 [unit, channel] of unit length."""
        return F.normalize(self.feature - _CONTEXT * self.context, dim=1).float()


class Codebook(NamedTuple):
    """Weighted units, and of which one every proposal is."""

    feature: Tensor  # float64 [unit, channel]: mean over the proposals of a unit
    context: Tensor  # float64 [unit, channel]
    weight: Tensor  # int64 [unit]: proposals of a unit
    origin: Tensor  # float64 [channel]: a point near the mean of all features
    assigned: Assigned

    @property
    def is_plain(self) -> bool:
        """Whether every proposal is a unit of its own."""
        return len(self.weight) == len(self.assigned.number)


def pool_units(features: Tensor, number: Tensor) -> Units:
    """Pool the features of the proposals of windows as of :func:`stages.em.sums.over_batches`."""
    held = number % PROPOSALS > 0
    proposals, inverse, count = torch.unique(number[held], return_inverse=True, return_counts=True)
    sums = features.new_zeros(len(proposals), features.shape[-1])
    sums.index_add_(0, inverse, features[held])
    # windows ascend, and so do the numbers of their proposals
    window = torch.searchsorted(number[:, 0] // PROPOSALS, proposals // PROPOSALS)
    return Units(proposals, sums / count[:, None], features.mean(dim=1)[window])


def make_codebook(
    pieces: Sequence[Piece], draw: Iterable[Piece], size: int, seed: int, team: Team = INLINE
) -> Codebook:
    """Cluster all proposals of all pieces to at most so many units.

    Parameters
    ----------
    pieces
        All windows.
    draw
        The same windows in pieces that are drawn at random; some first ones are read, all where
        there are no more proposals than ``size``.
    size
        Most units.
    seed
        Names the first centroids.
    team
        Who computes; the result is the same.
    """
    parts: list[Units] = []
    points: list[Tensor] = []
    drawn, total = 0, torch.zeros((), dtype=torch.float64)
    for part in team.stream(_pool_piece, draw):
        drawn += len(part.number)
        # of many, points of half the bytes are enough, and their sum
        parts = [*parts, part] if drawn <= size else []
        points.append(part.find_directions())
        total = total + part.feature.sum(dim=0)
        if drawn >= _EACH * size:
            break
    if not points:
        raise ValueError("a fit needs batches")
    if drawn <= size:
        return _take_all(parts)
    axes = find_axes(points)
    seen = torch.cat([F.normalize(part @ axes, dim=1) for part in points])
    del points
    centroids = find_centroids(seen, size, seed)
    found = team.stream(_assign_piece, pieces, axes, centroids)
    return gather_codebook(found, size, total / drawn)


def _take_all(parts: Sequence[Units]) -> Codebook:
    units = Units(*(torch.cat(same) for same in zip(*parts, strict=True)))
    order = units.number.argsort()
    units = Units(*(values[order] for values in units))
    own = torch.arange(len(order))
    origin = units.feature.mean(dim=0)
    assigned = Assigned(units.number, own)
    return Codebook(units.feature, units.context, torch.ones_like(own), origin, assigned)


def find_axes(points: Sequence[Tensor]) -> Tensor:
    """Find the first principal axes of points in parts, float32 [channel, axis], orthonormal."""
    with one_thread():
        vectors = torch.linalg.eigh(add_in_order([part.T @ part for part in points]).double())[1]
    return vectors.flip(1)[:, :_AXES].float()


def find_centroids(points: Tensor, size: int, seed: int) -> Tensor:
    """Cluster drawn points, float32 [point, axis] of unit length, by spherical K-means.

    It starts from some of the points. Gives as many centroids, float32 [centroid, axis].
    """
    generator = np.random.default_rng([seed, size])
    rows = np.sort(generator.choice(len(points), size, replace=False))
    centroids = points[torch.from_numpy(rows)]
    for _ in range(_PASSES):
        unit = _find_all(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, unit, points)
        # an empty one stays where it is: it may win points back
        centroids = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=1), centroids)
    return centroids


def _find_all(points: Tensor, centroids: Tensor) -> Tensor:
    """Find the nearest centroids of many points, in threads of one thread each."""

    def find(part: Tensor) -> Tensor:
        torch.set_num_threads(1)
        return find_nearest(part, centroids)

    threads = count_threads()
    with one_thread():
        return torch.cat(list(map_ahead(find, points.split(_ROWS), threads, threads)))


def find_nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Find the centroid of the largest cosine, int64 [point]."""
    return (points @ centroids.T).argmax(dim=1)


class Found(NamedTuple):
    """The proposals of a piece and their units, and sums of the units that occur."""

    assigned: Assigned
    units: Tensor  # int64 [unit that occurs]
    proposals: Tensor  # float64 [unit that occurs]: how many
    feature: Tensor  # float64 [unit that occurs, channel]: sum over the proposals
    context: Tensor


def assign_units(units: Units, axes: Tensor, centroids: Tensor) -> Found:
    """Assign proposals to their nearest centroids, and sum them."""
    unit = find_nearest(units.find_directions() @ axes, centroids)
    both = torch.cat([units.feature, units.context], dim=1)
    occur, count, total = sum_units(both, unit)
    return Found(Assigned(units.number, unit), occur, count, *total.tensor_split(2, dim=1))


def gather_codebook(found: Iterable[Found], size: int, origin: Tensor) -> Codebook:
    """Make a codebook of what is found in the pieces, in their order."""
    assigned, sums = _gather(found, size, len(origin))
    count = sums[0]
    # numbered anew without those that no proposal is nearest to
    kept = count > 0
    unit = (kept.cumsum(0) - 1).int()[assigned.unit]
    feature, context = (total[kept] / count[kept, None] for total in sums[1:])
    return Codebook(feature, context, count[kept].long(), origin, Assigned(assigned.number, unit))


def _gather(found: Iterable[Found], size: int, channels: int) -> tuple[Assigned, list[Tensor]]:
    shapes = (size,), (size, channels), (size, channels)
    sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    parts = []
    for part in found:
        # half the bytes: proposals are many
        parts.append(Assigned(part.assigned.number, part.assigned.unit.int()))
        for total, values in zip(sums, part[2:], strict=True):
            total.index_add_(0, part.units, values)
    return Assigned(*(torch.cat(same) for same in zip(*parts, strict=True))), sums


def _pool_piece(piece: Piece) -> Units:
    parts = list(over_batches(piece, pool_units))
    return Units(*(torch.cat(same) for same in zip(*parts, strict=True)))


def _assign_piece(piece: Piece, axes: Tensor, centroids: Tensor) -> Found:
    def assign(features: Tensor, number: Tensor) -> Found:
        return assign_units(pool_units(features, number), axes, centroids)

    assigned, sums = _gather(over_batches(piece, assign), len(centroids), len(axes))
    occur = sums[0].nonzero()[:, 0]
    return Found(assigned, occur, *(total[occur] for total in sums))
