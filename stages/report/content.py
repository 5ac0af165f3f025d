"""What the report says of a run, read once and kept in the shape in which the page shows it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.datasets import Colour
from pipeline.errors import ImageError
from pipeline.images.windows import Box
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import ClusterLook, Evaluation, pick_scores, read_given_names
from pipeline.run.frames import count_threads, map_ahead, resize_labels
from pipeline.run.ledger import read_record
from pipeline.run.manifest import Image
from stages import SETTINGS
from stages.artefacts import Artefacts, open_artefacts, read_group_of
from stages.labelling import MAIN, take_clusters
from stages.report.pictures import (
    FeatureColours,
    Role,
    choose_images,
    colour_errors,
    colour_features,
    colour_labels,
    colour_proposals,
    fit_feature_colours,
    join_pictures,
    join_proposals,
    make_thumbnail,
    rank_choices,
    sample_evenly,
)
from stages.report.settings import ReportSettings
from stages.report.typical import Cutout, gather_typical
from stages.report.words import (
    Step,
    count_effectively,
    describe_facts,
    describe_repeatability,
    describe_scores,
    describe_unusual,
    find_version,
    list_commands,
    shorten_lines,
    shorten_settings,
    suggest_steps,
)
from stages.scores import Part, list_parts

GALLERY_BYTES = 13_000_000  # of the page
# longest side of a picture, pixels, and beyond how many images it is the smaller one
LARGE, SMALL = 512, 320
_MOST_LARGE = 60
# Images and positions that the colours of features are fitted to.
_COLOURED_IMAGES = 48
_COLOURED_POSITIONS = 65_536
_SCORE = "score_"

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """One picture of an image."""

    key: Literal["image", "features", "proposals", "label", "label_crf", "truth", "errors"]
    caption: str
    source: str


@dataclass(frozen=True)
class GalleryItem:
    """One image of the gallery; names and colours are those of every cluster in its split."""

    id: str
    split: str
    role: Role
    pictures: tuple[Picture, ...]
    parts: tuple[Part, ...] = ()
    names: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    accuracy: float | None = None
    confidence: float | None = None

    @property
    def size(self) -> int:
        """Bytes that its pictures take."""
        return sum(len(picture.source) for picture in self.pictures)


@dataclass(frozen=True)
class ClusterCard:
    """What is known of one cluster; shares, IoU and similarity where there are any."""

    cluster: int
    name: str
    colour: Colour
    share: float = 0.0
    iou: float | None = None
    iou_plain: float | None = None
    class_name: str | None = None
    nearest: int | None = None
    similarity: float | None = None
    cutouts: tuple[Cutout, ...] = ()

    @property
    def label(self) -> str:
        """Its name where its number must be seen, too."""
        numbered = self.name.startswith("cluster ") or self.name == str(self.cluster)
        return self.name if numbered else f"{self.name} ({self.cluster})"


@dataclass(frozen=True)
class Series:
    """A score that needs no labels, of every epoch."""

    name: str
    unit: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """How a fit went."""

    loss: tuple[float, ...]
    usage: tuple[tuple[float, ...], ...]
    unit: str = "epoch"
    classes: tuple[tuple[int, float], ...] = ()
    classes_label: str = ""
    chosen: int | None = None
    scores: tuple[Series, ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page says."""

    title: str
    notice: str
    facts: tuple[tuple[str, str], ...]
    settings_yaml: str
    commands: tuple[str, ...]
    metrics: dict[str, Any]
    gallery: tuple[GalleryItem, ...]
    curve: Curve
    clusters: tuple[ClusterCard, ...]
    warnings: tuple[str, ...]
    unusual: tuple[tuple[str, str], ...] = ()
    repeatability: str = ""
    sample_note: str = ""
    cutout_note: str = ""
    version: str = ""
    suggestions: tuple[Step, ...] = ()


def build_content(run: RunDirectory, settings: ReportSettings) -> ReportContent:
    """Gather what the report says of an evaluation."""
    subject = settings.subject
    key = f"evaluate/{subject.title}"
    evaluation = Evaluation(run, subject, read_record(run, key))
    gain = evaluation.record.settings["cosine_gain"]
    artefacts = open_artefacts(run, settings.em, head=settings.head, gain=gain)
    metrics, manifest = evaluation.metrics, evaluation.manifest
    facts = read_record(run, "extract").facts
    gallery, sample_note = _build_gallery(evaluation, artefacts, settings)
    cutouts: dict[int, list[Cutout]] = {}
    cutout_note = ""
    if settings.gallery:
        cutouts, cutout_note = gather_typical(artefacts, evaluation.splits)
    prototypes = artefacts.classifiers[MAIN].prototypes.float().numpy()
    left_out = [
        f"label map of {path} is left out of the scores: {reason}"
        for path, reason in evaluation.left_out.items()
    ]
    rejected = [f"{i.path} was rejected: {i.reason}" for i in manifest.rejected]
    notice = ""
    if not facts["weights_digest"]:
        notice = (
            "Made from hand-crafted colour, gradient and texture channels, without pretrained "
            "weights: expect far weaker classes than with a real backbone."
        )
    metrics_file = run.report(subject.title) / "metrics.json"
    named = bool(read_given_names(run, subject.title))
    return ReportContent(
        title=f"Pseudo-labels: {run.path.name}",
        notice=notice,
        facts=describe_facts(facts, metrics, manifest.dataset, str(manifest.root)),
        settings_yaml=shorten_settings(
            run.settings_file.read_text(encoding="utf-8"), run.settings_file
        ),
        commands=list_commands(run, key, SETTINGS),
        metrics=metrics,
        gallery=gallery,
        curve=make_curve(*read_group_of(run, subject)),
        clusters=make_cards(metrics, evaluation.look(), prototypes, cutouts),
        warnings=(
            *shorten_lines(
                left_out, f"more label maps: the commonest reasons are in {metrics_file}"
            ),
            *shorten_lines(
                rejected, f"more images were rejected: the reasons are in {run.manifest_file}"
            ),
        ),
        unusual=describe_unusual(metrics["counts"]),
        repeatability=describe_repeatability(metrics["counts"]),
        sample_note=sample_note,
        cutout_note=cutout_note,
        version=find_version(),
        suggestions=suggest_steps(run, subject, metrics, named=named),
    )


# --- the gallery ----------------------------------------------------------------------------------


def _build_gallery(
    evaluation: Evaluation, artefacts: Artefacts, settings: ReportSettings
) -> tuple[tuple[GalleryItem, ...], str]:
    """Show the images that are chosen of every split, as long as there is room; say which."""
    images, scores = evaluation.manifest.images, evaluation.scores
    choices, told = [], []
    for split in evaluation.splits:
        own = scores.filter(pc.equal(scores["split"], split))
        measure, values = _rate_images(own)
        picked = choose_images(own["id"].to_pylist(), values, settings.gallery)
        rows = own.take(pa.array([place for place, _ in picked], pa.int64())).to_pylist()
        choices.append([(row, role) for row, (_, role) in zip(rows, picked, strict=True)])
        roles = _list_roles(Counter(role for _, role in picked), measure)
        told.append(f"{split}: {len(picked)} of {len(own)} images{roles}")
    order = rank_choices(choices)
    if not order:
        return (), ""
    chosen = [choices[split][number] for split, number in order]
    colours = _fit_colours(artefacts, [images[row["image"]] for row, _ in chosen])
    # every split is matched, and hence scored, on its own
    looks = {
        split: (evaluation.look(split, refined=False), evaluation.look(split))
        for split in evaluation.splits
    }
    side = choose_side(len(order))

    def show(which: tuple[dict[str, Any], Role]) -> GalleryItem:
        row, role = which
        exhibit = gather_exhibit(evaluation, artefacts, images[row["image"]], settings.device)
        return build_item(exhibit, role, colours, looks[row["split"]], pick_scores(row), side)

    threads = count_threads()
    items = map_ahead(show, chosen, threads, threads)
    shown = dict(zip(order, take_within(items), strict=False))
    note = f"{'; '.join(told)}."
    if len(shown) < len(order):
        note += f" For the size of the page, {len(shown)} of these {len(order)} are shown."
    return tuple(shown[place] for place in sorted(shown)), note


def _rate_images(scores: pa.Table) -> tuple[str, NDArray[np.float64]]:
    """Return what tells good images from bad ones: the accuracy, or the confidence without."""
    final = pc.coalesce(scores["accuracy_crf"], scores["accuracy"])
    if final.null_count == len(final):
        return "confidence", scores["confidence"].to_numpy()
    return "accuracy", final.to_numpy()


def _list_roles(counts: Mapping[Role, int], measure: str) -> str:
    """Say how many images were chosen for what."""
    if not counts["worst"] and not counts["best"]:
        return ", evenly spaced" if counts["sample"] else ""
    said = [
        (counts["worst"], f"with the lowest {measure}"),
        (counts["best"], "with the highest"),
        (counts["sample"], "evenly spaced among the others"),
    ]
    parts = [f"the {n} {words}" if "with" in words else f"{n} {words}" for n, words in said if n]
    return f": {', '.join(parts)}"


def _fit_colours(artefacts: Artefacts, images: Sequence[Image]) -> FeatureColours:
    """Fit the colours of features to some of the images that are shown."""
    chosen = [images[i] for i in sample_evenly(len(images), _COLOURED_IMAGES)]
    most = _COLOURED_POSITIONS // len(chosen)
    parts = []
    for image in chosen:
        features = artefacts.read_features(image)
        positions = features.reshape(-1, features.shape[-1])
        # a copy: a view would keep all features of the image
        parts.append(positions[:: -(-len(positions) // most)].copy())
    return fit_feature_colours(np.concatenate(parts))


def choose_side(images: int) -> int:
    """Choose the longest side of the pictures of so many images, pixels."""
    return LARGE if images <= _MOST_LARGE else SMALL


def take_within(items: Iterable[GalleryItem], most: int = GALLERY_BYTES) -> list[GalleryItem]:
    """Take images as long as their pictures fit; those after them are not even asked for."""
    taken: list[GalleryItem] = []
    size = 0
    for item in items:
        size += item.size
        if size > most:
            break
        taken.append(item)
    return taken


@dataclass(frozen=True)
class Exhibit:
    """The artefacts of one image over the box that its windows cover, at the windows' scale."""

    id: str
    split: str
    frame: NDArray[np.uint8]
    boxes: tuple[Box, ...]
    features: NDArray[np.float32]
    proposals: NDArray[np.uint8] | None
    plain: NDArray[np.uint8]
    refined: NDArray[np.uint8] | None
    truth: NDArray[np.uint8] | None
    figures: tuple[tuple[str, str], ...] = ()

    @property
    def final(self) -> NDArray[np.uint8]:
        """The labels that are written."""
        return self.plain if self.refined is None else self.refined


def read_clusters(
    evaluation: Evaluation, artefacts: Artefacts, image: Image, device: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read the labels of the part that windows cover, uint8 [y, x]: before the CRF, and after it.

    Those before it are kept nowhere; where there was none, there are none after it.
    """
    cover = artefacts.cover(image)
    logits = artefacts.read_logits([image], device=device, names=[MAIN])[image.image][MAIN]
    plain = take_clusters(logits, cover.boxes, artefacts.size)
    if evaluation.metrics["crf"] == "none":
        return plain, None
    return plain, resize_labels(evaluation.read_labels(image), *cover.resized)[cover.area]


def gather_exhibit(
    evaluation: Evaluation, artefacts: Artefacts, image: Image, device: str
) -> Exhibit:
    """Gather what is shown of an image that is labelled already."""
    cover = artefacts.cover(image)
    plain, refined = read_clusters(evaluation, artefacts, image, device)
    try:
        truth = artefacts.read_truth(image)
    except ImageError:
        truth = None  # the reason is among the report's warnings
    proposals = artefacts.read_proposals(image)
    figures = [
        ("photograph", f"{image.width} x {image.height} px"),
        ("windows", str(len(cover.windows))),
    ]
    if proposals is not None:
        figures.append(("proposals", str(sum(len(np.unique(p[p > 0])) for p in proposals))))
    return Exhibit(
        id=image.id,
        split=image.split,
        frame=artefacts.read_pixels(image),
        boxes=cover.boxes,
        features=artefacts.read_features(image),
        proposals=proposals,
        plain=plain,
        refined=refined,
        truth=truth,
        figures=tuple(figures),
    )


def build_item(
    exhibit: Exhibit,
    role: Role,
    colours: FeatureColours,
    looks: tuple[ClusterLook, ClusterLook],
    scores: Scores,
    side: int = SMALL,
) -> GalleryItem:
    """Turn the artefacts of an image into a row of pictures with its numbers."""
    return GalleryItem(
        id=exhibit.id,
        split=exhibit.split,
        role=role,
        pictures=tuple(_draw_pictures(exhibit, colours, looks, side)),
        parts=tuple(list_parts(exhibit.final, exhibit.truth, looks[1].classes)),
        names=looks[1].names,
        colours=looks[1].colours,
        figures=(*describe_scores(scores), *exhibit.figures),
        accuracy=scores.get("accuracy_crf", scores.get("accuracy")),
        confidence=scores.get("confidence"),
    )


def _draw_pictures(
    exhibit: Exhibit, colours: FeatureColours, looks: tuple[ClusterLook, ClusterLook], side: int
) -> Iterator[Picture]:
    """Draw the pictures of an image, in the order in which the stages made them."""
    shape, (plain_look, final_look) = exhibit.plain.shape, looks
    photograph = make_thumbnail(exhibit.frame, "photograph", side)
    yield Picture("image", "image", photograph)

    def show(key: Any, caption: str, pixels: NDArray[np.uint8]) -> Picture:
        return Picture(key, caption, make_thumbnail(pixels, "map", side))

    grids = colour_features(exhibit.features, colours)
    yield show("features", "features (PCA)", join_pictures(grids, exhibit.boxes, shape))
    if exhibit.proposals is not None:
        ids = join_proposals(exhibit.proposals, exhibit.boxes, shape)
        yield show("proposals", "proposals", colour_proposals(ids))
    plain = plain_look.index[exhibit.plain]
    yield show("label", "label", colour_labels(plain, plain_look.palette))
    final = final_look.index[exhibit.final]
    if exhibit.refined is not None:
        yield show("label_crf", "label + CRF", colour_labels(final, final_look.palette))
    if exhibit.truth is not None:
        yield show("truth", "ground truth", colour_labels(exhibit.truth, final_look.palette))
        if final_look.classes is not None:
            yield show("errors", "errors", colour_errors(final, exhibit.truth))


# --- the clusters, and how the fit went -----------------------------------------------------------


def find_nearest(
    prototypes: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Find for every cluster the other one whose prototype is nearest, and their cosine."""
    if len(prototypes) < 2:
        return None
    values = prototypes.astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(norms > 0, norms, 1)
    cosines = (unit @ unit.T).clip(-1, 1)
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines.argmax(axis=1)
    return nearest, cosines[np.arange(len(cosines)), nearest]


def make_cards(
    metrics: Mapping[str, Any],
    look: ClusterLook,
    prototypes: NDArray[np.float32],
    cutouts: Mapping[int, Sequence[Cutout]],
) -> tuple[ClusterCard, ...]:
    """Gather what is known of every cluster, by the matching of one split."""
    nearest = find_nearest(prototypes)
    # without a CRF, the labels are the final ones
    refined = metrics["assignment_crf"] is not None
    final = _read_ious(metrics, "_crf" if refined else "")
    plain = _read_ious(metrics, "") if refined else {}
    classes = look.classes or (None,) * len(look.names)
    return tuple(
        ClusterCard(
            cluster=cluster,
            name=name,
            colour=colour,
            share=metrics["class_usage"][cluster],
            iou=final.get(cluster),
            iou_plain=plain.get(cluster),
            class_name=None if label is None else metrics["class_names"][label],
            nearest=None if nearest is None else int(nearest[0][cluster]),
            similarity=None if nearest is None else float(nearest[1][cluster]),
            cutouts=tuple(cutouts.get(cluster, ())),
        )
        for cluster, (name, colour, label) in enumerate(
            zip(look.names, look.colours, classes, strict=True)
        )
    )


def _read_ious(metrics: Mapping[str, Any], suffix: str) -> dict[int, float | None]:
    """Read the IoU of every cluster with the class that it is matched to."""
    assignment: Sequence[int | None] = metrics[f"assignment{suffix}"] or ()
    return {
        cluster: metrics["per_class"][label][f"iou{suffix}"]
        for cluster, label in enumerate(assignment)
        if label is not None
    }


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
        effective = tuple(count_effectively(row) or math.nan for row in usage.tolist())
        scores.append(Series("effective classes", "", effective))
    return Curve(
        loss=tuple(arrays["loss"].tolist()) if "loss" in arrays else (),
        usage=() if usage is None else tuple(map(tuple, usage.tolist())),
        unit=str(attributes.get("unit", "epoch")),
        classes=tuple((int(k), float(score)) for k, score in attributes.get("classes_curve", ())),
        classes_label=str(attributes.get("classes_label", "score")),
        chosen=int(attributes["classes"]) if "classes" in attributes else None,
        scores=tuple(scores),
    )
