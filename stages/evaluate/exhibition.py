"""What the report shows of a run: read, and put into words and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.condition import read_record
from pipeline.errors import ImageError
from pipeline.frames import resize_labels
from pipeline.images import read_label
from pipeline.ledger import StageRecord
from pipeline.manifest import Image
from pipeline.run_directory import RunDirectory
from stages.evaluate.artefacts import MAIN, Artefacts, read_group_of
from stages.evaluate.content import (
    ClusterLook,
    Exhibit,
    build_gallery,
    choose_look,
    describe_facts,
    make_curve,
    sample_evenly,
)
from stages.evaluate.counts import describe_repeatability, describe_unusual
from stages.evaluate.labelling import take_clusters
from stages.evaluate.report import GalleryItem, ReportContent
from stages.evaluate.settings import EvaluateSettings

_MOST_WARNINGS = 200


def build_content(
    artefacts: Artefacts,
    settings: EvaluateSettings,
    metrics: dict[str, Any],
    warnings: list[str],
) -> ReportContent:
    """Gather what the report says.

    Parameters
    ----------
    artefacts
        The run and what was evaluated.
    settings
        Resolved.
    metrics
        What ``metrics.json`` holds.
    warnings
        One sentence each.
    """
    run, manifest = artefacts.run, artefacts.manifest
    facts = read_record(run, "extract").facts
    gallery: list[GalleryItem] = []
    for split in settings.splits:
        images = [i for i in manifest.images if i.ok and i.split == split]
        chosen = [images[i] for i in sample_evenly(len(images), settings.gallery)]
        exhibits = [_gather_exhibit(artefacts, image, settings) for image in chosen]
        # every split is matched, and hence scored, on its own
        gallery += build_gallery(exhibits, *_choose_looks(artefacts, metrics["splits"][split]))
    look = _choose_looks(artefacts, metrics)[1]
    rejected = [f"{i.path} was rejected: {i.reason}" for i in manifest.rejected]
    notice = ""
    if not facts["weights_digest"]:
        notice = (
            "Made from hand-crafted colour, gradient and texture channels, without pretrained "
            "weights: expect far weaker classes than with a real backbone."
        )
    counts = metrics["counts"]
    return ReportContent(
        title=f"Pseudo-labels: {run.path.name}",
        notice=notice,
        facts=describe_facts(facts, metrics, manifest.dataset, str(manifest.root)),
        settings_yaml=run.settings_file.read_text(encoding="utf-8"),
        commands=_list_commands(run, f"evaluate/{artefacts.subject.title}"),
        metrics=metrics,
        gallery=tuple(gallery),
        curve=make_curve(*read_group_of(run, artefacts.subject)),
        palette=look.colours,
        cluster_names=look.names,
        warnings=(*warnings, *_shorten(rejected, str(run.manifest_file))),
        unusual=describe_unusual(counts),
        repeatability=describe_repeatability(counts),
    )


def _gather_exhibit(artefacts: Artefacts, image: Image, settings: EvaluateSettings) -> Exhibit:
    """Gather what the report shows of an image that is labelled already."""
    cover = artefacts.cover(image)
    logits = artefacts.read_logits([image], device=settings.device, names=[MAIN])
    plain = take_clusters(logits[image.image][MAIN], cover.boxes, artefacts.size)
    refined = None
    if settings.crf != "none":
        file = label_file(artefacts.run.labels(artefacts.subject.title), image)
        refined = resize_labels(read_label(file).astype(np.uint8), *cover.resized)[cover.area]
    try:
        truth = artefacts.read_truth(image)
    except ImageError:
        truth = None  # the reason is among the report's warnings
    return Exhibit(
        id=image.id,
        split=image.split,
        frame=artefacts.read_pixels(image),
        boxes=cover.boxes,
        features=artefacts.read_features(image),
        proposals=artefacts.read_proposals(image),
        plain=plain,
        refined=refined,
        truth=truth,
    )


def _shorten(lines: list[str], file: str) -> list[str]:
    """Leave lines out that would make the page too long to open."""
    more = len(lines) - _MOST_WARNINGS
    if more <= 0:
        return lines
    return [*lines[:_MOST_WARNINGS], f"{more} more images were rejected: the reasons are in {file}"]


def list_sources(run: RunDirectory, key: str) -> dict[str, StageRecord]:
    """List the records of all that a stage was made from, each after those that it reads."""
    records: dict[str, StageRecord] = {}

    def visit(key: str) -> None:
        record = read_record(run, key)
        for source in record.inputs:
            visit(source)
        records.setdefault(key, record)

    visit(key)
    return records


def _list_commands(run: RunDirectory, key: str) -> tuple[str, ...]:
    """List the commands that lead to a stage."""
    return tuple(
        f"primaps-pipe {record.stage} {run.quoted}{record.options}"
        for record in list_sources(run, key).values()
        # one that has another stage's verb is run by the command of that stage
        if not record.verb
    )


def _choose_looks(artefacts: Artefacts, block: dict[str, Any]) -> tuple[ClusterLook, ClusterLook]:
    """Choose how clusters look in one split, without and with CRF."""

    def choose(assignment: list[int | None] | None) -> ClusterLook:
        colours = artefacts.dataset.palette
        return choose_look(block["classes"], assignment, block["class_names"], colours)

    plain = choose(block["assignment"])
    return plain, plain if block["assignment_crf"] is None else choose(block["assignment_crf"])


def label_file(folder: Path, image: Image) -> Path:
    """Return where the label map of an image lies."""
    return folder / image.split / f"{image.id}.png"
