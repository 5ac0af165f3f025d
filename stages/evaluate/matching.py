"""Which cluster is which class: the one-to-one matching with the most pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

UNMATCHED = -1


def match_clusters(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Match clusters to classes one to one so that the matched pixels are most.

    Parameters
    ----------
    confusion
        int64 [cluster, class]: pixels of each cluster in each class.

    Returns
    -------
    numpy.ndarray
        int64 [cluster]: the class, or ``UNMATCHED`` where there are more clusters than classes.

    References
    ----------
    Kuhn, "The Hungarian method for the assignment problem", 1955; scipy solves it.
    """
    assignment = np.full(confusion.shape[0], UNMATCHED, np.int64)
    clusters, classes = linear_sum_assignment(confusion, maximize=True)
    assignment[clusters] = classes
    return assignment
