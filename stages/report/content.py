"""What the report says of a run, read once: what the template shows, by its names there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.datasets.definition import Colour, png_palette
from pipeline.errors import ImageError
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import ClusterLook, Evaluation, pick_scores
from pipeline.run.frames import count_threads, map_ahead, resize_labels
from pipeline.run.ledger import Ledger, read_record
from pipeline.run.manifest import Image
from stages import SETTINGS
from stages.artefacts import OWN, Artefacts, open_evaluated, read_group_of
from stages.clustering import list_unused, warn_of_unused
from stages.labelling import MAIN, take_clusters
from stages.report.certainty import show_certainty
from stages.report.pictures import (
    Exhibit,
    FeatureColours,
    Labels,
    Role,
    choose_images,
    draw_exhibit,
    fit_feature_colours,
    make_thumbnail,
    rank_choices,
    sample_evenly,
    take_within,
)
from stages.report.plots import draw_scores, draw_series, draw_usage
from stages.report.settings import ReportSettings
from stages.report.typical import Cutout, gather_typical
from stages.report.words import (
    STABLE,
    count_effectively,
    describe_facts,
    describe_repeatability,
    describe_scores,
    describe_stability,
    describe_unusual,
    find_version,
    is_number,
    list_commands,
    shorten_lines,
    shorten_settings,
    suggest_steps,
)
from stages.scores import Part, describe_labels, describe_weak, list_parts

GALLERY_BYTES = 13_000_000  # of the page
# longest side of a picture, pixels, and beyond how many images it is the smaller one
LARGE, SMALL = 512, 320
_MOST_LARGE = 60
# Images and positions that the colours of features are fitted to.
_COLOURED_IMAGES = 48
_COLOURED_POSITIONS = 65_536
_HANDCRAFTED = (
    "Made from hand-crafted colour, gradient and texture channels, without pretrained weights: "
    "expect far weaker classes than with a real backbone."
)
_SCORE = "score_"
_MEANINGS = {
    "agreement": "Share of the labelled pixels whose own class is that of their proposal. "
    "It rises while the prototypes learn what the proposals say.",
    "turn": "Mean angle by which the prototypes were turned. Close to nothing, more epochs "
    "change nothing.",
    "effective classes": "Exponential of the entropy of the class usage. It falls when classes "
    "die.",
}

# What a template shows, by its names there.
Content = dict[str, Any]


@dataclass(frozen=True)
class GalleryItem:
    """One image of the gallery; names and colours are those of every cluster in its split."""

    id: str
    split: str
    role: Role
    pictures: Mapping[str, str]
    parts: Sequence[Part] = ()
    names: Sequence[str] = ()
    colours: Sequence[Colour] = ()
    figures: Sequence[tuple[str, str]] = ()
    accuracy: float | None = None
    confidence: float | None = None

    @property
    def size(self) -> int:
        """Bytes that its pictures take."""
        return sum(map(len, self.pictures.values()))


@dataclass(frozen=True)
class ClusterCard:
    """What is known of one cluster; shares, IoU and similarity where there are any.

    ``first`` is the first cluster of its name, under which images list it; ``stability``, in per
    cent, is that of ``stages.em.stability``.
    """

    cluster: int
    name: str
    colour: Colour
    first: int | None = None
    share: float = 0.0
    iou: float | None = None
    iou_plain: float | None = None
    class_name: str | None = None
    nearest: int | None = None
    similarity: float | None = None
    cutouts: Sequence[Cutout] = ()
    stability: float | None = None

    @property
    def comes_and_goes(self) -> bool:
        """Whether two halves of the images hardly agree on it."""
        return self.stability is not None and self.stability < STABLE

    @property
    def label(self) -> str:
        """Its name where its number must be seen, too."""
        numbered = self.name.startswith("cluster ") or self.name == str(self.cluster)
        return self.name if numbered else f"{self.name} ({self.cluster})"


def build_content(run: RunDirectory, settings: ReportSettings) -> Content:
    """Gather what the report says of an evaluation."""
    subject = settings.subject
    key = f"evaluate/{subject.title}"
    evaluation = Evaluation(run, subject, read_record(run, key))
    artefacts = open_evaluated(run, evaluation.record)
    metrics, manifest = evaluation.metrics, evaluation.manifest
    facts = read_record(run, "extract").facts
    look = evaluation.look()
    gallery, sample_note = _build_gallery(evaluation, artefacts, settings)
    cutouts: dict[int, list[Cutout]] = {}
    cutout_note = ""
    if settings.gallery:
        cutouts, cutout_note = gather_typical(artefacts, evaluation.splits)
    left_out = [
        f"label map of {path} is left out of the scores: {reason}"
        for path, reason in evaluation.left_out.items()
    ]
    rejected = [f"{i.path} was rejected: {i.reason}" for i in manifest.rejected]
    metrics_file = run.report(subject.title) / "metrics.json"
    text = run.settings_file.read_text(encoding="utf-8")
    given = evaluation.given_names
    made = Ledger(run.state(subject.key)).read_shard(0)
    found = {} if made is None else made.result
    usage = found.get("usage", ())
    said = list(found.get("warnings", ()))
    arrays, attributes = read_group_of(run, subject)
    # the clusters of the fit, or classes that were made of them
    own = OWN not in evaluation.record.facts
    if "clusters" not in attributes:
        warn_of_unused(said.append, subject.key, usage)
    if weak := describe_weak(metrics, given):
        said.append(f"{weak}.")
    return {
        "title": f"Pseudo-labels: {run.path.name}",
        "notice": "" if facts["weights_digest"] else _HANDCRAFTED,
        "facts": [
            *describe_facts(facts, metrics, manifest.dataset, str(manifest.root)),
            *describe_stability(attributes),
        ],
        "settings_yaml": shorten_settings(text, run.settings_file),
        "commands": list_commands(run, key, SETTINGS),
        "metrics": metrics,
        "gallery": gallery,
        "curves": draw_fit(arrays, attributes, look.colours),
        "clusters": make_cards(
            metrics,
            look,
            artefacts.classifiers[MAIN].prototypes.float().numpy(),
            cutouts,
            attributes.get("cluster_stability", ()) if own else (),
        ),
        "certainty": show_certainty(metrics),
        "warnings": [
            *describe_labels(metrics),
            *said,
            *shorten_lines(
                left_out, f"more label maps: the commonest reasons are in {metrics_file}"
            ),
            *shorten_lines(
                rejected, f"more images were rejected: the reasons are in {run.manifest_file}"
            ),
        ],
        "names_file": run.name_file(run.names_file(subject.title)),
        "given": given,
        "review": f"primaps-pipe review {run.quoted}{subject.options}",
        "unusual": describe_unusual(metrics["counts"]),
        "repeatability": describe_repeatability(metrics["counts"]),
        "sample_note": sample_note,
        "cutout_note": cutout_note,
        "version": find_version(),
        "suggestions": suggest_steps(
            run,
            subject,
            metrics,
            named=bool(given),
            unused=list_unused(usage),
            counted=read_record(run, subject.key).settings.get("classes") == "auto",
        ),
    }


# --- the gallery ----------------------------------------------------------------------------------


def _build_gallery(
    evaluation: Evaluation, artefacts: Artefacts, settings: ReportSettings
) -> tuple[list[GalleryItem], str]:
    """Show the images that are chosen of every split, as long as there is room; say which."""
    images, scores = evaluation.manifest.images, evaluation.scores
    choices, told = [], []
    for split in evaluation.splits:
        own = scores.filter(pc.equal(scores["split"], split))
        # what tells good images from bad ones: the accuracy, or the confidence without labels
        final, measure = pc.coalesce(own["accuracy_crf"], own["accuracy"]), "accuracy"
        if final.null_count == len(final):
            final, measure = own["confidence"], "confidence"
        picked = choose_images(own["id"].to_pylist(), final.to_numpy(), settings.gallery)
        rows = own.take(pa.array([place for place, _ in picked], pa.int64())).to_pylist()
        choices.append([(row, role) for row, (_, role) in zip(rows, picked, strict=True)])
        roles = _list_roles(Counter(role for _, role in picked), measure)
        told.append(f"{split}: {len(picked)} of {len(own)} images{roles}")
    order = rank_choices(choices)
    if not order:
        return [], ""
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
        image = images[row["image"]]
        labels = read_labels(evaluation, artefacts, image, looks[image.split], settings.device)
        try:
            truth = artefacts.read_truth(image)
        except ImageError:
            truth = None  # the reason is among the report's warnings
        exhibit = gather_exhibit(artefacts, image, artefacts.read_pixels(image), truth, labels)
        return build_item(image, exhibit, role, colours, pick_scores(row), side)

    threads = count_threads()
    items = map_ahead(show, chosen, threads, threads)
    kept = take_within(items, lambda item: item.size, GALLERY_BYTES)
    shown = dict(zip(order, kept, strict=False))
    note = f"{'; '.join(told)}."
    if len(shown) < len(order):
        note += f" For the size of the page, {len(shown)} of these {len(order)} are shown."
    return [shown[place] for place in sorted(shown)], note


def _list_roles(counts: Mapping[Role, int], measure: str) -> str:
    """Say how many images were chosen for what."""
    if not counts["worst"] and not counts["best"]:
        return ", evenly spaced" if counts["sample"] else ""
    said: dict[Role, str] = {
        "worst": f"the {counts['worst']} with the lowest {measure}",
        "best": f"the {counts['best']} with the highest",
        "sample": f"{counts['sample']} evenly spaced among the others",
    }
    return f": {', '.join(text for role, text in said.items() if counts[role])}"


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


def read_labels(
    evaluation: Evaluation,
    artefacts: Artefacts,
    image: Image,
    looks: tuple[ClusterLook, ClusterLook],
    device: str,
) -> Labels:
    """Read the labels of the part that windows cover; those before the CRF are kept nowhere."""
    cover = artefacts.cover(image)
    logits = artefacts.read_logits([image], device=device, names=[MAIN])[image.image][MAIN]
    refined = None
    if evaluation.metrics["crf"] != "none":
        refined = resize_labels(evaluation.read_labels(image), *cover.resized)[cover.area]
    return Labels(take_clusters(logits, cover.boxes, artefacts.size), refined, *looks)


def gather_exhibit(
    artefacts: Artefacts,
    image: Image,
    frame: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    labels: Labels | None,
) -> Exhibit:
    """Gather what is shown of an image whose pixels and label maps have been read."""
    palette = np.frombuffer(png_palette(artefacts.dataset.palette), np.uint8)
    return Exhibit(
        frame=frame,
        boxes=artefacts.cover(image).boxes,
        features=artefacts.read_features(image),
        proposals=artefacts.read_proposals(image),
        truth=truth,
        palette=palette.reshape(256, 3),
        labels=labels,
    )


def build_item(
    image: Image,
    exhibit: Exhibit,
    role: Role,
    colours: FeatureColours,
    scores: Mapping[str, float],
    side: int = SMALL,
) -> GalleryItem:
    """Turn the artefacts of an image that is labelled into a row of pictures with its numbers."""
    labels = exhibit.labels
    assert labels is not None
    figures = [
        *describe_scores(scores),
        ("photograph", f"{image.width} x {image.height} px"),
        ("windows", str(len(exhibit.boxes))),
    ]
    if exhibit.proposals is not None:
        count = sum(len(np.unique(ids[ids > 0])) for ids in exhibit.proposals)
        figures.append(("proposals", str(count)))
    return GalleryItem(
        id=image.id,
        split=image.split,
        role=role,
        pictures={
            key: make_thumbnail(pixels, "photograph" if key == "image" else "map", side)
            for key, pixels in draw_exhibit(exhibit, colours).items()
        },
        parts=list_parts(labels.look.first[labels.final], exhibit.truth, labels.look.classes),
        names=labels.look.names,
        colours=labels.look.colours,
        figures=figures,
        accuracy=scores.get("accuracy_crf", scores.get("accuracy")),
        confidence=scores.get("confidence"),
    )


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
    stability: Sequence[float] = (),
) -> list[ClusterCard]:
    """Gather what is known of every cluster, by the matching of one split."""
    nearest = find_nearest(prototypes)
    # without a CRF, the labels are the final ones
    refined = metrics["assignment_crf"] is not None
    final = _read_ious(metrics, "_crf" if refined else "")
    plain = _read_ious(metrics, "") if refined else {}
    classes = look.classes or (None,) * len(look.names)
    return [
        ClusterCard(
            cluster=cluster,
            name=name,
            colour=colour,
            first=int(look.first[cluster]),
            share=metrics["class_usage"][cluster],
            iou=final.get(cluster),
            iou_plain=plain.get(cluster),
            class_name=None if label is None else metrics["class_names"][label],
            nearest=None if nearest is None else int(nearest[0][cluster]),
            similarity=None if nearest is None else float(nearest[1][cluster]),
            cutouts=cutouts.get(cluster, ()),
            stability=100 * stability[cluster] if cluster < len(stability) else None,
        )
        for cluster, (name, colour, label) in enumerate(
            zip(look.names, look.colours, classes, strict=True)
        )
    ]


def _read_ious(metrics: Mapping[str, Any], suffix: str) -> dict[int, float | None]:
    """Read the IoU of every cluster with the class that it is matched to."""
    assignment: Sequence[int | None] = metrics[f"assignment{suffix}"] or ()
    return {
        cluster: metrics["per_class"][label][f"iou{suffix}"]
        for cluster, label in enumerate(assignment)
        if label is not None
    }


def draw_fit(
    arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any], palette: Sequence[Colour]
) -> list[Content]:
    """Draw how a fit or a head went, from what its group holds.

    Every array ``score_<name>`` [epoch] is a score that needs no labels, in the unit that the
    attribute ``score_units`` gives; the number of classes that are in use is added to them.
    """
    unit = str(attributes.get("unit", "epoch"))
    plots: list[Content] = []

    def add(title: str, svg: str, detail: str = "", *, legend: bool = False) -> None:
        plots.append({"title": title, "svg": svg, "detail": detail, "legend": legend})

    if tried := attributes.get("classes_curve"):
        chosen = int(attributes["classes"]) if "classes" in attributes else None
        label = attributes.get("classes_label", "score")
        add(
            "Number of classes",
            draw_scores([(int(k), float(score)) for k, score in tried], chosen),
            f"What every number of classes scores without labels: {label}. The dot is the one "
            "that was fitted.",
        )
    loss = arrays.get("loss")
    if loss is not None and len(loss):
        add("Loss", draw_series("Loss", loss, unit, margin=0.08))
    usage = arrays.get("class_usage")
    if usage is not None and len(usage):
        add("Class usage", draw_usage(usage, palette, unit), legend=True)
    for name, measure, values in list_scores(arrays, attributes):
        if any(map(is_number, values)):
            title = f"{name[:1].upper()}{name[1:]}{', ' if measure else ''}{measure}"
            add(title, draw_series(name, values, unit), _MEANINGS.get(name, ""))
    return plots


def list_scores(
    arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]
) -> Iterator[tuple[str, str, list[float]]]:
    """List the scores that need no labels: the name of each, its unit, and that of every epoch."""
    units = attributes.get("score_units", {})
    for name in sorted(arrays):
        if name.startswith(_SCORE) and arrays[name].ndim == 1:
            score = name.removeprefix(_SCORE)
            yield score.replace("_", " "), str(units.get(score, "")), arrays[name].tolist()
    if (usage := arrays.get("class_usage")) is not None:
        effective = [count_effectively(row) or math.nan for row in usage.tolist()]
        yield "effective classes", "", effective
