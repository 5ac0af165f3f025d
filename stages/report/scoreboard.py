"""The first screen of the report: large figures, the table of splits, the largest confusions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stages.report.rendering import NOTHING, format_number, is_number

IN_USE = 0.1  # per cent of the pixels from which on a class counts as used
_OTHERS = (
    (
        "running_prototypes",
        "running prototypes",
        "Running prototypes: those that the gradient moves, which the momentum prototypes, that "
        "made the labels, follow; without CRF, matched to the classes on their own.",
    ),
    (
        "linear_probe",
        "linear probe",
        "Linear probe: a linear classifier of the same features, trained on the labels of the "
        "split train; without CRF. No choice of prototypes is likely to do better.",
    ),
)
_LARGEST_CONFUSIONS = 6
_LEAST_CONFUSION = 0.005  # of all labelled pixels


def has_scores(block: Mapping[str, Any]) -> bool:
    """Tell whether a split was scored against labels."""
    return is_number(block.get("accuracy"))


def make_tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Make the large figures: scores, or what can be said without labels."""
    balance = _make_balance_tile(metrics.get("class_usage") or [])
    confidence = _make_tile(
        "Confidence", metrics.get("confidence"), "mean probability of the most likely class"
    )
    if has_scores(metrics):
        scores = (("Pixel accuracy", "accuracy"), ("Mean IoU", "miou"))
        return [*(_make_score_tile(n, metrics, key) for n, key in scores), confidence, balance]
    coverage = _make_tile("Coverage", metrics.get("coverage"), "pixels that were given a class")
    return [coverage, confidence, balance]


def count_effectively(usage: Sequence[float]) -> float:
    """Count the classes that are used, each by how much."""
    total = math.fsum(usage)
    shares = [share / total for share in usage if share > 0] if total > 0 else []
    return math.exp(-math.fsum(p * math.log(p) for p in shares)) if shares else 0.0


def _make_balance_tile(usage: Sequence[float]) -> dict[str, str]:
    used = sum(share >= IN_USE for share in usage)
    return {
        "name": "Class balance",
        "value": f"{count_effectively(usage):.1f}",
        "unit": f"of {len(usage)}",
        "detail": f"effective number of classes; {used} cover at least {IN_USE:g} % each",
    }


def _make_score_tile(name: str, metrics: Mapping[str, Any], key: str) -> dict[str, str]:
    refined = metrics.get(f"{key}_crf")
    if not is_number(refined):
        return _make_tile(name, metrics[key], "without CRF")
    return _make_tile(name, refined, f"with CRF; {format_number(metrics[key])} % without")


def _make_tile(name: str, value: object, detail: str) -> dict[str, str]:
    unit = "%" if is_number(value) else ""
    return {"name": name, "value": format_number(value), "unit": unit, "detail": detail}


def make_split_row(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Make the rows of one split: the labels, then whatever else was scored beside them."""
    usage = block.get("class_usage") or []
    refined = is_number(block.get("accuracy_crf"))
    suffix = "_crf" if refined else ""
    others = [
        {"name": title, **_pick_scores(block[other])}
        for other, title, _ in _OTHERS
        if _has_other({name: block}, other)
    ]
    if refined:
        others.insert(0, {"name": "without CRF", **_pick_scores(block)})
    return {
        "name": name,
        "images": block.get("images", NOTHING),
        "labelled": block.get("labelled_images", NOTHING),
        "effective": f"{count_effectively(usage):.1f} of {len(usage)}",
        "coverage": format_number(block.get("coverage")),
        "confidence": format_number(block.get("confidence")),
        "others": others,
    } | _pick_scores(block, suffix)


def _pick_scores(block: Mapping[str, Any], suffix: str = "") -> dict[str, str]:
    return {key: format_number(block.get(f"{key}{suffix}")) for key in ("accuracy", "miou")}


def list_other_notes(blocks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what the other classifiers are that were scored in any split."""
    return [note for name, _, note in _OTHERS if _has_other(blocks, name)]


def _has_other(blocks: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return any(is_number(block.get(name, {}).get("accuracy")) for block in blocks.values())


def list_confusions(
    confusion: Sequence[Sequence[int]],
    assignment: Sequence[int | None],
    class_names: Sequence[str],
    cluster_names: Sequence[str],
) -> list[dict[str, str]]:
    """List what is most often taken for something else."""
    total = sum(map(sum, confusion))
    sizes = [sum(column) for column in zip(*confusion, strict=True)]
    wrong = [
        (count, cluster, index)
        for cluster, row in enumerate(confusion)
        for index, count in enumerate(row)
        if assignment[cluster] != index and count >= _LEAST_CONFUSION * total and count
    ]
    return [
        {
            "truth": class_names[index],
            "prediction": cluster_names[cluster],
            "share": format_number(100 * count / total),
            "part": format_number(100 * count / sizes[index], 0),
        }
        for count, cluster, index in sorted(wrong, key=lambda w: (-w[0], *w[1:]))[
            :_LARGEST_CONFUSIONS
        ]
    ]
