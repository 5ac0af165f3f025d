"""Pixel accuracy and IoU of clusters that are matched to classes, from counts that add up.

Every score of the project is computed here: of a split, of each of many images, of one picture; and
put into words for the screen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.datasets.labels import LabelCounts
from pipeline.errors import count_of
from stages.intervals import BLOCK, Resampling, draw_weights

UNMATCHED = -1
MAX_CLASSES = 255
# Pixels within which a boundary is found.
WIDTHS = (2, 5)
MATCHINGS = ("one-to-one", "many-to-one", "none")
# What a labelled pixel without a prediction is predicted as: 255 would leave it out of the scores.
NOTHING = 256
# 255, and -1 as it is stored with a sign and without one.
_IGNORED = (IGNORE, -1, 65535)
# A cluster whose IoU with its class is lower, in per cent, is hardly that class: it is said.
WEAK_IOU = 20.0
_MOST_LISTED = 6
# What may be scored beside the labels, by its name in ``metrics.json``.
OTHERS = {
    "running_prototypes": "running prototypes",
    "linear_probe": "linear probe",
    "linear_discriminants": "linear discriminants",
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
    prediction: NDArray[np.integer[Any]], truth: NDArray[np.uint8], clusters: int, classes: int
) -> NDArray[np.int64]:
    """Count how often each cluster meets each class, int64 [cluster, class].

    Takes whole numbers of the same shape; 255 in either leaves the pixel out. ``ValueError``: a
    value is neither 255 nor below its number.
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


def count_pairs(
    prediction: NDArray[np.integer[Any]], truth: NDArray[np.uint8], clusters: int = MAX_CLASSES
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the pairs that occur: cluster x ``MAX_CLASSES`` + class, and pixels, int64 [pair]."""
    confusion = count_confusion(prediction, truth, clusters, MAX_CLASSES).ravel()
    pairs = np.flatnonzero(confusion)
    return pairs, confusion[pairs]


def count_hits(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    pixels: NDArray[np.int64],
    assignment: NDArray[np.int64],
    shape: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Count what many predictions have right, from the pairs of cluster and class of each.

    ``pairs`` are the number of the prediction, the cluster and the class, int64 [pair] each, of so
    many ``pixels``; ``assignment`` is the class of each cluster, or ``UNMATCHED``; ``shape`` has
    the numbers of predictions and of classes. Pixels of unmatched clusters count as wrong: they
    miss their class and belong to no other.

    Gives pixels that are labelled, right, and labelled or matched, float64 [prediction, class].
    """
    number, cluster, label = pairs
    match = assignment[cluster]

    def add(chosen: NDArray[np.bool_], to: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros(shape)
        np.add.at(total, (number[chosen], to[chosen]), pixels[chosen])
        return total

    labelled = add(np.ones(len(label), np.bool_), label)
    hits = add(match == label, label)
    return labelled, hits, labelled + add(match != UNMATCHED, match) - hits


def score_hits(
    labelled: NDArray[np.float64], hits: NDArray[np.float64], union: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Score many predictions at once, from :func:`count_hits`.

    Gives accuracy and mean IoU, float64 [prediction], NaN where no pixel is labelled, and IoU,
    float64 [prediction, class], as :class:`Scores` has them.
    """
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, hits / union, np.nan)
        accuracy = hits.sum(axis=1) / labelled.sum(axis=1)
        miou = np.nansum(iou, axis=1) / (union > 0).sum(axis=1)
    return accuracy, miou, iou


def score_assignment(confusion: NDArray[np.int64], assignment: NDArray[np.int64]) -> Scores:
    """Score one prediction from its confusion, int64 [cluster, class]; as :func:`score_hits`."""
    cluster, label = np.nonzero(confusion)
    pairs, shape = (np.zeros_like(cluster), cluster, label), (1, confusion.shape[1])
    counts = count_hits(pairs, confusion[cluster, label], assignment, shape)
    (accuracy,), (miou,), (iou,) = score_hits(*counts)
    return Scores(float(accuracy), float(miou), iou)


def summarise_confusion(
    confusion: NDArray[np.int64],
    assignment: NDArray[np.int64] | None = None,
    named: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Score a confusion, int64 [cluster, class], as ``metrics.json`` has it; None without one.

    Clusters are matched one to one, but those that are ``named``, where no ``assignment`` is given.
    """
    if not confusion.sum():
        nothing = dict.fromkeys(("accuracy", "miou", "assignment", "confusion"))
        return {**nothing, "iou": [None] * confusion.shape[1]}
    if assignment is None:
        assignment = match_clusters(confusion, named)
    scores = score_assignment(confusion, assignment)
    return {
        "accuracy": to_percent(scores.accuracy),
        "miou": to_percent(scores.miou),
        "iou": [None if np.isnan(iou) else to_percent(iou) for iou in scores.iou],
        "assignment": [None if k == UNMATCHED else int(k) for k in assignment],
        "confusion": confusion.tolist(),
    }


def to_percent(share: float) -> float:
    """Return a share in per cent, as it is written."""
    return round(100 * float(share), 2)


def number_names(class_names: Sequence[str], classes: int) -> list[str]:
    """Name so many classes at least: those without a name by their numbers."""
    return [*class_names, *(f"class {i}" for i in range(len(class_names), classes))]


def put_first(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put the split that papers report on top: as ``split`` and its figures."""
    # the held-out split is the one that papers report, but one without labels says nothing
    ranked = [s for s in ("val", "test", *splits) if s in splits]
    primary = next((s for s in ranked if splits[s]["accuracy"] is not None), ranked[0])
    return {"split": primary, **splits[primary], "splits": splits}


def read_numbers(
    values: NDArray[Any], ignore: Collection[int] = (), *, what: str = "a label map"
) -> NDArray[np.uint8]:
    """Read stored numbers of clusters or classes, [y, x], as uint8: 0..254, 255 for what is none.

    That are 255, -1 (65535 where it was stored without a sign) and those to ``ignore``.
    ``ValueError``: anything else.
    """
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{what} is {values.dtype} {list(values.shape)}, not whole numbers [y, x]")
    none = np.isin(values, [*_IGNORED, *ignore])
    strange = values[~none & ((values < 0) | (values >= MAX_CLASSES))]
    if strange.size:
        raise ValueError(
            f"{what} holds {strange[0]}; numbers of clusters and classes are 0 to "
            f"{MAX_CLASSES - 1}, and what is in no score is 255 or -1"
        )
    return np.where(none, IGNORE, values).astype(np.uint8)


def compare_maps(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the pairs of a label map, uint8 [y, x], and its truth: :func:`count_pairs`.

    A labelled pixel that the prediction leaves out (255) counts as wrong.
    """
    told = np.where(prediction == IGNORE, np.uint16(NOTHING), prediction)
    return count_pairs(told, truth, NOTHING + 1)


Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def count_boundaries(prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count how many pixels of boundaries lie near a boundary of the other map.

    Takes uint8 [y, x]. A pixel is of a boundary where its right or lower neighbour has another
    number, whatever the numbers mean. Those as near to a pixel that ``truth`` ignores are left out.
    Gives int64 [width, map, count]: within each of ``WIDTHS``, of the prediction and of the truth,
    pixels near the other's and all (Csurka et al., "What is a good evaluation measure for semantic
    segmentation?", 2013, but for the classes).
    """
    from scipy.ndimage import distance_transform_edt

    known = truth != IGNORE
    edges = [_find_edges(values, known) for values in (prediction, truth)]

    def measure(there: NDArray[np.bool_]) -> NDArray[np.float64]:
        # without one pixel there is no distance to it
        far = np.full(there.shape, np.inf)
        return distance_transform_edt(~there) if there.any() else far

    nothing = measure(~known)
    away = [measure(edge) for edge in edges]
    found = np.zeros((len(WIDTHS), 2, 2), np.int64)
    for number, width in enumerate(WIDTHS):
        for own, edge in enumerate(edges):
            counted = edge & (nothing > width)
            near = counted & (away[1 - own] <= width)
            found[number, own] = np.count_nonzero(near), np.count_nonzero(counted)
    return found


def _find_edges(values: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    edges = np.zeros(values.shape, np.bool_)
    edges[:, :-1] |= (values[:, :-1] != values[:, 1:]) & known[:, :-1] & known[:, 1:]
    edges[:-1] |= (values[:-1] != values[1:]) & known[:-1] & known[1:]
    return edges


def score_boundaries(counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Score sums of :func:`count_boundaries`: width in pixels -> F in per cent.

    F is the harmonic mean of the shares of the prediction's and of the truth's boundaries that lie
    near the other's; None where either has none.
    """
    found: dict[str, float | None] = {}
    for width, ((ours, all_ours), (theirs, all_theirs)) in zip(WIDTHS, counts, strict=True):
        if not all_ours or not all_theirs:
            found[str(width)] = None
            continue
        right, seen = ours / all_ours, theirs / all_theirs
        found[str(width)] = to_percent(2 * right * seen / (right + seen) if right + seen else 0)
    return found


def summarise_maps(
    images: Mapping[str, Pairs], matching: str, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Score the pairs of many images, of :func:`compare_maps`, as :func:`score` gives them.

    How an image is drawn for the interval follows from its name.
    """
    total = np.zeros((NOTHING + 1) * MAX_CLASSES, np.int64)
    for pairs, counts in images.values():
        total[pairs] += counts
    confusion = total.reshape(NOTHING + 1, MAX_CLASSES)
    predicted = np.flatnonzero(confusion[:NOTHING].any(axis=1))
    clusters = int(predicted.max(initial=-1)) + 1
    present = np.flatnonzero(confusion.any(axis=0))
    classes = int(present.max(initial=-1)) + 1
    if matching == "none":
        # a class that is only predicted has an IoU of 0, too
        clusters = classes = max(classes, clusters, len(class_names))
    names = number_names(class_names, classes)
    confusion = confusion[:, : len(names)]
    own, lost = confusion[:clusters], confusion[NOTHING:]
    if matching == "none":
        assignment = np.arange(clusters)
    else:
        assignment = (match_clusters if matching == MATCHINGS[0] else match_majority)(own)
    found = summarise_confusion(np.vstack([own, lost]), np.append(assignment, UNMATCHED))
    # of every cluster, and of what is not predicted
    matched = np.full(NOTHING + 1, UNMATCHED)
    matched[:clusters] = assignment
    given = found["assignment"] is not None
    return {
        "images": len(images),
        "labelled_images": sum(bool(len(pairs)) for pairs, _ in images.values()),
        "labelled_pixels": int(confusion.sum()),
        "unpredicted_pixels": int(lost.sum()),
        "matching": matching,
        "classes": clusters,
        "accuracy": found["accuracy"],
        "miou": found["miou"],
        "miou_interval": _resample(images, matched) if given else None,
        "class_names": names,
        "per_class": [{"name": n, "iou": i} for n, i in zip(names, found["iou"], strict=True)],
        "assignment": found["assignment"][:-1] if given else None,
        "confusion": found["confusion"][:-1] if given else None,
    }


def _resample(images: Mapping[str, Pairs], matched: NDArray[np.int64]) -> list[float] | None:
    drawn, names = Resampling(), list(images)
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        number = np.repeat(np.arange(len(block)), [len(images[name][0]) for name in block])
        pairs, counts = (np.concatenate([images[name][i] for name in block]) for i in (0, 1))
        shape = (len(block), MAX_CLASSES)
        _, hits, union = count_hits(
            (number, *np.divmod(pairs, MAX_CLASSES)), counts, matched, shape
        )
        drawn.add(draw_weights(block), hits, union)
    return drawn.interval


def score(
    prediction: Any,
    truth: Any,
    ignore: int | Collection[int] = IGNORE,
    *,
    matching: str = MATCHINGS[0],
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Score label maps against the truth, as ``evaluate`` and ``primaps-pipe score`` do.

    Parameters
    ----------
    prediction, truth : array or iterable of arrays
        Whole numbers of one image, [y, x], or of each of many, one [y, x] each, in the same order
        and of the same sizes. The numbers of clusters and of classes are 0..254.
    ignore : int or collection of int
        Values of ``truth`` that are left out of the scores; so are 255 and -1 (65535 where it was
        stored without a sign), always. A labelled pixel whose prediction is 255 or -1 counts as
        wrong; so does one whose prediction is to be ignored, where nothing is matched.
    matching : str
        ``one-to-one`` matches clusters to classes over all images together, so that most pixels are
        right; ``many-to-one`` each to the class of most of its pixels, which more clusters make
        better; ``none``: predictions are classes.
    class_names : sequence of str
        Names of the classes 0, 1, ...; those beyond are numbered.

    Returns
    -------
    dict
        ``accuracy``, ``miou``, its ``miou_interval`` (95 % of draws of images; None of one image)
        and ``per_class``, in per cent, over the classes that occur in labels
        or matched predictions (None where no pixel is labelled); ``assignment``, the class of every
        cluster; ``confusion`` [cluster][class] in pixels; ``images``, ``labelled_images``,
        ``labelled_pixels`` and ``unpredicted_pixels``; all that JSON can hold.

    Raises
    ------
    ValueError
        Sizes or numbers of images differ, or a value is no such number.
    """
    if matching not in MATCHINGS:
        raise ValueError(f"matching {matching!r} is none of {', '.join(MATCHINGS)}")
    ignored = (ignore,) if isinstance(ignore, int) else tuple(ignore)
    images = {}
    for number, pair in enumerate(zip(*map(_list_maps, (prediction, truth)), strict=True)):
        ours, theirs = (np.asarray(each) for each in pair)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"prediction {number} is {list(ours.shape)}, its truth {list(theirs.shape)}: "
                "bring one to the size of the other, to the nearest pixel"
            )
        left_out = ignored if matching == "none" else ()
        told = read_numbers(ours, left_out, what=f"prediction {number}")
        known = read_numbers(theirs, ignored, what=f"truth {number}")
        images[str(number)] = compare_maps(told, known)
    return summarise_maps(images, matching, class_names)


def _list_maps(maps: Any) -> Iterable[Any]:
    return [maps] if getattr(maps, "ndim", 3) == 2 else maps


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


def show_miou(block: Mapping[str, Any], name: str = "miou") -> str:
    """Show an mIoU with its interval, where it has one."""
    interval = block.get(f"{name}_interval")
    return f"{block[name]:.1f}" + (f" [{interval[0]:.1f} to {interval[1]:.1f}]" if interval else "")


def _describe_split(split: str, block: Mapping[str, Any]) -> str:
    if block["accuracy"] is None:
        # label maps of nothing but ignored pixels are none
        what = "a labelled pixel" if block["labelled_images"] else "labels"
        what = "a score" if block.get("refused") else what
        return (
            f"{split}: {block['images']} images without {what}: "
            f"coverage {block['coverage']:.1f} %, confidence {block['confidence']:.1f} %"
        )
    line = f"{split}: accuracy {block['accuracy']:.1f}, mIoU {show_miou(block)}"
    if block["accuracy_crf"] is not None:
        line += f"; with CRF {block['accuracy_crf']:.1f}, {show_miou(block, 'miou_crf')}"
    for name, title in OTHERS.items():
        if name in block:
            line += f"; {title} {block[name]['accuracy']:.1f}, {show_miou(block[name])}"
    return f"{line} ({block['labelled_images']} labelled images)"
