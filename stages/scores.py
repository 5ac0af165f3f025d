"""Pixel accuracy and IoU of clusters that are matched to classes, from counts that add up.

Every score of the project is computed here: of a split, of each of many images, of one picture; and
put into words for the screen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.datasets.labels import LabelCounts
from pipeline.errors import count_of

UNMATCHED = -1
MAX_CLASSES = 255
# A cluster whose IoU with its class is lower, in per cent, is hardly that class: it is said.
WEAK_IOU = 20.0
_MOST_LISTED = 6
# What may be scored beside the labels, by its name in ``metrics.json``.
OTHERS = {
    "running_prototypes": "running prototypes",
    "linear_probe": "linear probe",
    "corrected": "after correction",
}


@dataclass(frozen=True)
class Scores:
    """Scores of a matched prediction, as shares in [0, 1].

    ``miou`` is the mean of ``iou``, float64 [class], over the classes that occur in the labels or
    the prediction; the others' is NaN.
    """

    accuracy: float
    miou: float
    iou: NDArray[np.float64]


def match_clusters(
    confusion: NDArray[np.int64], named: Mapping[int, int] | None = None
) -> NDArray[np.int64]:
    """Match clusters to classes one to one so that the matched pixels are most.

    Takes int64 [cluster, class], the pixels of each cluster in each class, and the classes of those
    clusters that are ``named`` already, which nothing else is matched to; gives int64 [cluster]:
    the class, or ``UNMATCHED`` where there are more clusters than classes (Kuhn, "The Hungarian
    method for the assignment problem", 1955).
    """
    named = named or {}
    assignment = np.full(confusion.shape[0], UNMATCHED, np.int64)
    assignment[[*named]] = [*named.values()]
    # what scores is loaded more often than anything is scored
    from scipy.optimize import linear_sum_assignment

    left = np.setdiff1d(np.arange(confusion.shape[0]), [*named])
    free = np.setdiff1d(np.arange(confusion.shape[1]), [*named.values()])
    clusters, classes = linear_sum_assignment(confusion[np.ix_(left, free)], maximize=True)
    assignment[left[clusters]] = free[classes]
    return assignment


def match_majority(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Match every cluster to the class of most of its pixels; several may share one.

    Parameters and result are those of :func:`match_clusters`; a cluster without a labelled pixel is
    unmatched.
    """
    return np.where(confusion.any(axis=1), confusion.argmax(axis=1), UNMATCHED)


def pair_clusters(agreement: NDArray[np.int64]) -> dict[int, int]:
    """Pair the clusters of two fits where it is clear which took the place of which.

    Takes int64 [old, new], the pixels that each shares with each; gives old -> new: those that
    :func:`match_clusters` pairs and that share more than half of the pixels of either.
    """
    rows, columns = agreement.sum(axis=1), agreement.sum(axis=0)
    pairs = [(old, new) for old, new in enumerate(match_clusters(agreement)) if new != UNMATCHED]
    clear = [(o, n) for o, n in pairs if 2 * agreement[o, n] > max(rows[o], columns[n])]
    return {old: int(new) for old, new in clear}


def read_assignment(assignment: Sequence[int | None]) -> NDArray[np.int64]:
    """Return a matching, as JSON has it, as :func:`match_clusters` gives it."""
    return np.array([UNMATCHED if k is None else k for k in assignment], np.int64)


def count_confusion(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], clusters: int, classes: int
) -> NDArray[np.int64]:
    """Count how often each cluster meets each class, int64 [cluster, class].

    Takes uint8 of the same shape; 255 in either leaves the pixel out. ``ValueError``: a value is
    neither 255 nor below its number.
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


def score_pairs(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    pixels: NDArray[np.int64],
    assignment: NDArray[np.int64],
    shape: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Score many predictions at once, from the pairs of cluster and class that occur in each.

    ``pairs`` are the number of the prediction, the cluster and the class, int64 [pair] each, of so
    many ``pixels``; ``assignment`` is the class of each cluster, or ``UNMATCHED``; ``shape`` has
    the numbers of predictions and of classes. Pixels of unmatched clusters count as wrong: they
    miss their class and belong to no other.

    Gives accuracy and mean IoU, float64 [prediction], NaN where no pixel is labelled, and IoU,
    float64 [prediction, class], as :class:`Scores` has them.
    """
    number, cluster, label = pairs
    match = assignment[cluster]

    def add(chosen: NDArray[np.bool_], to: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros(shape)
        np.add.at(total, (number[chosen], to[chosen]), pixels[chosen])
        return total

    labelled = add(np.ones(len(label), np.bool_), label)
    hits = add(match == label, label)
    union = labelled + add(match != UNMATCHED, match) - hits
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, hits / union, np.nan)
        accuracy = hits.sum(axis=1) / labelled.sum(axis=1)
        miou = np.nansum(iou, axis=1) / (union > 0).sum(axis=1)
    return accuracy, miou, iou


def score_assignment(confusion: NDArray[np.int64], assignment: NDArray[np.int64]) -> Scores:
    """Score one prediction from its confusion, int64 [cluster, class]; as :func:`score_pairs`."""
    cluster, label = np.nonzero(confusion)
    pairs, shape = (np.zeros_like(cluster), cluster, label), (1, confusion.shape[1])
    (accuracy,), (miou,), (iou,) = score_pairs(pairs, confusion[cluster, label], assignment, shape)
    return Scores(float(accuracy), float(miou), iou)


@dataclass(frozen=True)
class Part:
    """How much of an image belongs to a cluster, and its IoU where it has one; in per cent."""

    cluster: int
    share: float
    iou: float | None


def list_parts(
    labels: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    classes: Sequence[int | None] | None,
) -> list[Part]:
    """List the clusters that an image is made of, the largest first.

    ``labels`` and ``truth`` are uint8 [y, x], 255 = none; ``classes`` is the class of every cluster
    (None: unmatched), or None where none is matched.
    """
    usage = np.bincount(labels.ravel(), minlength=256)[:IGNORE]
    present = np.flatnonzero(usage)
    order = present[np.argsort(-usage[present], kind="stable")]
    shares = 100 * usage / max(int(usage.sum()), 1)
    ious = np.full(IGNORE, np.nan)
    if truth is not None and classes is not None:
        match = read_assignment(classes)
        confusion = count_confusion(labels, truth, len(match), MAX_CLASSES)
        if confusion.any():
            matched = np.flatnonzero(match != UNMATCHED)
            ious[matched] = 100 * score_assignment(confusion, match).iou[match[matched]]
    return [
        Part(int(k), float(shares[k]), None if np.isnan(ious[k]) else float(ious[k])) for k in order
    ]


def describe_weak(block: Mapping[str, Any], given: Collection[int] = ()) -> str:
    """Name the clusters that have little in common with the class that they are matched to.

    ``block`` has the figures of a split, as ``metrics.json`` has them; the clusters in ``given``
    have names of their own. Empty where there is none.
    """
    final = "" if block["assignment_crf"] is None else "_crf"
    if block[f"assignment{final}"] is None:
        return ""
    names, confusion = block["class_names"], np.array(block[f"confusion{final}"], np.int64)
    assignment, most = read_assignment(block[f"assignment{final}"]), match_majority(confusion)
    iou = 100 * score_assignment(confusion, assignment).iou
    weak = [k for k, c in enumerate(assignment) if c != UNMATCHED and k not in given]
    weak = [k for k in weak if not iou[assignment[k]] >= WEAK_IOU]
    if not weak:
        return ""
    told = []
    for k in sorted(weak, key=lambda k: (np.nan_to_num(iou[assignment[k]]), k))[:_MOST_LISTED]:
        share = "no pixel of it is labelled"
        if most[k] != UNMATCHED:
            part = 100 * confusion[k, most[k]] / confusion[k].sum()
            share = f"{part:.0f} % of its pixels are {names[most[k]]}"
        value = float(np.nan_to_num(iou[assignment[k]]))
        told.append(f"cluster {k} is called {names[assignment[k]]} (IoU {value:.1f} %; {share})")
    more = len(weak) - len(told)
    return (
        f"{len(weak)} of {len(assignment)} clusters are called by a class with which they have an "
        f"IoU below {WEAK_IOU:g} %: {', '.join(told)}{f' and {more} more' if more else ''}"
    )


def describe_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Describe every split of ``metrics.json`` in one line, and what of its labels is left out."""
    lines = []
    for split, block in metrics["splits"].items():
        lines.append(_describe_split(split, block))
        counts = LabelCounts.parse(block.get("label_pixels", {}))
        # of the others describe_labels warns
        if not counts.unknown and (left_out := counts.describe()):
            lines.append(f"{split}: {left_out}")
    return lines


def describe_labels(metrics: Mapping[str, Any]) -> list[str]:
    """Say which labels a fit saw; of every split which are no class's, why it is not scored."""
    lines = []
    if used := metrics.get("labels_used"):
        many = count_of(used["images"], "images")
        lines.append(
            f"the fit saw labels ({many} of {used['from']}): its scores are not those of an "
            "unsupervised method"
        )
    for split, block in metrics["splits"].items():
        counts = LabelCounts.parse(block.get("label_pixels", {}))
        lines += [f"{split}: {counts.describe()}"] if counts.unknown else []
        lines += [f"{split} is not scored: {block['refused']}"] if block.get("refused") else []
    return lines


def _describe_split(split: str, block: Mapping[str, Any]) -> str:
    if block["accuracy"] is None:
        # label maps of nothing but ignored pixels are none
        what = "a labelled pixel" if block["labelled_images"] else "labels"
        what = "a score" if block.get("refused") else what
        return (
            f"{split}: {block['images']} images without {what}: "
            f"coverage {block['coverage']:.1f} %, confidence {block['confidence']:.1f} %"
        )
    line = f"{split}: accuracy {block['accuracy']:.1f}, mIoU {block['miou']:.1f}"
    if block["accuracy_crf"] is not None:
        line += f"; with CRF {block['accuracy_crf']:.1f}, {block['miou_crf']:.1f}"
    for name, title in OTHERS.items():
        if name in block:
            line += f"; {title} {block[name]['accuracy']:.1f}, {block[name]['miou']:.1f}"
    return f"{line} ({block['labelled_images']} labelled images)"
