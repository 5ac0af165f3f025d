"""Supervised contrast of projected codes with their hidden positives."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from stages.head.presets import COLDEST

# Consecutive anchors that share one draw of candidates: their cosines are one small matrix product.
_GROUP = 128
# Positives per anchor from which on all cosines at once are cheaper than those of the pairs.
_MANY = 16


def hidden_positive_loss(
    projected: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    negatives: float,
    generator: Generator,
) -> Tensor:
    """Compute the supervised contrastive loss of a batch of positions.

    With cosines c, temperature t, positives P_i of anchor i without i itself, and N_i a random
    share of the positions that are neither i nor in P_i::

        loss = - sum_i sum_{p in P_i} log( exp(c_ip / t) / sum_{a in P_i + N_i} exp(c_ia / t) )
               / sum_i |P_i|

    That is the loss of supervised contrastive learning (Khosla et al., NeurIPS 2020, the sum over
    positives outside the logarithm) with the mean over an anchor's positives weighted by their
    number.

    Parameters
    ----------
    projected
        float [position, dim]; its length does not matter.
    positives
        bool [position, position]: row i marks the positives of anchor i; the diagonal is ignored.
    temperature
        At least ``COLDEST``.
    negatives
        Share of the negatives that is kept, in (0, 1].
    generator
        Of the processor; draws the negatives.

    Returns
    -------
    Tensor
        Scalar. Anchors without positives add nothing; without any positives it is 0.

    Raises
    ------
    ValueError
        The temperature or the share is out of its range.

    Notes
    -----
    Positives and kept negatives are a few per cent of the pairs, so only their cosines are
    computed. For that a run of anchors shares its draw of candidates, those that are one's own
    positives left out: every negative is kept with the same probability as if each anchor drew.
    """
    if temperature < COLDEST:
        raise ValueError(f"temperature {temperature} is below {COLDEST}")
    unit = F.normalize(projected, dim=1)
    anchor, partner = positives.nonzero(as_tuple=True)
    apart = anchor != partner
    anchor, partner = anchor[apart], partner[apart]
    # a cosine is at most 1, so this exponent is at most 0 and needs no search for the largest
    attraction = (_measure_pairs(unit, anchor, partner) - 1) / temperature
    candidates = draw_candidates(len(unit), negatives, generator).to(unit.device)
    counts = torch.bincount(anchor, minlength=len(unit))
    # anchor by anchor: the sum of very many pairs at once would depend on the number of threads
    pulled, kept = (
        torch.segment_reduce(values, "sum", lengths=counts, initial=0)
        for values in (attraction, attraction.exp())
    )
    total = _sum_negatives(unit, positives, candidates, temperature) + kept
    # an anchor without positives may have drawn no negatives either, and log 0 has no gradient
    repulsion = counts * total.where(counts > 0, 1).log()
    return (repulsion - pulled).sum() / max(len(anchor), 1)


def draw_candidates(positions: int, share: float, generator: Generator) -> Tensor:
    """Draw the positions that may be negatives, for every run of ``_GROUP`` anchors.

    Parameters
    ----------
    positions
        How many there are.
    share
        Share to keep, in (0, 1]; at least one position is kept.
    generator
        Of the processor.

    Returns
    -------
    Tensor
        int64 [group, candidate], on the processor: different positions in each row, uniformly.

    Raises
    ------
    ValueError
        The share is out of its range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of the negatives is not in (0, 1]")
    groups, kept = -(-positions // _GROUP), max(1, round(share * positions))
    keys = torch.rand(groups, positions, generator=generator, dtype=torch.float64)
    return keys.topk(min(kept, positions), dim=1).indices


def _measure_pairs(unit: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compute the cosines of pairs of positions, float [pair]."""
    if len(first) > _MANY * len(unit):
        return (unit @ unit.T)[first, second]
    # unlike an index's, an embedding's gradient is added up in the same order every time
    return (F.embedding(first, unit) * F.embedding(second, unit)).sum(dim=1)


def _sum_negatives(
    unit: Tensor, positives: Tensor, candidates: Tensor, temperature: float
) -> Tensor:
    """Sum exp((cosine - 1) / temperature) over every anchor's drawn negatives, float [position]."""
    positions, groups = len(unit), len(candidates)
    padded = F.pad(unit, (0, 0, 0, groups * _GROUP - positions)).unflatten(0, (groups, _GROUP))
    cosines = (padded @ F.embedding(candidates, unit).transpose(1, 2)).flatten(0, 1)[:positions]
    drawn = candidates.repeat_interleave(_GROUP, dim=0)[:positions]
    own = torch.arange(positions, device=unit.device)[:, None]
    negative = ~positives.gather(1, drawn) & (drawn != own)
    return (((cosines - 1) / temperature).exp() * negative).sum(dim=1)
