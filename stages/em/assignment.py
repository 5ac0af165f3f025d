"""The E-step: one class for every proposal, by majority of the momentum prototypes' pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets import IGNORE
from stages.clustering import count_numbers
from stages.em.compiled import map_windows, pad_classes, runs_compiled
from stages.em.interpolation import split_windows, upsample
from stages.em.votes import vote_windows

# Proposals are numbered by a byte, labels too.
_NUMBERS = 256


@dataclass(frozen=True)
class Assignment:
    """The classes of the proposals of a batch, pixel by pixel.

    Attributes
    ----------
    labels
        uint8 [window, y, x]: the class of the pixel's proposal, ``IGNORE`` where there is none.
    usage
        int64 [class]: labelled pixels of each class.
    agreed
        int64, a scalar: labelled pixels whose own largest class is that of their proposal.
    """

    labels: Tensor
    usage: Tensor
    agreed: Tensor


def assign_proposals(logits: Tensor, proposals: Tensor) -> Assignment:
    """Give every proposal the class that is the largest at most of its pixels.

    Parameters
    ----------
    logits
        float [window, class, row, column], at most 255 classes.
    proposals
        uint8 [window, y, x]: 0 = no proposal, j = proposal j of the window.

    Returns
    -------
    Assignment
        Of equal logits and of equally frequent classes the smallest class wins.
    """
    if runs_compiled(logits):
        return _assign_compiled(logits, proposals)
    classes, size = logits.shape[1], (proposals.shape[-2], proposals.shape[-1])
    predictions = predict_pixels(logits, size)
    labels = vote_proposals(predictions, proposals, classes)
    usage = count_numbers(labels, _NUMBERS)[:classes]
    return Assignment(labels.to(torch.uint8), usage, (predictions == labels).sum())


def _assign_compiled(logits: Tensor, proposals: Tensor) -> Assignment:
    padded, ids = pad_classes(logits), proposals.contiguous().numpy()
    labels = np.empty_like(ids)
    usage, agreed = np.zeros(padded.shape[:2], np.int64), np.zeros(len(ids), np.int64)

    def vote(run: slice) -> None:
        vote_windows(padded[run], ids[run], labels[run], usage[run], agreed[run])

    map_windows(vote, len(ids))
    return Assignment(
        torch.from_numpy(labels),
        torch.from_numpy(usage.sum(axis=0)[: logits.shape[1]]),
        torch.tensor(agreed.sum()),
    )


def predict_pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the largest class of every pixel at image size.

    Parameters
    ----------
    logits
        float [window, class, row, column].
    size
        Height and width of the image, pixels.

    Returns
    -------
    Tensor
        int64 [window, y, x].
    """
    runs = split_windows(logits, size)
    return torch.cat([upsample(logits[run], size).argmax(dim=1) for run in runs])


def vote_proposals(predictions: Tensor, proposals: Tensor, classes: int) -> Tensor:
    """Give every proposal the class that most of its pixels have.

    Parameters
    ----------
    predictions
        int64 [window, y, x] in 0..K-1.
    proposals
        uint8 [window, y, x]: 0 = no proposal, j = proposal j.
    classes
        K.

    Returns
    -------
    Tensor
        int64 [window, y, x]: the class, ``IGNORE`` where there is no proposal. Of equally frequent
        classes the smallest wins.
    """
    ids, windows = proposals.long(), len(proposals)
    region = ids + _NUMBERS * torch.arange(windows, device=ids.device)[:, None, None]
    votes = count_numbers(region * classes + predictions, windows * _NUMBERS * classes)
    winner = votes.reshape(windows * _NUMBERS, classes).argmax(dim=1)
    return torch.where(ids > 0, winner[region], IGNORE)
