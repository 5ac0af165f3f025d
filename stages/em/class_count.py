"""How many classes there are: an estimate from the proposals, without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

# Beyond some sixteen directions the distances between proposals are mostly what is particular to
# each: on photographs the curve is then flat.
_CHANNELS = 16
# One clustering's silhouette jumps about from K to K; the mean of some draws a curve.
_CLUSTERINGS = 5
_STARTS = 3
_SAMPLE = 4096
# Proposals per class, on average, that a number of classes needs to be tried at all.
_LEAST = 5


@dataclass(frozen=True)
class ClassCount:
    """An estimated number of classes.

    Attributes
    ----------
    classes
        The estimate.
    curve
        What it was chosen by: numbers of classes, ascending, and their silhouettes in [-1, 1].
    """

    classes: int
    curve: tuple[tuple[int, float], ...]


def estimate_classes(pooled: NDArray[np.float32], *, seed: int, most: int) -> ClassCount:
    """Estimate the number of classes from the pooled features of proposals.

    The proposals' first 16 principal components are clustered by K-means, five times for every
    number K from 2 up, a fifth apart; the K of the largest mean silhouette is taken, the smallest
    of equals.

    Parameters
    ----------
    pooled
        float32 [proposal, channel], at unit length; more than 4096 are sampled.
    seed
        Names the sample and the starts.
    most
        Largest number to try.

    Returns
    -------
    ClassCount

    Raises
    ------
    ValueError
        There are too few different proposals for two classes.

    References
    ----------
    Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis", 1987.
    """
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
        curve = tuple((classes, _measure(points, classes, seed)) for classes in numbers)
    best = max(score for _, score in curve)
    return ClassCount(next(k for k, score in curve if score == best), curve)


def _measure(points: NDArray[np.float64], classes: int, seed: int) -> float:
    """Return the mean silhouette of some clusterings."""
    found = [
        KMeans(classes, n_init=_STARTS, random_state=(seed + number) % 2**32).fit(points).labels_
        for number in range(_CLUSTERINGS)
    ]
    return round(float(np.mean([silhouette_score(points, labels) for labels in found])), 6)


def list_numbers(most: int) -> list[int]:
    """List the numbers of classes to try: from 2 to ``most``, a fifth apart and one at least."""
    numbers = [2]
    while numbers[-1] < most:
        numbers.append(min(most, max(numbers[-1] + 1, round(1.2 * numbers[-1]))))
    return [number for number in numbers if number <= most]
