"""What the report shows of single images, and of how the fit went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.run.subject import ClusterLook
from stages.report.gallery import (
    FeatureColours,
    colour_errors,
    colour_features,
    colour_labels,
    colour_proposals,
    make_thumbnail,
)
from stages.report.mosaic import join_pictures, join_proposals
from stages.report.page import ClassPart, Curve, GalleryItem, Picture, PictureKey, Role, Series
from stages.scores import list_parts

_SCORE = "score_"


@dataclass(frozen=True)
class Exhibit:
    """The artefacts of one image over the box that its windows cover, at the windows' scale."""

    id: str
    split: str
    frame: NDArray[np.uint8]
    boxes: tuple[tuple[int, int, int, int], ...]
    features: NDArray[np.float32]
    proposals: NDArray[np.uint8] | None
    plain: NDArray[np.uint8]
    refined: NDArray[np.uint8] | None
    truth: NDArray[np.uint8] | None
    figures: tuple[tuple[str, str], ...] = ()


def build_item(
    exhibit: Exhibit,
    role: Role,
    colours: FeatureColours,
    looks: tuple[ClusterLook, ClusterLook],
    scores: Mapping[str, float],
    side: int = 320,
) -> GalleryItem:
    """Turn the artefacts of an image into a row of pictures with its numbers."""
    plain_look, final_look = looks
    final = exhibit.plain if exhibit.refined is None else exhibit.refined
    colour_of = final_look.colours
    return GalleryItem(
        id=exhibit.id,
        split=exhibit.split,
        role=role,
        pictures=tuple(_draw_pictures(exhibit, colours, plain_look, final_look, side)),
        parts=tuple(
            ClassPart(
                part.cluster,
                part.share,
                part.iou,
                name=final_look.names[part.cluster],
                colour=colour_of[part.cluster],
            )
            for part in list_parts(final, exhibit.truth, final_look.classes)
        ),
        figures=(*describe_scores(scores), *exhibit.figures),
        accuracy=scores.get("accuracy_crf", scores.get("accuracy")),
        confidence=scores.get("confidence"),
    )


def _draw_pictures(
    exhibit: Exhibit,
    colours: FeatureColours,
    plain_look: ClusterLook,
    final_look: ClusterLook,
    side: int,
) -> Iterator[Picture]:
    """Draw the pictures of an image, in the order in which the stages made them."""
    shape = exhibit.plain.shape

    def show(key: PictureKey, caption: str, pixels: NDArray[np.uint8]) -> Picture:
        kind: Literal["photograph", "map"] = "photograph" if key == "image" else "map"
        return Picture(key, caption, make_thumbnail(pixels, kind, side))

    yield show("image", "image", exhibit.frame)
    grids = colour_features(
        exhibit.features, colours.basis, colours.mean, colours.low, colours.high
    )
    yield show("features", "features (PCA)", join_pictures(grids, exhibit.boxes, shape))
    if exhibit.proposals is not None:
        ids = join_proposals(exhibit.proposals, exhibit.boxes, shape)
        yield show("proposals", "proposals", colour_proposals(ids))
    final = plain = plain_look.index[exhibit.plain]
    yield show("label", "label", colour_labels(plain, plain_look.palette))
    if exhibit.refined is not None:
        final = final_look.index[exhibit.refined]
        yield show("label_crf", "label + CRF", colour_labels(final, final_look.palette))
    if exhibit.truth is not None:
        yield show("truth", "ground truth", colour_labels(exhibit.truth, final_look.palette))
        if final_look.classes is not None:
            yield show("errors", "errors", colour_errors(final, exhibit.truth))


_FIGURES = (
    ("accuracy_crf", "accuracy with CRF"),
    ("accuracy", "accuracy without CRF"),
    ("miou_crf", "mIoU with CRF"),
    ("miou", "mIoU without CRF"),
    ("coverage", "pixels with a cluster"),
    ("confidence", "confidence"),
)


def describe_scores(scores: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    """Put the figures of an image into words, those that there are."""
    return tuple((title, f"{scores[name]:.1f} %") for name, title in _FIGURES if name in scores)


def make_curve(arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> Curve:
    """Tell how a fit or a head went, from what its group holds.

    Every array ``score_<name>`` [epoch] is a score that needs no labels, in the unit that the
    attribute ``score_units`` gives; the number of classes that are in use is added to them.
    """
    usage = arrays.get("class_usage")
    units = attributes.get("score_units", {})
    scores = [
        Series(
            name.removeprefix(_SCORE).replace("_", " "),
            str(units.get(name.removeprefix(_SCORE), "")),
            tuple(arrays[name].tolist()),
        )
        for name in sorted(arrays)
        if name.startswith(_SCORE) and arrays[name].ndim == 1
    ]
    if usage is not None:
        scores.append(Series("effective classes", "", tuple(count_effective(usage).tolist())))
    return Curve(
        loss=tuple(arrays["loss"].tolist()) if "loss" in arrays else (),
        usage=() if usage is None else tuple(map(tuple, usage.tolist())),
        unit=str(attributes.get("unit", "epoch")),
        classes=tuple((int(k), float(score)) for k, score in attributes.get("classes_curve", ())),
        classes_label=str(attributes.get("classes_label", "score")),
        chosen=int(attributes["classes"]) if "classes" in attributes else None,
        scores=tuple(scores),
    )


def count_effective(usage: NDArray[Any]) -> NDArray[np.float64]:
    """Count the classes that are in use: as many equally large ones would be as even.

    References
    ----------
    Hill, "Diversity and evenness: a unifying notation and its consequences", 1973 (order 1).
    """
    values = usage.astype(np.float64)
    total = values.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = values / total
        terms = np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0)
    effective: NDArray[np.float64] = np.where(total[:, 0] > 0, np.exp(-terms.sum(axis=1)), np.nan)
    return effective


def describe_facts(
    facts: dict[str, Any], metrics: dict[str, Any], dataset: str, root: str
) -> tuple[tuple[str, str], ...]:
    """List what ran on what, for the report's first screen."""
    return (
        ("dataset", dataset),
        ("folder", root),
        ("images", ", ".join(f"{s}: {b['images']}" for s, b in metrics["splits"].items())),
        ("backbone", str(facts["backbone"])),
        ("weights", str(facts["weights_source"])),
        ("window", f"{facts['size']} px, {facts['grid'][0]} x {facts['grid'][1]} positions"),
        ("clusters", str(metrics["classes"])),
        ("made by", _name_maker(metrics)),
        ("CRF", str(metrics["crf"])),
    )


def _name_maker(metrics: dict[str, Any]) -> str:
    head = metrics.get("head")
    return f"fit {metrics['em']}" if head is None else f"cluster probe of the head {head}"
