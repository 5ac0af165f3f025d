"""Clusters joined to named classes: what the label maps hold, and the classifier that makes them.

A fit with more clusters than classes is labelled by the discriminants of the classes that its
clusters are named as, with what is known beside them. Any other fit is labelled as it is. What a
person says of images may bring further classes to either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import RunError, UsageError, count_of
from pipeline.progress import Screen
from pipeline.run.corrections import NOT_SAID, Corrections, is_ignored
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.evaluation import LEFT_OUT_NAME, Part, format_part
from pipeline.run.manifest import Image
from pipeline.storage.arrays import open_arrays
from stages.artefacts import OWN, Artefacts, read_group_of
from stages.calibration import Calibration, calibrate, read_held
from stages.discriminants import Moments, find_discriminant
from stages.evaluate.settings import EvaluateSettings
from stages.known import find_clicked, read_said
from stages.labelling import MAIN, NEVER, Classifier
from stages.parts import Tree
from stages.scores import UNMATCHED

# Share of the positions that have no name, above which it is a warning.
_MUCH = 0.1
# In the facts of an evaluation, and in its metrics: the names of the numbers in its label maps.
NUMBERS = "label_names"
# How many of them, the last ones, are said of images alone.
FURTHER = "further"
# In the facts: how its logits become probabilities.
CALIBRATION = "calibration"
# What these facts are called.
WORDS = {
    **dict.fromkeys((OWN, NUMBERS, "joined", FURTHER), "names, or what is known of the clusters,"),
    CALIBRATION: "confidences",
}


@dataclass(frozen=True)
class Naming:
    """What the numbers in the label maps of an evaluation stand for.

    ``names`` has one name a number, None where it is that of a cluster of the fit itself;
    ``classifier`` has one row a number. ``joined`` is the number of every row of the fit's sums
    where clusters are joined, that of the ``unnamed`` clusters beyond all names.
    """

    names: tuple[str | None, ...]
    classifier: Classifier
    joined: tuple[int, ...] = ()
    unnamed: tuple[int, ...] = ()
    share: float = 0.0  # of the positions, those of the unnamed
    further: int = 0  # of the names, the last: said of images alone
    calibration: Calibration | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What an evaluation records of it, JSON-able; it tells it from others of the same fit."""
        facts = {NUMBERS: list(self.names), "joined": bool(self.joined), FURTHER: self.further}
        calibrated = self.calibration and {CALIBRATION: self.calibration._asdict()}
        return facts | (calibrated or {})


def find_naming(
    artefacts: Artefacts,
    settings: EvaluateSettings,
    given: Mapping[Part, str],
    class_names: Sequence[str],
) -> Naming | None:
    """Find what the label maps are to hold; None where it is the clusters of the fit, no more.

    ``given`` are the names of clusters and their parts, ``class_names`` those of the dataset.
    """
    run, subject, corrections = artefacts.run, artefacts.subject, Corrections(artefacts.run)
    said = corrections.said_names()
    main = artefacts.classifiers[MAIN]
    arrays, attributes = read_group_of(run, subject, sums=True)
    known = tuple(attributes.get("known_names", ()))
    if "moments_count" not in arrays:
        _refuse_parts(given, subject)
    if "moments_count" not in arrays or not (given or known):
        further = [name for name in said if name not in given.values()]
        if not further:
            return None
        clusters: list[str | None] = [None] * main.classes
        _check_count([*clusters, *further])
        classifier = extend_classifier(main, len(further))
        return Naming((*clusters, *further), classifier, further=len(further))
    # what a person calls a cluster wins over the known class that it is pinned to
    given = read_pinned(attributes) | dict(given)
    given = {part: LEFT_OUT_NAME if is_ignored(name) else name for part, name in given.items()}
    clicked = {}
    if "moments_proposal" in arrays and artefacts.has_proposals:
        masks = open_arrays(run.masks, ["proposals"])["proposals"]
        clicked = find_clicked(corrections, artefacts.manifest, masks)
    named = _sort_names([*given.values(), *known], class_names)
    named += [name for name in clicked.values() if not is_ignored(name)]
    named = list(dict.fromkeys(named))
    units = _name_units(arrays, subject, given, clicked, named)
    # clusters, or what is left of them, without a name
    left = np.unique(arrays["moments_cluster"][units < 0])
    bare = units < 0
    units[bare] = len(named) + np.searchsorted(left, arrays["moments_cluster"][bare])
    total = len(named) + len(left)
    joined = tuple(units.tolist())

    def join(moments: Moments) -> Moments:
        classes = moments.join(joined, total)
        if not known:
            return classes
        beside = Moments.read(arrays, "known")
        beside = beside.join([named.index(name) for name in known], total)
        return classes.merge(beside.weigh(float(attributes["known_weight"])))

    shrinkage, gain = float(attributes["shrinkage"]), float(attributes["gain"])
    sums = Moments.read(arrays, "moments")
    moments = join(sums)
    found = find_discriminant(moments, shrinkage=shrinkage)
    own = settings.unnamed == "own"
    kept = total if own else len(named)
    names = [*named, *(f"cluster {k}" for k in left.tolist() if own)]
    further = [name for name in said if name not in named]
    classifier = Classifier(
        (gain * found.weight)[:kept].float(), (gain * found.bias)[:kept].float()
    )
    _check_count((*names, *further))
    classifier = extend_classifier(classifier, len(further))
    share = float(moments.count[len(named) :].sum() / moments.count.sum())
    calibration = None
    if settings.confidence and (held := read_held(arrays, sums)) is not None:
        numbers = torch.from_numpy(units)
        calibration = calibrate(held, join, numbers, kept, shrinkage=shrinkage, gain=gain)
    unnamed, more = tuple(left.tolist()), len(further)
    return Naming((*names, *further), classifier, joined, unnamed, share, more, calibration)


def read_pinned(attributes: Mapping[str, Any]) -> dict[Part, str]:
    """Return the names of the clusters that a fit pinned to known classes, of its attributes."""
    return {(k,): name for k, name in enumerate(attributes.get("pinned_names", ()))}


def _name_units(
    arrays: Mapping[str, NDArray[Any]],
    subject: Subject,
    given: Mapping[Part, str],
    clicked: Mapping[tuple[int, int], str],
    named: Sequence[str],
) -> NDArray[np.int64]:
    """Give every row of the sums the number of its name, int64 [unit]; -1 where it has none."""
    clusters = arrays["moments_cluster"]
    numbers = {part: named.index(name) for part, name in given.items()}
    if "moments_merges" not in arrays:
        _refuse_parts(given, subject)
        table = np.full(int(clusters.max()) + 1, -1, np.int64)
        for (cluster, *_), number in numbers.items():
            table[cluster] = number
        return np.asarray(table[clusters])
    own = _name_clicked(arrays, clicked, named)
    try:
        return Tree(arrays["moments_merges"], clusters).name_units(numbers, own, -1)
    except KeyError as error:
        part = format_part(error.args[0])
        raise RunError(f"{subject.key} has no part {part}, which has a name; remove it.") from error


def _name_clicked(
    arrays: Mapping[str, NDArray[Any]],
    clicked: Mapping[tuple[int, int], str],
    named: Sequence[str],
) -> dict[int, int]:
    """Give the units of clicked proposals the number that most clicks on them say, or the last."""
    proposals = arrays["moments_proposal"]
    units = arrays.get("moments_unit", np.arange(len(proposals)))
    said: dict[int, list[int]] = {}
    for (window, number), name in clicked.items():
        place = int(np.searchsorted(proposals, 256 * window + number))
        if name in named and place < len(proposals) and proposals[place] == 256 * window + number:
            said.setdefault(int(units[place]), []).insert(0, named.index(name))
    # of equals the first: what was said last
    return {unit: Counter(numbers).most_common(1)[0][0] for unit, numbers in said.items()}


def _refuse_parts(given: Mapping[Part, str], subject: Subject) -> None:
    if parts := [part for part in given if len(part) > 1]:
        raise RunError(
            f"part {format_part(parts[0])} of a cluster has a name, but {subject.key} keeps no "
            "parts; run masks, fit again with --clusters and --force, or name whole clusters."
        )


def require_confidence(
    naming: Naming | None, settings: EvaluateSettings, run: RunDirectory
) -> None:
    """Refuse to write a confidence that would mean nothing."""
    if not settings.confidence or (naming is not None and naming.calibration is not None):
        return
    subject = settings.subject
    if naming is None or not naming.joined:
        raise UsageError(
            f"--confidence: nothing says how sure {subject.key} is; it takes a fit with more "
            f"clusters than classes (`primaps-pipe em {run.quoted} --classes K --clusters auto`) "
            f"whose clusters are named in {run.names_file(subject.title)}."
        )
    raise UsageError(
        f"--confidence: {subject.key} keeps nothing of a named cluster to judge itself by; name "
        "clusters, or, where it is of an earlier version, or of a run that had no masks, run "
        f"`primaps-pipe em {run.quoted} --name {subject.name} --force` with them."
    )


def _check_count(names: Sequence[str | None]) -> None:
    if len(names) > NOT_SAID:
        raise UsageError(
            f"evaluate: the label maps would hold {len(names)} classes, by the names of clusters "
            f"and corrections, and a byte holds {NOT_SAID}; give some of them one name."
        )


def _sort_names(names: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Sort names, each once: those of classes in the order of these, then the others, as given."""
    order = {name: place for place, name in enumerate(class_names)} | {LEFT_OUT_NAME: 2**16}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(class_names)))


def extend_classifier(classifier: Classifier, further: int) -> Classifier:
    """Append classes that never win."""
    if not further:
        return classifier
    weight = classifier.prototypes
    bias = weight.new_zeros(len(weight)) if classifier.bias is None else classifier.bias
    return Classifier(
        torch.cat([weight, weight.new_zeros(further, weight.shape[1])]),
        torch.cat([bias, bias.new_full((further,), NEVER)]),
        classifier.logits,
        classifier.gain,
    )


def describe_naming(naming: Naming, settings: EvaluateSettings, screen: Screen) -> None:
    """Say how clusters become classes, and what becomes of those without a name."""
    if not naming.joined:
        return
    classes = [name for name in naming.names if name and name != LEFT_OUT_NAME]
    many = f"{len(classes)} named class{'' if len(classes) == 1 else 'es'}"
    screen.note(f"evaluate: clusters are joined to {many}")
    if naming.unnamed:
        what = "stay classes of their own" if settings.unnamed == "own" else "go to the nearest"
        text = (
            f"evaluate: {count_of(len(naming.unnamed), 'clusters')} without a name, "
            f"{100 * naming.share:.0f} % of the positions, {what} (--unnamed {settings.unnamed})"
        )
        (screen.warn if naming.share > _MUCH else screen.note)(text)


def match_names(
    names: Sequence[str | None], class_names: Sequence[str], further: int = 0
) -> tuple[dict[int, int], dict[int, int]]:
    """Match the numbers that a person has named to the classes of these names.

    Gives number -> class, ``UNMATCHED`` for what is to be ignored, which is no class. The last,
    ``further`` ones are said of images alone: as long as these are not corrected, they are no
    class either, and what they are then is given apart.
    """
    places = {name: place for place, name in enumerate(class_names)}
    places[LEFT_OUT_NAME] = UNMATCHED
    matched = {k: places[name] for k, name in enumerate(names) if name in places}
    first = len(names) - further
    said = {k: matched.get(k, UNMATCHED) for k in range(first, len(names))}
    return matched | dict.fromkeys(said, UNMATCHED), said


def name_numbers(facts: Mapping[str, Any], clusters: int) -> tuple[str | None, ...]:
    """Return the names of the numbers in the label maps, None for clusters of the fit itself."""
    return tuple(facts.get(NUMBERS, [None] * clusters))


class Corrected(NamedTuple):
    """Labels after what a person said of an image: of all of it, and at the windows' scale.

    ``said`` is where in the image something is said, bool [y, x].
    """

    image: NDArray[np.uint8]
    windows: NDArray[np.uint8]
    said: NDArray[np.bool_]


def correct_labels(
    artefacts: Artefacts,
    corrections: Corrections,
    image: Image,
    names: Sequence[str | None],
    labels: NDArray[np.uint8],
    final: NDArray[np.uint8],
) -> Corrected | None:
    """Lay what is said over the labels of an image; None where nothing is said of it.

    ``labels`` is its label map, uint8 [y, x], and ``final`` the same at the windows' scale, both in
    numbers of ``names``.
    """
    masks = None
    if corrections.points_of(image) and artefacts.has_proposals:
        masks = open_arrays(artefacts.run.masks, ["proposals"])["proposals"]
    known, cover = [name or "" for name in names], artefacts.cover(image)
    said = read_said(corrections, image, cover, masks, artefacts.grid, known)
    if said is None:
        return None
    drawn, windows = said.draw(image.width, image.height), said.at_windows
    windows = np.where(windows == NOT_SAID, final, windows)
    # to be scored as what is to be ignored is, where the labels know of such
    windows[windows == IGNORE] = find_left_out(names)
    spoken = drawn != NOT_SAID
    return Corrected(np.where(spoken, drawn, labels), windows, spoken)


def find_left_out(names: Sequence[str | None]) -> int:
    """Return the number of what is to be ignored in label maps of some names; 255 without one."""
    return names.index(LEFT_OUT_NAME) if LEFT_OUT_NAME in names else IGNORE
