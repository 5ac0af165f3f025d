"""The first principal direction of many masked point sets at once."""

from __future__ import annotations

import torch
from torch import Tensor


def find_principal_directions(
    features: Tensor, active: Tensor, *, rank: int = 8, iterations: int = 12
) -> Tensor:
    """Find the first principal direction of every window's active positions.

    A block of ``rank`` vectors is multiplied by the covariance of the active positions
    ``iterations`` times and diagonalised in the subspace it spans. The error of the direction falls
    with ``(lambda_{rank+1} / lambda_1) ** iterations``, so the second eigenvalue may be as close to
    the first as it likes. The covariance itself is never formed.

    Parameters
    ----------
    features
        float [window, position, channel].
    active
        bool [window, position]: the positions that count.
    rank
        Vectors in the block.
    iterations
        Multiplications by the covariance.

    Returns
    -------
    Tensor
        float [window, channel], unit length; the sign is arbitrary. Where all active features are
        equal, or fewer than two are active, any unit vector.

    References
    ----------
    Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011,
    algorithms 4.4 and 5.3.
    """
    windows, positions, channels = features.shape
    weight = active.to(features.dtype).unsqueeze(-1)
    count = weight.sum(dim=1, keepdim=True).clamp_min(1)
    centred = (features - (features * weight).sum(dim=1, keepdim=True) / count) * weight
    # scaled so that the powers neither overflow nor vanish, whatever the features' units are
    scale = centred.square().sum(dim=(1, 2), keepdim=True).sqrt()
    centred = centred / scale.clamp_min(torch.finfo(features.dtype).tiny)

    rank = min(rank, positions, channels)
    start = torch.randn(
        (channels, rank), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    block = start.to(features).expand(windows, -1, -1)
    for _ in range(iterations):
        block = centred.transpose(1, 2) @ (centred @ block)
        block, _ = torch.linalg.qr(block)
    projected = centred @ block
    _, vectors = torch.linalg.eigh(projected.transpose(1, 2) @ projected)
    direction = (block @ vectors[..., -1:]).squeeze(-1)
    return torch.nn.functional.normalize(direction, dim=-1)
