"""The labels of one image: windows stitched, probabilities refined, the largest class taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.crf import Backend, CrfSettings
from stages.evaluate.stitching import Box, stitch_windows


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
