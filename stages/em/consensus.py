"""Evidence accumulation: many clusterings of the same units, and the one that they agree on.

A single K-means of a few hundred proposals depends on where it starts, and draws round borders of
equal size whatever the data. How often two units fall together, over many clusterings that differ
in start, number of clusters and share of context, is a similarity that does not, and average
linkage on it finds groups of any shape and size (Fred & Jain, "Combining multiple clusterings
using evidence accumulation", 2005).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

# A clustering has between K and this many times K clusters: with K alone it would have to cut
# every group to a ball of about the same size.
MOST_CLUSTERS = 3
# Passes of one K-means, at most. It is one voice of many and need not have converged.
_PASSES = 10


def cluster_units(
    units: Tensor, context: Tensor, classes: int, *, clusterings: int, seed: int
) -> NDArray[np.int64]:
    """Cluster units by the agreement of many clusterings.

    Parameters
    ----------
    units
        float64 [unit, channel]: the features of proposals.
    context
        float64 [unit, channel]: the mean feature of each unit's window.
    classes
        K, at most the number of units.
    clusterings
        How many clusterings are asked.
    seed
        Names all draws.

    Returns
    -------
    numpy.ndarray
        int64 [unit]: all of 0..K-1 occur.
    """
    return link_units(count_agreement(units, context, classes, clusterings, seed), classes)


def count_agreement(
    units: Tensor, context: Tensor, classes: int, clusterings: int, seed: int
) -> NDArray[np.float32]:
    """Count in which share of clusterings two units fall together.

    Every clustering is one spherical K-means from one k-means++ start. It draws its number of
    clusters from K..3K and how much of the context is taken off the units from 0..1: what a
    proposal shares with its window tells scenes apart, what it does not tells objects apart, and
    how much of either makes a class is not known beforehand.

    Parameters
    ----------
    units, context, classes, clusterings, seed
        As of :func:`cluster_units`.

    Returns
    -------
    numpy.ndarray
        float32 [unit, unit] in [0, 1], symmetric, 1 on the diagonal.
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


def link_units(agreement: NDArray[np.float32], classes: int) -> NDArray[np.int64]:
    """Merge units by average linkage on their agreement until K groups are left.

    Parameters
    ----------
    agreement
        float32 [unit, unit] in [0, 1], symmetric.
    classes
        K, in 1..unit.

    Returns
    -------
    numpy.ndarray
        int64 [unit] in 0..K-1, all of which occur, numbered by first unit.
    """
    units = len(agreement)
    if units == 1:
        return np.zeros(1, np.int64)
    tree = linkage(squareform(1 - agreement, checks=False), method="average")
    # Agreements are multiples of one number, so merges are often equally high: a cut by height
    # would give fewer than K groups, a cut by rank does not.
    rank = np.arange(units - 1, dtype=np.float64)
    groups = fcluster(tree, units - classes - 1, criterion="monocrit", monocrit=rank)
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def cluster_directions(points: Tensor, clusters: int, generator: np.random.Generator) -> Tensor:
    """Cluster points on the sphere by K-means from one k-means++ start.

    Parameters
    ----------
    points
        float64 [point, channel] at unit length.
    clusters
        Number of clusters; some may stay empty.
    generator
        Of the start.

    Returns
    -------
    Tensor
        int64 [point].

    References
    ----------
    Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", 2007; Dhillon & Modha,
    "Concept decompositions for large sparse text data using clustering", 2001.
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
