"""What a run was made from that lies outside it, and whether that is still the same.

Asked by size and modification time, as ``status`` can afford it; the stages themselves compare
digests. Nothing here imports torch.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.datasets import find_difference, forget_listings, stamp_file
from pipeline.errors import PipelineError
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import read_given_names
from pipeline.run.ledger import Ledger, StageRecord, list_upstream
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.storage.files import fingerprint

WEIGHTS = "weights"
LABELS = "label maps"
NAMES = "cluster_names"
IMAGES = "images"
CLASSES = "dataset's classes"


def describe_file(path: Path) -> dict[str, Any]:
    """Return what tells a file from a later one at its place, JSON-able."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


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
    """Return a fingerprint of what the ids in a run's label maps mean."""
    kept = manifest.definition or {}
    ids = [each["ids"] for each in kept.get("classes", [])]
    return fingerprint(ids, kept.get("ignore"))


def stat_label(manifest: Manifest, image: Image) -> tuple[int, int] | None:
    """Return size and modification time of a label map; zeros where it is gone."""
    if image.label is None:
        return None
    try:
        return stamp_file(manifest.labels or manifest.root, image.label)[:2]
    except OSError:
        return (0, 0)


def find_changes(run: RunDirectory, record: StageRecord) -> str:
    """Say what has changed outside a run since a stage read it; nothing where nothing has."""
    found = [_check_weights(record)]
    if {IMAGES, LABELS} & record.sources.keys():
        try:
            manifest = read_manifest(run)
        except PipelineError as error:
            found.append(str(error))
        else:
            if IMAGES in record.sources:
                found += [_check_images(run, record, manifest), _check_layout(manifest)]
            if LABELS in record.sources:
                found.append(_check_labels(record, manifest))
    return "; ".join(text for text in found if text)


def find_upstream_changes(run: RunDirectory, key: str) -> str:
    """Say what has changed outside a run since a stage, or one before it, read it.

    Nothing where nothing has: a finished stage then says what the files outside say now.
    """
    for name in (key, *list_upstream(run, key)):
        record = Ledger(run.state(name)).read_stage()
        changed = "" if record is None else find_changes(run, record)
        if changed:
            return changed if name == key else f"{name}: {changed}"
    return ""


def _check_weights(record: StageRecord) -> str:
    known = record.sources.get(WEIGHTS)
    if known is None:
        return ""
    try:
        same = describe_file(Path(known["path"])) == known
    except OSError:
        # what is finished stays valid without its weights
        return ""
    return "" if same else f"the weights {known['path']} have changed"


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
    added = _list_added(run, record, manifest)
    parts = [(changed, "changed"), (gone, "gone"), (added, "new")]
    return ", ".join(_count(paths, what) for paths, what in parts if paths)


def _list_added(run: RunDirectory, record: StageRecord, manifest: Manifest) -> list[str]:
    if record.settings.get("limit") is not None:
        return []
    try:
        samples = manifest.open_dataset().list_samples(
            manifest.root, tuple(record.settings["splits"]), manifest.labels, [run.path]
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


def _check_layout(manifest: Manifest) -> str:
    try:
        changed = find_difference(manifest.dataset, manifest.definition, classes=False)
    except PipelineError as error:
        return str(error)
    return f"the definition of the dataset has changed ({changed})" if changed else ""


def describe_new_classes(manifest: Manifest) -> str:
    """Say that a dataset's classes are not those that a run keeps; nothing where they are."""
    try:
        changed = find_difference(manifest.dataset, manifest.definition, classes=True)
    except PipelineError as error:
        return str(error)
    if not changed:
        return ""
    return f"the dataset's classes have changed ({changed}); run extract and then evaluate again"


def needs_listing(run: RunDirectory, key: str) -> bool:
    """Whether a stage is stale for want of a new listing, while the features stay as they are."""
    records = [Ledger(run.state(name)).read_stage() for name in (key, *list_upstream(run, key))]
    if not any(LABELS in record.sources for record in records if record):
        return False
    with suppress(PipelineError):
        return bool(describe_new_classes(read_manifest(run)))
    return False


def find_other_names(run: RunDirectory, key: str, record: StageRecord) -> str:
    """Say whether the user names clusters otherwise than a page that shows their names does."""
    if NAMES not in record.facts:
        return ""
    title = key.partition("/")[2]
    try:
        given = read_given_names(run, title)
    except PipelineError as error:
        return str(error)
    # as records have them: JSON knows no number as a name
    if {str(cluster): name for cluster, name in given.items()} == record.facts[NAMES]:
        return ""
    return (
        f"{run.names_file(title).name} is not what the report was made with; "
        "the same command renders it again"
    )
