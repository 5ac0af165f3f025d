"""Which few to look at: those that stand for most of what there is, by facility location.

A candidate, an image or a proposal, covers every target as far as its nearest proposal resembles
it. Taking the one that adds most, again and again, chooses the typical before the odd and nothing
twice, and is within 1 - 1/e of the best choice (Nemhauser, Wolsey & Fisher, "An analysis of
approximations for maximizing submodular set functions", 1978; Wei, Iyer & Bilmes, "Submodularity in
data subset selection and active learning", 2015).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Their nearness is a matrix of at most 4096 x 4096: 64 MiB, whatever the size of the data.
MOST_TARGETS = 4096
MOST_CANDIDATES = 4096
# Of a target that nothing covers: the least that a cosine can be.
UNCOVERED = np.float32(-1)
# Rows of a product, or of a comparison, at a time.
_BLOCK = 512


class Proposals(NamedTuple):
    """Proposals, in the order of their owners."""

    owner: NDArray[np.int64]  # [proposal], ascending: the candidate that it belongs to
    feature: NDArray[np.float32]  # [proposal, channel]


class Chosen(NamedTuple):
    """What was chosen, in its order."""

    candidates: NDArray[np.int64]  # [chosen]
    # float64 [chosen]: share of the weight of the targets that each is the first to resemble most,
    # of those which resemble it more than what was covered before
    shares: NDArray[np.float64]


def centre(features: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.float32]:
    """Take a mean off features [proposal, channel] and scale them to unit length.

    All features of a backbone have much in common; about their mean they differ by what they show.
    """
    centred = features.astype(np.float32) - mean.astype(np.float32)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.maximum(length, np.finfo(np.float32).tiny)


def draw_some(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Draw ``most`` of so many numbers, ascending; all where there are no more."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, most]).choice(count, most, replace=False))


def measure_nearness(
    blocks: Iterable[Proposals], targets: NDArray[np.float32], candidates: int
) -> NDArray[np.float32]:
    """Measure how near the nearest proposal of every candidate is to every target.

    Parameters
    ----------
    blocks
        The candidates' proposals, their features of unit length; those of one candidate may lie in
        several blocks.
    targets
        float32 [target, channel], of unit length.
    candidates
        How many there are.

    Returns
    -------
    numpy.ndarray
        float32 [candidate, target]: the largest cosine; -1 where a candidate has no proposal.
    """
    nearness = np.full((candidates, len(targets)), UNCOVERED)
    for owner, feature in blocks:
        for first in range(0, len(owner), _BLOCK):
            part = owner[first : first + _BLOCK]
            cosines = feature[first : first + _BLOCK] @ targets.T
            starts = np.flatnonzero(np.diff(part, prepend=-1))
            largest = np.maximum.reduceat(cosines, starts)
            nearness[part[starts]] = np.maximum(nearness[part[starts]], largest)
    return nearness


def choose_covering(
    nearness: NDArray[np.float32],
    weight: NDArray[np.floating],
    covered: NDArray[np.float32],
    count: int,
) -> Chosen:
    """Choose the candidates that cover the targets best together, one by one.

    Parameters
    ----------
    nearness
        As :func:`measure_nearness` gives it.
    weight
        float [target], how much it matters; not negative.
    covered
        float32 [target]: how near what is known already is to each; ``UNCOVERED`` where nothing is.
    count
        How many to choose.

    Returns
    -------
    Chosen
        As many as asked for, but for candidates that would add nothing. Of equal ones the first.
    """
    weights = weight.astype(np.float64)
    best, nearest = covered.copy(), np.full(len(covered), -1)
    # what a candidate adds only falls as others are taken: what it added once is an upper bound
    bounds = np.concatenate(
        [
            np.maximum(nearness[first : first + _BLOCK] - best, 0) @ weights
            for first in range(0, len(nearness), _BLOCK)
        ]
        or [np.zeros(0)]
    )
    chosen: list[int] = []
    while len(chosen) < min(count, len(nearness)):
        candidate = int(bounds.argmax())
        adds = np.maximum(nearness[candidate] - best, 0)
        bounds[candidate] = adds @ weights
        if bounds[candidate] < bounds.max():
            continue
        if not bounds[candidate] > 0:
            break
        best = np.maximum(best, nearness[candidate])
        nearest[adds > 0] = len(chosen)
        chosen.append(candidate)
        bounds[candidate] = -np.inf
    own = nearest >= 0
    shares = np.bincount(nearest[own], weights[own], len(chosen)) / max(weights.sum(), 1e-300)
    return Chosen(np.array(chosen, np.int64), shares)
