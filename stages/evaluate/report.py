"""The report: metrics, pictures and curves of an evaluation as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stages.evaluate.plots import (
    draw_confusion,
    draw_loss,
    draw_scores,
    draw_usage,
    order_clusters,
)

_IN_USE = 0.1  # per cent of the pixels from which on a class counts as used
_SHOWN_WARNINGS = 6  # the others are folded away
_NOTHING = "–"
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


@dataclass(frozen=True)
class GalleryItem:
    """One image of the gallery.

    Attributes
    ----------
    id
        What the image is called.
    split
        The split that it belongs to.
    pictures
        (caption, ``data:`` URI) of each picture, such as image, features, proposals, label.
    note
        A line beside the name, such as ``accuracy 81.2 %``, by which the gallery can be sorted; or
        nothing.
    """

    id: str
    split: str
    pictures: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True)
class Curve:
    """How a fit went.

    Attributes
    ----------
    loss
        Mean loss of every epoch.
    usage
        Share of pixels per cluster, of every epoch.
    unit
        What is called an epoch: of a head, a round of steps.
    classes
        Number of classes and score, of every number that was tried; nothing where it was given.
    classes_label
        What the score is.
    chosen
        The number of classes of the fit.
    """

    loss: tuple[float, ...]
    usage: tuple[tuple[float, ...], ...]
    unit: str = "epoch"
    classes: tuple[tuple[int, float], ...] = ()
    classes_label: str = ""
    chosen: int | None = None


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page says.

    Attributes
    ----------
    title
        Heading of the page.
    notice
        What has to be known before all else, shown as the first line; or nothing.
    facts
        (name, value) of what was run: backbone, weights, images and so on.
    settings_yaml
        The resolved settings.
    commands
        The commands that reproduce the run.
    metrics
        What ``metrics.json`` holds.
    gallery
        Images to show.
    curve
        History of the fit.
    palette
        Colour of each cluster.
    cluster_names
        Name of each cluster.
    warnings
        One sentence each.
    unusual
        (what, how often) of all that did not go as usual.
    repeatability
        Whether the same commands give the same bytes again.
    """

    title: str
    notice: str
    facts: tuple[tuple[str, str], ...]
    settings_yaml: str
    commands: tuple[str, ...]
    metrics: dict[str, Any]
    gallery: tuple[GalleryItem, ...]
    curve: Curve
    palette: tuple[tuple[int, int, int], ...]
    cluster_names: tuple[str, ...]
    warnings: tuple[str, ...]
    unusual: tuple[tuple[str, str], ...] = ()
    repeatability: str = ""


def render_report(content: ReportContent) -> str:
    """Render the page.

    Parameters
    ----------
    content
        What the page says; all of it is text, and is escaped.

    Returns
    -------
    str
        An HTML document that needs nothing but itself: styles, script, pictures and plots are
        inline, and its own content policy forbids everything else.

    Raises
    ------
    ValueError
        A picture of the gallery is not a ``data:`` URI of an image.
    """
    metrics = content.metrics
    blocks = metrics.get("splits") or {metrics["split"]: metrics}
    has_crf = any(_is_number(block.get("accuracy_crf")) for block in blocks.values())
    page = _ENVIRONMENT.get_template("report.html.j2").render(
        content=content,
        metrics=metrics,
        has_labels=any(_has_scores(block) for block in blocks.values()),
        shown_warnings=_SHOWN_WARNINGS,
        has_headline=_has_scores(metrics),
        has_crf=has_crf,
        tiles=_make_tiles(metrics),
        split_rows=[_make_split_row(name, block) for name, block in blocks.items()],
        other_notes=[note for name, _, note in _OTHERS if _has_other(blocks, name)],
        gallery=[_make_gallery_entry(item) for item in content.gallery],
        gallery_splits=list(dict.fromkeys(item.split for item in content.gallery)),
        gallery_sortable=sum(_read_accuracy(item.note) is not None for item in content.gallery) > 1,
        class_rows=_make_class_rows(content),
        moved=_has_moved(metrics),
        confusion=_plot_confusion(metrics),
        curves=_plot_curves(content),
    )
    # a file name that is no valid Unicode reaches us as lone surrogates, which no encoding takes
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _make_tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Make the large figures of the first screen: scores, or what can be said without labels."""
    if _has_scores(metrics):
        return [
            _make_score_tile("Pixel accuracy", metrics, "accuracy"),
            _make_score_tile("Mean IoU", metrics, "miou"),
        ]
    usage = metrics.get("class_usage") or []
    used = sum(share >= _IN_USE for share in usage)
    return [
        _make_tile("Coverage", _percent(metrics.get("coverage")), "pixels that were given a class"),
        _make_tile(
            "Confidence",
            _percent(metrics.get("confidence")),
            "mean probability of the most likely class",
        ),
        _make_tile(
            "Classes in use", f"{used} of {len(usage)}", f"on at least {_IN_USE:g} % of the pixels"
        ),
    ]


def _make_score_tile(name: str, metrics: Mapping[str, Any], key: str) -> dict[str, str]:
    refined = metrics.get(f"{key}_crf")
    if not _is_number(refined):
        return _make_tile(name, _percent(metrics[key]), "without CRF")
    return _make_tile(name, _percent(refined), f"with CRF; {_percent(metrics[key])} without")


def _make_tile(name: str, value: str, detail: str) -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail}


def _make_split_row(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    usage = block.get("class_usage") or []
    scores = ("accuracy", "accuracy_crf", "miou", "miou_crf", "coverage", "confidence")
    return {
        "name": name,
        "images": block.get("images", _NOTHING),
        "labelled": block.get("labelled_images", _NOTHING),
        "used": f"{sum(share >= _IN_USE for share in usage)} of {len(usage)}",
        "others": [
            {
                "name": title,
                "accuracy": _format(block[name].get("accuracy")),
                "miou": _format(block[name].get("miou")),
            }
            for name, title, _ in _OTHERS
            if _has_other({name: block}, name)
        ],
    } | {key: _format(block.get(key)) for key in scores}


def _has_other(blocks: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    """Tell whether another classifier was scored in any of some splits."""
    return any(_is_number(block.get(name, {}).get("accuracy")) for block in blocks.values())


def _make_gallery_entry(item: GalleryItem) -> dict[str, Any]:
    for caption, source in item.pictures:
        if not source.startswith("data:image/"):
            raise ValueError(f"the picture {caption!r} of {item.id!r} is no data URI of an image")
    return {"item": item, "accuracy": _read_accuracy(item.note)}


def _read_accuracy(note: str) -> str | None:
    found = re.search(r"accuracy\D*?(\d+(?:\.\d+)?)", note, re.IGNORECASE)
    return found.group(1) if found else None


def _make_class_rows(content: ReportContent) -> list[dict[str, Any]]:
    """Make one row per class in their order, then one per cluster that is matched to none."""
    metrics = content.metrics
    usage = metrics.get("class_usage") or []
    clusters = len(content.palette)
    largest = max((share for share in usage if _is_number(share)), default=0.0)

    def describe(cluster: int | None) -> dict[str, Any] | None:
        if cluster is None:
            return None
        share = usage[cluster] if cluster < len(usage) else None
        name = content.cluster_names[cluster]
        return {
            "id": cluster,
            "name": "" if name.startswith("cluster ") or name == str(cluster) else name,
            "colour": "#{:02x}{:02x}{:02x}".format(*content.palette[cluster]),
            "share": _format(share),
            "bar": f"{100 * share / largest:.1f}" if _is_number(share) and largest else "0",
        }

    final = metrics.get("assignment_crf") or metrics.get("assignment")
    if final is None or not _has_scores(metrics):
        return [{"name": None, "cluster": describe(cluster)} for cluster in range(clusters)]
    plain = metrics["assignment"]
    rows = [
        {
            "name": entry["name"],
            "cluster": describe(_find(final, index)),
            "plain": describe(_find(plain, index)),
            "iou": _format(entry["iou"]),
            "iou_crf": _format(entry.get("iou_crf")),
        }
        for index, entry in enumerate(metrics["per_class"])
    ]
    unmatched = [cluster for cluster in order_clusters(final) if final[cluster] is None]
    return rows + [
        {
            "name": None,
            "cluster": describe(cluster),
            "plain": None,
            "iou": _NOTHING,
            "iou_crf": _NOTHING,
        }
        for cluster in unmatched
    ]


def _has_moved(metrics: Mapping[str, Any]) -> bool:
    """Tell whether refinement matches some cluster to another class."""
    refined = metrics.get("assignment_crf")
    return bool(refined) and refined != metrics.get("assignment")


def _find(assignment: Sequence[int | None], index: int) -> int | None:
    return next((cluster for cluster, match in enumerate(assignment) if match == index), None)


def _plot_confusion(metrics: Mapping[str, Any]) -> Markup | None:
    refined = metrics.get("confusion_crf") is not None
    confusion = metrics.get("confusion_crf") if refined else metrics.get("confusion")
    assignment = metrics.get("assignment_crf") if refined else metrics.get("assignment")
    if not confusion or not assignment or not metrics.get("class_names"):
        return None
    counts = np.array(confusion, np.int64)
    return Markup(draw_confusion(counts, assignment, metrics["class_names"]))


def _plot_curves(content: ReportContent) -> list[dict[str, Any]]:
    curve, clusters = content.curve, len(content.palette)
    curves = []
    if curve.classes:
        curves.append(
            {
                "title": "Number of classes",
                "svg": Markup(draw_scores(curve.classes, curve.chosen)),
                "detail": f"What every number of classes scores without labels: "
                f"{curve.classes_label}. The dot is the one that was fitted.",
            }
        )
    if curve.loss:
        drawn = Markup(draw_loss(curve.loss, curve.unit))
        curves.append({"title": "Loss", "svg": drawn, "detail": ""})
    if curve.usage and clusters:
        curves.append(
            {
                "title": "Class usage",
                "svg": Markup(draw_usage(curve.usage, content.palette, curve.unit)),
                "detail": "Share of pixels per class, in the colours of the table of classes.",
            }
        )
    return curves


def _has_scores(block: Mapping[str, Any]) -> bool:
    return _is_number(block.get("accuracy"))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _format(value: object) -> str:
    return f"{value:.1f}" if _is_number(value) else _NOTHING


def _percent(value: object) -> str:
    return f"{_format(value)} %" if _is_number(value) else _NOTHING


def _digest(text: str) -> str:
    """Name a script in a content policy, so that no other one may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stages.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digest"] = _digest
    return environment


_ENVIRONMENT = _make_environment()
