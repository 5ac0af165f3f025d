"""Principal mask proposals of many windows at once (Hahn et al., TMLR 2024, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from stages.masks.directions import find_principal_directions


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
    always shrinks.

    Parameters
    ----------
    features
        float [window, row, column, channel].
    threshold
        Share of the largest cosine, in (0, 1].
    leave
        Share of the grid that may be left in no proposal, in [0, 1).
    max_proposals
        Most proposals of one window.
    together
        Whether all windows take each round in one batch, as a GPU wants it; else window by window,
        as the processor's cache does. By default, whether the features are on a GPU.

    Notes
    -----
    What has no answer in the paper is answered so: a window of equal features is one proposal, one
    of nothing but zeros has none, of equally large projections the first position is the seed.

    The absolute projection makes the result independent of the direction's arbitrary sign. Where
    the windows go together, one read-back per round tells whether any goes on; none per window.
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

    Parameters
    ----------
    ids
        int64 [window, y, x]: 0 = no proposal, j = proposal j.
    features
        float [window, row, column, channel]; y and x are multiples of row and column.
    proposals
        Number of proposals to give, P.

    Returns
    -------
    pooled : Tensor
        float [window, P, channel]: mean of the positions' unit features, weighted by how many of
        the position's pixels are in the proposal, scaled to unit length; 0 for an empty proposal.
    area : Tensor
        int64 [window, P], pixels.
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
