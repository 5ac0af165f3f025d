"""What the picture of one image shows: its stages with captions, its figures, and a legend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from pipeline.datasets.base import Colour, png_palette
from pipeline.images.windows import Cover
from pipeline.run.manifest import Image
from pipeline.run.subject import ClusterLook, Subject
from stages.evaluate.measures import measure_image
from stages.report.content import describe_scores
from stages.report.gallery import (
    colour_errors,
    colour_features,
    colour_labels,
    colour_proposals,
    fit_feature_colours,
)
from stages.report.inspection.drawing import Legend, Panel, Sheet
from stages.report.mosaic import join_pictures, join_proposals

_NOTHING = "–"
_COLUMNS = ("share", "in truth", "IoU")


@dataclass(frozen=True)
class Labels:
    """The labels of an image, over the box that its windows cover."""

    subject: Subject
    plain: NDArray[np.uint8]
    refined: NDArray[np.uint8] | None
    crf: str
    plain_look: ClusterLook
    final_look: ClusterLook
    scores: Mapping[str, float]

    @property
    def final(self) -> NDArray[np.uint8]:
        """The labels that are written."""
        return self.plain if self.refined is None else self.refined


@dataclass(frozen=True)
class View:
    """One image, with what there is of it."""

    run: str
    image: Image
    frame: NDArray[np.uint8]
    cover: Cover
    features: NDArray[np.float32]
    features_of: str
    proposals: NDArray[np.uint8] | None
    truth: NDArray[np.uint8] | None
    class_names: tuple[str, ...]
    class_colours: tuple[Colour, ...]
    labels: Labels | None
    notes: tuple[str, ...]


def make_sheet(view: View) -> Sheet:
    """Put together what is drawn of an image."""
    columns, legend = _drop_empty([*_list_clusters(view), *_list_classes(view)])
    return Sheet(
        title=f"{view.image.split}/{view.image.id}",
        lines=_describe_image(view),
        panels=tuple(_draw_panels(view)),
        figures=tuple(_list_figures(view)),
        legend=legend,
        columns=columns,
        notes=view.notes,
    )


def _describe_image(view: View) -> tuple[str, ...]:
    image, cover = view.image, view.cover
    windows = len(cover.windows)
    parts = [
        f"run {view.run}",
        f"{image.width} x {image.height} px",
        f"{windows} window{'s' if windows > 1 else ''} of {cover.windows[0].size} px",
    ]
    labels = view.labels
    if labels is not None:
        kind = "fit" if labels.subject.kind == "em" else "head"
        matched = "" if labels.final_look.classes is not None else ", not matched to classes"
        parts.append(
            f"{kind} {labels.subject.name}: {len(labels.final_look.names)} clusters{matched}"
        )
    return (" · ".join(parts),)


def _draw_panels(view: View) -> Iterator[Panel]:
    boxes, shape = view.cover.boxes, view.frame.shape[:2]
    left, top, right, bottom = view.cover.box
    whole = (right - left, bottom - top) == view.cover.resized
    part = "" if whole else ", the part that the windows cover"
    yield Panel(f"photograph{part}", view.frame, "photograph")
    fitted = fit_feature_colours(view.features)
    grids = colour_features(view.features, fitted.basis, fitted.mean, fitted.low, fitted.high)
    what = view.features_of or "features"
    caption = f"{what}: the first three principal components as colours, of this image alone"
    yield Panel(caption, join_pictures(grids, boxes, shape))
    if view.proposals is not None:
        ids = join_proposals(view.proposals, boxes, shape)
        count = len(np.unique(ids[ids > 0]))
        yield Panel(f"{count} proposals; dark grey: none", colour_proposals(ids))
    if view.labels is not None:
        yield from _draw_labels(view, view.labels)
    if view.truth is not None:
        yield Panel("ground truth", colour_labels(view.truth, _truth_palette(view)))
    if view.truth is not None and view.labels is not None and view.labels.final_look.classes:
        final = view.labels.final_look.index[view.labels.final]
        caption = "errors: red is wrong, light green is right, grey is not judged"
        yield Panel(caption, colour_errors(final, view.truth))


def _draw_labels(view: View, labels: Labels) -> Iterator[Panel]:
    looks = labels.plain_look, labels.final_look
    plain = colour_labels(looks[0].index[labels.plain], looks[0].palette)
    final = colour_labels(looks[1].index[labels.final], looks[1].palette)
    if labels.refined is None:
        yield Panel("labels", plain)
    else:
        own = "" if looks[0].classes == looks[1].classes else ", matched to classes on their own"
        yield Panel(f"labels before the CRF{own}", plain)
        yield Panel(f"labels after the CRF ({labels.crf})", final)
    mixed = (view.frame.astype(np.uint16) + final) // 2
    yield Panel("final labels over the photograph", mixed.astype(np.uint8), "photograph")


def _truth_palette(view: View) -> NDArray[np.uint8]:
    colours = view.class_colours[:255]
    return np.frombuffer(png_palette(colours), np.uint8).reshape(256, 3)


def _list_figures(view: View) -> Iterator[tuple[str, str]]:
    if view.labels is not None:
        yield from describe_scores(view.labels.scores)
    if view.truth is not None:
        share = 100 * float((view.truth != IGNORE).mean())
        yield "pixels with ground truth", f"{share:.1f} %"


def _drop_empty(legend: list[Legend]) -> tuple[tuple[str, ...], tuple[Legend, ...]]:
    """Leave out the columns of the legend in which nothing stands, and name the others."""
    kept = [i for i in range(len(_COLUMNS)) if any(e.figures[i] != _NOTHING for e in legend)]
    rows = [replace(entry, figures=tuple(entry.figures[i] for i in kept)) for entry in legend]
    return ("class or cluster", *(_COLUMNS[i] for i in kept)), tuple(rows)


def _list_clusters(view: View) -> Iterator[Legend]:
    """List the clusters that occur, the largest share first, then classes that are all missed."""
    labels = view.labels
    if labels is None:
        return
    look = labels.final_look
    truth = _measure_truth(view) if look.classes is not None else {}
    found = set()
    for part in measure_image(labels.final, view.truth, look.classes).parts:
        index = None if look.classes is None else look.classes[part.cluster]
        found.add(index)
        name = look.names[part.cluster]
        number = f"cluster {part.cluster}"
        share = truth.get(index) if index is not None else None
        yield Legend(
            look.colours[part.cluster],
            name if name == number else f"{name} ({number})",
            (_percent(part.share), _percent(share), _percent(part.iou)),
        )
    for index, share in truth.items():
        if index not in found:
            yield _describe_class(view, index, (_NOTHING, _percent(share), _percent(0.0)))


def _list_classes(view: View) -> Iterator[Legend]:
    """List the classes of the ground truth, where no cluster has their colours."""
    if view.labels is not None and view.labels.final_look.classes is not None:
        return
    for index, share in _measure_truth(view).items():
        yield _describe_class(view, index, (_NOTHING, _percent(share), _NOTHING))


def _describe_class(view: View, index: int, figures: tuple[str, ...]) -> Legend:
    names = view.class_names
    name = names[index] if index < len(names) else f"class {index}"
    red, green, blue = _truth_palette(view)[index].tolist()
    return Legend((red, green, blue), f"{name} (ground truth)", figures)


def _measure_truth(view: View) -> dict[int, float]:
    """Measure the share of every class in the ground truth in per cent, the largest first."""
    if view.truth is None:
        return {}
    usage = np.bincount(view.truth.ravel(), minlength=256)[:IGNORE]
    total = max(int(usage.sum()), 1)
    order = sorted(np.flatnonzero(usage).tolist(), key=lambda index: (-usage[index], index))
    return {index: 100 * float(usage[index]) / total for index in order}


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} %"
