"""Prediction: new images labelled with a file of prototypes, without a run directory.

What is computed is what ``extract`` and ``evaluate`` compute, by their own functions: the same
windows, features of each and of its mirror image, logits, stitching and CRF; so the label maps have
the same bytes. The output folder holds ``<id>.png`` for every image, ``classes.json``, and
``predictions.jsonl``, which says what each label map was made from: what is up to date is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.datasets import get_dataset
from pipeline.devices import resolve_device
from pipeline.errors import DatasetError, StaleError, UsageError, WeightsError
from pipeline.files import confine_writes, fingerprint, write_changed
from pipeline.locks import hold_lock
from pipeline.manifest import Image, Manifest
from pipeline.places import is_remote, make_absolute
from pipeline.progress import Screen
from stages.crf import choose_backend
from stages.extract.backbones import Backbone, build_backbone
from stages.extract.listing import list_images, place_all
from stages.extract.settings import HANDCRAFTED
from stages.extract.weights import find_weights
from workflows.export.prototypes import PrototypeFacts, read_prototypes
from workflows.labeller import Labeller, cut_blocks, label_block
from workflows.predictions import INDEX, Predictions, describe_classes, open_predictions

VERSION = 1
_LOCK = ".predict.lock"


def predict_folder(
    images: Path,
    prototypes: Path,
    out: Path,
    *,
    weights: Path | None,
    crf: str,
    device: str,
    batch_size: int,
    screen: Screen,
) -> list[str]:
    """Label all images below a folder.

    Parameters
    ----------
    images
        Folder, or prefix of an object store, with images at any depth.
    prototypes
        File that ``export --format prototypes`` wrote.
    out
        Local folder; new, empty, or one of an earlier prediction.
    weights
        File of the backbone's weights; looked for as ``extract`` does when None.
    crf
        A backend of the dense CRF, ``none``, or ``auto``: with one where the labels that the
        prototypes were evaluated by had one.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    batch_size
        Windows per forward pass.
    screen
        Where progress is shown.

    Returns
    -------
    list of str
        What was written and what was skipped, a sentence each.

    Raises
    ------
    UsageError
        The file is no file of prototypes, or a folder is not what is meant.
    WeightsError
        The weights are not found, or are not those that the prototypes were made with.
    DatasetError
        There are no images, or none can be labelled.
    """
    chosen = read_prototypes(prototypes)
    images = make_absolute(images)
    _check_out(out, images)
    backend = choose_backend(_choose_crf(crf, chosen.facts), device)
    made = fingerprint(VERSION, chosen.digest, backend.name if backend else "none")
    manifest = _list(images, out, chosen.facts, screen)
    with confine_writes(out), hold_lock(out / _LOCK, what=f"the folder {out}", wait=False):
        predictions = open_predictions(out)
        usable = [image for image in manifest.images if image.ok]
        pending = [image for image in usable if not predictions.has(image, made)]
        if pending:
            labeller = Labeller(
                chosen,
                _build(chosen.facts, weights, device, screen),
                backend,
                resolve_device(device),
                batch_size,
                out,
            )
            manifest = _label_all(labeller, manifest, pending, predictions, made, screen)
        write_changed(out / "classes.json", describe_classes(chosen.facts))
        left = predictions.close(manifest.images)
    return _describe(manifest, len(usable) - len(pending), left, out)


def _describe(manifest: Manifest, kept: int, left: int, out: Path) -> list[str]:
    rejected = manifest.rejected
    first = f"{rejected[0].path}: {rejected[0].reason}" if rejected else ""
    if len(rejected) == len(manifest.images):
        raise DatasetError(f"none of the {len(rejected)} images can be labelled (first: {first}).")
    there = f", {kept} of them there already" if kept else ""
    lines = [f"predict: {len(manifest.images) - len(rejected)} label maps in {out}{there}"]
    if rejected:
        lines.append(
            f"predict: {len(rejected)} of {len(manifest.images)} images are skipped (first: "
            f"{first}); all reasons are in {out / INDEX}"
        )
    if left:
        lines.append(f"predict: {left} label maps of images that are gone are left in {out}")
    return lines


def _check_out(out: Path, images: Path) -> None:
    if is_remote(out):
        raise UsageError(f"--out {out}: labels need a local folder; copy them there afterwards.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder.")
    if is_remote(images):
        return
    if out.resolve() in (images.resolve(), *images.resolve().parents):
        raise UsageError(
            f"--out {out} holds the images too: label maps must not lie among them; "
            "give another folder."
        )


def _choose_crf(crf: str, facts: PrototypeFacts) -> str:
    """Choose the CRF: as the evaluation had it, where nothing else is asked for."""
    if crf != "auto":
        return crf
    return facts.crf if facts.crf in ("none", "pydensecrf") else "auto"


def _list(images: Path, out: Path, facts: PrototypeFacts, screen: Screen) -> Manifest:
    """List the images and place their windows, as extract does."""
    dataset = get_dataset("folder")
    rows = list_images(
        dataset,
        images,
        None,
        dataset.default_splits,
        None,
        (),
        [out],
        lambda total: screen.count("list images", total, "images"),
    )
    windows, unplaceable = place_all(rows, facts.size, facts.frame, facts.overlap)
    manifest = Manifest(
        dataset=dataset.name,
        root=images,
        labels=None,
        images=tuple(rows),
        windows=tuple(windows),
    )
    return manifest.reject(unplaceable)


def _build(facts: PrototypeFacts, given: Path | None, device: str, screen: Screen) -> Backbone:
    """Build the backbone that the prototypes were made with.

    Raises
    ------
    WeightsError
        The weights that are there are others.
    """
    weights = None
    if facts.backbone != HANDCRAFTED or given is not None:
        weights = find_weights(facts.backbone, given, report=screen.note)
        if weights.digest != facts.weights_digest:
            raise WeightsError(
                f"the weights at {weights.path} are not those that the prototypes were made with "
                f"(sha256 {weights.digest[:12]}…, not {facts.weights_digest[:12]}…, which came "
                f"from {facts.weights_source}); name the right file with --weights."
            )
        screen.note(f"predict: weights of {facts.backbone} from {weights.source}")
    backbone = build_backbone(
        facts.backbone,
        weights,
        size=facts.size,
        device=resolve_device(device),
        precision=facts.precision,
    )
    if (backbone.patch, backbone.channels) != (facts.patch, facts.channels):
        raise WeightsError(
            f"{facts.backbone} has patches of {backbone.patch} pixels and {backbone.channels} "
            f"channels here, and {facts.patch} and {facts.channels} in the prototypes; install "
            "the version of timm that they were made with."
        )
    return replace(backbone, mean=facts.mean, std=facts.std)


def _label_all(
    labeller: Labeller,
    manifest: Manifest,
    pending: Sequence[Image],
    predictions: Predictions,
    made: str,
    screen: Screen,
) -> Manifest:
    """Label images block by block; return the manifest with those rejected that failed."""
    reasons: dict[int, str] = {}
    try:
        with screen.count("predict", len(pending), "images") as counter:
            for block in cut_blocks(manifest, pending):
                failed = {}
                for image, reason in label_block(labeller, manifest, block):
                    if reason is None:
                        predictions.add(image, made)
                    else:
                        failed[image.image] = reason
                    counter.advance()
                predictions.flush()
                reasons |= failed
    except StaleError as error:
        reason = str(error).partition(";")[0]
        raise StaleError(
            f"an image has changed while it was labelled ({reason}); run the same command again."
        ) from error
    return manifest.reject(reasons)
