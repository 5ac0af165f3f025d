"""The labeller: images to label maps with a file of prototypes, block by block.

Each step is the stage's own function, so that the bytes are those that the stages write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.palettes import png_palette
from pipeline.errors import ImageError
from pipeline.frames import count_threads, map_ahead, read_frame, read_windows
from pipeline.labels import write_label
from pipeline.manifest import Image, Manifest
from pipeline.memory import compute_halving
from pipeline.windows import bounding_box
from stages.crf import Backend
from stages.crf.batches import refine_each
from stages.evaluate.artefacts import Cover
from stages.evaluate.classifier import classify
from stages.evaluate.labelling import Scores, give_to_crf, score_windows, take_labels
from stages.evaluate.stitching import average_views, draw_labels, scale_box
from stages.extract.backbones import Backbone
from stages.extract.finite import check_backbone, describe_faults, find_faulty
from stages.extract.passes import extract_views, gather_batches
from stages.head.encode_stage import encode_windows
from workflows.export.prototypes import Prototypes

# Windows whose features are in memory at a time.
_BLOCK = 64

Views = Mapping[str, NDArray[np.float16]]


@dataclass(frozen=True)
class Labeller:
    """All that one image after the other is labelled with.

    Attributes
    ----------
    prototypes, backbone, backend
        The classifier with its facts, what computes its features, and the CRF or None.
    device
        Where to compute.
    batch_size
        Windows per forward pass.
    out
        Folder of the label maps.
    """

    prototypes: Prototypes
    backbone: Backbone
    backend: Backend | None
    device: torch.device
    batch_size: int
    out: Path

    def file(self, image: Image) -> Path:
        """Return where the label map of an image lies."""
        return self.out / f"{image.id}.png"


def cut_blocks(manifest: Manifest, images: Sequence[Image]) -> Iterator[list[Image]]:
    """Cut images into blocks of about ``_BLOCK`` windows; one image is never cut."""
    block: list[Image] = []
    held = 0
    for image in images:
        count = len(manifest.windows_of(image))
        if block and held + count > _BLOCK:
            yield block
            block, held = [], 0
        block.append(image)
        held += count
    if block:
        yield block


def label_block(
    labeller: Labeller, manifest: Manifest, images: Sequence[Image]
) -> Iterator[tuple[Image, str | None]]:
    """Label some images and write their maps.

    Yields
    ------
    image, reason
        Each of the images, once its map is written; or with the reason why there is none.
    """
    views, reasons = _extract(labeller, manifest, images)
    logits = _compute_logits(labeller, _encode(labeller, views))
    yield from ((image, reasons[image.image]) for image in images if image.image in reasons)
    parts = _split(manifest, images, logits)
    good = [image for image in images if image.image not in reasons]
    for image in _write_maps(labeller, manifest, good, parts):
        yield image, None


def _extract(
    labeller: Labeller, manifest: Manifest, images: Sequence[Image]
) -> tuple[Views, dict[int, str]]:
    """Extract the features of some images' windows; return them, and why some images failed."""
    facts = labeller.prototypes.facts
    windows = [window for image in images for window in manifest.windows_of(image)]
    places = {window.index: place for place, window in enumerate(windows)}
    side = facts.size // facts.patch
    shape = (len(windows), side, side, facts.channels)
    views = {view: np.zeros(shape, np.float16) for view in ("clean", "mirror")}
    reasons: dict[int, str] = {}

    def decode() -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        for group, pixels in read_windows(manifest, windows, 2 * labeller.batch_size):
            if isinstance(pixels, ImageError):
                reasons[group[0].image] = str(pixels)
            else:
                yield np.array([places[window.index] for window in group]), pixels

    for rows, pixels in gather_batches(decode(), labeller.batch_size):
        views["clean"][rows], views["mirror"][rows] = extract_views(labeller.backbone, pixels)
    faulty = find_faulty(views)
    if len(faulty):
        check_backbone(labeller.backbone, facts.size)
    for row in {windows[place].image for place in faulty.tolist()}:
        own = [place for place, window in enumerate(windows) if window.image == row]
        reasons[row] = f"its features are not finite ({describe_faults(views, own)})"
    return views, reasons


def _encode(labeller: Labeller, views: Views) -> Views:
    """Make codes of features where the prototypes are of codes."""
    if labeller.prototypes.head is None:
        return views
    head = labeller.prototypes.head.to(labeller.device)
    return {
        view: encode_windows(head, values, labeller.batch_size, labeller.device)
        for view, values in views.items()
    }


def _compute_logits(labeller: Labeller, views: Views) -> Tensor:
    """Classify every position, float32 [window, class, row, column], on the processor."""
    classifier = labeller.prototypes.classifier

    def compute(rows: range) -> Tensor:
        clean, mirror = (
            torch.from_numpy(views[view][rows.start : rows.stop]).to(labeller.device).float()
            for view in ("clean", "mirror")
        )
        # one by one, as the stage does: a product of several windows may round differently
        windows = average_views(clean, mirror).split(1)
        return torch.cat([classify(window, classifier).cpu() for window in windows])

    count = len(views["clean"])
    parts = compute_halving(
        compute, range(count), count, what="windows that are classified", device=labeller.device
    )
    return torch.cat(parts)


def _split(manifest: Manifest, images: Sequence[Image], logits: Tensor) -> dict[int, Tensor]:
    """Split the logits of some images' windows by the images' rows."""
    counts = [len(manifest.windows_of(image)) for image in images]
    return {image.image: part for image, part in zip(images, logits.split(counts), strict=True)}


def _write_maps(
    labeller: Labeller,
    manifest: Manifest,
    images: Sequence[Image],
    logits: Mapping[int, Tensor],
) -> Iterator[Image]:
    """Stitch, refine and write; yield every image once its map is there."""
    size = labeller.prototypes.facts.size

    def cover(image: Image) -> Cover:
        windows = manifest.windows_of(image)
        return Cover(tuple(windows), bounding_box(windows), (windows[0].width, windows[0].height))

    def score(image: Image) -> Scores:
        return score_windows(logits[image.image], cover(image).boxes, size)

    def prepare(image: Image) -> tuple[tuple[Image, Scores], Tensor, NDArray[np.uint8]]:
        scores, covered = score(image), cover(image)
        pixels = read_frame(manifest.root, image, *covered.resized)[covered.area]
        return (image, scores), *give_to_crf(scores, pixels)

    def finish(kept: tuple[Image, Scores], posterior: Tensor | None) -> Image:
        image, scores = kept
        covered = cover(image)
        box = scale_box(covered.box, covered.resized, (image.width, image.height))
        probabilities = take_labels(scores, posterior).probabilities
        labels = draw_labels(probabilities, box, image.width, image.height)
        write_label(labeller.file(image), labels, png_palette(()))
        return image

    backend = labeller.backend
    if backend is not None:
        return refine_each(backend, images, prepare, finish, labeller.prototypes.facts.crf_settings)
    threads = count_threads()
    return map_ahead(lambda image: finish((image, score(image)), None), images, threads, threads)
