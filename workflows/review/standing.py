"""What the named set of clusters gives now, of the cached features of a sample of windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import ImageError
from pipeline.images.windows import Window
from pipeline.run.corrections import NOT_SAID
from pipeline.run.evaluation import Part, choose_look
from pipeline.run.frames import count_threads, map_ahead
from pipeline.storage.arrays import read_rows
from pipeline.storage.files import checksum, fingerprint
from stages.artefacts import Artefacts
from stages.evaluate.naming import find_naming
from stages.evaluate.settings import EvaluateSettings
from stages.labelling import MAIN, Classifier, average_views, classify
from stages.report.pictures import sample_evenly
from stages.scores import MAX_CLASSES, UNMATCHED, count_confusion, score_assignment

SAMPLE_BYTES = 96_000_000
SAMPLE_WINDOWS = 512
# windows that are classified at a time
_BLOCK = 16
# share of an image's positions from which on a class counts as in it
_PRESENT = 0.01


@dataclass(frozen=True)
class NamedSet:
    """What names make of a fit: a classifier of positions, and what its outputs are called.

    ``table`` is uint8 [256]: number of the class of every output, 255 of what is left out;
    ``names`` has the name of every number that is in use, ``named`` those that a person has given;
    ``palette`` is uint8 [256, rgb]. Where clusters are ``joined``, those without a name go to the
    nearest class, unless the settings say otherwise. ``key`` tells it from what other names give.
    """

    classifier: Classifier
    table: NDArray[np.uint8]
    names: Mapping[int, str]
    named: frozenset[int]
    palette: NDArray[np.uint8]
    joined: bool
    key: str


def find_named_set(
    artefacts: Artefacts,
    settings: EvaluateSettings,
    class_names: tuple[str, ...],
    given: Mapping[Part, str],
) -> NamedSet:
    """Find what ``evaluate`` will make of a fit; a class of the dataset keeps its number.

    ``given`` are the names of clusters and of parts of them.
    """
    naming = find_naming(artefacts, settings, given, class_names)
    classifier = artefacts.classifiers[MAIN]
    called = {part[0]: name for part, name in given.items() if len(part) == 1}
    unnamed = {f"cluster {k}" for k in range(artefacts.clusters)} - {*given.values()}
    if naming is not None and naming.joined:
        classifier = naming.classifier
        called = {number: name for number, name in enumerate(naming.names) if name is not None}
    count = classifier.classes
    # a map has room for so many
    known = class_names if count + len(class_names) <= NOT_SAID else ()
    nothing = [None] * count if known else None
    look = choose_look(count, nothing, known, artefacts.dataset.palette, called)
    numbers = look.index[:count].tolist()
    names = {n: name for n, name in zip(numbers, look.names, strict=True) if n != IGNORE}
    return NamedSet(
        classifier=classifier,
        table=look.index,
        names=names,
        named=frozenset(n for n, name in names.items() if name not in unnamed),
        palette=look.palette,
        joined=classifier is not artefacts.classifiers[MAIN],
        key=fingerprint(look.names, _digest(classifier)),
    )


def _digest(classifier: Classifier) -> list[str]:
    parts = (classifier.prototypes, classifier.bias)
    return [checksum(part.numpy().tobytes()) for part in parts if part is not None]


@dataclass(frozen=True)
class Sample:
    """Some windows: features float16 [window, row, column, channel], averaged over both views.

    ``truth`` is uint8 [window, row, column], the class at the centre of every position; None where
    there are no labels. ``images`` are the rows of the windows' images, int64 [window].
    """

    features: NDArray[np.float16]
    truth: NDArray[np.uint8] | None
    images: NDArray[np.int64]
    windows: int


def read_sample(artefacts: Artefacts) -> Sample:
    """Read windows that are spread evenly over all images, as many as fit the memory for them."""
    windows = artefacts.manifest.usable_windows()
    views = artefacts.open_views()
    each = 2 * math.prod(views["clean"].shape[1:])
    most = max(1, min(SAMPLE_WINDOWS, SAMPLE_BYTES // each))
    chosen = [windows[i] for i in sample_evenly(len(windows), most)]

    def read(window: Window) -> tuple[NDArray[np.float16], NDArray[np.uint8] | None]:
        clean, mirror = (
            torch.from_numpy(read_rows(views[name], window.index, window.index + 1)).float()
            for name in ("clean", "mirror")
        )
        features = average_views(clean, mirror)[0]
        return features.half().numpy(), _read_truth(artefacts, window, features.shape[:2])

    threads = count_threads()
    read_all = list(map_ahead(read, chosen, threads, threads))
    truths = [truth for _, truth in read_all]
    truth = None
    if any(each is not None for each in truths):
        nothing = np.full(read_all[0][0].shape[:2], IGNORE, np.uint8)
        truth = np.stack([nothing if each is None else each for each in truths])
    images = np.array([window.image for window in chosen], np.int64)
    return Sample(np.stack([f for f, _ in read_all]), truth, images, len(windows))


def _read_truth(
    artefacts: Artefacts, window: Window, grid: tuple[int, ...]
) -> NDArray[np.uint8] | None:
    image = artefacts.manifest.images[window.image]
    try:
        truth = artefacts.read_truth(image)
    except ImageError:
        return None  # evaluate says which label maps cannot be read
    if truth is None:
        return None
    cover = artefacts.cover(image)
    left, top, right, bottom = cover.boxes[window.index - cover.rows.start]
    y = top + ((np.arange(grid[0]) + 0.5) * (bottom - top) / grid[0]).astype(np.int64)
    x = left + ((np.arange(grid[1]) + 0.5) * (right - left) / grid[1]).astype(np.int64)
    return truth[y[:, None], x]


def classify_sample(sample: Sample, classifier: Classifier) -> NDArray[np.uint8]:
    """Find the largest output of every position, uint8 [window, row, column]."""
    found = []
    for start in range(0, len(sample.features), _BLOCK):
        block = torch.from_numpy(sample.features[start : start + _BLOCK]).float()
        found.append(classify(block, classifier).argmax(dim=1).numpy().astype(np.uint8))
    return np.concatenate(found)


@dataclass(frozen=True)
class ClusterFacts:
    """Per cluster: share of the positions; the cluster of the nearest mean feature, and its cosine.

    A cluster without positions has a nearest cluster of -1.
    """

    shares: NDArray[np.float64]
    nearest: NDArray[np.int64]
    similarity: NDArray[np.float64]


def describe_clusters(sample: Sample, classifier: Classifier) -> ClusterFacts:
    """Measure the clusters themselves, whatever they are called."""
    labels = classify_sample(sample, classifier).reshape(-1)
    count = np.bincount(labels, minlength=classifier.classes)
    sums = torch.zeros(classifier.classes, sample.features.shape[-1])
    flat = sample.features.reshape(len(sample.features), -1, sample.features.shape[-1])
    for window, numbers in zip(flat, labels.reshape(len(flat), -1), strict=True):
        index = torch.from_numpy(numbers.astype(np.int64))
        sums.index_add_(0, index, F.normalize(torch.from_numpy(window).float(), dim=-1))
    means = sums / torch.from_numpy(count).clamp_min(1)[:, None]
    # what all have in common says nothing of which are near
    units = F.normalize(means - sums.sum(dim=0) / max(int(count.sum()), 1), dim=-1).numpy()
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    cosines[:, count == 0] = -2
    nearest = np.where((count > 0) & (cosines.max(axis=1) > -2), cosines.argmax(axis=1), -1)
    return ClusterFacts(count / count.sum(), nearest, cosines.max(axis=1).astype(np.float64))


def measure_standing(
    sample: Sample, named: NamedSet, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Measure what the named set gives: shares of the classes, in how many images, and scores.

    Where there are labels, a name that is one of the dataset's classes is scored as that class, and
    any other as wrong.
    """
    outputs = classify_sample(sample, named.classifier)
    numbers = named.table[outputs]
    windows, positions = len(numbers), numbers[0].size
    per_window = np.stack([np.bincount(each.reshape(-1), minlength=256) for each in numbers])
    images, place = np.unique(sample.images, return_inverse=True)
    per_image = np.zeros((len(images), 256), np.int64)
    np.add.at(per_image, place, per_window)
    present = (per_image >= _PRESENT * per_image.sum(axis=1, keepdims=True)) & (per_image > 0)
    shares = per_window.sum(axis=0) / (windows * positions)
    scores = _score(outputs, sample.truth, named, class_names)
    classes = [
        {
            "name": named.names[n],
            "named": n in named.named,
            "colour": named.palette[n].tolist(),
            "share": float(shares[n]),
            "images": int(present[:, n].sum()),
            "iou": scores["iou"].get(n),
        }
        for n in sorted(named.names)
    ]
    return {
        "classes": classes,
        "ignored_share": float(shares[IGNORE]),
        "images": len(images),
        "windows": windows,
        "all_windows": sample.windows,
        "accuracy": scores["accuracy"],
        "miou": scores["miou"],
        "unfound": scores["unfound"],
    }


def _score(
    outputs: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    named: NamedSet,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Score the positions whose true class is known, as ``evaluate`` does; in per cent."""
    places = {name: place for place, name in enumerate(class_names)}
    given = {n: name for n, name in named.names.items() if n in named.named}
    known = {n: places[name] for n, name in given.items() if name in places}
    nothing: dict[str, Any] = {"accuracy": None, "miou": None, "iou": {}, "unfound": []}
    if truth is None or not known:
        return nothing
    classes = named.classifier.classes
    confusion = count_confusion(outputs, truth, classes, MAX_CLASSES)[:, : len(class_names)]
    if not confusion.any():
        return nothing
    table = np.full(256, UNMATCHED, np.int64)
    table[[*known]] = [*known.values()]
    scores = score_assignment(confusion, table[named.table[:classes]])
    iou = {n: 100 * float(scores.iou[place]) for n, place in known.items()}
    there = np.flatnonzero(confusion.any(axis=0)).tolist()
    return {
        "accuracy": 100 * scores.accuracy,
        "miou": 100 * scores.miou,
        "iou": {n: value for n, value in iou.items() if not math.isnan(value)},
        "unfound": [class_names[place] for place in there if place not in known.values()],
    }
