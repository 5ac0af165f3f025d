"""The M-step: the running prototypes' cross entropy against the proposals' classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from stages.em.assignment import IGNORE, upsample


@dataclass(frozen=True)
class Gradient:
    """Loss of one batch and its gradient.

    Attributes
    ----------
    loss
        float32 scalar.
    logits
        float32 [window, class, row, column]: d loss / d logits on the grid.
    usage
        int64 [class]: labelled pixels of each class.
    """

    loss: Tensor
    logits: Tensor
    usage: Tensor


def compute_gradient(logits: Tensor, labels: Tensor, *, focus: float) -> Gradient:
    """Compute the focused cross entropy at image size and its gradient on the grid.

    With p = softmax of the up-sampled logits over the batch's pixels, N of them, and
    w_k = (1 - mean p_k) ** focus, held fixed:
    loss = 1/N * sum over labelled pixels of -w_y log p_y (PriMaPs, equation 8).

    Parameters
    ----------
    logits
        float32 [window, class, row, column].
    labels
        int64 [window, y, x], ``IGNORE`` where unlabelled.
    focus
        gamma of the weight.

    Returns
    -------
    Gradient

    Notes
    -----
    The weight needs the mean over the whole batch before any gradient, so the windows are passed
    over twice, one at a time: the K planes at image size of one window are all that is ever held.
    """
    size = (labels.shape[-2], labels.shape[-1])
    classes = logits.shape[1]
    with torch.no_grad():
        sums = [upsample(one[None], size).softmax(dim=1).sum(dim=(0, 2, 3)) for one in logits]
        mean = torch.stack(sums).sum(dim=0) / labels.numel()
        weight = (1 - mean) ** focus
    losses, gradients = [], []
    for one, target in zip(logits.detach(), labels, strict=True):
        leaf = one[None].requires_grad_()
        loss = F.cross_entropy(
            upsample(leaf, size), target[None], weight, ignore_index=IGNORE, reduction="sum"
        )
        loss = loss / labels.numel()
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    counted = torch.where(labels == IGNORE, classes, labels).flatten()
    usage = torch.bincount(counted, minlength=classes + 1)[:classes]
    return Gradient(torch.stack(losses).sum(), torch.cat(gradients), usage)
