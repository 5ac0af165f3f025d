"""The M-step: the running prototypes' cross entropy against the proposals' classes.

With p = softmax of the up-sampled logits over the batch's pixels, N of them, and
w_k = (1 - mean p_k) ** focus, held fixed:
loss = 1/N * sum over labelled pixels of -w_y log p_y (PriMaPs, equation 8).

The weight needs the mean over the whole batch before any gradient, so the windows are passed over
twice: :func:`sum_probabilities`, then, with what :func:`weigh_classes` makes of all windows' sums,
:func:`differentiate`. On the processor no logit at image size is ever stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets import IGNORE
from stages.em.compiled import map_windows, pad_classes, runs_compiled
from stages.em.cross_entropy import differentiate_windows, sum_softmax
from stages.em.interpolation import allocate_rows, downsample, split_windows, upsample

# Labels are numbered by a byte.
_NUMBERS = 256


@dataclass(frozen=True)
class Softmax:
    """What the second pass over some windows needs of the first.

    Attributes
    ----------
    sums
        float64 [window, class]: the softmax, summed over the pixels.
    logits
        float [window, class, row, column]; of the compiled loops, with an even number of classes.
    labels
        Integers [window, y, x], ``IGNORE`` where unlabelled.
    normaliser
        float32 [window, y, x] of the compiled loops; None where they did not run.
    """

    sums: Tensor
    logits: Tensor
    labels: Tensor
    normaliser: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Gradient:
    """Loss of some windows and its gradient, N times those of the formula.

    Attributes
    ----------
    loss
        float64 [window].
    logits
        [window, class, row, column]: d loss / d logits on the grid.
    """

    loss: Tensor
    logits: Tensor


def sum_probabilities(logits: Tensor, labels: Tensor) -> Softmax:
    """Sum the softmax of the up-sampled logits over every window's pixels.

    Parameters
    ----------
    logits
        float [window, class, row, column], at most 255 classes.
    labels
        Integers [window, y, x], ``IGNORE`` where unlabelled; they say the size.
    """
    logits = logits.detach()
    if not runs_compiled(logits):
        size = (labels.shape[-2], labels.shape[-1])
        runs = [logits[run] for run in split_windows(logits, size)]
        sums = [upsample(run, size).softmax(dim=1).sum(dim=(2, 3)) for run in runs]
        return Softmax(torch.cat(sums).double(), logits, labels)
    padded, targets = pad_classes(logits), labels.to(torch.uint8).contiguous()
    windows, height, width = targets.shape
    normaliser = allocate_rows(windows, height, width)
    totals = np.empty(padded.shape[:2])

    def add(run: slice) -> None:
        sum_softmax(padded[run], width, normaliser[run], totals[run])

    map_windows(add, windows)
    known = torch.from_numpy(totals)[:, : logits.shape[1]]
    return Softmax(known, torch.from_numpy(padded), targets, normaliser)


def weigh_classes(total: Tensor, pixels: int, focus: float) -> Tensor:
    """Weigh the classes of a batch.

    Parameters
    ----------
    total
        float64 [class]: the softmax, summed over all pixels of the batch.
    pixels
        N.
    focus
        gamma of the weight.

    Returns
    -------
    Tensor
        float64 [class].
    """
    return (1 - total / pixels) ** focus


def differentiate(softmax: Softmax, weight: Tensor) -> Gradient:
    """Compute the focused cross entropy of some windows and its gradient on the grid.

    Parameters
    ----------
    softmax
        Of the windows.
    weight
        float [class]: of the batch that they belong to.
    """
    compute = _differentiate_on_device if softmax.normaliser is None else _differentiate_compiled
    return compute(softmax, weight)


def _differentiate_compiled(softmax: Softmax, weight: Tensor) -> Gradient:
    padded, targets, normaliser = softmax.logits.numpy(), softmax.labels.numpy(), softmax.normaliser
    assert normaliser is not None
    of_label = np.zeros(_NUMBERS, np.float32)
    of_label[: len(weight)] = weight.numpy()
    losses = np.empty(len(targets))
    gradient = np.empty_like(padded)

    def compute(run: slice) -> None:
        differentiate_windows(
            padded[run], targets[run], of_label, normaliser[run], losses[run], gradient[run]
        )

    map_windows(compute, len(targets))
    return Gradient(torch.from_numpy(losses), torch.from_numpy(gradient)[:, : len(weight)])


def _differentiate_on_device(softmax: Softmax, weight: Tensor) -> Gradient:
    logits, labels = softmax.logits, softmax.labels
    size, grid = (labels.shape[-2], labels.shape[-1]), (logits.shape[-2], logits.shape[-1])
    of_label = logits.new_zeros(_NUMBERS)
    of_label[: len(weight)] = weight
    losses, gradients = [], []
    for run in split_windows(logits, size):
        target = labels[run].long().unsqueeze(1)
        scale = of_label[target]
        target = target.where(target != IGNORE, 0)
        logarithm = upsample(logits[run], size).log_softmax(dim=1)
        losses.append(-(scale * logarithm.gather(1, target)).sum(dim=(1, 2, 3)))
        gradient = (scale * logarithm.exp()).scatter_add_(1, target, -scale)
        gradients.append(downsample(gradient, grid))
    return Gradient(torch.cat(losses).double(), torch.cat(gradients))
