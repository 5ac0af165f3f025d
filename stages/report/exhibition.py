"""What the report shows of a run: read, and put into words and pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from pipeline.errors import ImageError, RunError
from pipeline.images.decoding import read_label
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import count_threads, map_ahead, resize_labels
from pipeline.run.ledger import read_record
from pipeline.run.manifest import Image
from pipeline.run.subject import ClusterLook, Subject, choose_block, choose_look, read_given_names
from pipeline.storage.files import read_json
from stages import SETTINGS
from stages.evaluate.artefacts import Artefacts, label_file, open_artefacts, read_group_of
from stages.evaluate.counts import ImageScores, left_out_file, read_scores
from stages.labelling import MAIN, take_clusters
from stages.report.budget import choose_side, shorten_lines, shorten_settings, take_within
from stages.report.cards import make_cards
from stages.report.content import Exhibit, build_item, describe_facts, make_curve
from stages.report.counts import describe_repeatability, describe_unusual
from stages.report.cutouts import Typical, gather_typical
from stages.report.gallery import FeatureColours, fit_feature_colours
from stages.report.page import GalleryItem, ReportContent, Role
from stages.report.reproduction import list_commands
from stages.report.sample import Choice, choose_images, rank_choices, sample_evenly
from stages.report.settings import ReportSettings
from stages.report.suggestions import suggest_steps

# Images and positions that the colours of features are fitted to.
_COLOURED_IMAGES = 48
_COLOURED_POSITIONS = 65_536


def build_content(run: RunDirectory, settings: ReportSettings) -> ReportContent:
    """Gather what the report says."""
    subject = settings.subject
    evaluated = read_record(run, f"evaluate/{subject.title}").settings
    artefacts = open_artefacts(run, settings.em, head=settings.head, gain=evaluated["cosine_gain"])
    metrics = _read_file(run, subject, "metrics.json", json.loads)
    scores = _read_file(
        run, subject, "images.parquet", lambda content: read_scores(content, metrics["splits"])
    )
    warnings = [
        f"label map of {path} is left out of the scores: {reason}"
        for path, reason in (read_json(left_out_file(run, subject)) or {}).items()
    ]
    manifest = artefacts.manifest
    facts = read_record(run, "extract").facts
    given = read_given_names(run, artefacts.subject.title, artefacts.clusters)
    gallery, sample_note = _build_gallery(artefacts, settings, metrics, scores, given)
    typical = Typical({}, "")
    if settings.gallery:
        typical = gather_typical(artefacts, list(scores))
    look = _choose_looks(artefacts, metrics, metrics["split"], given)[1]
    prototypes = artefacts.classifiers[MAIN].prototypes.float().numpy()
    rejected = [f"{i.path} was rejected: {i.reason}" for i in manifest.rejected]
    notice = ""
    if not facts["weights_digest"]:
        notice = (
            "Made from hand-crafted colour, gradient and texture channels, without pretrained "
            "weights: expect far weaker classes than with a real backbone."
        )
    counts = metrics["counts"]
    metrics_file = run.report(artefacts.subject.title) / "metrics.json"
    return ReportContent(
        title=f"Pseudo-labels: {run.path.name}",
        notice=notice,
        facts=describe_facts(facts, metrics, manifest.dataset, str(manifest.root)),
        settings_yaml=shorten_settings(
            run.settings_file.read_text(encoding="utf-8"), run.settings_file
        ),
        commands=list_commands(run, f"evaluate/{artefacts.subject.title}", SETTINGS),
        metrics=metrics,
        gallery=gallery,
        curve=make_curve(*read_group_of(run, artefacts.subject)),
        clusters=make_cards(metrics, look, prototypes, typical.cutouts),
        warnings=(
            *shorten_lines(
                warnings, f"more label maps: the commonest reasons are in {metrics_file}"
            ),
            *shorten_lines(
                rejected, f"more images were rejected: the reasons are in {run.manifest_file}"
            ),
        ),
        unusual=describe_unusual(counts),
        repeatability=describe_repeatability(counts),
        sample_note=sample_note,
        cutout_note=typical.note,
        version=find_version(),
        suggestions=suggest_steps(run, artefacts.subject, metrics, named=bool(given)),
    )


def _read_file(
    run: RunDirectory, subject: Subject, name: str, decode: Callable[[bytes], Any]
) -> Any:
    """Read a file that ``evaluate`` wrote beside the page."""
    file = run.report(subject.title) / name
    command = f"`primaps-pipe evaluate {run.quoted}{subject.options}`"
    try:
        return decode(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{file} is gone; run {command} again.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); run {command} again.") from error


def _build_gallery(
    artefacts: Artefacts,
    settings: ReportSettings,
    metrics: Mapping[str, Any],
    scores: Mapping[str, ImageScores],
    given: Mapping[int, str],
) -> tuple[tuple[GalleryItem, ...], str]:
    """Show the images that are chosen of every split, as long as there is room; say which."""
    images = artefacts.manifest.images
    splits = list(scores)
    choices = [_choose_images(artefacts, scores[split], settings.gallery) for split in splits]
    order = rank_choices(choices)
    if not order:
        return (), ""
    rows = [scores[splits[s]].images[choices[s][n][0]] for s, n in order]
    colours = _fit_colours(artefacts, [images[row] for row in rows])
    # every split is matched, and hence scored, on its own
    looks = {split: _choose_looks(artefacts, metrics, split, given) for split in splits}
    side = choose_side(len(order))

    def show(place: tuple[int, int]) -> GalleryItem:
        split, (position, role) = splits[place[0]], choices[place[0]][place[1]]
        exhibit = gather_exhibit(
            artefacts,
            images[scores[split].images[position]],
            refined=metrics["crf"] != "none",
            device=settings.device,
        )
        values = scores[split].read(position)
        return build_item(exhibit, role, colours, looks[split], values, side)

    threads = count_threads()
    items = map_ahead(show, order, threads, threads)
    shown = dict(zip(order, take_within(items), strict=False))
    note = _describe_sample(splits, choices, scores)
    if len(shown) < len(order):
        note += f" For the size of the page, {len(shown)} of these {len(order)} are shown."
    return tuple(shown[place] for place in sorted(shown)), note


def _choose_images(artefacts: Artefacts, scores: ImageScores, wanted: int) -> list[Choice]:
    ids = [artefacts.manifest.images[row].id for row in scores.images]
    return choose_images(ids, _rate_images(scores)[1], wanted)


def _rate_images(scores: ImageScores) -> tuple[str, Any]:
    """Return what tells good images from bad ones: the accuracy, or the confidence without."""
    if np.isnan(scores.final).all():
        return "confidence", scores.confidence
    return "accuracy", scores.final


def _describe_sample(
    splits: Sequence[str], choices: Sequence[Sequence[Choice]], scores: Mapping[str, ImageScores]
) -> str:
    """Say which images are shown, and of how many."""
    told = []
    for split, chosen in zip(splits, choices, strict=True):
        total = len(scores[split].images)
        counts = Counter(role for _, role in chosen)
        measure = _rate_images(scores[split])[0]
        told.append(f"{split}: {len(chosen)} of {total} images{_list_roles(counts, measure)}")
    return f"{'; '.join(told)}."


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


def gather_exhibit(artefacts: Artefacts, image: Image, *, refined: bool, device: str) -> Exhibit:
    """Gather what is shown of an image that is labelled already."""
    cover = artefacts.cover(image)
    logits = artefacts.read_logits([image], device=device, names=[MAIN])
    plain = take_clusters(logits[image.image][MAIN], cover.boxes, artefacts.size)
    labels = None
    if refined:
        file = label_file(artefacts.run.labels(artefacts.subject.title), image)
        labels = resize_labels(read_label(file).astype(np.uint8), *cover.resized)[cover.area]
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
        refined=labels,
        truth=truth,
        figures=tuple(figures),
    )


def find_version() -> str:
    """Return the version of primaps-pipe that is installed, or nothing."""
    try:
        return version("primaps-pipe")
    except PackageNotFoundError:
        return ""  # run from its sources


def _choose_looks(
    artefacts: Artefacts, metrics: Mapping[str, Any], split: str, given: Mapping[int, str]
) -> tuple[ClusterLook, ClusterLook]:
    """Choose how clusters look in one split, without and with CRF."""
    block = choose_block(metrics, split)

    def choose(assignment: list[int | None] | None) -> ClusterLook:
        colours = artefacts.dataset.palette
        return choose_look(block["classes"], assignment, block["class_names"], colours, given)

    plain = choose(block["assignment"])
    return plain, plain if block["assignment_crf"] is None else choose(block["assignment_crf"])
