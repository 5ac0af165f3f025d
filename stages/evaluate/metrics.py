"""Pixel accuracy, IoU and label-free figures, from counts that add up over images and shards.

Which cluster is which class: the one-to-one matching with the most pixels.

The tally: what evaluation counts of every image, added up over shards.

What ``metrics.json`` and the screen say of all splits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.datasets import IGNORE
from stages.evaluate.artefacts import RUNNING

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


MAX_CLASSES = 255


@dataclass
class Tally:
    """Counts over the images of one split.

    Attributes
    ----------
    clusters
        Number of clusters K.
    images, labelled
        Images, and those of them that have a label map.
    confusion, confusion_crf
        int64 [cluster, class] without and with CRF, over the windows' pixels.
    usage
        int64 [cluster]: pixels of the label PNGs.
    pixels
        All pixels of the label PNGs, ignored ones included.
    confidence
        Sum over the windows' pixels of the largest probability.
    predicted
        The windows' pixels.
    others
        int64 [cluster, class] for each classifier that is scored beside the labels, without CRF.
    """

    clusters: int
    images: int = 0
    labelled: int = 0
    pixels: int = 0
    predicted: int = 0
    confidence: float = 0.0
    confusion: NDArray[np.int64] = field(init=False)
    confusion_crf: NDArray[np.int64] = field(init=False)
    usage: NDArray[np.int64] = field(init=False)
    others: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.clusters, MAX_CLASSES), np.int64)
        self.confusion_crf = np.zeros((self.clusters, MAX_CLASSES), np.int64)
        self.usage = np.zeros(self.clusters, np.int64)

    def count_labels(self, labels: NDArray[np.uint8], confidence: float, predicted: int) -> None:
        """Count one image: its label PNG [y, x] and the confidence of its windows' pixels."""
        self.images += 1
        self.pixels += labels.size
        self.usage += np.bincount(labels.ravel(), minlength=256)[: self.clusters]
        self.confidence += confidence
        self.predicted += predicted

    def count_truth(
        self,
        plain: NDArray[np.uint8],
        refined: NDArray[np.uint8] | None,
        truth: NDArray[np.uint8],
        others: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Count the predictions [y, x] of one image against its labels.

        Parameters
        ----------
        plain, refined
            uint8 [y, x]: clusters without and with CRF.
        truth
            uint8 [y, x]: classes.
        others
            uint8 [y, x]: clusters, or classes, of every other classifier.

        Returns
        -------
        tuple
            int64 [cluster, class] of this image alone, without and with CRF.
        """
        self.labelled += 1
        counts = count_confusion(plain, truth, self.clusters, MAX_CLASSES)
        self.confusion += counts
        counts_crf = None
        if refined is not None:
            counts_crf = count_confusion(refined, truth, self.clusters, MAX_CLASSES)
            self.confusion_crf += counts_crf
        for name, prediction in (others or {}).items():
            self._add_other(name, count_confusion(prediction, truth, MAX_CLASSES, MAX_CLASSES))
        return counts, counts_crf

    def add(self, other: Tally) -> None:
        """Add the counts of another tally."""
        for name in vars(self):
            if name not in ("clusters", "others"):
                setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, counts in other.others.items():
            self._add_other(name, counts)

    def _add_other(self, name: str, counts: NDArray[np.int64]) -> None:
        self.others[name] = self.others.get(name, 0) + counts

    def pack(self) -> dict[str, Any]:
        """Return the counts as JSON values; matrices as [row, column, count] triplets."""
        packed = dict(vars(self))
        for name in ("confusion", "confusion_crf"):
            packed[name] = _list_counts(packed[name])
        packed["others"] = {name: _list_counts(counts) for name, counts in self.others.items()}
        packed["usage"] = self.usage.tolist()
        return packed


def _list_counts(matrix: NDArray[np.int64]) -> list[list[int]]:
    rows, columns = np.nonzero(matrix)
    triplets: list[list[int]] = np.stack([rows, columns, matrix[rows, columns]], axis=1).tolist()
    return triplets


def _fill_counts(matrix: NDArray[np.int64], triplets: Sequence[Sequence[int]]) -> None:
    for row, column, count in triplets:
        matrix[row, column] = count


def unpack_tally(packed: dict[str, Any]) -> Tally:
    """Rebuild what :meth:`Tally.pack` gave."""
    tally = Tally(packed["clusters"])
    for name in ("images", "labelled", "pixels", "predicted", "confidence"):
        setattr(tally, name, packed[name])
    for name in ("confusion", "confusion_crf"):
        _fill_counts(getattr(tally, name), packed[name])
    for name, counts in packed["others"].items():
        tally.others[name] = np.zeros((MAX_CLASSES, MAX_CLASSES), np.int64)
        _fill_counts(tally.others[name], counts)
    tally.usage = np.array(packed["usage"], np.int64)
    return tally


def summarise(
    tally: Tally,
    class_names: tuple[str, ...],
    *,
    crf: bool,
    others: Sequence[str] = (),
    supervised: Collection[str] = (),
) -> dict[str, Any]:
    """Turn counts into what ``metrics.json`` says of a split, in per cent.

    Parameters
    ----------
    tally
        The counts.
    class_names
        Names of the classes; those without a name, up to the largest label, are numbered.
    crf
        Whether the labels were refined; without it the ``_crf`` entries are None.
    others
        Names of the other classifiers that were scored, of as many clusters.
    supervised
        Those of them that predict classes rather than clusters, which are not matched.

    Returns
    -------
    dict
        Scores are None where no image has labels: nothing is made up.
    """
    # a label that nobody has named is a class all the same: left out, the scores would be too good
    names = [*class_names, *_number_classes(tally.confusion)[len(class_names) :]]
    plain = _score(tally.confusion[:, : len(names)])
    refined = _score(tally.confusion_crf[:, : len(names)]) if crf else _NO_SCORE
    used = max(int(tally.usage.sum()), 1)
    return {
        "images": tally.images,
        "labelled_images": tally.labelled,
        "classes": tally.clusters,
        "accuracy": plain["accuracy"],
        "miou": plain["miou"],
        "accuracy_crf": refined["accuracy"],
        "miou_crf": refined["miou"],
        "class_names": names,
        "per_class": [
            {"name": name, "iou": _at(plain["iou"], i), "iou_crf": _at(refined["iou"], i)}
            for i, name in enumerate(names)
        ],
        "assignment": plain["assignment"],
        "assignment_crf": refined["assignment"],
        "confusion": plain["confusion"],
        "confusion_crf": refined["confusion"],
        "class_usage": [_percent(count / used) for count in tally.usage],
        "coverage": _percent(tally.usage.sum() / max(tally.pixels, 1)),
        "confidence": _percent(tally.confidence / max(tally.predicted, 1)),
        **{
            name: _score_other(tally, name, len(names), matched=name not in supervised)
            for name in others
        },
    }


def _score_other(
    tally: Tally, name: str, classes: int, *, matched: bool
) -> dict[str, float | None]:
    confusion = tally.others.get(name)
    if confusion is None or not confusion.sum():
        return {"accuracy": None, "miou": None}
    if matched:
        found = _score(confusion[: tally.clusters, :classes])
    else:
        # a class that is only predicted has an IoU of 0, too
        size = max(classes, int(np.flatnonzero(confusion.sum(axis=1)).max()) + 1)
        found = _score(confusion[:size, :size], np.arange(size))
    return {"accuracy": found["accuracy"], "miou": found["miou"]}


_NO_SCORE: dict[str, Any] = dict.fromkeys(("accuracy", "miou", "iou", "assignment", "confusion"))


def _score(
    confusion: NDArray[np.int64], assignment: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    if not confusion.sum():
        return _NO_SCORE
    if assignment is None:
        assignment = match_clusters(confusion)
    scores = score_assignment(confusion, assignment)
    return {
        "accuracy": _percent(scores.accuracy),
        "miou": _percent(scores.miou),
        "iou": [None if np.isnan(iou) else _percent(iou) for iou in scores.iou],
        "assignment": [None if k == UNMATCHED else int(k) for k in assignment],
        "confusion": confusion.tolist(),
    }


def _number_classes(confusion: NDArray[np.int64]) -> list[str]:
    present = np.flatnonzero(confusion.sum(axis=0))
    return [f"class {i}" for i in range(int(present.max()) + 1 if len(present) else 0)]


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


def _at(values: list[Any] | None, index: int) -> Any:
    return None if values is None else values[index]


PROBE = "linear_probe"
TITLES = {RUNNING: "running prototypes", PROBE: "linear probe"}


def summarise_splits(
    tallies: Mapping[str, Iterable[Tally]],
    class_names: tuple[str, ...],
    *,
    crf: bool,
    others: Sequence[str],
) -> dict[str, Any]:
    """Add up and score every split, and put the one that papers report on top.

    Parameters
    ----------
    tallies
        The tallies of every split, one for each shard.
    class_names
        Names of the classes.
    crf
        Whether the labels were refined.
    others
        Names of the classifiers that are scored beside the labels.

    Returns
    -------
    dict
        ``split``, the figures of that split, and those of every one in ``splits``.
    """
    splits = {}
    for split, parts in tallies.items():
        first, *rest = parts
        for tally in rest:
            first.add(tally)
        splits[split] = summarise(first, class_names, crf=crf, others=others, supervised=(PROBE,))
    # the held-out split is the one that papers report, but one without labels says nothing
    ranked = [s for s in ("val", "test", *tallies) if s in splits]
    primary = next((s for s in ranked if splits[s]["accuracy"] is not None), ranked[0])
    return {"split": primary, **splits[primary], "splits": splits}


def describe_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Describe every split in one line."""
    return [_describe_split(split, block) for split, block in metrics["splits"].items()]


def _describe_split(split: str, block: Mapping[str, Any]) -> str:
    if block["accuracy"] is None:
        # label maps of nothing but ignored pixels are none
        what = "a labelled pixel" if block["labelled_images"] else "labels"
        return (
            f"{split}: {block['images']} images without {what}: "
            f"coverage {block['coverage']:.1f} %, confidence {block['confidence']:.1f} %"
        )
    line = f"{split}: accuracy {block['accuracy']:.1f}, mIoU {block['miou']:.1f}"
    if block["accuracy_crf"] is not None:
        line += f"; with CRF {block['accuracy_crf']:.1f}, {block['miou_crf']:.1f}"
    for name, title in TITLES.items():
        if name in block:
            line += f"; {title} {block[name]['accuracy']:.1f}, {block[name]['miou']:.1f}"
    return f"{line} ({block['labelled_images']} labelled images)"
