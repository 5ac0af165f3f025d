"""Principal mask proposals of many windows at once (Hahn et al., TMLR 2024, section 3.1).

The first principal directions that they start from are found for all windows together, or one by
one in compiled code. There every pass over the points is a sum of rows with weights, which the
compiler turns into vector code although strict floating-point rules forbid it to reorder sums:
hence the points are kept a second time, transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from stages.crf.vectors import compile_kernel

# Points that are transposed together: a line of the cache holds 16.
_BLOCK = 16


@compile_kernel
def find_direction(
    features: NDArray[np.float32],
    active: NDArray[np.bool_],
    start: NDArray[np.float32],
    checked: tuple[int, ...],
    settled: float,
) -> NDArray[np.float32]:
    """Find the first principal direction, [channel], of the active positions by Lanczos iteration.

    It starts at the unit vector ``start``, which is also the answer where no direction is. After so
    many steps as ``checked`` says, ascending, it is asked whether the sine of the angle to the
    exact direction is below ``settled``; after the last the iteration ends. The sign is arbitrary.
    """
    rows, columns = _centre(features, active)
    count, channels = rows.shape
    steps = max(1, min(checked[-1], count, channels))
    basis = np.zeros((steps, channels), np.float32)
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    along, image = np.zeros(count, np.float32), np.zeros(channels, np.float32)
    change = np.zeros(channels, np.float32)
    overlap = np.zeros(steps, np.float32)
    trace = 0.0
    for row in range(count):
        trace += _multiply(rows[row], rows[row])
    # what is smaller is rounding error: such a vector would not be orthogonal to the others
    noise = 1.2e-7 * trace
    basis[0] = start
    taken, asked = 1, 0
    weights = np.ones(1)
    for step in range(steps):
        taken = step + 1
        _sum_rows(columns, basis[step], along)
        _sum_rows(rows, along, image)
        # twice is enough: the second time removes what rounding left the first
        for repeat in range(2):
            for earlier in range(taken):
                overlap[earlier] = _multiply(basis[earlier], image)
            if repeat == 0:
                diagonal[step] = overlap[step]
            _sum_rows(basis[:taken], overlap[:taken], change)
            for channel in range(channels):
                image[channel] -= change[channel]
        norm = np.sqrt(_multiply(image, image))
        beside[step] = norm
        last = taken == steps or norm <= noise
        if last or taken == checked[asked]:
            asked += taken == checked[asked]
            weights, sine = _solve(diagonal[:taken], beside[:taken])
            if last or sine <= settled:
                break
        for channel in range(channels):
            basis[taken, channel] = np.float32(image[channel] / norm)
    direction = change
    _sum_rows(basis[:taken], weights.astype(np.float32), direction)
    length = np.sqrt(_multiply(direction, direction))
    if length == 0:
        return start.copy()
    for channel in range(channels):
        direction[channel] = np.float32(direction[channel] / length)
    return direction


@compile_kernel
def _centre(
    features: NDArray[np.float32], active: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Copy the active rows less their mean: [row, channel], and transposed [channel, row]."""
    channels = features.shape[1]
    chosen = np.nonzero(active)[0]
    count = len(chosen)
    rows = np.empty((count, channels), np.float32)
    columns = np.empty((channels, count), np.float32)
    mean = np.zeros(channels)
    for row in range(count):
        source = features[chosen[row]]
        for channel in range(channels):
            mean[channel] += source[channel]
    for channel in range(channels):
        mean[channel] /= max(count, 1)
    for row in range(count):
        source = features[chosen[row]]
        for channel in range(channels):
            rows[row, channel] = np.float32(source[channel] - mean[channel])
    for first in range(0, count, _BLOCK):
        last = min(first + _BLOCK, count)
        for channel in range(channels):
            for row in range(first, last):
                columns[channel, row] = rows[row, channel]
    return rows, columns


@compile_kernel
def _sum_rows(
    matrix: NDArray[np.float32], weights: NDArray[np.float32], total: NDArray[np.float32]
) -> None:
    """Write the weighted sum of a matrix' rows, four of them a pass."""
    count, length = matrix.shape
    total[:] = 0
    whole = count // 4 * 4
    for row in range(0, whole, 4):
        a, b, c, d = weights[row], weights[row + 1], weights[row + 2], weights[row + 3]
        first, second = matrix[row], matrix[row + 1]
        third, fourth = matrix[row + 2], matrix[row + 3]
        for at in range(length):
            total[at] += (a * first[at] + b * second[at]) + (c * third[at] + d * fourth[at])
    for row in range(whole, count):
        weight, only = weights[row], matrix[row]
        for at in range(length):
            total[at] += weight * only[at]


@compile_kernel
def _multiply(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Give the inner product, in eight sums that do not wait for one another."""
    a = b = c = d = e = f = g = h = 0.0
    whole = len(first) // 8 * 8
    for at in range(0, whole, 8):
        a += first[at] * second[at]
        b += first[at + 1] * second[at + 1]
        c += first[at + 2] * second[at + 2]
        d += first[at + 3] * second[at + 3]
        e += first[at + 4] * second[at + 4]
        f += first[at + 5] * second[at + 5]
        g += first[at + 6] * second[at + 6]
        h += first[at + 7] * second[at + 7]
    for at in range(whole, len(first)):
        a += first[at] * second[at]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@compile_kernel
def _solve(
    diagonal: NDArray[np.float64], beside: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Solve the tridiagonal matrix: the leading eigenvector, and the sine of its angle's bound."""
    taken = len(diagonal)
    matrix = np.diag(diagonal)
    for step in range(taken - 1):
        matrix[step, step + 1] = matrix[step + 1, step] = beside[step]
    values, vectors = np.linalg.eigh(matrix)
    leading = vectors[:, taken - 1].copy()
    residual = beside[taken - 1] * abs(leading[taken - 1])
    gap = values[taken - 1] - values[taken - 2] if taken > 1 else values[0]
    return leading, residual / gap if gap > 0 else (np.inf if residual > 0 else 0.0)


# Most multiplications by the covariance; features of photographs settle after 7 to 13.
STEPS = 40
# Steps after which it is asked whether the direction has settled.
CHECKED = (8, 10, 12, 14, 18, 23, 30, STEPS)
# Sine of the angle to the exact direction below which a direction has settled.
SETTLED = 1e-5
# Squarings that part the largest eigenvalue from one that is 1e-6 of it smaller.
SQUARINGS = 24


def find_principal_directions(
    features: Tensor, active: Tensor, *, together: bool | None = None
) -> Tensor:
    """Find the first principal direction of every window's active positions, by Lanczos iteration.

    ``features`` are float32 [window, position, channel], ``active`` bool [window, position], the
    directions float32 [window, channel] of unit length and arbitrary sign; any where all active
    features are equal or fewer than two. The covariance is never formed: one step multiplies the
    centred features by a vector and their transpose by the result. Every new vector is made
    orthogonal to all earlier ones twice, so that rounding brings none of them back (Golub and Van
    Loan, "Matrix Computations", 2013, sections 10.1 and 10.3). The residual over the gap bounds the
    angle to the exact direction (Parlett, "The Symmetric Eigenvalue Problem", 1998, section 11.7).

    ``together``, all windows take all steps in one batch, without a word to the host, as a GPU
    wants it; else one window after the other, whose active rows stay in the processor's cache and
    which stops when its direction has settled.
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

    They have unit length, but are 0 where the matrix is; no eigenvalue is negative. Unlike
    ``torch.linalg.eigh`` this reads nothing back from a GPU.
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


@dataclass(frozen=True)
class Proposals:
    """Soft proposals on the feature grid."""

    # float [window, proposal, row, column] in [0, 1]: cosine to the seed over the largest inside a
    # proposal, 0 outside; unused proposals are 0 everywhere
    soft: Tensor
    count: Tensor  # int64 [window]: the proposals that each window has


def propose_masks(
    features: Tensor,
    *,
    threshold: float,
    leave: float,
    max_proposals: int,
    together: bool | None = None,
) -> Proposals:
    """Split every window into proposals, one principal direction after the other.

    Active set A = every position that has a direction: a feature that is 0 has no cosine to any
    other, and is in no proposal. While more than ``leave`` of the grid is in A: the seed is the
    active position whose unit feature has the largest absolute projection on the first principal
    direction of A; the proposal is every active position whose cosine to the seed is at least
    ``threshold`` times the largest; A loses the proposal. The seed is always in its proposal, so A
    always shrinks. The absolute projection makes the result independent of the direction's sign.

    What has no answer in the paper is answered so: a window of equal features is one proposal, one
    of nothing but zeros has none, of equally large projections the first position is the seed.

    ``features`` are float [window, row, column, channel]. ``together``, all windows take each round
    in one batch, as a GPU wants it, with one read-back per round; else window by window, as the
    processor's cache does. By default, whether the features are on a GPU.
    """
    if together is None:
        together = features.is_cuda
    windows, rows, columns, channels = features.shape
    flat = features.reshape(windows, rows * columns, channels)
    groups = [flat] if together else list(flat.split(1))
    found = [_propose(group, threshold, leave, max_proposals, together) for group in groups]
    most = max(len(soft) for soft, _ in found)
    planes = torch.cat([F.pad(soft, (0, 0, 0, 0, 0, most - len(soft))) for soft, _ in found], dim=1)
    count = torch.cat([count for _, count in found])
    return Proposals(planes.transpose(0, 1).reshape(windows, most, rows, columns), count)


def _propose(
    features: Tensor, threshold: float, leave: float, max_proposals: int, together: bool
) -> tuple[Tensor, Tensor]:
    """Go round by round; return soft planes [proposal, window, position] and their number."""
    windows, positions, _ = features.shape
    unit = F.normalize(features, dim=-1)
    active = unit.any(dim=-1)
    soft: list[Tensor] = []
    count = torch.zeros(windows, dtype=torch.int64, device=features.device)
    for _ in range(max_proposals):
        going = active.sum(dim=1) > leave * positions
        if not going.any():
            break
        direction = find_principal_directions(features, active, together=together)
        projection = torch.bmm(unit, direction.unsqueeze(-1)).squeeze(-1).abs()
        seed = projection.masked_fill(~active, -1).argmax(dim=1, keepdim=True)
        seed_feature = unit.take_along_dim(seed.unsqueeze(-1), dim=1)
        similarity = torch.bmm(unit, seed_feature.transpose(1, 2)).squeeze(-1)
        # the seed's own cosine is the largest; rounding may not decide whether it is in
        similarity = similarity.scatter(1, seed, 1.0).clamp(max=1)
        proposal = active & (similarity >= threshold) & going.unsqueeze(1)
        soft.append(torch.where(proposal, similarity, similarity.new_zeros(())))
        active = active & ~proposal
        count += going
    planes = torch.stack(soft) if soft else features.new_zeros(0, windows, positions)
    return planes, count


def find_constant(features: Tensor) -> Tensor:
    """Find the windows, bool [window], of one feature everywhere, as those of a black image."""
    return (features == features[:, :1, :1]).flatten(1).all(dim=1)


def score_proposals(proposals: Proposals, *, gain: float) -> Tensor:
    """Turn soft proposals into log-probabilities with a background channel in front.

    3 x 3 median filter over every soft proposal, gain, clamp to [0, 1]; background = clamp(mean of
    the window's non-zero values - sum over its proposals); log-softmax over the window's channels.

    Gives float [window, 1 + proposal, row, column]; channels that a window does not have are -inf.
    """
    soft = proposals.soft
    windows, most = soft.shape[:2]
    values = (_filter_median(soft) * gain).clamp(0, 1)
    filled = (values > 0).sum(dim=(1, 2, 3)).clamp_min(1)
    mean = (values.sum(dim=(1, 2, 3)) / filled).reshape(windows, 1, 1)
    background = (mean - values.sum(dim=1)).clamp(0, 1)
    absent = torch.arange(most, device=soft.device) >= proposals.count.unsqueeze(1)
    values = values.masked_fill(absent[:, :, None, None], -torch.inf)
    return torch.log_softmax(torch.cat([background.unsqueeze(1), values], dim=1), dim=1)


def _filter_median(planes: Tensor) -> Tensor:
    windows, most, rows, columns = planes.shape
    if most == 0:
        return planes
    flat = planes.reshape(windows * most, 1, rows, columns)
    mode = "reflect" if min(rows, columns) > 1 else "replicate"
    padded = F.pad(flat, (1, 1, 1, 1), mode=mode)
    neighbours = F.unfold(padded, 3).reshape(windows * most, 9, rows * columns)
    return neighbours.median(dim=1).values.reshape(planes.shape)


def pool_proposals(ids: Tensor, features: Tensor, *, proposals: int) -> tuple[Tensor, Tensor]:
    """Pool the unit features and count the pixels of every proposal.

    ``ids`` are int64 [window, y, x], 0 = no proposal, j = proposal j; ``features`` float [window,
    row, column, channel]; y and x are multiples of row and column. Gives float [window, proposal,
    channel], the mean of the positions' unit features, weighted by how many of the position's
    pixels are in the proposal, scaled to unit length, 0 for an empty proposal; and int64 [window,
    proposal], the area in pixels.
    """
    windows, height, width = ids.shape
    _, rows, columns, channels = features.shape
    device = ids.device
    row = torch.arange(height, device=device) * rows // height
    column = torch.arange(width, device=device) * columns // width
    position = row[:, None] * columns + column[None, :]
    window = torch.arange(windows, device=device)[:, None, None]
    bins = (window * (proposals + 1) + ids) * (rows * columns) + position
    size = windows * (proposals + 1) * rows * columns
    weight = torch.bincount(bins.flatten(), minlength=size)
    weight = weight.reshape(windows, proposals + 1, rows * columns)[:, 1:]
    unit = F.normalize(features.reshape(windows, rows * columns, channels), dim=-1)
    pooled = F.normalize(weight.to(unit.dtype) @ unit, dim=-1)
    return pooled, weight.sum(dim=-1)
