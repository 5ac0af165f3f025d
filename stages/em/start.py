"""Where a fit starts, without labels: how many classes, and principal directions of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.compute.scheduler import INLINE, Team
from stages.em.pieces import GROUP, add_in_order, apply_windows, one_thread

# Beyond some sixteen directions the distances between proposals are mostly what is particular to
# each: on photographs the curve is then flat.
_CHANNELS = 16
# One clustering's silhouette jumps about from K to K; the mean of some draws a curve.
_CLUSTERINGS = 5
_STARTS = 3
_SAMPLE = 4096
# Proposals per class, on average, that a number of classes needs to be tried at all: with fewer,
# clusters of near duplicates score best, and the curve rises to its end.
_LEAST = 10


class ClassCount(NamedTuple):
    """An estimate, and its curve: numbers of classes, ascending, and silhouettes in [-1, 1]."""

    classes: int
    curve: tuple[tuple[int, float], ...]

    def warn_of_edge(self, warn: Callable[[str], object], key: str) -> None:
        """Say that the largest number that was tried is the best, where it is."""
        if self.classes == self.curve[-1][0]:
            warn(
                f"{key}: --classes auto took {self.classes}, the most that it tried (one for "
                f"{_LEAST} proposals, --most-classes at most): the score has no peak before, so "
                "that the images do not say how many classes there are; give --classes as many as "
                "you want to tell apart."
            )


def estimate_classes(pooled: NDArray[np.float32], *, seed: int, most: int) -> ClassCount:
    """Estimate the number of classes from the pooled features of proposals.

    The first 16 principal components of float32 [proposal, channel], at unit length, are clustered
    by K-means, five times for every number K from 2 to ``most``, and to one for ten proposals, a
    fifth apart; the K of the largest mean silhouette is taken, the smallest of equals (Rousseeuw,
    "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987).
    The seed names the starts, and the sample where there are more than 4096. ``ValueError``: there
    are too few different proposals for two classes.
    """
    # most fits count no classes; and loaded before, not while, its threads are limited
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    def measure(points: NDArray[np.float64], classes: int) -> float:
        """Return the mean silhouette of some clusterings."""
        found = [
            KMeans(classes, n_init=_STARTS, random_state=(seed + number) % 2**32)
            .fit(points)
            .labels_
            for number in range(_CLUSTERINGS)
        ]
        return round(float(np.mean([silhouette_score(points, labels) for labels in found])), 6)

    generator = np.random.default_rng(seed)
    if len(pooled) > _SAMPLE:
        pooled = pooled[np.sort(generator.choice(len(pooled), _SAMPLE, replace=False))]
    different = len(np.unique(pooled, axis=0))
    # more clusters than different points cannot all be filled
    numbers = list_numbers(min(most, len(pooled) // _LEAST, different))
    if not numbers or different <= 2:
        raise ValueError(
            f"{len(pooled)} proposals are too few, or too alike, to count their classes"
        )
    # sums in one order, whatever the number of threads
    with threadpool_limits(1):
        components = PCA(min(_CHANNELS, *pooled.shape), random_state=seed)
        points = components.fit_transform(pooled.astype(np.float64))
        curve = tuple((classes, measure(points, classes)) for classes in numbers)
    best = max(score for _, score in curve)
    return ClassCount(next(k for k, score in curve if score == best), curve)


def list_numbers(most: int) -> list[int]:
    """List the numbers of classes to try: from 2 to ``most``, a fifth apart and one at least."""
    numbers = [2]
    while numbers[-1] < most:
        numbers.append(min(most, max(numbers[-1] + 1, round(1.2 * numbers[-1]))))
    return [number for number in numbers if number <= most]


# The blocks of a sample, or pieces of a team that give them.
ReadSample = Callable[[], Iterable[Any]]


class Moments(NamedTuple):
    """Moments in float64: mean [channel], and scatter about it, [channel, channel]."""

    positions: int
    mean: Tensor
    scatter: Tensor


def find_initial_directions(read_sample: ReadSample, classes: int, team: Team = INLINE) -> Tensor:
    """Find the first K principal directions of features, float32 [class, channel].

    They are orthonormal, by falling variance. A prototype is compared by cosine, so it uses one end
    of its axis only, and a principal direction does not say which. The end with the longer tail
    (positive skewness of the projections) is taken: there lies a group far from the mean, at the
    other end the bulk that all directions share.

    ``read_sample`` gives float [..., channel] in any number of blocks, the same ones at each of two
    calls; the first axis of a block of three or more is the window. The team's sums over the blocks
    are added in their order.
    """
    # a worker's device is not this process's
    home = torch.device("cpu") if team.remote else None
    moments: Moments | None = None
    for block in team.stream(measure_moments, read_sample(), home):
        moments = block if moments is None else merge_moments(moments, block)
    if moments is None:
        raise ValueError("no features to take principal directions of")
    mean = moments.mean
    if classes > len(mean):
        raise ValueError(f"{classes} classes need as many channels, there are {len(mean)}")
    with one_thread():
        _, vectors = torch.linalg.eigh(moments.scatter / moments.positions)
    directions = vectors.T.flip(0)[:classes]
    skewness = torch.zeros(classes, dtype=torch.float64, device=mean.device)
    for tail in team.stream(measure_skewness, read_sample(), mean, directions):
        skewness += tail
    signs = torch.where(skewness < 0, -1.0, 1.0)
    return (directions * signs[:, None]).float()


def measure_moments(block: Tensor, home: torch.device | None = None) -> Moments:
    """Measure the moments of one block, [..., channel]; they stay on its device, or go home."""
    runs = _list_windows(block)
    # sums about a point near the mean lose no digits when they are centred at the end
    origin = runs[0].mean(dim=0, dtype=torch.float64)

    def multiply(windows: Tensor) -> tuple[Tensor, Tensor]:
        # a difference from float64 is float64 at once, without a copy of the block in between
        apart = windows - origin
        return apart.sum(dim=1), torch.bmm(apart.transpose(1, 2), apart)

    count = runs.shape[0] * runs.shape[1]
    total, scatter = origin.new_zeros(len(origin)), origin.new_zeros(len(origin), len(origin))
    # a square matrix per window: not those of all at once
    for group in runs.split(GROUP):
        sums, products = apply_windows(multiply, group)
        total += add_in_order(list(sums))
        scatter += add_in_order(list(products))
    shift = total / count
    scatter -= count * torch.outer(shift, shift)
    return Moments(count, (origin + shift).to(home), scatter.to(home))


def merge_moments(one: Moments, other: Moments) -> Moments:
    """Return the moments of both together (Chan, Golub & LeVeque, 1979)."""
    count = one.positions + other.positions
    step = other.mean - one.mean
    between = torch.outer(step, step) * (one.positions * other.positions / count)
    return Moments(
        count, one.mean + step * (other.positions / count), one.scatter + other.scatter + between
    )


def measure_skewness(block: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Sum the cubes of one block's projections, float64 [class]."""
    origin, axes = mean.to(block.device), directions.T.to(block.device)

    def project(windows: Tensor) -> tuple[Tensor]:
        return (((windows - origin) @ axes).pow(3).sum(dim=1),)

    (tails,) = apply_windows(project, _list_windows(block))
    return add_in_order(list(tails)).to(mean.device)


def _list_windows(block: Tensor) -> Tensor:
    """Lay out a block as [window, position, channel]."""
    return block.flatten(1, -2) if block.ndim > 2 else block[None]
