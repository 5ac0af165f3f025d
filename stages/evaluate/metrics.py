"""What ``metrics.json`` and the screen say of all splits, and of what was unusual on the way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.run.ledger import ShardRecord, StageRecord
from stages.evaluate.counts import PLAIN, REFINED, Tally
from stages.labelling import PROBE, RUNNING
from stages.scores import MAX_CLASSES, UNMATCHED, match_clusters, score_assignment

TITLES = {RUNNING: "running prototypes", PROBE: "linear probe"}
TOP_REASONS = 5
_PROCESSOR = "cpu"
_NO_SCORE: dict[str, Any] = dict.fromkeys(("accuracy", "miou", "iou", "assignment", "confusion"))


def summarise(
    tally: Tally, class_names: tuple[str, ...], others: Sequence[str] = ()
) -> dict[str, Any]:
    """Turn counts into what ``metrics.json`` says of a split, in per cent.

    Parameters
    ----------
    tally
        The counts.
    class_names
        Names of the classes; those without a name, up to the largest label, are numbered.
    others
        Names of the other classifiers that were scored. The linear probe predicts classes, which
        are not matched; all others predict as many clusters as the labels have.

    Returns
    -------
    dict
        Scores are None where no image has labels, or none was refined: nothing is made up.
    """
    nothing = np.zeros((MAX_CLASSES, MAX_CLASSES), np.int64)
    confusions = {k: tally.confusions.get(k, nothing) for k in (PLAIN, REFINED, *others)}
    # a label that nobody has named is a class all the same: left out, the scores would be too good
    present = np.flatnonzero(confusions[PLAIN].sum(axis=0))
    numbered = [f"class {i}" for i in range(present.max() + 1 if len(present) else 0)]
    names = [*class_names, *numbered[len(class_names) :]]
    plain, refined = (
        _score(confusions[k][: tally.clusters, : len(names)]) for k in (PLAIN, REFINED)
    )
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
        **{k: _score_other(k, confusions[k], tally.clusters, len(names)) for k in others},
    }


def _score_other(
    name: str, confusion: NDArray[np.int64], clusters: int, classes: int
) -> dict[str, float | None]:
    if name == PROBE:
        # a class that is only predicted has an IoU of 0, too
        size = max(classes, int(np.flatnonzero(confusion.any(axis=1)).max(initial=-1)) + 1)
        found = _score(confusion[:size, :size], np.arange(size))
    else:
        found = _score(confusion[:clusters, :classes])
    return {"accuracy": found["accuracy"], "miou": found["miou"]}


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


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


def _at(values: list[Any] | None, index: int) -> Any:
    return None if values is None else values[index]


def summarise_splits(
    tallies: Mapping[str, Tally], class_names: tuple[str, ...], others: Sequence[str]
) -> dict[str, Any]:
    """Score every split, and put the one that papers report on top: as ``split`` and its figures.

    Those of every split are in ``splits``; parameters are those of :func:`summarise`.
    """
    splits = {split: summarise(tally, class_names, others) for split, tally in tallies.items()}
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


def count_unusual(
    rejected: Sequence[str],
    listed: int,
    stages: Mapping[str, tuple[StageRecord, Sequence[ShardRecord]]],
    usage: Sequence[int],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Count what a reader of the scores should know happened on the way."""
    windows = _sum_results(stages, "extract", ("not_finite_windows",))
    masks = _sum_results(stages, "masks", ("windows", "constant", "empty", "single", "full"))
    devices = {key: _list_devices(*records) for key, records in stages.items()}
    return {
        "images": listed,
        "images_rejected": len(rejected),
        "rejected_for": count_reasons(rejected),
        "windows": sum(r.items for r in stages["extract"][1]) if "extract" in stages else None,
        "windows_not_finite": windows["not_finite_windows"],
        "windows_constant": masks["constant"],
        "windows_without_proposal": masks["empty"],
        "windows_with_one_proposal": masks["single"],
        "windows_with_most_proposals": masks["full"],
        "classes": len(usage),
        "classes_unused": [cluster for cluster, pixels in enumerate(usage) if not pixels],
        "label_maps_left_out": len(left_out),
        "left_out_for": count_reasons(left_out.values()),
        "devices": devices,
        "same_bytes_again": all(found == [_PROCESSOR] for found in devices.values()),
    }


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count reasons by what stands before their details, the most frequent first, five at most."""
    kinds = Counter(re.split(r": | \(", reason, maxsplit=1)[0] for reason in reasons)
    # of equally frequent ones the first of the alphabet: no count depends on an order
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS])


def _sum_results(
    stages: Mapping[str, tuple[StageRecord, Sequence[ShardRecord]]], key: str, names: Sequence[str]
) -> dict[str, int | None]:
    if key not in stages:
        return dict.fromkeys(names)
    return {name: sum(r.result.get(name, 0) for r in stages[key][1]) for name in names}


def _list_devices(record: StageRecord, shards: Sequence[ShardRecord]) -> list[str]:
    """List where a stage computed; the CRF may have a device of its own."""
    found = {str(shard.result.get("device", "an unknown device")) for shard in shards}
    if record.facts.get("crf") == "cuda":
        found.add("cuda")
    return sorted(found)
