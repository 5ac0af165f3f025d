"""The first principal direction of many masked point sets at once."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from stages.masks.lanczos import find_direction

STEPS = 40
"""Most multiplications by the covariance; features of photographs settle after 7 to 13."""
CHECKED = (8, 10, 12, 14, 18, 23, 30, STEPS)
"""Steps after which it is asked whether the direction has settled."""
SETTLED = 1e-5
"""Sine of the angle to the exact direction below which a direction has settled."""
SQUARINGS = 24
"""Squarings that part the largest eigenvalue from one that is 1e-6 of it smaller."""


def find_principal_directions(
    features: Tensor, active: Tensor, *, together: bool | None = None
) -> Tensor:
    """Find the first principal direction of every window's active positions.

    Lanczos iteration on the covariance of the active positions, which is never formed: one step
    multiplies the centred features by a vector and their transpose by the result. Every new vector
    is made orthogonal to all earlier ones twice, so that rounding brings none of them back.

    Parameters
    ----------
    features
        float32 [window, position, channel].
    active
        bool [window, position]: the positions that count.
    together
        Whether all windows take all steps in one batch, without a word to the host, as a GPU wants
        it; else one window after the other in compiled code, whose active rows stay in the
        processor's cache and which stops when its direction has settled. By default, whether the
        features are on a GPU.

    Returns
    -------
    Tensor
        float32 [window, channel], unit length; the sign is arbitrary. Where all active features are
        equal, or fewer than two are active, any unit vector.

    References
    ----------
    Golub and Van Loan, "Matrix Computations", 4th edition, 2013, sections 10.1 and 10.3: the
    iteration, the residual ``beta_k |s_k|`` of a Ritz vector, complete reorthogonalisation.
    Parlett, "The Symmetric Eigenvalue Problem", 1998, section 11.7: the residual over the gap
    bounds the angle.
    """
    if together is None:
        together = features.is_cuda
    start = _draw_start(features.shape[2])
    if together:
        return _iterate(_clear_inactive(features, active), start.to(features))
    points, chosen = features.contiguous().cpu().numpy(), active.cpu().numpy()
    directions = [
        torch.from_numpy(find_direction(*window, start.numpy(), CHECKED, SETTLED))
        for window in zip(points, chosen, strict=True)
    ]
    return torch.stack(directions).to(features)


@lru_cache(maxsize=8)
def _draw_start(channels: int) -> Tensor:
    # random, so that no arrangement of features is orthogonal to it by symmetry
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(channels, generator=generator), dim=0)


def _clear_inactive(points: Tensor, active: Tensor) -> Tensor:
    """Copy windows, [window, position, channel]; subtract the active mean, set the others to 0."""
    inactive = ~active.unsqueeze(-1)
    kept = points.masked_fill(inactive, 0)
    count = active.sum(dim=1).clamp_min(1).reshape(-1, 1, 1)
    return kept.sub_(kept.sum(dim=1, keepdim=True) / count).masked_fill_(inactive, 0)


def _iterate(points: Tensor, start: Tensor) -> Tensor:
    """Give the leading right singular vector, [window, channel], of [window, position, channel]."""
    windows, positions, channels = points.shape
    steps = min(STEPS, positions, channels)
    transposed = points.transpose(1, 2)
    basis = points.new_zeros(windows, steps, channels)
    diagonal, beside = points.new_zeros(2, windows, steps)
    # what is smaller is rounding error: such a vector would not be orthogonal to the others
    trace = torch.linalg.vector_norm(points, dim=(1, 2)).square().unsqueeze(1)
    noise = torch.finfo(points.dtype).eps * trace
    vector = start.expand(windows, channels)
    for step in range(steps):
        basis[:, step] = vector
        found = basis[:, : step + 1]
        image = torch.bmm(transposed, torch.bmm(points, vector.unsqueeze(2)))
        overlap = torch.bmm(found, image)
        diagonal[:, step] = overlap[:, step, 0]
        image = torch.baddbmm(image, found.transpose(1, 2), overlap, alpha=-1)
        overlap = torch.bmm(found, image)
        image = torch.baddbmm(image, found.transpose(1, 2), overlap, alpha=-1).squeeze(2)
        norm = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        beside[:, step] = norm.squeeze(1)
        vector = torch.where(norm > noise, image / norm, 0)
    weights = find_leading_vectors(diagonal, beside[:, :-1])
    direction = torch.bmm(weights.unsqueeze(1), basis).squeeze(1)
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    # equal features have no direction: any will do
    return torch.where(length > 0, direction / length, start)


def find_leading_vectors(diagonal: Tensor, beside: Tensor) -> Tensor:
    """Find the leading eigenvectors of small tridiagonal matrices by squaring the matrices.

    Unlike ``torch.linalg.eigh`` this reads nothing back from a GPU.

    Parameters
    ----------
    diagonal, beside
        float [matrix, step] and [matrix, step - 1]; no eigenvalue is negative.

    Returns
    -------
    Tensor
        float [matrix, step], unit length; 0 where the matrix is.
    """
    above = torch.diag_embed(beside.double(), 1)
    power = torch.diag_embed(diagonal.double()) + above + above.transpose(1, 2)
    for _ in range(SQUARINGS):
        norm = torch.linalg.matrix_norm(power, keepdim=True)
        power = power / norm.clamp_min(torch.finfo(power.dtype).tiny)
        power = torch.bmm(power, power)
    # what is left is v v^T: its largest column is the one where v is largest
    largest = power.diagonal(dim1=1, dim2=2).argmax(dim=1)
    column = power.take_along_dim(largest.reshape(-1, 1, 1), dim=2).squeeze(2)
    return F.normalize(column, dim=1).to(diagonal)
