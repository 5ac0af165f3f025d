"""The robust fit: proposals clustered by agreement, positions classified by linear discriminants.

None of its two steps learns by gradients. All proposals, each weighted alike, are
clustered by evidence accumulation, where there are very many through a codebook of them; then the
positions of each group make a Gaussian class, all with one covariance.

A single K-means depends on where it starts, and draws round borders of equal size. How often two
proposals fall together, over many clusterings that differ in start, number of clusters and share of
context, is a similarity that does not, and average linkage on it finds groups of any shape and size
(Fred & Jain, "Combining multiple clusterings using evidence accumulation", 2005).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.scheduler import INLINE, Team, announce
from pipeline.errors import UsageError, count_of
from stages.discriminants import find_discriminant
from stages.em.codebook import make_codebook
from stages.em.methods import Fit, Method, Sums, Task
from stages.em.settings import EmSettings
from stages.em.sums import Piece, measure_use, sum_positions

# A clustering has between K and this many times K clusters: with K alone it would have to cut
# every group to a ball of about the same size.
MOST_CLUSTERS = 3
# Passes of one K-means, at most. It is one voice of many and need not have converged.
_PASSES = 10


def count_agreement(
    units: Tensor,
    context: Tensor,
    classes: int,
    clusterings: int,
    seed: int,
    weight: Tensor | None = None,
) -> NDArray[np.float32]:
    """Count in which share of clusterings two units fall together, float32 [unit, unit].

    Units are float64 [unit, channel], ``context`` is the mean feature of each unit's window. Every
    clustering is one spherical K-means from one k-means++ start. It draws its number of clusters
    from K..3K and how much of the context is taken off the units from 0..1: what a proposal shares
    with its window tells scenes apart, what it does not tells objects apart. A unit counts
    ``weight`` times, int64 [unit], in the starts and means of K-means.
    """
    generator = np.random.default_rng(seed)
    together = np.zeros((len(units), len(units)), np.float32)
    for _ in range(clusterings):
        clusters = int(generator.integers(classes, MOST_CLUSTERS * classes, endpoint=True))
        points = F.normalize(units - generator.uniform() * context, dim=1)
        labels = cluster_directions(points, min(clusters, len(units)), generator, weight).numpy()
        # a quarter of the bytes to compare
        labels = labels.astype(np.uint16)
        together += labels[:, None] == labels[None]
    return together / np.float32(clusterings)


def link_units(
    agreement: NDArray[np.float32], classes: int, weight: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge units by average linkage on their agreement until K groups are left.

    A unit counts ``weight`` times in the averages, int64 [unit]. Gives the group of every unit,
    numbered by their first unit, int64 [unit]; and all merges, int64 [merge, 2], as SciPy numbers
    them.
    """
    units = len(agreement)
    weights = np.ones(units, np.int64) if weight is None else weight
    merges = link_average(1 - agreement, weights)
    group = np.arange(2 * units - 1)
    # Agreements are multiples of one number, so merges are often equally high: a cut by height
    # would give fewer than K groups, a cut by rank does not.
    for node in range(2 * units - classes - 1, units - 1, -1):
        group[merges[node - units]] = group[node]
    _, first, inverse = np.unique(group[:units], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64), merges


def link_average(distance: NDArray[np.float32], weight: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge all units by average linkage, each counting ``weight`` times, int64 [unit].

    Gives int64 [merge, 2], by rising distance, the units and merges numbered as by SciPy's
    ``linkage``, whose units all count once. By chains of nearest neighbours (Murtagh, "A survey of
    recent advances in hierarchical clustering algorithms", 1983).
    """
    units = len(distance)
    between = distance.astype(np.float64)
    np.fill_diagonal(between, np.inf)
    size = weight.astype(np.float64)
    found: list[tuple[float, int, int]] = []
    chain: list[int] = []
    left = np.ones(units, bool)
    while len(found) < units - 1:
        if not chain:
            chain.append(int(left.argmax()))
        one = chain[-1]
        other = int(between[one].argmin())
        # of equals the one before, or the chain might go round for ever
        if len(chain) > 1 and between[one, chain[-2]] <= between[one, other]:
            other = chain[-2]
        else:
            chain.append(other)
            continue
        del chain[-2:]
        one, other = sorted((one, other))
        found.append((float(between[one, other]), one, other))
        row = (size[one] * between[one] + size[other] * between[other]) / (size[one] + size[other])
        between[other], between[:, other] = row, row
        between[one], between[:, one] = np.inf, np.inf
        between[other, other] = np.inf
        left[one] = False
        size[other] += size[one]
    merges = np.empty((units - 1, 2), np.int64)
    # A merge of merges may round to less than these: each is of the nodes that hold two units then.
    parent = list(range(2 * units - 1))

    def climb(node: int) -> int:
        while parent[node] != node:
            # half the way for who comes next
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node, (_, *pair) in enumerate(sorted(found, key=lambda merge: merge[0]), units):
        merges[node - units] = halves = sorted(map(climb, pair))
        for half in halves:
            parent[half] = node
    return merges


def cluster_directions(
    points: Tensor, clusters: int, generator: np.random.Generator, weight: Tensor | None = None
) -> Tensor:
    """Cluster points on the sphere, float64 [point, channel], by K-means from one k-means++ start.

    A point counts ``weight`` times, int64 [point]. Some clusters may stay empty. Gives int64
    [point]. Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007; Dhillon &
    Modha, "Concept decompositions for large sparse text data using clustering", 2001.
    """
    weights = torch.ones(len(points), dtype=torch.int64) if weight is None else weight
    centres = points[_choose_starts(points, clusters, generator, weights)]
    labels, heavy = (points @ centres.T).argmax(dim=1), weights[:, None] * points
    for _ in range(_PASSES):
        sums = torch.zeros_like(centres).index_add_(0, labels, heavy)
        # an empty cluster stays where it is: it may win points back
        centres = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=1), centres)
        before, labels = labels, (points @ centres.T).argmax(dim=1)
        if torch.equal(before, labels):
            break
    return labels


def _choose_starts(
    points: Tensor, clusters: int, generator: np.random.Generator, weights: Tensor
) -> list[int]:
    reach = weights.cumsum(0)
    chosen = [int(torch.searchsorted(reach, int(generator.integers(int(reach[-1]))), right=True))]
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype)
    for _ in range(clusters - 1):
        # half the squared distance between unit vectors
        nearest = torch.minimum(nearest, (1 - points @ points[chosen[-1]]).clamp_min(0))
        far = (weights * nearest).cumsum(0)
        # all points at starts already: any will do
        threshold = generator.uniform() * float(far[-1])
        chosen.append(min(int(torch.searchsorted(far, threshold, right=True)), len(points) - 1))
    return chosen


class RobustFit(NamedTuple):
    """A fitted classifier of positions, the classes by falling size of their groups.

    The logits, prototypes @ feature + bias, are calibrated: their softmax is about as sure as it is
    right about the groups.
    """

    prototypes: Tensor  # float32 [class, channel]
    bias: Tensor  # float32 [class]
    groups: Tensor  # float64 [class]: share of the clustered proposals' positions of each group
    usage: Tensor  # float64 [class]: share of all positions that the classifier gives each class
    sums: Sums


def fit_robust(
    pieces: Sequence[Piece],
    draw: Iterable[Piece],
    labelled: Sequence[Piece],
    sample: Sequence[Piece],
    *,
    classes: int,
    seed: int,
    clusterings: int,
    shrinkage: float,
    codebook: int,
    team: Team = INLINE,
) -> RobustFit:
    """Fit class prototypes to the proposals of all windows.

    Parameters
    ----------
    pieces
        All windows. Features are best the mean of those of the window and of its mirror image.
    draw
        The same windows in pieces drawn at random, of which the codebook reads some.
    labelled
        All windows as they are labelled, where their grid may be another: the sums are of these.
    sample
        Some of the latter, on which the logits are calibrated and the classes counted.
    classes, seed
        K; and what names the first centroids of the codebook and the starts.
    clusterings
        How many clusterings vote which proposals belong together.
    shrinkage
        Share of the identity in the covariance of the discriminants, in [0, 1].
    codebook
        How many units are clustered at most; more proposals are centroids first.
    team
        Who computes.

    Returns
    -------
    RobustFit
        The same in any number of threads and workers and on any device: all is computed on the
        processor.

    Raises
    ------
    UsageError
        There are fewer proposals than classes.
    """
    book = make_codebook(pieces, draw, codebook, seed, team)
    assigned, proposals = book.assigned, len(book.assigned.number)
    if len(book.weight) < classes:
        raise UsageError(
            f"--classes {classes}: the windows hold only {proposals} proposals; "
            "ask for fewer classes, or give more images."
        )
    agreement = count_agreement(
        book.feature, book.context, classes, clusterings, seed, weight=book.weight
    )
    groups, merges = link_units(agreement, classes, weight=book.weight.numpy())
    labels = torch.from_numpy(groups)
    # the positions of all proposals, each with the class of its unit's group
    moments, own = sum_positions(labelled, assigned, labels, classes, book.origin, team)
    found = find_discriminant(moments, shrinkage=shrinkage)
    gain, usage = measure_use(sample, assigned, labels, found, team)
    order = moments.count.argsort(descending=True, stable=True)
    return RobustFit(
        (gain * found.weight)[order].float(),
        (gain * found.bias)[order].float(),
        moments.count[order] / moments.count.sum(),
        usage[order],
        Sums(
            own,
            order.argsort()[labels],
            gain,
            assigned.number,
            torch.from_numpy(merges),
            None if book.is_plain else assigned.unit,
        ),
    )


class Robust(Method):
    """The robust fit, in float64 on the processor, whatever the device."""

    shares_work = True
    is_quick = True

    def count_epochs(self, settings: EmSettings) -> int:
        """Return 1: nothing is learned in steps."""
        return 1

    def fit(self, task: Task) -> Fit:
        """Fit all windows."""
        settings, cache = task.settings, task.cache
        fit = fit_robust(
            task.cut_pieces(cache.windows),
            task.draw_pieces(),
            task.cut_pieces(cache.windows, labelled=True),
            task.cut_pieces(cache.sample, labelled=True),
            classes=settings.classes,
            seed=settings.seed,
            clusterings=settings.clusterings,
            shrinkage=settings.shrinkage,
            codebook=settings.codebook,
            team=task.team,
        )
        announce(advance=1)
        assert fit.sums.proposals is not None
        proposals, units = len(fit.sums.proposals), len(fit.sums.clusters)
        of = f"{proposals} proposals of {count_of(len(cache.windows), 'windows')}"
        return Fit(
            fit.prototypes,
            [fit.usage.float().tolist()],
            of if units == proposals else f"{of} in {units} groups",
            bias=fit.bias,
            sums=fit.sums,
            units=units,
        )
