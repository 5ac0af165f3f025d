"""The report: metrics, pictures and curves of an evaluation as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from stages.report.catalogue import list_unfound, make_clusters, make_gallery, make_strip
from stages.report.page import ReportContent
from stages.report.plots import draw_confusion, draw_loss, draw_scores, draw_series, draw_usage
from stages.report.rendering import is_number, render_page
from stages.report.scoreboard import (
    has_scores,
    list_confusions,
    list_other_notes,
    make_split_row,
    make_tiles,
)

_STYLES = ("style.css", "scores.css", "gallery.css", "clusters.css")
_SCRIPTS = ("common.js", "gallery.js", "clusters.js", "pointer.js", "viewer.js")
_MEANINGS = {
    "agreement": "Share of the labelled pixels whose own class is that of their proposal. "
    "It rises while the prototypes learn what the proposals say.",
    "turn": "Mean angle by which the prototypes were turned. Close to nothing, more epochs "
    "change nothing.",
    "effective classes": "Exponential of the entropy of the class usage. It falls when classes "
    "die.",
}


def render_report(content: ReportContent) -> str:
    """Render the page."""
    metrics = content.metrics
    blocks = metrics.get("splits") or {metrics["split"]: metrics}
    confusion = _plot_confusion(metrics)
    return render_page(
        "report.html.j2",
        styles=_STYLES,
        scripts=_SCRIPTS,
        content=content,
        metrics=metrics,
        has_labels=any(has_scores(block) for block in blocks.values()),
        has_headline=has_scores(metrics),
        has_crf=any(is_number(block.get("accuracy_crf")) for block in blocks.values()),
        tiles=make_tiles(metrics),
        split_rows=[make_split_row(name, block) for name, block in blocks.items()],
        other_notes=list_other_notes(blocks),
        gallery=make_gallery(content),
        clusters=make_clusters(content),
        strip=make_strip(content),
        unfound=list_unfound(content),
        confusion=confusion,
        confusions=_list_confusions(content) if confusion else [],
        curves=_plot_curves(content),
    )


def _choose_matching(metrics: Mapping[str, Any]) -> tuple[Any, Any]:
    """Choose confusion and assignment of the final labels."""
    suffix = "_crf" if metrics.get("confusion_crf") is not None else ""
    return metrics.get(f"confusion{suffix}"), metrics.get(f"assignment{suffix}")


def _plot_confusion(metrics: Mapping[str, Any]) -> Markup | None:
    confusion, assignment = _choose_matching(metrics)
    if not confusion or not assignment or not metrics.get("class_names"):
        return None
    counts = np.array(confusion, np.int64)
    return Markup(draw_confusion(counts, assignment, metrics["class_names"]))


def _list_confusions(content: ReportContent) -> list[dict[str, str]]:
    confusion, assignment = _choose_matching(content.metrics)
    names = {card.cluster: card.name for card in content.clusters}
    clusters = [names.get(k, f"cluster {k}") for k in range(len(confusion))]
    return list_confusions(confusion, assignment, content.metrics["class_names"], clusters)


def _plot_curves(content: ReportContent) -> list[dict[str, Any]]:
    curve = content.curve
    palette = [card.colour for card in content.clusters]
    curves: list[dict[str, Any]] = []

    def add(title: str, svg: str, detail: str = "", *, legend: bool = False) -> None:
        curves.append({"title": title, "svg": Markup(svg), "detail": detail, "legend": legend})

    if curve.classes:
        add(
            "Number of classes",
            draw_scores(curve.classes, curve.chosen),
            "What every number of classes scores without labels: "
            f"{curve.classes_label}. The dot is the one that was fitted.",
        )
    if curve.loss:
        add("Loss", draw_loss(curve.loss, curve.unit))
    if curve.usage and palette:
        add(
            "Class usage",
            draw_usage(curve.usage, palette, curve.unit),
            legend=True,
        )
    for series in curve.scores:
        if any(map(is_number, series.values)):
            name = series.name.replace("_", " ")
            title = f"{name[:1].upper()}{name[1:]}{', ' if series.unit else ''}{series.unit}"
            add(title, draw_series(series, curve.unit), _MEANINGS.get(name, ""))
    return curves
