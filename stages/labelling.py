"""From features to labels: windows classified, stitched, refined by the CRF, the largest class.

``evaluate`` labels the images of a run with it, ``predict`` those of a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.memory import compute_halving
from pipeline.datasets.definition import IGNORE
from pipeline.images.windows import Box, Cover
from pipeline.run.frames import count_threads, map_ahead, read_frame
from pipeline.run.manifest import Image, Manifest
from stages.calibration import Calibration, take_labelled
from stages.crf.backends import Backend, refine_each
from stages.crf.settings import CrfSettings

# The classifier that makes the labels, and those that may be scored beside it.
MAIN = "momentum_prototypes"
RUNNING = "running_prototypes"
PROBE = "linear_probe"
DISCRIMINANTS = "linear_discriminants"
# Those that learn from labels: they predict classes, which nothing is matched to.
SUPERVISED = (PROBE, DISCRIMINANTS)
LOGITS = ("inner product", "cosine")
# The bias of a class that was never seen, in place of minus infinity, which interpolation would
# turn into NaN.
NEVER = -1e6
# What the CRF's own probability counts for, which is all but 0 or 1, beside the calibrated one of
# before it: the CRF is right more often, and does not know how often.
CRF_SHARE = 0.1
# Rows of a label map that are resampled at a time.
_ROWS = 64

R = TypeVar("R")


@dataclass(frozen=True)
class Classifier:
    """A linear classifier; ``ValueError`` where its parts do not fit together.

    Attributes
    ----------
    prototypes
        float32 [class, channel].
    bias
        float32 [class], added to the logits; or None.
    logits
        ``inner product`` of feature and prototype, or their ``cosine``.
    gain
        Factor on cosines, which have no scale of their own.
    """

    prototypes: Tensor
    bias: Tensor | None = None
    logits: str = "inner product"
    gain: float = 1.0

    def __post_init__(self) -> None:
        count = len(self.prototypes)
        if self.logits not in LOGITS:
            raise ValueError(f"logits {self.logits!r} are none of {', '.join(LOGITS)}")
        if self.bias is not None and self.bias.shape != (count,):
            raise ValueError(f"bias is {tuple(self.bias.shape)} for {count} prototypes")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.prototypes)


def classify(features: Tensor, classifier: Classifier) -> Tensor:
    """Compute the logits of features [window, row, column, channel], on any device.

    Gives [window, class, row, column], of the features' type and device.
    """
    prototypes = classifier.prototypes.to(features)
    if classifier.logits == "cosine":
        features = F.normalize(features, dim=-1)
        prototypes = classifier.gain * F.normalize(prototypes, dim=-1)
    logits = torch.einsum("nhwd,kd->nkhw", features, prototypes)
    if classifier.bias is not None:
        logits = logits + classifier.bias.to(features)[:, None, None]
    return logits


def average_views(clean: Tensor, mirror: Tensor) -> Tensor:
    """Average the features of windows with those of their mirror images.

    Both are float [window, row, column, channel], the columns of ``mirror`` still mirrored.
    """
    return (clean + mirror.flip(2)) / 2


def classify_windows(
    read: Callable[[str, int, int], NDArray[np.float16]],
    rows: range,
    classifiers: Mapping[str, Classifier],
    *,
    values: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Classify every position of some windows, from the mean of both their views.

    ``read`` gives some rows of a view, ``clean`` or ``mirror``: float16 [window, row, column,
    channel]; ``values``, the numbers that a window has, say how much memory is asked for. Gives
    float32 [window, class, row, column] of every classifier, on the processor.
    """

    def compute(part: range) -> dict[str, Tensor]:
        clean, mirror = (
            torch.from_numpy(read(view, part.start, part.stop)).to(device).float()
            for view in ("clean", "mirror")
        )
        # one by one, and a product for each classifier: the bytes of the labels must depend
        # neither on the memory that is free nor on what is scored beside them
        windows = average_views(clean, mirror).split(1)
        return {
            name: torch.cat([classify(window, classifier).cpu() for window in windows])
            for name, classifier in classifiers.items()
        }

    parts = compute_halving(
        compute,
        rows,
        len(rows),
        what="windows that are classified",
        # both views as they are stored and as they are computed with, and their mean
        each=(2 * 2 + 3 * 4) * values,
        device=device,
    )
    return {name: torch.cat([part[name] for part in parts]) for name in classifiers}


def stitch_windows(logits: Tensor, boxes: Sequence[Box], size: int) -> Tensor:
    """Put the windows of one image together; logits are averaged where windows overlap.

    Takes float32 [window, class, row, column] and the windows' boxes in the resized image, of side
    ``size``; gives float32 [class, y, x] over the smallest box that holds them all.
    """
    if len(boxes) == 1:
        return _enlarge(logits, size)[0]
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[2] for b in boxes), max(b[3] for b in boxes)
    total = logits.new_zeros(logits.shape[1], bottom - top, right - left)
    count = logits.new_zeros(bottom - top, right - left)
    for window, (x0, y0, x1, y1) in zip(logits, boxes, strict=True):
        area = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        total[:, *area] += _enlarge(window[None], size)[0]
        count[area] += 1
    return total / count


def _enlarge(logits: Tensor, size: int) -> Tensor:
    return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)


def scale_box(box: Box, resized: tuple[int, int], original: tuple[int, int]) -> Box:
    """Map a box in pixels of the resized image, (width, height), to the original one.

    It is never empty, however thin the original is.
    """
    scale_x, scale_y = original[0] / resized[0], original[1] / resized[1]
    left, top = round(box[0] * scale_x), round(box[1] * scale_y)
    right, bottom = round(box[2] * scale_x), round(box[3] * scale_y)
    # halves round to even, so that a box one pixel wide may lose both its sides to one number
    return left, top, max(right, left + 1), max(bottom, top + 1)


def draw_labels(
    probabilities: Tensor,
    cover: Cover,
    width: int,
    height: int,
    gaps: NDArray[np.bool_] | None,
) -> NDArray[np.uint8]:
    """Draw the label map of a whole image at a size, uint8 [y, x].

    Every pixel has the class of the largest bilinearly resampled probability, of float32 [class, y,
    x] over the part of the resized image that windows cover; 255 where no window is, and in the
    ``gaps``, bool [y, x] of that size, where the image holds no data.
    """
    left, top, right, bottom = scale_box(cover.box, cover.resized, (width, height))
    labels = np.full((height, width), IGNORE, np.uint8)
    labels[top:bottom, left:right] = argmax_resampled(probabilities, bottom - top, right - left)
    if gaps is not None:
        labels[gaps] = IGNORE
    return labels


def argmax_resampled(values: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """Resample [class, y, x] bilinearly to a size and take the largest class, uint8 [y, x].

    A photograph of 100 million pixels with 27 classes would need 11 GB at once; a strip needs its
    rows only.
    """
    out = np.empty((height, width), np.uint8)
    for strip, mixed in _resample_strips(values, height, width):
        out[strip] = mixed.argmax(dim=0).numpy()
    return out


def draw_confidence(
    probabilities: Tensor, labels: NDArray[np.uint8], cover: Cover
) -> NDArray[np.uint8]:
    """Draw how sure the label map of a whole image is, uint8 [y, x]: 255 x probability, cut off.

    ``probabilities`` are float32 [class, y, x] over the part of the resized image that windows
    cover, ``labels`` as of :func:`draw_labels`; 0 where no window is.
    """
    height, width = labels.shape
    left, top, right, bottom = scale_box(cover.box, cover.resized, (width, height))
    out = np.zeros((height, width), np.uint8)
    area, own = out[top:bottom, left:right], labels[top:bottom, left:right]
    for strip, mixed in _resample_strips(probabilities, *area.shape):
        area[strip] = (255 * take_labelled(mixed, own[strip])).byte().numpy()
    # what has no label, such as pixels without data, is sure of nothing
    out[labels == IGNORE] = 0
    return out


def _resample_strips(values: Tensor, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Resample [class, y, x] bilinearly, some rows of the result at a time."""
    rows = values.shape[1]
    position = ((torch.arange(height) + 0.5) * rows / height - 0.5).clamp(0, rows - 1)
    below = position.floor().long()
    above = (below + 1).clamp_max(rows - 1)
    share = position - below
    wide = F.interpolate(values, (width,), mode="linear", align_corners=False)
    for start in range(0, height, _ROWS):
        strip = slice(start, start + _ROWS)
        yield strip, torch.lerp(wide[:, below[strip]], wide[:, above[strip]], share[strip, None])


@dataclass(frozen=True)
class Labelling:
    """The clusters of what an image's windows cover, at the windows' scale."""

    plain: NDArray[np.uint8]  # [y, x]: of the largest logit
    probabilities: Tensor  # float32 [cluster, y, x]: after the CRF where there is one
    confidence: float  # sum over the pixels of the largest probability before the CRF
    refined: NDArray[np.uint8] | None = None  # [y, x]: after the CRF; None without one
    calibrated: Tensor | None = None  # float32 [cluster, y, x]: as sure as right

    @property
    def final(self) -> NDArray[np.uint8]:
        """The labels in the end, [y, x]."""
        return self.plain if self.refined is None else self.refined


def label_images(
    manifest: Manifest,
    images: Iterable[Image],
    logits: Mapping[int, Tensor],
    size: int,
    finish: Callable[[Image, Labelling], R],
    backend: Backend | None,
    settings: CrfSettings,
    calibration: Calibration | None = None,
) -> Iterator[R]:
    """Label images in threads, in their order; the CRF between may work on a device.

    ``logits`` has float32 [window, cluster, row, column] by the row of the image; the images are
    read only for the CRF. What ``finish`` makes of an image and its labels is yielded.
    """

    def score(image: Image) -> tuple[Labelling, Tensor]:
        boxes = Cover(tuple(manifest.windows_of(image))).boxes
        stitched = stitch_windows(logits[image.image], boxes, size)
        log_probabilities = stitched.log_softmax(dim=0)
        probabilities = log_probabilities.exp()
        confidence = float(probabilities.amax(dim=0).double().sum())
        calibrated = None if calibration is None else calibration.apply(stitched)
        plain = _take_largest(stitched)
        labelling = Labelling(plain, probabilities, confidence, calibrated=calibrated)
        return labelling, log_probabilities

    def prepare(image: Image) -> tuple[tuple[Image, Labelling], Tensor, NDArray[np.uint8]]:
        labelling, log_probabilities = score(image)
        cover = Cover(tuple(manifest.windows_of(image)))
        pixels = read_frame(manifest.root, image, *cover.resized)[cover.area]
        return (image, labelling), -log_probabilities, np.ascontiguousarray(pixels)

    def refine(kept: tuple[Image, Labelling], posterior: Tensor) -> R:
        image, labelling = kept
        values = posterior.cpu()
        calibrated = labelling.calibrated
        if calibrated is not None:
            calibrated = torch.lerp(calibrated, values, CRF_SHARE)
        refined = replace(
            labelling,
            probabilities=values,
            refined=_take_largest(values),
            calibrated=calibrated,
        )
        return finish(image, refined)

    if backend is not None:
        return refine_each(backend, images, prepare, refine, settings)
    threads = count_threads()
    return map_ahead(lambda image: finish(image, score(image)[0]), images, threads, threads)


def take_clusters(logits: Tensor, boxes: Sequence[Box], size: int) -> NDArray[np.uint8]:
    """Take the class of the largest stitched logit, uint8 [y, x]; as :func:`stitch_windows`."""
    return _take_largest(stitch_windows(logits, boxes, size))


def _take_largest(values: Tensor) -> NDArray[np.uint8]:
    return values.argmax(dim=0).numpy().astype(np.uint8)
