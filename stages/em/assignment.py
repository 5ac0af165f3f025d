"""The E-step: one class for every proposal, by majority of the momentum prototypes' pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.datasets import IGNORE


def predict_pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the largest class of every pixel at image size.

    Parameters
    ----------
    logits
        float32 [window, class, row, column].
    size
        Height and width of the image, pixels.

    Returns
    -------
    Tensor
        int64 [window, y, x].
    """
    # window by window: K full-size planes of one window stay in the cache, those of a batch do not
    return torch.stack([upsample(one[None], size)[0].argmax(dim=0) for one in logits])


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Up-sample [window, class, row, column] bilinearly to ``size`` (height, width)."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


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
    ids = proposals.long()
    windows = len(ids)
    most = int(ids.max()) + 1 if ids.numel() else 1
    region = ids + most * torch.arange(windows, device=ids.device)[:, None, None]
    votes = torch.bincount(
        (region * classes + predictions).flatten(), minlength=windows * most * classes
    )
    winner = votes.reshape(windows * most, classes).argmax(dim=1)
    return torch.where(ids > 0, winner[region], IGNORE)
