"""More clusters than classes: how many, and the sums that join them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from torch import Tensor

from pipeline.compute.scheduler import Team
from pipeline.datasets.definition import IGNORE
from pipeline.errors import RunError
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Ledger
from stages.calibration import FOLDS, HeldOut
from stages.discriminants import GAINS, Discriminant, Moments, find_discriminant, measure_gains
from stages.em.cache import Cache, list_windows
from stages.em.codebook import make_codebook
from stages.em.methods import Fit, Sums, Task
from stages.em.pieces import FitBatch
from stages.em.settings import EmSettings
from stages.em.sums import (
    PROPOSALS,
    Assigned,
    Piece,
    hold_positions,
    measure_use,
    over_batches,
    sum_positions,
)

# Clusters per class: with fewer, classes share clusters; with more, names cost more than they
# bring. And proposals that a cluster holds on average, at least.
PER_CLASS = 8
_LEAST = 2
MOST = 254


def count_clusters(run: RunDirectory, settings: EmSettings) -> int:
    """Return how many clusters to fit: as many as given, or what ``auto`` means here."""
    if settings.clusters is None:
        assert isinstance(settings.classes, int)
        return settings.classes
    if settings.clusters != "auto":
        return settings.clusters
    assert isinstance(settings.classes, int)
    shards = Ledger(run.state("masks")).read_shards().values()
    proposals, windows = (
        sum(int(shard.result[name]) for shard in shards) for name in ("proposals", "windows")
    )
    borne = proposals * len(list_windows(run, settings)) // max(windows, 1) // _LEAST
    return max(settings.classes, min(PER_CLASS * settings.classes, borne, MOST))


def sum_clusters(task: Task, fit: Fit, origin: Tensor | None = None) -> Sums:
    """Sum the proposals of a fit, and calibrate the discriminants of the sums of its clusters.

    A proposal is of the cluster of most of its positions, or of that which it is pinned to; those
    of one cluster, or groups of them where there are many, are merged by average linkage. Positions
    without a proposal are left out. Where there are no proposals at all, the positions of the
    sample are summed by their clusters. Sums are about the origin, or about the mean.
    """
    cache, settings, team, own = task.cache, task.settings, task.team, _open_classifier(fit)
    if "proposals" not in cache.arrays:
        return _sum_clusters(cache, own, settings.shrinkage, origin)
    pieces = task.cut_pieces(cache.windows, labelled=True)
    book = make_codebook(
        pieces, task.draw_pieces(labelled=True), settings.codebook, settings.seed, team
    )
    number, unit = book.assigned
    if not len(number):
        raise RunError("em: no position of the windows has a proposal: there is nothing to sum.")
    cluster = torch.cat(list(team.stream(_vote_piece, pieces, own)))
    if cache.labels is not None:
        pinned = cache.labels.pin_proposals(number)
        cluster = torch.where(pinned == IGNORE, cluster, pinned)
    labels = cluster
    if not book.is_plain:
        # the proposals of a group may be of several clusters
        rows, unit = torch.unique(cluster * len(book.weight) + unit, return_inverse=True)
        labels = rows // len(book.weight)
    assigned = Assigned(number, unit)
    about = book.origin if origin is None else origin
    moments, each = sum_positions(pieces, assigned, labels, len(own.bias), about, team)
    found = find_discriminant(moments, shrinkage=settings.shrinkage)
    gain, _ = measure_use(
        task.cut_pieces(cache.sample, labelled=True), assigned, labels, found, team
    )
    merges = link_clusters(each.total / each.count[:, None] + about, labels.numpy())
    units = None if book.is_plain else unit.int()
    return Sums(each, labels, gain, number, torch.from_numpy(merges), units)


def _vote_piece(piece: Piece, own: Discriminant) -> Tensor:
    """Find the cluster of most of the positions of every proposal, int64 [proposal]."""

    def vote(features: Tensor, number: Tensor) -> Tensor:
        held = number % PROPOSALS > 0
        best = own.classify(features[held]).argmax(dim=1)
        proposals, unit = torch.unique(number[held], return_inverse=True)
        votes = torch.zeros(len(proposals), len(own.bias), dtype=torch.int64)
        votes.index_put_((unit, best), torch.ones_like(best), accumulate=True)
        return votes.argmax(dim=1)

    return torch.cat(list(over_batches(piece, vote)))


def link_clusters(features: Tensor, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge the units of every cluster, float64 [unit, channel], by the angles between them.

    Gives int64 [merge, 2], as ``stages.parts.Tree`` takes them.
    """
    points = F.normalize(features, dim=1).numpy()
    merges, first = [np.empty((0, 2), np.int64)], len(points)
    for cluster in np.unique(labels):
        units = np.flatnonzero(labels == cluster)
        if len(units) > 1:
            pairs = linkage(points[units], "average")[:, :2].astype(np.int64)
            leaf = pairs < len(units)
            pairs[leaf], pairs[~leaf] = units[pairs[leaf]], pairs[~leaf] - len(units) + first
            merges.append(pairs)
            first += len(pairs)
    return np.concatenate(merges)


def _open_classifier(fit: Fit) -> Discriminant:
    """Return the classifier of a fit in float64; of a cosine alone what tells which is largest."""
    weight = fit.prototypes.cpu().double()
    if fit.logits == "cosine":
        weight = F.normalize(weight, dim=1)
    bias = weight.new_zeros(len(weight)) if fit.bias is None else fit.bias.cpu().double()
    return Discriminant(weight, bias)


def _sum_clusters(cache: Cache, own: Discriminant, shrinkage: float, origin: Tensor | None) -> Sums:
    """Sum the positions of every cluster."""
    clusters, moments = len(own.bias), None
    for points, labels in _label_positions(cache.read_averaged(labelled=True), own):
        if moments is None:
            moments = Moments.make_empty(points.mean(dim=0) if origin is None else origin, clusters)
        moments.add(points, labels)
    if moments is None:
        raise ValueError("sums need batches")
    found = find_discriminant(moments, shrinkage=shrinkage)
    costs = torch.zeros(len(GAINS), dtype=torch.float64)
    for points, labels in _label_positions(cache.read_averaged(labelled=True), own):
        costs += measure_gains(found.classify(points), labels)
    return Sums(moments, torch.arange(clusters), GAINS[int(costs.argmin())])


def _label_positions(
    batches: Iterable[FitBatch], own: Discriminant
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give features [position, channel], float64, and the cluster of each, int64 [position]."""
    for batch in batches:
        points = batch.features.cpu().double().flatten(0, 2)
        labels = own.classify(points).argmax(dim=1)
        if batch.pins is not None:
            pinned = batch.pins.positions.flatten().long()
            labels = torch.where(pinned == IGNORE, labels, pinned)
        yield points, labels


def hold_proposals(pieces: Sequence[Piece], sums: Sums, team: Team) -> HeldOut | None:
    """Keep what judges the sums of proposals; None where clusters alone were summed.

    A fold has whole windows; where groups of proposals are summed, which are of many windows each,
    whole groups.
    """
    assigned = sums.assigned
    if assigned is None:
        return None
    fold = torch.arange(len(sums.clusters))
    if sums.units is None:
        windows = torch.from_numpy(np.concatenate([piece.windows for piece in pieces]))
        fold = torch.searchsorted(windows, assigned.number // PROPOSALS)
    return hold_positions(pieces, assigned, sums.moments, fold % FOLDS, team)
