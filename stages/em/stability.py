"""How stable a fit is: whether fits on two halves of its windows find the same clusters.

No label is needed. Of the windows that the fit is calibrated on, at most ``sample``, two halves are
drawn and fitted, each with a seed of its own; all three fits then label all of these windows. Big
data cost no more than a thousand windows do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stages.em.methods import Fit, Method, Task
from stages.em.pieces import FitBatch
from stages.labelling import Classifier, classify
from stages.scores import match_clusters


class Stability(NamedTuple):
    """What two halves agree on.

    Attributes
    ----------
    agreement
        Cohen's kappa of both halves' labels, at most 1; 0 is what chance gives (Cohen, "A
        coefficient of agreement for nominal scales", 1960).
    clusters
        Of every cluster of the fit, the positions that both halves give it among those that either
        does, in [0, 1]; below 0.5 it comes and goes (Hennig, "Cluster-wise assessment of cluster
        stability", 2007). 0 where neither half has it.
    """

    agreement: float
    clusters: tuple[float, ...]

    def describe(self) -> dict[str, Any]:
        """Return what is kept with the fit."""
        return {"stability": self.agreement, "cluster_stability": list(self.clusters)}


def measure_stability(method: Method, task: Task, fit: Fit) -> Stability:
    """Fit two halves of the sample of a task, and compare what they label; as ``method.fit``."""
    windows, seed = task.cache.sample, task.settings.seed
    order = np.random.default_rng([seed, len(windows)]).permutation(windows)
    fits = [fit]
    for number, half in enumerate(np.array_split(order, 2)):
        own = task.settings.replace(seed=seed + number)
        cache = replace(task.cache, windows=np.sort(half), settings=own)
        fits.append(method.fit(replace(task, settings=own, cache=cache)))
    return compare_halves(*count_shared(task.cache.read_averaged(labelled=True), fits))


def count_shared(batches: Iterable[FitBatch], fits: list[Fit]) -> list[NDArray[np.int64]]:
    """Count the positions that clusters share, int64 [cluster, cluster], of a fit and two halves.

    Gives those of the fit with each half, and of both halves.
    """
    classifiers = [Classifier(f.prototypes.cpu(), f.bias, f.logits) for f in fits]
    classes = classifiers[0].classes
    counts = torch.zeros(3, classes**2, dtype=torch.int64)
    for batch in batches:
        features = batch.features.cpu()
        labels = [classify(features, each).argmax(dim=1).flatten() for each in classifiers]
        for count, (one, other) in zip(counts, ((0, 1), (0, 2), (1, 2)), strict=True):
            pairs = classes * labels[one] + labels[other]
            count += torch.bincount(pairs, minlength=classes**2)
    return [count.reshape(classes, classes).numpy() for count in counts]


def compare_halves(
    first: NDArray[np.int64], second: NDArray[np.int64], both: NDArray[np.int64]
) -> Stability:
    """Compare two halves whose clusters are matched to those of the fit one to one.

    Takes the positions that the fit shares with each half, and both halves with each other, int64
    [cluster, cluster].
    """
    shared = both[match_clusters(first)][:, match_clusters(second)]
    rows, columns, total = shared.sum(axis=1), shared.sum(axis=0), shared.sum()
    same = shared.diagonal()
    chance = float(rows @ columns) / float(total) ** 2
    # one cluster is all that there is: nobody could disagree
    kappa = 1.0 if chance == 1 else (float(same.sum() / total) - chance) / (1 - chance)
    share = same / np.maximum(rows + columns - same, 1)
    return Stability(round(kappa, 4), tuple(round(float(value), 4) for value in share))
