"""Sums over the positions of all windows of a fit, piece by piece, by whoever computes.

A piece is some windows, read batch by batch. Its sums are those of its batches, added in their
order, and the sums of all windows those of the pieces in theirs: the same bytes in any number of
threads and workers, in whatever order they end. Where the features of a piece come from is its own
affair, as long as its batches hold the proposals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.scheduler import INLINE, Team
from pipeline.run.frames import count_threads, map_ahead
from stages.calibration import FOLDS, MOST, HeldOut, scatter_folds
from stages.discriminants import GAINS, Discriminant, Moments, measure_gains
from stages.em.pieces import FitBatch, find_centres, one_thread

# Proposals are numbered by a byte.
PROPOSALS = 256
# Batches that are computed at once, at most: each takes some hundred megabytes.
_MOST_THREADS = 8

T = TypeVar("T")


class Piece(Protocol):
    """Some windows of a fit, and how their features and proposals are read."""

    @property
    def windows(self) -> NDArray[np.int64]:
        """Their rows, ascending."""

    def list_batches(self) -> Sequence[NDArray[np.int64]]:
        """Cut the windows into batches."""

    def read(self, windows: NDArray[np.int64]) -> FitBatch:
        """Read one batch, into memory of its own."""


class Assigned(NamedTuple):
    """Which unit of a clustering every proposal is of."""

    number: Tensor  # int64 [proposal], ascending: 256 x row of the window + number of the proposal
    unit: Tensor  # int64 [proposal]

    def cut(self, windows: NDArray[np.int64]) -> Assigned:
        """Return the proposals of the windows from the first to the last of some."""
        ends = torch.tensor([PROPOSALS * int(windows[0]), PROPOSALS * (int(windows[-1]) + 1)])
        low, high = torch.searchsorted(self.number, ends).tolist()
        # a view would be sent to a worker with all that it is a view of
        return Assigned(self.number[low:high].clone(), self.unit[low:high].clone())

    def find(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """Find proposals by number: whether they are among these, and the unit where they are."""
        if not len(self.number):
            return torch.zeros_like(number, dtype=torch.bool), torch.zeros_like(number)
        place = torch.searchsorted(self.number, number).clamp_max(len(self.number) - 1)
        return self.number[place] == number, self.unit[place]


def read_positions(batch: FitBatch) -> tuple[Tensor, Tensor]:
    """Read off the features and the proposal of every position of a batch.

    Gives float64 [window, position, channel], and int64 [window, position]: the number of the
    proposal at the centre of the position's patch, 0 where there is none.
    """
    if batch.proposals is None:
        raise ValueError("the robust fit needs proposals")
    rows, columns = batch.features.shape[1:3]
    height, width = batch.proposals.shape[1:]
    y, x = find_centres(rows, height), find_centres(columns, width)
    proposals = batch.proposals.cpu()[:, y[:, None], x].long()
    return batch.features.cpu().double().flatten(1, 2), proposals.flatten(1)


def number_proposals(proposals: Tensor, windows: NDArray[np.int64]) -> Tensor:
    """Tell the proposals of all windows apart: 256 x row of the window + own number."""
    return PROPOSALS * torch.from_numpy(windows)[:, None] + proposals


def over_batches(piece: Piece, function: Callable[[Tensor, Tensor], T]) -> Iterator[T]:
    """Apply a function to every batch of a piece, and give what it gives in their order.

    It takes float64 [window, position, channel], and of which proposal every position is, int64
    [window, position] as of :func:`number_proposals`, a multiple of 256 where it is of none.
    """

    def apply(windows: NDArray[np.int64]) -> T:
        # a thread that is new to torch starts with as many as the environment says
        torch.set_num_threads(1)
        features, proposals = read_positions(piece.read(windows))
        return function(features, number_proposals(proposals, windows))

    threads = min(count_threads(), _MOST_THREADS)
    with one_thread():
        yield from map_ahead(apply, piece.list_batches(), threads, threads)


class Summed(NamedTuple):
    """Sums of the positions of assigned proposals, by class and by unit."""

    moments: Moments  # [class]
    own: Moments  # [unit]: with the scatter of all


class _Part(NamedTuple):
    moments: Moments
    units: Tensor  # int64 [unit that occurs]
    positions: Tensor
    total: Tensor


def sum_positions(
    pieces: Sequence[Piece],
    assigned: Assigned,
    labels: Tensor,
    classes: int,
    origin: Tensor,
    team: Team = INLINE,
) -> Summed:
    """Sum the positions of all assigned proposals over all pieces.

    ``labels`` is the class of every unit, int64 [unit]; ``origin`` is what the sums are relative
    to, float64 [channel], of the features that the pieces give.
    """
    moments = Moments.make_empty(origin, classes)
    own = Moments.make_empty(origin, len(labels))
    tasks = _pair(pieces, assigned)
    for part in team.stream(_sum_piece, tasks, labels, classes, origin):
        moments = moments.merge(part.moments)
        own.count.index_add_(0, part.units, part.positions)
        own.total.index_add_(0, part.units, part.total)
    own.scatter = moments.scatter
    return Summed(moments, own)


Task = tuple[Piece, Assigned]


def _pair(pieces: Sequence[Piece], assigned: Assigned) -> Iterator[Task]:
    return ((piece, assigned.cut(piece.windows)) for piece in pieces)


def _sum_piece(task: Task, labels: Tensor, classes: int, origin: Tensor) -> _Part:
    piece, assigned = task

    def add(features: Tensor, number: Tensor) -> _Part:
        known, unit = assigned.find(number)
        points, unit = features[known], unit[known]
        moments = Moments.make_empty(origin, classes)
        moments.add(points, labels[unit])
        return _Part(moments, *sum_units(points - origin, unit))

    moments = Moments.make_empty(origin, classes)
    own = Moments.make_empty(origin, len(labels))
    for part in over_batches(piece, add):
        moments = moments.merge(part.moments)
        own.count.index_add_(0, part.units, part.positions)
        own.total.index_add_(0, part.units, part.total)
    units = own.count.nonzero()[:, 0]
    return _Part(moments, units, own.count[units], own.total[units])


def sum_units(values: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum values [row, channel] by unit, int64 [row]: which occur, how often, and their sums."""
    units, inverse, count = torch.unique(unit, return_inverse=True, return_counts=True)
    total = values.new_zeros(len(units), values.shape[1]).index_add_(0, inverse, values)
    return units, count.to(values.dtype), total


def measure_use(
    pieces: Sequence[Piece],
    assigned: Assigned,
    labels: Tensor,
    found: Discriminant,
    team: Team = INLINE,
) -> tuple[float, Tensor]:
    """Return the best factor on the logits, and the share of positions of each class."""
    count = torch.zeros(len(found.bias), dtype=torch.int64)
    costs = torch.zeros(len(GAINS), dtype=torch.float64)
    for usage, cost in team.stream(_measure_piece, _pair(pieces, assigned), labels, found):
        count += usage
        costs += cost
    return GAINS[int(costs.argmin())], count / count.sum().double()


def _measure_piece(task: Task, labels: Tensor, found: Discriminant) -> tuple[Tensor, Tensor]:
    piece, assigned = task

    def measure(features: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        known, unit = assigned.find(number)
        logits = found.classify(features)
        usage = torch.bincount(logits.argmax(dim=-1).flatten(), minlength=len(found.bias))
        return usage, measure_gains(logits[known], labels[unit[known]])

    count = torch.zeros(len(found.bias), dtype=torch.int64)
    costs = torch.zeros(len(GAINS), dtype=torch.float64)
    for usage, cost in over_batches(piece, measure):
        count += usage
        costs += cost
    return count, costs


def hold_positions(
    pieces: Sequence[Piece], assigned: Assigned, moments: Moments, fold: Tensor, team: Team = INLINE
) -> HeldOut:
    """Keep what judges the sums of units: the scatter of every fold, and some positions.

    ``moments`` are those of the units, ``fold`` is that of every unit, int64 [unit].
    """
    step = max(1, -(-int(moments.count.sum()) // MOST))
    scatters, kept = moments.origin.new_zeros(FOLDS, *moments.scatter.shape), []
    tasks = _pair(pieces, assigned)
    for scatter, features, rows in team.stream(_hold_piece, tasks, fold, moments.origin, step):
        scatters += scatter
        kept.append((features, rows))
    features, rows = (torch.cat(same) for same in zip(*kept, strict=True))
    return HeldOut(moments, fold, scatters, features, rows)


def _hold_piece(
    task: Task, fold: Tensor, origin: Tensor, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the scatters of a piece, and keep positions that are evenly spaced in it."""
    piece, assigned = task

    def read(features: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        known, unit = assigned.find(number)
        points, rows = features[known], unit[known]
        return scatter_folds(points - origin, fold[rows]), points, rows

    scatters, seen = origin.new_zeros(FOLDS, len(origin), len(origin)), 0
    kept: list[tuple[Tensor, Tensor]] = []
    for scatter, points, rows in over_batches(piece, read):
        scatters += scatter
        chosen = slice(-seen % step, None, step)
        kept.append((points[chosen].clone(), rows[chosen].clone()))
        seen += len(points)
    points, rows = (torch.cat(same) for same in zip(*kept, strict=True))
    return scatters, points, rows
