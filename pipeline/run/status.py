"""How a run stands, stage by stage: what has changed, also outside the run, and what is gone.

What lies outside is asked for by size and modification time, as ``status`` can afford it; the
stages themselves compare digests. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.datasets import find_difference
from pipeline.datasets.listing import Globs, forget_listings, stamp_file
from pipeline.errors import PipelineError
from pipeline.run.by_hand import find_by_hand, make_refusal, name_keeping
from pipeline.run.corrections import Corrections
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import read_given_names
from pipeline.run.ledger import (
    Condition,
    Ledger,
    StageRecord,
    find_lost,
    inspect_stage,
    list_sizes,
    list_sources,
)
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.run.stage import Stages
from pipeline.storage.files import fingerprint
from pipeline.storage.places import measure

WEIGHTS = "weights"
LABELS = "label maps"
NAMES = "cluster_names"
IMAGES = "images"
CLASSES = "dataset's classes"
CORRECTIONS = "corrections"


def describe_file(path: Path, parts: Collection[Path] = ()) -> dict[str, Any]:
    """Return what tells a file from a later one at its place, JSON-able; so of its parts."""
    status = path.stat()
    described = {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    return described | ({"parts": [describe_file(part) for part in parts]} if parts else {})


def fingerprint_labels(manifest: Manifest, splits: tuple[str, ...]) -> str:
    """Return a fingerprint of the label maps of some splits, by size and modification time."""
    forget_listings()
    return fingerprint(
        [stat_label(manifest, image) for image in manifest.images if image.split in splits]
    )


def fingerprint_classes(manifest: Manifest) -> str:
    """Return a fingerprint of the names, colours and ids of a run's classes."""
    return fingerprint((manifest.definition or {}).get("classes"), fingerprint_ids(manifest))


def fingerprint_ids(manifest: Manifest) -> str:
    """Return a fingerprint of what the ids, or colours, in a run's label maps mean."""
    kept = manifest.definition or {}
    ids = [(each["ids"], each["colour"]) for each in kept.get("classes", [])]
    return fingerprint(ids, kept.get("ignore"))


def stat_label(manifest: Manifest, image: Image) -> tuple[int, int] | None:
    """Return size and modification time of a label map; zeros where it is gone."""
    if image.label is None:
        return None
    try:
        return stamp_file(manifest.labels or manifest.root, image.label)[:2]
    except OSError:
        return (0, 0)


# --- what has changed outside ---------------------------------------------------------------------


def find_upstream_changes(
    run: RunDirectory, key: str, known: Mapping[str, str] | None = None
) -> str:
    """Say what has changed outside a run since a stage, or one before it, read it; or nothing.

    What is ``known`` of every stage is not looked for again.
    """
    for name, record in reversed(list_sources(run, key).items()):
        changed = _find_changes(run, record) if known is None else known.get(name, "")
        if changed:
            return changed if name == key else f"{name}: {changed}"
    return ""


def describe_new_classes(manifest: Manifest) -> str:
    """Say that a dataset's classes are not those that a run keeps; nothing where they are."""
    words = "the dataset's classes have changed ({}); run extract and then evaluate again"
    return _describe_difference(manifest, words, classes=True)


def _describe_difference(manifest: Manifest, words: str, *, classes: bool) -> str:
    try:
        changed = find_difference(manifest.dataset, manifest.definition, classes=classes)
    except PipelineError as error:
        return str(error)
    return words.format(changed) if changed else ""


def _find_changes(run: RunDirectory, record: StageRecord) -> str:
    """Say what has changed outside a run since a stage read it; nothing where nothing has."""
    found = [_check_weights(record)]
    if {IMAGES, LABELS} & record.sources.keys():
        try:
            manifest = read_manifest(run)
        except PipelineError as error:
            found.append(str(error))
        else:
            if IMAGES in record.sources:
                words = "the definition of the dataset has changed ({})"
                found.append(_check_images(run, record, manifest))
                found.append(_describe_difference(manifest, words, classes=False))
            if LABELS in record.sources:
                found.append(_check_labels(record, manifest))
                found.append(_check_corrections(run, record))
    return "; ".join(text for text in found if text)


def _check_corrections(run: RunDirectory, record: StageRecord) -> str:
    try:
        now = Corrections(run).fingerprint()
    except PipelineError as error:
        return str(error)
    return "" if record.sources.get(CORRECTIONS, "") == now else "corrections were made"


def _check_weights(record: StageRecord) -> str:
    known = record.sources.get(WEIGHTS)
    # what is finished stays valid without its weights
    with suppress(OSError):
        parts = [] if known is None else [Path(part["path"]) for part in known.get("parts", ())]
        if known is not None and describe_file(Path(known["path"]), parts) != known:
            return f"the weights {known['path']} have changed"
    return ""


def _check_images(run: RunDirectory, record: StageRecord, manifest: Manifest) -> str:
    forget_listings()
    changed, gone = [], []
    for image in manifest.images:
        try:
            stamp = stamp_file(manifest.root, image.path)[:2]
        except OSError:
            gone.append(image.path)
            continue
        # one that was rejected unseen has neither
        if image.bytes and stamp != (image.bytes, image.modified_ns):
            changed.append(image.path)
    parts = [(changed, "changed"), (gone, "gone"), (_list_added(run, record, manifest), "new")]
    return ", ".join(_count(paths, what) for paths, what in parts if paths)


def _list_added(run: RunDirectory, record: StageRecord, manifest: Manifest) -> list[str]:
    if record.settings.get("limit") is not None:
        return []
    try:
        samples = manifest.open_dataset().list_samples(
            manifest.root,
            tuple(record.settings["splits"]),
            manifest.labels,
            [run.path],
            Globs(*(tuple(record.settings.get(key, ())) for key in ("include", "exclude"))),
        )
    except PipelineError:
        return []  # that everything is gone has been said
    known = {image.path for image in manifest.images}
    return [sample.image for sample in samples if sample.image not in known]


def _count(paths: list[str], what: str) -> str:
    images = "image is" if len(paths) == 1 else "images are"
    return f"{len(paths)} {images} {what} ({paths[0]}{', …' if len(paths) > 1 else ''})"


def _check_labels(record: StageRecord, manifest: Manifest) -> str:
    if record.sources.get(CLASSES, now := fingerprint_classes(manifest)) != now:
        return f"the {CLASSES} have changed"
    if changed := describe_new_classes(manifest):
        return changed
    now = fingerprint_labels(manifest, tuple(record.settings["splits"]))
    return "" if now == record.sources[LABELS] else "label maps have changed"


# --- the rows of ``primaps-pipe status`` ----------------------------------------------------------


def inspect_run(run: RunDirectory, stages: Stages) -> list[Condition]:
    """Say how every stage of a run stands, in order; of those not run only what it cannot lack."""
    known = run.require().keys()
    keys = []
    for name, settings in stages.items():
        named = [key for key in known if key.partition("/")[0] == name]
        keys += named or ([] if settings.optional else [name])
    records = {key: Ledger(run.state(key)).recall_stage() for key in keys}
    # once for all that was made from them: it takes as long as there are images
    changes = {key: _find_changes(run, record) for key, record in records.items() if record}
    sizes = list_sizes(run)
    return [_inspect_key(run, stages, key, changes, sizes) for key in keys]


def _inspect_key(
    run: RunDirectory,
    stages: Stages,
    key: str,
    changes: Mapping[str, str],
    sizes: Mapping[str, int] | None,
) -> Condition:
    condition = inspect_stage(run, key, stages)
    if condition.record is None:
        return condition
    artefacts = stages.list_artefacts(key)
    if condition.state == "fresh":
        reason = find_upstream_changes(run, key, changes)
        condition = replace(condition, state="stale" if reason else "fresh", reason=reason)
    if condition.state == "fresh":
        state, reason, *command = _find_gone(run, key, artefacts, sizes)
        condition = replace(condition, state=state, reason=reason, command="".join(command))
    # the first stage lists the images
    first = next(iter(stages)) if condition.state == "stale" and _needs_listing(run, key) else ""
    size = sum(measure(run.path / each) for each in artefacts)
    return replace(condition, bytes=size, first=first)


def describe_row(row: Condition) -> dict[str, Any]:
    """Return a row as JSON."""
    return {
        "stage": row.key,
        "state": row.state,
        "shards_done": row.done,
        "shards_total": row.total,
        "bytes": row.bytes,
        "seconds": round(row.seconds, 3),
        "crf": row.crf,
        "reason": row.reason,
    }


def _needs_listing(run: RunDirectory, key: str) -> bool:
    """Whether a stage is stale for want of a new listing, while the features stay as they are."""
    if not any(LABELS in record.sources for record in list_sources(run, key).values()):
        return False
    with suppress(PipelineError):
        return bool(describe_new_classes(read_manifest(run)))
    return False


def _find_gone(
    run: RunDirectory, key: str, artefacts: list[str], sizes: Mapping[str, int] | None
) -> tuple[str, ...]:
    """Say what a finished stage has lost, or shows otherwise than it would now: state, reason.

    And the command that is next, where it is not the stage's own.
    """
    again = "the same command makes it again"
    absent = [run.path / artefact for artefact in artefacts if not (run.path / artefact).exists()]
    if absent:
        # or the zarr store that is gone with it
        stores = {at: at.parent.suffix == ".zarr" and not at.parent.exists() for at in absent}
        gone = dict.fromkeys(at.parent.name if store else at.name for at, store in stores.items())
        return "incomplete", f"{', '.join(gone)} is gone; {again}"
    ledger = Ledger(run.state(key))
    record, files = ledger.read_stage(), {}
    for each in [record, *ledger.read_shards().values()]:
        files.update(each.files if each else {})
    lost = find_lost(run, files, sizes)
    if changed := find_by_hand(run, record, lost):
        return "stale", str(make_refusal(run, key, changed)), name_keeping(run, changed)
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return "incomplete", f"{lost[0]}{more} is gone or cut; {again}"
    if record is None or NAMES not in record.facts:
        return "fresh", ""
    title = key.partition("/")[2]
    try:
        given = read_given_names(run, title)
    except PipelineError as error:
        return "incomplete", str(error)
    # as records have them: JSON knows no number as a name
    if {str(cluster): name for cluster, name in given.items()} == record.facts[NAMES]:
        return "fresh", ""
    file = run.name_file(run.names_file(title))
    again = f"{file} is not what the report was made with; the same command renders it again"
    return "incomplete", again
