"""The robust fit: proposals clustered by agreement, positions classified by linear discriminants.

What K-means and PriMaPs-EM do pixel by pixel, from one start, is done here in two steps. The
proposals of a sample of windows, each weighted alike, so that a small thing is as much a vote as
the road, are clustered by evidence accumulation; then the positions of each group make a Gaussian
class, all with one covariance. No step learns by gradients, and none has a rate to tune.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UsageError
from stages.em.consensus import cluster_units
from stages.em.discriminant import (
    GAINS,
    Discriminant,
    Moments,
    add_positions,
    find_discriminant,
    measure_gains,
    start_moments,
)
from stages.em.pieces import FitBatch

ReadSample = Callable[[], Iterable[FitBatch]]

# Their agreement is a square matrix: 64 MiB for so many, whatever the size of the data.
MOST_UNITS = 4096
# Proposals are numbered by a byte.
_NUMBERS = 256


@dataclass(frozen=True)
class RobustSettings:
    """How the robust fit goes about it.

    Attributes
    ----------
    classes
        K.
    seed
        Names the sample of proposals and the starts.
    clusterings
        How many clusterings vote which proposals belong together.
    shrinkage
        Share of the identity in the covariance of the discriminants, in [0, 1].
    """

    classes: int
    seed: int
    clusterings: int
    shrinkage: float


@dataclass(frozen=True)
class RobustFit:
    """A fitted classifier of positions: logits = prototypes @ feature + bias.

    The logits are calibrated: their softmax is about as sure as it is right about the groups.

    Attributes
    ----------
    prototypes
        float32 [class, channel]; the classes by falling size of their groups.
    bias
        float32 [class].
    groups
        float64 [class]: share of the clustered proposals' positions that each group has.
    usage
        float64 [class]: share of all positions of the sample that the classifier gives each class.
        A class near 0 has died, one near 1 has swallowed the others.
    units
        Number of proposals that were clustered.
    """

    prototypes: Tensor
    bias: Tensor
    groups: Tensor
    usage: Tensor
    units: int


@dataclass(frozen=True)
class Units:
    """Proposals as points.

    Attributes
    ----------
    number
        int64 [unit], ascending: 256 x place of the window in the sample + number of the proposal.
    feature
        float64 [unit, channel]: mean feature of the proposal's positions.
    context
        float64 [unit, channel]: mean feature of its window.
    """

    number: Tensor
    feature: Tensor
    context: Tensor

    def take(self, rows: Tensor) -> Units:
        """Return some of the units, int64 [unit]."""
        return Units(self.number[rows], self.feature[rows], self.context[rows])


def fit_robust(read_sample: ReadSample, settings: RobustSettings) -> RobustFit:
    """Fit class prototypes to the proposals of a sample of windows.

    Parameters
    ----------
    read_sample
        Gives the same batches in the same order at every call; it is called three times, and no
        batch is kept, only one feature a proposal. Features are best the mean of those of the
        window and of its mirror image: where in the image a thing lies then counts for less.
    settings
        Number of classes, seed, and the fit's constants.

    Returns
    -------
    RobustFit
        The same for the same sample and settings, in any number of threads and on any device: all
        is computed in float64 on the processor.

    Raises
    ------
    UsageError
        There are fewer proposals than classes.
    """
    units = _collect_units(read_sample())
    if len(units.number) < settings.classes:
        raise UsageError(
            f"--classes {settings.classes}: the sample holds only {len(units.number)} proposals; "
            "ask for fewer classes, or give more images."
        )
    units = _sample_units(units, settings.seed)
    groups = cluster_units(
        units.feature,
        units.context,
        settings.classes,
        clusterings=settings.clusterings,
        seed=settings.seed,
    )
    labels = torch.from_numpy(groups)
    moments = _sum_positions(read_sample(), units, labels, settings.classes)
    found = find_discriminant(moments, shrinkage=settings.shrinkage)
    gain, usage = _measure_use(read_sample(), units, labels, found)
    order = moments.count.argsort(descending=True, stable=True)
    scaled = found.scale(gain).take(order)
    return RobustFit(
        scaled.weight.float(),
        scaled.bias.float(),
        moments.count[order] / moments.count.sum(),
        usage[order],
        len(units.number),
    )


def read_positions(batch: FitBatch) -> tuple[Tensor, Tensor]:
    """Read off the proposal of every position of a batch.

    Returns
    -------
    features, proposals
        float64 [window, position, channel] and int64 [window, position]: the number of the proposal
        at the centre of the position's patch, 0 where there is none.

    Raises
    ------
    ValueError
        The batch has no proposals.
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
    """Pool the features of the proposals of some windows.

    Parameters
    ----------
    features, proposals
        As of :func:`read_positions`.
    first
        Place of the first window in the sample.
    """
    numbers = _number(proposals, first)
    held = proposals > 0
    number, inverse, count = torch.unique(numbers[held], return_inverse=True, return_counts=True)
    sums = features.new_zeros(len(number), features.shape[-1])
    sums.index_add_(0, inverse, features[held])
    context = features.mean(dim=1)[number // _NUMBERS - first]
    return Units(number, sums / count[:, None], context)


def _number(proposals: Tensor, first: int) -> Tensor:
    windows = torch.arange(first, first + len(proposals))
    return _NUMBERS * windows[:, None] + proposals


def _collect_units(batches: Iterable[FitBatch]) -> Units:
    parts, first = [], 0
    for batch in batches:
        features, proposals = read_positions(batch)
        parts.append(pool_units(features, proposals, first))
        first += len(features)
    if not parts:
        raise ValueError("a fit needs batches")
    return Units(
        torch.cat([part.number for part in parts]),
        torch.cat([part.feature for part in parts]),
        torch.cat([part.context for part in parts]),
    )


def _sample_units(units: Units, seed: int) -> Units:
    if len(units.number) <= MOST_UNITS:
        return units
    generator = np.random.default_rng([seed, MOST_UNITS])
    rows = generator.choice(len(units.number), MOST_UNITS, replace=False)
    return units.take(torch.from_numpy(np.sort(rows)))


def _sum_positions(
    batches: Iterable[FitBatch], units: Units, labels: Tensor, classes: int
) -> Moments:
    """Sum the positions of the clustered proposals, each with the class of its proposal's group."""
    moments = start_moments(units.feature.mean(dim=0), classes)
    for features, known, place in _find_units(batches, units):
        moments = add_positions(moments, features[known], labels[place[known]])
    return moments


def _measure_use(
    batches: Iterable[FitBatch], units: Units, labels: Tensor, found: Discriminant
) -> tuple[float, Tensor]:
    """Return the best factor on the logits, and the share of positions of each class."""
    count = torch.zeros(len(found.bias), dtype=torch.int64)
    costs = torch.zeros(len(GAINS), dtype=torch.float64)
    for features, known, place in _find_units(batches, units):
        logits = found.classify(features)
        count += torch.bincount(logits.argmax(dim=-1).flatten(), minlength=len(count))
        costs += measure_gains(logits[known], labels[place[known]])
    return GAINS[int(costs.argmin())], count / count.sum().double()


def _find_units(
    batches: Iterable[FitBatch], units: Units
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Find the positions of some units.

    Yields
    ------
    features, known, place
        float64 [window, position, channel]; bool [window, position]: whether the position's
        proposal is one of the units; int64 [window, position]: which, where it is.
    """
    first = 0
    for batch in batches:
        features, proposals = read_positions(batch)
        number = _number(proposals, first)
        place = torch.searchsorted(units.number, number).clamp_max(len(units.number) - 1)
        yield features, units.number[place] == number, place
        first += len(features)
