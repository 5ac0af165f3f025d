"""What the page of a comparison says, as records, and its rendering to HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from stages.report.page import Colour
from stages.report.rendering import check_picture, is_number, render_page

# By this a page is known as one of a comparison.
WRITER = 'data-writer="primaps-pipe compare"'

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """One evaluation that is compared."""

    name: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One figure of every evaluation."""

    name: str
    values: tuple[Value, ...]
    best: tuple[int, ...] = ()
    colour: Colour | None = None


@dataclass(frozen=True)
class Table:
    """Figures of one split."""

    split: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class ComparedImage:
    """One row of the gallery."""

    id: str
    split: str
    role: Literal["most", "sample"]
    difference: float | None
    photograph: str | None
    truth: str | None
    labels: tuple[str, ...]
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True)
class Curves:
    """How one evaluation's fit went, as SVG elements."""

    name: str
    plots: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ComparisonContent:
    """Everything that the page says."""

    title: str
    verdict: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    scores: tuple[Table, ...]
    classes: tuple[Table, ...]
    settings: tuple[Row, ...]
    agreement: tuple[tuple[float | None, ...], ...]
    agreement_note: str
    gallery: tuple[ComparedImage, ...]
    gallery_note: str
    legend: tuple[tuple[str, Colour], ...]
    other_colours: bool
    curves: tuple[Curves, ...]
    commands: tuple[str, ...]
    version: str


def find_best(values: Sequence[Any]) -> tuple[int, ...]:
    """Find which of some figures are the largest; none where fewer than two differ."""
    known = {round(value, 2) for value in values if is_number(value)}
    if len(known) < 2:
        return ()
    largest = max(known)
    return tuple(i for i, v in enumerate(values) if is_number(v) and round(v, 2) == largest)


def render_comparison(content: ComparisonContent) -> str:
    """Render the page."""
    for image in content.gallery:
        for source in (image.photograph, image.truth, *image.labels):
            if source is not None:
                check_picture(source, f"of {image.id!r}")
    return render_page(
        "comparison.html.j2",
        styles=("style.css", "comparison.css"),
        scripts=("common.js", "comparison.js"),
        content=content,
        writer=Markup(WRITER),
        count=len(content.columns),
        sections=_list_sections(content),
        has_photographs=any(image.photograph for image in content.gallery),
        has_truth=any(image.truth for image in content.gallery),
        gallery_splits=list(dict.fromkeys(image.split for image in content.gallery)),
        curves=[
            (entry.name, [(title, Markup(svg)) for title, svg in entry.plots])
            for entry in content.curves
        ],
    )


def _list_sections(content: ComparisonContent) -> list[tuple[str, str]]:
    parts = [
        ("scores", "Scores", content.scores),
        ("gallery", "Images", content.gallery),
        ("agreement", "Agreement", content.agreement),
        ("settings", "Settings", True),
        ("classes", "Classes", content.classes),
        ("curves", "Training", content.curves),
    ]
    return [(identity, name) for identity, name, there in parts if there]
