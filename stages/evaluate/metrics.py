"""Pixel accuracy, IoU and label-free figures, from counts that add up over images and shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from stages.evaluate.matching import UNMATCHED


@dataclass(frozen=True)
class Scores:
    """Scores of a matched prediction, as shares in [0, 1].

    Attributes
    ----------
    accuracy
        Right pixels over labelled pixels.
    miou
        Mean of ``iou`` over the classes that occur in the labels or the prediction.
    iou
        float64 [class]; NaN for a class that occurs in neither.
    """

    accuracy: float
    miou: float
    iou: NDArray[np.float64]


def count_confusion(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], clusters: int, classes: int
) -> NDArray[np.int64]:
    """Count how often each cluster meets each class.

    Parameters
    ----------
    prediction, truth
        uint8, same shape; 255 in either leaves the pixel out.
    clusters, classes
        Numbers of clusters K and classes C.

    Returns
    -------
    numpy.ndarray
        int64 [cluster, class].

    Raises
    ------
    ValueError
        A value is neither 255 nor below its number.
    """
    valid = (prediction != IGNORE) & (truth != IGNORE)
    cluster, label = prediction[valid].astype(np.int64), truth[valid].astype(np.int64)
    if cluster.size and (cluster.max() >= clusters or label.max() >= classes):
        raise ValueError(
            f"labels up to {label.max()} and clusters up to {cluster.max()} do not fit "
            f"{classes} classes and {clusters} clusters"
        )
    counts = np.bincount(cluster * classes + label, minlength=clusters * classes)
    return counts.reshape(clusters, classes)


def score_assignment(confusion: NDArray[np.int64], assignment: NDArray[np.int64]) -> Scores:
    """Score a prediction whose clusters are matched to classes.

    Pixels of unmatched clusters count as wrong: they miss their class and belong to no other.

    Parameters
    ----------
    confusion
        int64 [cluster, class], with at least one pixel.
    assignment
        int64 [cluster]: class of each cluster, or ``UNMATCHED``.
    """
    classes = confusion.shape[1]
    labelled = confusion.sum(axis=0)
    hits = np.zeros(classes, np.int64)
    predicted = np.zeros(classes, np.int64)
    matched = np.flatnonzero(assignment != UNMATCHED)
    np.add.at(hits, assignment[matched], confusion[matched, assignment[matched]])
    np.add.at(predicted, assignment[matched], confusion[matched].sum(axis=1))
    union = labelled + predicted - hits
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, hits / union, np.nan)
    return Scores(float(hits.sum() / labelled.sum()), float(np.nanmean(iou)), iou)
