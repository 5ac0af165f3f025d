"""Cosine K-means by gradient descent: the start of a fit, and the cluster probe of a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Share of the positions below which a class has as good as died.
UNUSED = 1e-3


def cluster_loss(features: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss of cosine K-means.

    Parameters
    ----------
    features
        float32 [window, ..., channel].
    direction
        float32 [class, channel], any length.

    Returns
    -------
    loss : Tensor
        Minus the mean over positions of the largest cosine (STEGO, section 3.4): its gradient moves
        every prototype towards the positions nearest to it.
    usage : Tensor
        int64 [class]: positions nearest to each prototype.
    """
    # One product a window, and means window by window: libraries cut larger ones up by the number
    # of threads, which then decides how sums round.
    runs = features.reshape(len(features), -1, features.shape[-1])
    unit = F.normalize(direction, dim=-1).expand(len(runs), -1, -1)
    # lengths divide one number a position instead of all its channels, and change no order
    best, nearest = torch.bmm(unit, runs.transpose(1, 2)).max(dim=1)
    length = torch.linalg.vector_norm(runs, dim=-1).clamp_min(1e-12)
    return -(best / length).mean(dim=1).mean(), count_numbers(nearest, len(direction))


def count_numbers(numbers: Tensor, length: int) -> Tensor:
    """Count how often each of 0 .. length - 1 occurs, int64 [number].

    Unlike ``torch.bincount`` on a CUDA device, the host need not wait to learn the largest.
    """
    flat = numbers.flatten()
    return flat.new_zeros(length).scatter_add_(0, flat, torch.ones_like(flat))


def list_unused(usage: Sequence[float]) -> list[int]:
    """List the classes that have at most ``UNUSED`` of the positions, of all classes' shares."""
    return [k for k, share in enumerate(usage) if share <= UNUSED]
