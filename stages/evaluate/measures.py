"""What can be said of the labels of one image: its scores, and the clusters that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from stages.evaluate.metrics import MAX_CLASSES, UNMATCHED, count_confusion, score_assignment
from stages.report.page import ClassPart


@dataclass(frozen=True)
class Measures:
    """Figures of one image, in per cent; None where there are no labels or no matching.

    Attributes
    ----------
    accuracy, miou
        Right pixels among the labelled ones; mean IoU over the classes that occur.
    parts
        The clusters that occur, the largest share first.
    """

    accuracy: float | None
    miou: float | None
    parts: tuple[ClassPart, ...]


def measure_image(
    labels: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    classes: Sequence[int | None] | None,
) -> Measures:
    """Measure the labels of one image.

    Parameters
    ----------
    labels
        uint8 [y, x]: clusters; 255 where there is none.
    truth
        uint8 [y, x]: classes, 255 = ignore; or None.
    classes
        Class of every cluster (None: unmatched); None where none is matched.
    """
    usage = np.bincount(labels.ravel(), minlength=256)[:IGNORE]
    present = np.flatnonzero(usage)
    order = present[np.argsort(-usage[present], kind="stable")]
    shares = 100 * usage / max(int(usage.sum()), 1)
    accuracy = miou = None
    ious = np.full(IGNORE, np.nan)
    if truth is not None and classes is not None and (truth != IGNORE).any():
        match = np.array([UNMATCHED if c is None else c for c in classes], np.int64)
        confusion = count_confusion(labels, truth, len(match), MAX_CLASSES)
        if confusion.sum():
            scores = score_assignment(confusion, match)
            accuracy, miou = 100 * scores.accuracy, 100 * scores.miou
            matched = np.flatnonzero(match != UNMATCHED)
            ious[matched] = 100 * scores.iou[match[matched]]
    return Measures(
        accuracy,
        miou,
        tuple(
            ClassPart(int(k), float(shares[k]), None if np.isnan(ious[k]) else float(ious[k]))
            for k in order
        ),
    )
