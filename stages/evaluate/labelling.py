"""The labels of one image: windows stitched, probabilities refined, the largest class taken.

From the logits of windows to the labels of a whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets import IGNORE
from stages.crf import Backend, CrfSettings

Box = tuple[int, int, int, int]
_ROWS = 64


def average_views(clean: Tensor, mirror: Tensor) -> Tensor:
    """Average the features of windows with those of their mirror images.

    Parameters
    ----------
    clean
        float [window, row, column, channel].
    mirror
        The same of the mirrored windows, columns still mirrored.

    Returns
    -------
    Tensor
        float [window, row, column, channel].
    """
    return (clean + mirror.flip(2)) / 2


def stitch_windows(logits: Tensor, boxes: Sequence[Box], size: int) -> Tensor:
    """Put the windows of one image together; logits are averaged where windows overlap.

    Parameters
    ----------
    logits
        float32 [window, class, row, column].
    boxes
        Left, top, right, bottom of every window in the resized image, pixels.
    size
        Side of a window, pixels.

    Returns
    -------
    Tensor
        float32 [class, y, x] over the smallest box that holds all windows.
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
    """Map a box from the resized image to the original one.

    Parameters
    ----------
    box
        Left, top, right, bottom, pixels.
    resized, original
        Width and height of the two.

    Returns
    -------
    tuple of int
        Left, top, right, bottom, pixels; never empty, however thin the original is.
    """
    scale_x, scale_y = original[0] / resized[0], original[1] / resized[1]
    left, top = round(box[0] * scale_x), round(box[1] * scale_y)
    right, bottom = round(box[2] * scale_x), round(box[3] * scale_y)
    # halves round to even, so that a box one pixel wide may lose both its sides to one number
    return left, top, max(right, left + 1), max(bottom, top + 1)


def draw_labels(probabilities: Tensor, box: Box, width: int, height: int) -> np.ndarray:
    """Draw the label map of a whole image at its own size.

    Parameters
    ----------
    probabilities
        float32 [class, y, x] of the part of the image that windows cover.
    box
        Where that part lies in the image: left, top, right, bottom, pixels.
    width, height
        Size of the image, pixels.

    Returns
    -------
    numpy.ndarray
        uint8 [y, x]: class of the largest bilinearly resampled probability; 255 outside the box.
    """
    left, top, right, bottom = box
    labels = np.full((height, width), IGNORE, np.uint8)
    labels[top:bottom, left:right] = argmax_resampled(probabilities, bottom - top, right - left)
    return labels


def argmax_resampled(values: Tensor, height: int, width: int) -> np.ndarray:
    """Resample [class, y, x] bilinearly to a size and take the largest class, strip by strip.

    A photograph of 100 million pixels with 27 classes would need 11 GB at once; a strip needs its
    rows only.

    Returns
    -------
    numpy.ndarray
        uint8 [y, x].
    """
    rows = values.shape[1]
    position = ((torch.arange(height) + 0.5) * rows / height - 0.5).clamp(0, rows - 1)
    below = position.floor().long()
    above = (below + 1).clamp_max(rows - 1)
    share = position - below
    wide = F.interpolate(values, (width,), mode="linear", align_corners=False)
    out = np.empty((height, width), np.uint8)
    for start in range(0, height, _ROWS):
        strip = slice(start, start + _ROWS)
        mixed = torch.lerp(wide[:, below[strip]], wide[:, above[strip]], share[strip, None])
        out[strip] = mixed.argmax(dim=0).numpy()
    return out


@dataclass(frozen=True)
class Labelling:
    """Clusters of the part of an image that its windows cover, at the windows' scale.

    Attributes
    ----------
    plain
        uint8 [y, x]: cluster of the largest logit.
    refined
        uint8 [y, x]: cluster after the CRF; None without one.
    probabilities
        float32 [cluster, y, x]: after the CRF where there is one.
    confidence
        Sum over the pixels of the largest probability before the CRF.
    """

    plain: NDArray[np.uint8]
    refined: NDArray[np.uint8] | None
    probabilities: Tensor
    confidence: float


@dataclass(frozen=True)
class Scores:
    """What the windows of one image say together, before the CRF.

    Attributes
    ----------
    plain
        uint8 [y, x]: cluster of the largest logit.
    log_probabilities, probabilities
        float32 [cluster, y, x].
    confidence
        Sum over the pixels of the largest probability.
    """

    plain: NDArray[np.uint8]
    log_probabilities: Tensor
    probabilities: Tensor
    confidence: float


def label_windows(
    logits: Tensor,
    boxes: Sequence[Box],
    size: int,
    pixels: NDArray[np.uint8] | None,
    backend: Backend | None,
) -> Labelling:
    """Label one image from the logits of its windows.

    Parameters
    ----------
    logits
        float32 [window, cluster, row, column].
    boxes
        Left, top, right, bottom of every window in the resized image, pixels.
    size
        Side of a window, pixels.
    pixels
        uint8 [y, x, rgb] over the box of all windows; only the CRF looks at them.
    backend
        The dense CRF, or None.
    """
    scores = score_windows(logits, boxes, size)
    if backend is None or pixels is None:
        return take_labels(scores, None)
    energies, image = give_to_crf(scores, pixels)
    posterior = backend.refine(energies.numpy(), image, CrfSettings())
    return take_labels(scores, torch.from_numpy(posterior))


def score_windows(logits: Tensor, boxes: Sequence[Box], size: int) -> Scores:
    """Stitch the windows of one image; parameters as in :func:`label_windows`."""
    stitched = stitch_windows(logits, boxes, size)
    log_probabilities = stitched.log_softmax(dim=0)
    probabilities = log_probabilities.exp()
    confidence = float(probabilities.amax(dim=0).double().sum())
    return Scores(_take_largest(stitched), log_probabilities, probabilities, confidence)


def take_clusters(logits: Tensor, boxes: Sequence[Box], size: int) -> NDArray[np.uint8]:
    """Take the class of the largest stitched logit, uint8 [y, x]; parameters as above."""
    return _take_largest(stitch_windows(logits, boxes, size))


def give_to_crf(scores: Scores, pixels: NDArray[np.uint8]) -> tuple[Tensor, NDArray[np.uint8]]:
    """Return what the CRF takes of one image: energies, float32 [cluster, y, x], and pixels."""
    return -scores.log_probabilities, np.ascontiguousarray(pixels)


def take_labels(scores: Scores, posterior: Tensor | None) -> Labelling:
    """Take the labels of one image.

    Parameters
    ----------
    scores
        Of its windows.
    posterior
        float32 [cluster, y, x] after the CRF, on any device; None without one.
    """
    if posterior is None:
        return Labelling(scores.plain, None, scores.probabilities, scores.confidence)
    probabilities = posterior.cpu()
    refined = _take_largest(probabilities)
    return Labelling(scores.plain, refined, probabilities, scores.confidence)


def _take_largest(values: Tensor) -> NDArray[np.uint8]:
    return values.argmax(dim=0).numpy().astype(np.uint8)
