"""What the page of a comparison says, as records, and its rendering to HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from stages.evaluate.report.page import Colour
from stages.evaluate.report.rendering import check_picture, is_number, render_page

# By this a page is known as one of a comparison.
WRITER = 'data-writer="primaps-pipe compare"'

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """One evaluation that is compared.

    Attributes
    ----------
    name
        What it is called on the page.
    facts
        (name, value) of what it is.
    """

    name: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One figure of every evaluation.

    Attributes
    ----------
    name
        What the figure is.
    values
        One for each evaluation; None where there is none.
    best
        Which of them are the best; none where that means nothing.
    colour
        Of the class, where it is one's.
    """

    name: str
    values: tuple[Value, ...]
    best: tuple[int, ...] = ()
    colour: Colour | None = None


@dataclass(frozen=True)
class Table:
    """Figures of one split.

    Attributes
    ----------
    split
        The split.
    rows
        The figures.
    note
        What has to be known to compare them; or nothing.
    """

    split: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class ComparedImage:
    """One row of the gallery.

    Attributes
    ----------
    id, split
        The image.
    role
        ``most``: among those whose label maps differ most; ``sample``: part of an even sample.
    difference
        Share of the pixels on which label maps differ, the mean over all pairs, in per cent; None
        where they have no labelled pixel in common.
    photograph, truth
        ``data:`` URIs, or None.
    labels
        ``data:`` URI of every evaluation's label map.
    accuracy
        Pixel accuracy of every evaluation's labels in per cent; None where it is not known.
    """

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
    """How one evaluation's fit went, as SVG elements.

    Attributes
    ----------
    name
        Of the evaluation.
    plots
        (title, SVG).
    """

    name: str
    plots: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ComparisonContent:
    """Everything that the page says.

    Attributes
    ----------
    title
        Heading.
    verdict
        What the figures say in a sentence or two.
    columns
        What is compared.
    notes
        What has to be known about the images; one sentence each.
    scores, classes
        Figures, and IoU of every class, of each split.
    settings
        Settings that differ, by stage and option.
    agreement
        [evaluation][evaluation]: share of the pixels on which two agree in per cent, or None.
    agreement_note
        How that was measured, and on what.
    gallery
        Images to show.
    gallery_note
        Which images these are, and what their colours mean.
    legend
        (name, colour) of the classes or clusters.
    other_colours
        Whether some cluster has a colour that is not among them.
    curves
        How the fits went.
    commands
        Those that made all of it.
    version
        Of primaps-pipe.
    """

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
    """Find which of some figures are the largest; none where fewer than two differ.

    Parameters
    ----------
    values
        Numbers, or None.
    """
    known = {round(value, 2) for value in values if is_number(value)}
    if len(known) < 2:
        return ()
    largest = max(known)
    return tuple(i for i, v in enumerate(values) if is_number(v) and round(v, 2) == largest)


def render_comparison(content: ComparisonContent) -> str:
    """Render the page.

    Parameters
    ----------
    content
        What the page says; all of it but the plots is text, and is escaped.

    Returns
    -------
    str
        An HTML document that needs nothing but itself (see
        :func:`stages.evaluate.report.rendering.render_page`).

    Raises
    ------
    ValueError
        A picture is not a ``data:`` URI of an image.
    """
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
