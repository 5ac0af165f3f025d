"""Hidden Positives (Seong et al., CVPR 2023): the loss of a batch, and what moves with its head.

Global hidden positives are what is more similar to an anchor than everything in a reference pool;
local ones are mixed into an anchor's code, by the attention to its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer

from stages.head.material import HeadBatch
from stages.head.methods import Method, ReadPositions
from stages.head.projection import ProjectionHead, drop_channels, make_layer
from stages.head.settings import COLDEST, HeadSettings

# Anchors compared at once: of the cosines only one block is ever stored.
_BLOCK = 1024
# Consecutive anchors that share one draw of candidates: their cosines are one small matrix product.
_GROUP = 128
# Positives per anchor from which on all cosines at once are cheaper than those of the pairs.
_MANY = 16
# Units in the last place within which two cosines count as equal: equal vectors at different places
# of a matrix product differ by rounding, and rounding must not single out a positive.
_ROUNDING = 16
# Of the attention values of a window, the quantiles that they are clipped to.
_LOWEST, _HIGHEST = 0.1, 0.9


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
    number. Positives and kept negatives are a few per cent of the pairs, so only their cosines are
    computed. For that a run of anchors shares its draw of candidates, those that are one's own
    positives left out: every negative is kept with the same probability as if each anchor drew.

    ``projected`` is float [position, dim], of any length; ``positives`` bool [position, position],
    whose row i marks the positives of anchor i, the diagonal ignored; ``negatives`` the share that
    is kept, in (0, 1]; the generator one of the processor. Anchors without positives add nothing;
    without any positives the loss is 0. A temperature below ``COLDEST`` is a ValueError.
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

    int64 [group, candidate], on the processor: different positions in each row, uniformly. A share
    outside (0, 1] is a ValueError; at least one position is kept.
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


def find_neighbours(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Find the 3 x 3 neighbourhood of every position of a grid.

    Returns int64 [position, 9], positions numbered row by row and the position itself fifth, and
    bool [position, 9], whether each is inside the grid; outside stands the nearest one inside.
    """
    row, column = torch.arange(rows), torch.arange(columns)
    step = torch.arange(-1, 2)
    y = row[:, None, None, None] + step[:, None]
    x = column[:, None, None] + step
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    neighbours = y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)
    return neighbours.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1)


def weigh_neighbours(attention: Tensor) -> Tensor:
    """Turn attention into the weights of the neighbours' codes.

    Both are float [window, row, column, 9]: of every position to its 3 x 3 neighbourhood, row by
    row, itself fifth. The values of a window are clipped to the range between their 10 % and 90 %
    quantiles, over all its positions and neighbours together; at every position they are soft-maxed
    over the neighbours; those below the neighbours' mean become 0; what is left is scaled to the
    sum 1, so that mixing equal codes changes nothing. Neighbours outside the grid take part in none
    of these, neither in the quantiles nor in the mean, and weigh 0.
    """
    windows, rows, columns, _ = attention.shape
    inside = find_neighbours(rows, columns)[1].to(attention.device)
    values = attention.reshape(windows, rows * columns, 9)
    # quantiles of values in the grid, as many in every window
    order = values[:, inside].new_tensor([_LOWEST, _HIGHEST])
    low, high = values[:, inside].quantile(order, dim=1)[:, :, None, None]
    clipped = values.clamp(low, high).masked_fill(~inside, -torch.inf)
    # not the softmax but its numerator is compared: of equal values it is exactly 1, so is its
    # mean, and no rounding decides which of them stay
    numerator = (clipped - clipped.amax(dim=2, keepdim=True)).exp()
    mean = numerator.sum(dim=2, keepdim=True) / inside.sum(dim=1, keepdim=True)
    kept = numerator.where(numerator >= mean, 0)
    return (kept / kept.sum(dim=2, keepdim=True)).reshape(attention.shape)


def mix_positions(codes: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
    """Mix codes with those of the neighbours (local hidden positives: HP, section 3).

    Codes are float [window, row, column, dim], weights those of :func:`weigh_neighbours`, positions
    int64 [window, drawn]; the result, [window, drawn, dim], holds convex combinations of codes.
    """
    rows, columns = codes.shape[1:3]
    neighbours = find_neighbours(rows, columns)[0].to(codes.device)[positions]
    chosen = weights.flatten(1, 2).gather(1, positions[:, :, None].expand(-1, -1, 9))
    # a matrix per window: its product is quick both ways, and in the same order every time; where
    # a neighbour outside shares the place of one inside, 0 is added, in any order the same
    mixing = codes.new_zeros(*positions.shape, rows * columns)
    mixing.scatter_add_(2, neighbours, chosen.to(codes.dtype))
    return mixing @ codes.flatten(1, 2)


@torch.no_grad()
def find_hidden_positives(anchors: Tensor, candidates: Tensor, pool: Tensor) -> Tensor:
    """Find the candidates that are more similar to an anchor than everything in a pool.

    The pool says how similar a random position is at best; what is more similar than that, by more
    than rounding errors, belongs to the anchor (global hidden positives: HP, section 3). Every
    anchor has a threshold of its own, so the relation need not be mutual; an anchor that is its own
    candidate is found as well, unless the pool holds its equal. All are float [vector, channel] of
    unit length, the result is bool [anchor, candidate]; an empty pool is a ValueError.
    """
    if not len(pool):
        raise ValueError("a reference pool needs at least one entry")
    margin = _ROUNDING * torch.finfo(anchors.dtype).eps
    found = torch.empty(len(anchors), len(candidates), dtype=torch.bool, device=anchors.device)
    for start in range(0, len(anchors), _BLOCK):
        block = anchors[start : start + _BLOCK]
        threshold = (block @ pool.T).amax(dim=1, keepdim=True) + margin
        torch.gt(block @ candidates.T, threshold, out=found[start : start + _BLOCK])
    return found


class Projector(nn.Module):
    """A two-layer ReLU map of the codes, at their width, that the contrast sees in training."""

    def __init__(self, dim: int, generator: Generator) -> None:
        super().__init__()
        self.hidden = make_layer(dim, dim, generator)
        self.output = make_layer(dim, dim, generator)

    def forward(self, codes: Tensor) -> Tensor:
        """Project codes, float [..., dim], to float [..., dim]."""
        projected: Tensor = self.output(self.hidden(codes).relu())
        return projected


def draw_positions(windows: int, grid: int, positions: int, generator: Generator) -> Tensor:
    """Draw different positions of every window, int64 [window, min(grid, positions)], uniformly."""
    # doubles hardly ever tie, and a tie would prefer some positions
    keys = torch.rand(windows, grid, generator=generator, dtype=torch.float64)
    return keys.argsort(dim=1)[:, :positions]


def specific_share(step: int, warm_up: float, steps: int) -> float:
    """Return 0 up to the warm-up's end, then rise linearly to 1 at the end of the training."""
    if step <= warm_up:
        return 0.0
    return min(1.0, (step - warm_up) / (steps - warm_up)) if steps > warm_up else 1.0


def _take(grid: Tensor, positions: Tensor) -> Tensor:
    """Take positions [window, drawn] of [window, row, column, channel], one after the other."""
    index = positions[:, :, None].expand(-1, -1, grid.shape[-1])
    return grid.flatten(1, 2).gather(1, index).flatten(0, 1)


def _find_positives(vectors: Tensor, pool: Tensor) -> Tensor:
    """Find the other positions that are hidden positives, bool [position, position]."""
    unit = F.normalize(vectors.detach(), dim=1)
    return find_hidden_positives(unit, unit, pool).fill_diagonal_(False)


class HiddenPositives(Method):
    """Hidden positives.

    Attributes
    ----------
    projector
        Between the codes and the contrast.
    average
        A head, the moving average of the trained one, whose codes fill the task-specific pool.
    agnostic, specific
        The reference pools, [reference, channel] and [reference, dim], at unit length; empty before
        the first step.
    """

    agnostic: Tensor
    specific: Tensor

    dim: ClassVar[int] = 512
    needs_views: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        settings: HeadSettings,
        generator: Generator,
        read_positions: ReadPositions,
    ) -> None:
        super().__init__(channels, settings, generator, read_positions)
        assert settings.dim is not None
        self.projector = Projector(settings.dim, generator)
        self.average = ProjectionHead(channels, settings.dim, generator).requires_grad_(False)
        self.average.load_state_dict(self.head.state_dict())
        self.register_buffer("agnostic", torch.zeros(0))
        self.register_buffer("specific", torch.zeros(0))

    def compute_loss(
        self, batch: HeadBatch, step: int, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, its pools renewed when it is time, and the codes of the batch."""
        settings = self.settings
        assert settings.renew_every is not None
        if step % settings.renew_every == 0:
            self.renew_pools(self.read_positions(settings.pool, 3, step), generator)
        codes = self.make_codes(drop_channels(batch.features, settings.dropout, generator))
        share = specific_share(step, settings.warm_up * settings.steps, settings.steps)
        return self.compare(codes, batch, share, generator), codes

    @torch.no_grad()
    def renew_pools(self, features: Tensor, generator: Generator) -> None:
        """Draw both pools at the same positions of features, float [position, channel]."""
        chosen = torch.randperm(len(features), generator=generator)[: self.settings.pool]
        drawn = features[chosen.to(features.device)]
        self.agnostic = F.normalize(drawn, dim=1)
        self.specific = F.normalize(self.average(drawn), dim=1)

    def compare(
        self, codes: Tensor, batch: HeadBatch, share: float, generator: Generator
    ) -> Tensor:
        """Compute the loss of the codes of a batch, float [window, row, column, dim] (section 3).

        With C_ag and C_ts the contrast with task-agnostic and task-specific hidden positives, z the
        projected codes and z' the projected mixed codes::

            loss = (1 - share) * (C_ag(z) + C_ag(z')) + share * (C_ts(z) + C_ts(z'))
                   + consistency * mean(1 - cosine(code, code of the augmented view))

        Task-agnostic positives are found among the features, task-specific ones among the averaged
        head's codes of the features, on both sides, since these are what the pool holds. Mixing
        leaves both as they are: an anchor's neighbours learn from the anchor's positives. All terms
        are those of positions drawn uniformly from every window, anew at each call: cosines between
        all 17 000 positions of 32 windows are too many for a processor. A share outside [0, 1] is a
        ValueError.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share {share} of the task-specific positives is not in [0, 1]")
        settings = self.settings
        assert batch.augmented is not None and batch.attention is not None
        assert settings.temperature is not None
        temperature = settings.temperature
        windows, rows, columns, _ = codes.shape
        drawn = draw_positions(windows, rows * columns, settings.positions, generator)
        drawn = drawn.to(codes.device)
        features, chosen = _take(batch.features, drawn), _take(codes, drawn)
        weights = weigh_neighbours(batch.attention.to(codes.dtype))
        mixed = mix_positions(codes, weights, drawn).flatten(0, 1)
        # a kind without a share would cost as much as one that has one
        positives: list[tuple[float, Tensor]] = []
        if share < 1:
            positives.append((1 - share, _find_positives(features, self.agnostic)))
        if share > 0:
            with torch.no_grad():
                averaged = self.average(features)
            positives.append((share, _find_positives(averaged, self.specific)))

        def contrast(vectors: Tensor) -> Tensor:
            projected = self.projector(vectors)
            loss: Tensor = projected.new_zeros(())
            for weight, found in positives:
                loss = loss + weight * hidden_positive_loss(
                    projected,
                    found,
                    temperature=temperature,
                    negatives=settings.negatives,
                    generator=generator,
                )
            return loss

        whole, local = contrast(chosen), contrast(mixed)
        # in the arithmetic that made the codes, or its rounding would pass for a view's difference
        augmented = self.make_codes(_take(batch.augmented, drawn))
        distances = 1 - F.cosine_similarity(chosen, augmented, dim=1)
        # window by window: the mean of very many at once would depend on the number of threads
        consistency = distances.unflatten(0, drawn.shape).mean(dim=1).mean()
        return whole + local + settings.consistency * consistency

    def make_optimiser(self) -> Optimizer:
        """Make AdamW."""
        settings = self.settings
        trained = self.list_trained()
        return AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Move the averaged head towards the head: a <- decay * a + (1 - decay) * h."""
        for mean, value in zip(self.average.parameters(), self.head.parameters(), strict=True):
            mean.lerp_(value, 1 - self.settings.average)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state; the pools have the size that they were saved with."""
        for name in ("agnostic", "specific"):
            setattr(self, name, torch.empty_like(state_dict[name], device=self.device))
        return super().load_state_dict(state_dict, *args, **kwargs)
