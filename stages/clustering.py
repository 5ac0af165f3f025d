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
        float32 [..., channel].
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
    flat = features.reshape(-1, features.shape[-1])
    # lengths divide one number a position instead of all its channels, and change no order
    best, nearest = (F.normalize(direction, dim=-1) @ flat.T).max(dim=0)
    length = torch.linalg.vector_norm(flat, dim=-1).clamp_min(1e-12)
    return -(best / length).mean(), count_numbers(nearest, len(direction))


def count_numbers(numbers: Tensor, length: int) -> Tensor:
    """Count how often each of 0 .. length - 1 occurs, int64 [number].

    Unlike ``torch.bincount`` on a CUDA device, the host need not wait to learn the largest.
    """
    flat = numbers.flatten()
    return flat.new_zeros(length).scatter_add_(0, flat, torch.ones_like(flat))


def list_unused(usage: Sequence[float]) -> list[int]:
    """List the classes that have at most ``UNUSED`` of the positions, of all classes' shares."""
    return [k for k, share in enumerate(usage) if share <= UNUSED]
