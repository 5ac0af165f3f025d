"""The robust fit: proposals clustered by agreement, positions classified by linear discriminants.

None of its two steps learns by gradients. The proposals of a sample of windows, each weighted
alike, are clustered by evidence accumulation; then the positions of each group make a Gaussian
class, all with one covariance.

A single K-means depends on where it starts, and draws round borders of equal size. How often two
proposals fall together, over many clusterings that differ in start, number of clusters and share of
context, is a similarity that does not, and average linkage on it finds groups of any shape and size
(Fred & Jain, "Combining multiple clusterings using evidence accumulation", 2005).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from pipeline.compute.scheduler import announce
from pipeline.errors import UsageError, count_of
from stages.discriminants import GAINS, Discriminant, Moments, find_discriminant, measure_gains
from stages.em.methods import Fit, Method, Sums, Task
from stages.em.pieces import FitBatch
from stages.em.settings import EmSettings

# A clustering has between K and this many times K clusters: with K alone it would have to cut
# every group to a ball of about the same size.
MOST_CLUSTERS = 3
# Passes of one K-means, at most. It is one voice of many and need not have converged.
_PASSES = 10


def count_agreement(
    units: Tensor, context: Tensor, classes: int, clusterings: int, seed: int
) -> NDArray[np.float32]:
    """Count in which share of clusterings two units fall together, float32 [unit, unit].

    Units are float64 [unit, channel], ``context`` is the mean feature of each unit's window. Every
    clustering is one spherical K-means from one k-means++ start. It draws its number of clusters
    from K..3K and how much of the context is taken off the units from 0..1: what a proposal shares
    with its window tells scenes apart, what it does not tells objects apart.
    """
    generator = np.random.default_rng(seed)
    together = np.zeros((len(units), len(units)), np.float32)
    for _ in range(clusterings):
        clusters = int(generator.integers(classes, MOST_CLUSTERS * classes, endpoint=True))
        points = F.normalize(units - generator.uniform() * context, dim=1)
        labels = cluster_directions(points, min(clusters, len(units)), generator).numpy()
        # a quarter of the bytes to compare
        labels = labels.astype(np.uint16)
        together += labels[:, None] == labels[None]
    return together / np.float32(clusterings)


def link_units(
    agreement: NDArray[np.float32], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Merge units by average linkage on their agreement until K groups are left.

    Gives the group of every unit, numbered by their first unit, int64 [unit]; and all merges, int64
    [merge, 2], as SciPy numbers them.
    """
    units = len(agreement)
    if units == 1:
        return np.zeros(1, np.int64), np.empty((0, 2), np.int64)
    tree = linkage(squareform(1 - agreement, checks=False), method="average")
    # Agreements are multiples of one number, so merges are often equally high: a cut by height
    # would give fewer than K groups, a cut by rank does not.
    rank = np.arange(units - 1, dtype=np.float64)
    groups = fcluster(tree, units - classes - 1, criterion="monocrit", monocrit=rank)
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    labels = np.argsort(np.argsort(first))[inverse].astype(np.int64)
    return labels, tree[:, :2].astype(np.int64)


def cluster_directions(points: Tensor, clusters: int, generator: np.random.Generator) -> Tensor:
    """Cluster points on the sphere, float64 [point, channel], by K-means from one k-means++ start.

    Some clusters may stay empty. Gives int64 [point]. Arthur & Vassilvitskii, "k-means++: the
    advantages of careful seeding", 2007; Dhillon & Modha, "Concept decompositions for large sparse
    text data using clustering", 2001.
    """
    centres = points[_choose_starts(points, clusters, generator)]
    labels = (points @ centres.T).argmax(dim=1)
    for _ in range(_PASSES):
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        # an empty cluster stays where it is: it may win points back
        centres = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=1), centres)
        before, labels = labels, (points @ centres.T).argmax(dim=1)
        if torch.equal(before, labels):
            break
    return labels


def _choose_starts(points: Tensor, clusters: int, generator: np.random.Generator) -> list[int]:
    chosen = [int(generator.integers(len(points)))]
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype)
    for _ in range(clusters - 1):
        # half the squared distance between unit vectors
        nearest = torch.minimum(nearest, (1 - points @ points[chosen[-1]]).clamp_min(0))
        reach = nearest.cumsum(0)
        # all points at starts already: any will do
        threshold = generator.uniform() * float(reach[-1])
        chosen.append(min(int(torch.searchsorted(reach, threshold, right=True)), len(points) - 1))
    return chosen


ReadSample = Callable[[], Iterable[FitBatch]]

# Their agreement is a square matrix: 64 MiB for so many, whatever the size of the data.
MOST_UNITS = 4096
# Proposals are numbered by a byte.
PROPOSALS = 256


class RobustFit(NamedTuple):
    """A fitted classifier of positions, the classes by falling size of their groups.

    The logits, prototypes @ feature + bias, are calibrated: their softmax is about as sure as it is
    right about the groups.
    """

    prototypes: Tensor  # float32 [class, channel]
    bias: Tensor  # float32 [class]
    groups: Tensor  # float64 [class]: share of the clustered proposals' positions of each group
    usage: Tensor  # float64 [class]: share of all positions that the classifier gives each class
    units: int  # proposals that were clustered
    sums: Sums


class Units(NamedTuple):
    """Proposals as points."""

    # int64 [unit], ascending: 256 x place of the window in the sample + number of the proposal
    number: Tensor
    feature: Tensor  # float64 [unit, channel]: mean feature of the proposal's positions
    context: Tensor  # float64 [unit, channel]: mean feature of its window


def fit_robust(
    read_sample: ReadSample, *, classes: int, seed: int, clusterings: int, shrinkage: float
) -> RobustFit:
    """Fit class prototypes to the proposals of a sample of windows.

    Parameters
    ----------
    read_sample
        Gives the same batches in the same order at each of three calls; no batch is kept. Features
        are best the mean of those of the window and of its mirror image.
    classes, seed
        K; and what names the sample of proposals and the starts.
    clusterings
        How many clusterings vote which proposals belong together.
    shrinkage
        Share of the identity in the covariance of the discriminants, in [0, 1].

    Returns
    -------
    RobustFit
        The same in any number of threads and on any device: all is float64 on the processor.

    Raises
    ------
    UsageError
        There are fewer proposals than classes.
    """
    units = _collect_units(read_sample(), seed)
    if len(units.number) < classes:
        raise UsageError(
            f"--classes {classes}: the sample holds only {len(units.number)} proposals; "
            "ask for fewer classes, or give more images."
        )
    agreement = count_agreement(units.feature, units.context, classes, clusterings, seed)
    groups, merges = link_units(agreement, classes)
    labels = torch.from_numpy(groups)
    moments = Moments.make_empty(units.feature.mean(dim=0), classes)
    own = Moments.make_empty(moments.origin, len(labels))
    # the positions of the clustered proposals, each with the class of its proposal's group
    for features, known, place in find_units(read_sample(), units.number):
        moments.add(features[known], labels[place[known]])
        own.count += torch.bincount(place[known], minlength=len(labels))
        own.total.index_add_(0, place[known], features[known] - own.origin)
    own.scatter = moments.scatter
    found = find_discriminant(moments, shrinkage=shrinkage)
    gain, usage = _measure_use(read_sample(), units, labels, found)
    order = moments.count.argsort(descending=True, stable=True)
    return RobustFit(
        (gain * found.weight)[order].float(),
        (gain * found.bias)[order].float(),
        moments.count[order] / moments.count.sum(),
        usage[order],
        len(units.number),
        Sums(own, order.argsort()[labels], gain, units.number, torch.from_numpy(merges)),
    )


def read_positions(batch: FitBatch) -> tuple[Tensor, Tensor]:
    """Read off the features and the proposal of every position of a batch.

    Gives float64 [window, position, channel], and int64 [window, position]: the number of the
    proposal at the centre of the position's patch, 0 where there is none.
    """
    if batch.proposals is None:
        raise ValueError("the robust fit needs proposals")
    rows, columns = batch.features.shape[1:3]
    height, width = batch.proposals.shape[1:]
    y = ((torch.arange(rows) + 0.5) * (height / rows)).long()
    x = ((torch.arange(columns) + 0.5) * (width / columns)).long()
    proposals = batch.proposals.cpu()[:, y[:, None], x].long()
    return batch.features.cpu().double().flatten(1, 2), proposals.flatten(1)


def pool_units(features: Tensor, proposals: Tensor, first: int) -> Units:
    """Pool the features of the proposals of windows as of :func:`read_positions`.

    ``first`` is the place of the first window in the sample.
    """
    numbers = number_proposals(proposals, first)
    held = proposals > 0
    number, inverse, count = torch.unique(numbers[held], return_inverse=True, return_counts=True)
    sums = features.new_zeros(len(number), features.shape[-1])
    sums.index_add_(0, inverse, features[held])
    context = features.mean(dim=1)[number // PROPOSALS - first]
    return Units(number, sums / count[:, None], context)


def number_proposals(proposals: Tensor, first: int) -> Tensor:
    """Tell the proposals of all windows apart: 256 x place of the window + own number."""
    windows = torch.arange(first, first + len(proposals))
    return PROPOSALS * windows[:, None] + proposals


def _collect_units(batches: Iterable[FitBatch], seed: int) -> Units:
    """Pool the proposals of all batches; of more than ``MOST_UNITS`` draw so many."""
    parts, first = [], 0
    for batch in batches:
        features, proposals = read_positions(batch)
        parts.append(pool_units(features, proposals, first))
        first += len(features)
    if not parts:
        raise ValueError("a fit needs batches")
    units = Units(*(torch.cat(same) for same in zip(*parts, strict=True)))
    if len(units.number) <= MOST_UNITS:
        return units
    generator = np.random.default_rng([seed, MOST_UNITS])
    rows = np.sort(generator.choice(len(units.number), MOST_UNITS, replace=False))
    return Units(*(values[torch.from_numpy(rows)] for values in units))


def _measure_use(
    batches: Iterable[FitBatch], units: Units, labels: Tensor, found: Discriminant
) -> tuple[float, Tensor]:
    """Return the best factor on the logits, and the share of positions of each class."""
    count = torch.zeros(len(found.bias), dtype=torch.int64)
    costs = torch.zeros(len(GAINS), dtype=torch.float64)
    for features, known, place in find_units(batches, units.number):
        logits = found.classify(features)
        count += torch.bincount(logits.argmax(dim=-1).flatten(), minlength=len(count))
        costs += measure_gains(logits[known], labels[place[known]])
    return GAINS[int(costs.argmin())], count / count.sum().double()


def find_units(
    batches: Iterable[FitBatch], units: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Find the positions of some units by their numbers, int64 [unit], ascending.

    Gives float64 [window, position, channel]; bool [window, position]: whether the position's
    proposal is one of the units; int64 [window, position]: which, where it is.
    """
    first = 0
    for batch in batches:
        features, proposals = read_positions(batch)
        number = number_proposals(proposals, first)
        place = torch.searchsorted(units, number).clamp_max(len(units) - 1)
        yield features, units[place] == number, place
        first += len(features)


class Robust(Method):
    """The robust fit: one worker makes it, in float64 on the processor, whatever the device."""

    def count_epochs(self, settings: EmSettings) -> int:
        """Return 1: nothing is learned in steps."""
        return 1

    def fit(self, task: Task) -> Fit:
        """Fit a sample of the windows."""
        settings = task.settings
        fit = fit_robust(
            task.cache.read_averaged,
            classes=settings.classes,
            seed=settings.seed,
            clusterings=settings.clusterings,
            shrinkage=settings.shrinkage,
        )
        announce(advance=1)
        windows = count_of(len(task.cache.sample), "windows")
        # the places in the sample are windows of the run
        proposals = fit.sums.proposals
        assert proposals is not None
        place, number = proposals // PROPOSALS, proposals % PROPOSALS
        rows = PROPOSALS * torch.from_numpy(task.cache.sample)[place] + number
        return Fit(
            fit.prototypes,
            [fit.usage.float().tolist()],
            f"{fit.units} proposals of {windows}",
            bias=fit.bias,
            sums=fit.sums._replace(proposals=rows),
        )
