"""The M-step: the running prototypes' cross entropy against the proposals' classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets import IGNORE
from stages.em.compiled import map_windows, pad_classes, runs_compiled
from stages.em.cross_entropy import differentiate_windows, sum_softmax
from stages.em.interpolation import allocate_rows, downsample, split_windows, upsample

# Labels are numbered by a byte.
_NUMBERS = 256


@dataclass(frozen=True)
class Gradient:
    """Loss of one batch and its gradient.

    Attributes
    ----------
    loss
        Scalar.
    logits
        [window, class, row, column]: d loss / d logits on the grid.
    """

    loss: Tensor
    logits: Tensor


def compute_gradient(logits: Tensor, labels: Tensor, *, focus: float) -> Gradient:
    """Compute the focused cross entropy at image size and its gradient on the grid.

    With p = softmax of the up-sampled logits over the batch's pixels, N of them, and
    w_k = (1 - mean p_k) ** focus, held fixed:
    loss = 1/N * sum over labelled pixels of -w_y log p_y (PriMaPs, equation 8).

    Parameters
    ----------
    logits
        float [window, class, row, column], at most 255 classes.
    labels
        Integers [window, y, x], ``IGNORE`` where unlabelled.
    focus
        gamma of the weight.

    Returns
    -------
    Gradient
        Of the logits' type.

    Notes
    -----
    The weight needs the mean over the whole batch before any gradient, so the windows are passed
    over twice. On the processor no logit at image size is ever stored.
    """
    compute = _compute_compiled if runs_compiled(logits) else _compute_on_device
    return compute(logits.detach(), labels, focus)


def _compute_compiled(logits: Tensor, labels: Tensor, focus: float) -> Gradient:
    padded, targets = pad_classes(logits), labels.to(torch.uint8).contiguous().numpy()
    windows, height, width = targets.shape
    classes = logits.shape[1]
    normaliser = allocate_rows(windows, height, width)
    sums = np.empty(padded.shape[:2])
    losses = np.empty(windows)
    gradient = np.empty_like(padded)

    def add(run: slice) -> None:
        sum_softmax(padded[run], width, normaliser[run], sums[run])

    def differentiate(run: slice) -> None:
        differentiate_windows(
            padded[run], targets[run], weight, normaliser[run], losses[run], gradient[run]
        )

    map_windows(add, windows)
    weight = np.zeros(_NUMBERS, np.float32)
    weight[:classes] = (1 - sums.sum(axis=0)[:classes] / targets.size) ** focus
    map_windows(differentiate, windows)
    loss = torch.tensor(losses.sum() / targets.size, dtype=logits.dtype)
    return Gradient(loss, torch.from_numpy(gradient[:, :classes]) / targets.size)


def _compute_on_device(logits: Tensor, labels: Tensor, focus: float) -> Gradient:
    size, grid = (labels.shape[-2], labels.shape[-1]), (logits.shape[-2], logits.shape[-1])
    runs = split_windows(logits, size)
    sums = [upsample(logits[run], size).softmax(dim=1).sum(dim=(0, 2, 3)) for run in runs]
    mean = torch.stack(sums).sum(dim=0) / labels.numel()
    weight = logits.new_zeros(_NUMBERS)
    weight[: logits.shape[1]] = (1 - mean) ** focus / labels.numel()
    losses, gradients = [], []
    for run in runs:
        target = labels[run].long().unsqueeze(1)
        scale = weight[target]
        target = target.where(target != IGNORE, 0)
        logarithm = upsample(logits[run], size).log_softmax(dim=1)
        losses.append(-(scale * logarithm.gather(1, target)).sum())
        gradient = (scale * logarithm.exp()).scatter_add_(1, target, -scale)
        gradients.append(downsample(gradient, grid))
    return Gradient(torch.stack(losses).sum(), torch.cat(gradients))
