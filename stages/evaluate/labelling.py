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
    scores = stitch_windows(logits, boxes, size)
    log_probabilities = scores.log_softmax(dim=0)
    probabilities = log_probabilities.exp()
    confidence = float(probabilities.amax(dim=0).double().sum())
    plain = _take_largest(scores)
    if backend is None or pixels is None:
        return Labelling(plain, None, probabilities, confidence)
    posterior = backend.refine(
        -log_probabilities.numpy(), np.ascontiguousarray(pixels), CrfSettings()
    )
    probabilities = torch.from_numpy(posterior)
    return Labelling(plain, _take_largest(probabilities), probabilities, confidence)


def _take_largest(values: Tensor) -> NDArray[np.uint8]:
    return values.argmax(dim=0).numpy().astype(np.uint8)
