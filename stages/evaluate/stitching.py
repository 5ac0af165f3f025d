"""From the logits of windows to the labels of a whole image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.datasets import IGNORE

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
