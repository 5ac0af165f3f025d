"""The tables of a comparison: scores, classes, settings, and what they come to in a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.run.subject import Evaluation
from stages.evaluate.artefacts import read_group_of
from stages.report.comparison.evaluated import find_differences, list_settings
from stages.report.comparison.page import Curves, Row, Table, Value, find_best
from stages.report.content import make_curve
from stages.report.page import Colour
from stages.report.plots import draw_loss, draw_usage
from stages.report.rendering import is_number
from stages.report.scoreboard import count_effectively

_SCORES = (
    ("accuracy_crf", "Accuracy with CRF, %"),
    ("accuracy", "Accuracy without CRF, %"),
    ("miou_crf", "Mean IoU with CRF, %"),
    ("miou", "Mean IoU without CRF, %"),
)
# what has no better and worse between one method and another
_FIGURES = (("coverage", "Coverage, %"), ("confidence", "Confidence, %"))
# names of fits and heads: the columns are called by them
_NAMES = frozenset({"em.name", "evaluate.em", "evaluate.head", "head.name", "encode.head"})
_LONGEST_VALUE = 120


def tabulate_scores(opened: Sequence[Evaluation]) -> tuple[Table, ...]:
    """Put the scores of every split side by side."""
    return tuple(_tabulate_split(opened, split) for split in list_splits(opened))


def list_splits(opened: Sequence[Evaluation]) -> list[str]:
    """List the splits that any evaluation scored: the one that matters most first."""
    primary = [str(entry.metrics["split"]) for entry in opened]
    return list(dict.fromkeys([*primary, *(s for entry in opened for s in entry.splits)]))


def _tabulate_split(opened: Sequence[Evaluation], split: str) -> Table:
    blocks = [entry.metrics["splits"].get(split, {}) for entry in opened]
    rows = [Row("Images", _pick(blocks, "images"))]
    labelled = _pick(blocks, "labelled_images")
    if any(labelled):
        rows.append(Row("with labels", labelled))
    for key, title in _SCORES:
        values = _pick(blocks, key)
        if any(map(is_number, values)):
            rows.append(Row(title, values, find_best(values)))
    rows += [Row(title, _pick(blocks, key)) for key, title in _FIGURES]
    rows.append(Row("Clusters", _pick(blocks, "classes")))
    usage = [block.get("class_usage") or [] for block in blocks]
    even: tuple[Value, ...] = tuple(count_effectively(u) if u else None for u in usage)
    rows.append(Row("Clusters in use, effectively", even))
    return Table(split, tuple(rows), _describe_images(blocks))


def _pick(blocks: Sequence[dict[str, Any]], key: str) -> tuple[Value, ...]:
    return tuple(block.get(key) for block in blocks)


def _describe_images(blocks: Sequence[dict[str, Any]]) -> str:
    scored = {block["labelled_images"] for block in blocks if is_number(block.get("accuracy"))}
    if len(scored) < 2:
        return ""
    return "Every score is over the images of its own run, and these are not as many in all."


def tabulate_classes(opened: Sequence[Evaluation]) -> tuple[Table, ...]:
    """Put the IoU of every class side by side, for every split that has labels."""
    tables = []
    for split in list_splits(opened):
        blocks = [entry.metrics["splits"].get(split, {}) for entry in opened]
        scored = [_read_classes(block) for block in blocks]
        names = list(dict.fromkeys(name for classes in scored for name in classes))
        colours = _list_colours(opened, blocks)
        rows = []
        for name in names:
            values = tuple(classes.get(name) for classes in scored)
            rows.append(Row(name, values, find_best(values), colours.get(name)))
        if any(is_number(value) for row in rows for value in row.values):
            tables.append(Table(split, tuple(rows)))
    return tuple(tables)


def _read_classes(block: dict[str, Any]) -> dict[str, float | None]:
    """Read the IoU of the final labels, by class."""
    if not is_number(block.get("accuracy")):
        return {}
    key = "iou" if block.get("accuracy_crf") is None else "iou_crf"
    return {entry["name"]: entry.get(key) for entry in block["per_class"]}


def _list_colours(
    opened: Sequence[Evaluation], blocks: Sequence[dict[str, Any]]
) -> dict[str, Colour]:
    colours: dict[str, Colour] = {}
    for entry, block in zip(opened, blocks, strict=True):
        for index, name in enumerate(block.get("class_names", ())):
            red, green, blue = entry.class_palette[min(index, 254)].tolist()
            colours.setdefault(name, (red, green, blue))
    return colours


def list_differences(opened: Sequence[Evaluation]) -> tuple[Row, ...]:
    """List the settings in which the evaluations differ, in the order of the stages."""
    settings = [list_settings(entry.run, f"evaluate/{entry.subject.title}") for entry in opened]
    return tuple(
        Row(name, tuple(map(_show, values)))
        for name, values in find_differences(settings).items()
        if name not in _NAMES
    )


def _show(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False)
    if text is None or len(text) <= _LONGEST_VALUE:
        return text
    return f"{text[:_LONGEST_VALUE]}…"


def describe_verdict(
    names: Sequence[str], opened: Sequence[Evaluation], shares: Sequence[float]
) -> str:
    """Say in a sentence or two what the figures come to."""
    known = [share for share in shares if is_number(share)]
    agreement = ""
    if known:
        low, high = f"{min(known):.0f}", f"{max(known):.0f}"
        span = low if low == high else f"{low} to {high}"
        pairs = "The label maps agree" if len(shares) == 1 else "Every two of the label maps agree"
        agreement = f" {pairs} on {span} % of the pixels."
    return _rank(names, opened) + agreement


def _rank(names: Sequence[str], opened: Sequence[Evaluation]) -> str:
    """Say which has the highest mean IoU, split by split."""
    told, scored = [], set()
    for split in list_splits(opened):
        blocks = [entry.metrics["splits"].get(split, {}) for entry in opened]
        scores = [_read_final(block) for block in blocks]
        ranked = sorted(
            ((score, -i) for i, score in enumerate(scores) if score is not None), reverse=True
        )
        scored |= {names[-i] for _, i in ranked}
        if len(ranked) < 2:
            continue
        (best, first), (second, _) = ranked[:2]
        lead = round(best, 1) - round(second, 1)
        told.append(
            f"{split}: {names[-first]}, {best:.1f} %, {lead:.1f} points above the next"
            if lead > 0
            else f"{split}: no one alone, {best:.1f} %"
        )
    if not told and scored:
        return f"Only {', '.join(sorted(scored))} could be scored by labels: look at the images."
    if not told:
        return "There are no labels to score these by: look at the images."
    return f"Highest mean IoU of the final labels on {'; on '.join(told)}."


def _read_final(block: dict[str, Any]) -> float | None:
    """Return the mean IoU of the final labels."""
    refined = block.get("miou_crf")
    value = block.get("miou") if refined is None else refined
    return value if is_number(value) else None


def draw_curves(name: str, entry: Evaluation) -> Curves:
    """Draw how a fit or head went."""
    curve = make_curve(*read_group_of(entry.run, entry.subject))
    plots = []
    if curve.loss:
        plots.append(("Loss", draw_loss(curve.loss, curve.unit)))
    if curve.usage:
        colours = entry.look(str(entry.metrics["split"])).colours
        plots.append(("Share of every cluster", draw_usage(curve.usage, colours, curve.unit)))
    return Curves(name, tuple(plots))
