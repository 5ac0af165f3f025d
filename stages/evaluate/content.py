"""What the report shows: pictures of a sample of images, names and colours of clusters, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from pipeline.datasets.palettes import Colour, png_palette
from stages.evaluate.gallery import (
    FeatureColours,
    colour_errors,
    colour_features,
    colour_labels,
    colour_proposals,
    fit_feature_colours,
    make_thumbnail,
)
from stages.evaluate.report import Curve, GalleryItem


@dataclass(frozen=True)
class Exhibit:
    """The artefacts of one image over the box that its windows cover, at the windows' scale.

    Attributes
    ----------
    id, split
        The image.
    frame
        uint8 [y, x, rgb].
    boxes
        Left, top, right, bottom of every window inside ``frame``, pixels.
    features
        float32 [window, row, column, channel].
    proposals
        uint8 [window, y, x], or None.
    plain, refined
        uint8 [y, x]: clusters without and with CRF; ``refined`` may be None.
    truth
        uint8 [y, x]: classes, 255 = ignore, or None.
    """

    id: str
    split: str
    frame: NDArray[np.uint8]
    boxes: tuple[tuple[int, int, int, int], ...]
    features: NDArray[np.float32]
    proposals: NDArray[np.uint8] | None
    plain: NDArray[np.uint8]
    refined: NDArray[np.uint8] | None
    truth: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ClusterLook:
    """How clusters are shown: in the colour and under the name of their class.

    Attributes
    ----------
    index
        uint8 [256]: cluster -> index in ``palette``; its class where it is matched.
    palette
        uint8 [256, rgb].
    names
        Name of every cluster.
    matched
        Whether clusters are matched to classes; without, they cannot be compared with labels.
    """

    index: NDArray[np.uint8]
    palette: NDArray[np.uint8]
    names: tuple[str, ...]
    matched: bool = True

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Colour of every cluster."""
        rows = self.palette[self.index[: len(self.names)]].tolist()
        return tuple((red, green, blue) for red, green, blue in rows)


def choose_look(
    clusters: int,
    assignment: Sequence[int | None] | None,
    class_names: Sequence[str],
    class_colours: Sequence[Colour],
) -> ClusterLook:
    """Choose name and colour of every cluster.

    Parameters
    ----------
    clusters
        Number of clusters.
    assignment
        Class of every cluster (None: unmatched), or None where there are no labels.
    class_names, class_colours
        Of the dataset.
    """
    if assignment is None:
        palette = np.frombuffer(png_palette(()), np.uint8).reshape(256, 3)
        names = tuple(f"cluster {k}" for k in range(clusters))
        return ClusterLook(np.arange(256, dtype=np.uint8), palette, names, matched=False)
    colours = class_colours[: len(class_names)]
    palette = np.frombuffer(png_palette(colours), np.uint8).reshape(256, 3)
    index = np.full(256, IGNORE, np.uint8)
    spare = len(class_names)
    named = []
    for cluster, label in enumerate(assignment):
        if label is None:
            index[cluster] = min(spare, IGNORE - 1)
            spare += 1
            named.append(f"cluster {cluster} (no class)")
        else:
            index[cluster] = label
            named.append(class_names[label])
    return ClusterLook(index, palette, tuple(named))


def build_gallery(
    exhibits: Sequence[Exhibit],
    plain_look: ClusterLook,
    refined_look: ClusterLook,
) -> tuple[GalleryItem, ...]:
    """Turn the artefacts of some images into rows of pictures.

    Parameters
    ----------
    exhibits
        The images; the colours of features are common to them all.
    plain_look, refined_look
        Look of the clusters without and with CRF (their matchings may differ).
    """
    if not exhibits:
        return ()
    colours = fit_feature_colours(
        np.concatenate([e.features.reshape(-1, e.features.shape[-1]) for e in exhibits])
    )
    return tuple(_build_item(e, colours, plain_look, refined_look) for e in exhibits)


def _build_item(
    exhibit: Exhibit, colours: FeatureColours, plain_look: ClusterLook, refined_look: ClusterLook
) -> GalleryItem:
    shape = exhibit.plain.shape
    pictures = [("image", make_thumbnail(exhibit.frame, "photograph"))]

    def show(caption: str, pixels: NDArray[np.uint8]) -> None:
        pictures.append((caption, make_thumbnail(pixels, "map")))

    grids = colour_features(
        exhibit.features, colours.basis, colours.mean, colours.low, colours.high
    )
    show("features (PCA)", _paste(grids, exhibit.boxes, shape))
    if exhibit.proposals is not None:
        coloured = np.stack([colour_proposals(ids) for ids in exhibit.proposals])
        show("proposals", _paste(coloured, exhibit.boxes, shape))
    plain = plain_look.index[exhibit.plain]
    show("label", colour_labels(plain, plain_look.palette))
    final = plain
    if exhibit.refined is not None:
        final = refined_look.index[exhibit.refined]
        show("label + CRF", colour_labels(final, refined_look.palette))
    note = ""
    if exhibit.truth is not None:
        show("ground truth", colour_labels(exhibit.truth, refined_look.palette))
        valid = exhibit.truth != IGNORE
        if refined_look.matched:
            show("errors", colour_errors(final, exhibit.truth))
        if refined_look.matched and valid.any():
            note = f"accuracy {100 * float((final == exhibit.truth)[valid].mean()):.1f} %"
    return GalleryItem(exhibit.id, exhibit.split, tuple(pictures), note)


def _paste(
    windows: NDArray[np.uint8],
    boxes: Sequence[tuple[int, int, int, int]],
    shape: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Paste [window, row, column, rgb] into one picture [y, x, rgb], cells as blocks."""
    canvas = np.zeros((*shape, 3), np.uint8)
    for window, (left, top, right, bottom) in zip(windows, boxes, strict=True):
        rows = np.arange(bottom - top) * window.shape[0] // (bottom - top)
        columns = np.arange(right - left) * window.shape[1] // (right - left)
        canvas[top:bottom, left:right] = window[rows[:, None], columns]
    return canvas


def sample_evenly(count: int, wanted: int) -> list[int]:
    """Choose ``wanted`` of ``count`` positions, evenly spaced, without chance."""
    if wanted >= count:
        return list(range(count))
    return [round((i + 0.5) * count / wanted - 0.5) for i in range(wanted)]


def make_curve(arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> Curve:
    """Tell how a fit or a head went, from what its group holds."""
    return Curve(
        loss=tuple(arrays["loss"].tolist()) if "loss" in arrays else (),
        usage=tuple(map(tuple, arrays["class_usage"].tolist())) if "class_usage" in arrays else (),
        unit=str(attributes.get("unit", "epoch")),
        classes=tuple((int(k), float(score)) for k, score in attributes.get("classes_curve", ())),
        classes_label=str(attributes.get("classes_label", "score")),
        chosen=int(attributes["classes"]) if "classes" in attributes else None,
    )


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
