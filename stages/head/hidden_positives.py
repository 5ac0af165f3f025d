"""Hidden Positives (Seong et al., CVPR 2023): the loss of a batch, and what moves with its head.

Global hidden positives are what is more similar to an anchor than everything in a reference pool;
local ones are mixed into an anchor's code, by the attention to its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor
from torch.optim import AdamW, Optimizer

from stages.head.material import HeadBatch
from stages.head.methods import Method, ReadPositions
from stages.head.projection import ProjectionHead, drop_channels, make_layer
from stages.head.settings import HeadSettings

# Entries of a pool that are compared at once.
_BLOCK = 256
# Units in the last place within which two cosines count as equal: equal vectors at different places
# of a matrix product differ by rounding, and rounding must not single out a positive.
_ROUNDING = 16
# The temperature that the authors' code relates all others to.
_BASE_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Relation:
    """Which positions of a batch are hidden positives of each other, by one kind of vectors.

    Attributes
    ----------
    unit
        float [window, position, channel], of unit length, without a gradient.
    threshold
        float [window, position]: the largest cosine to a reference pool.
    """

    unit: Tensor
    threshold: Tensor

    def find(self, window: int) -> Tensor:
        """Find the partners of a window's positions, bool [window, partner, anchor].

        Those whose cosine exceeds the anchor's or their own threshold; nobody is his own.
        """
        limit = torch.minimum(self.threshold[:, :, None], self.threshold[window])
        found = _multiply(self.unit, self.unit[window].T) > limit
        found[window].fill_diagonal_(False)
        return found


@torch.no_grad()
def relate(vectors: Tensor, pool: Tensor) -> Relation:
    """Relate positions by how near they are to each other and to a pool (HP, section 3).

    Vectors are float [window, position, channel], of any length; the pool [reference, channel], of
    unit length. It says how similar a random position is at best. An empty one is a ValueError.
    """
    if not len(pool):
        raise ValueError("a reference pool needs at least one entry")
    unit = F.normalize(vectors, dim=2)
    nearest = [_multiply(unit, part.T).amax(dim=2) for part in pool.split(_BLOCK)]
    margin = _ROUNDING * torch.finfo(unit.dtype).eps
    return Relation(unit, torch.stack(nearest).amax(dim=0) + margin)


def hidden_positive_loss(
    projected: Tensor,
    agnostic: Relation,
    specific: Relation | None,
    *,
    share: float,
    temperature: float,
    kept: Tensor,
) -> Tensor:
    """Compute the contrast of projected codes, as HP's published code does.

    With cosines c of projections, temperature t, a_ij and s_ij whether j is a task-agnostic or a
    task-specific positive of i, w_ij = a_ij + share * s_ij where i has a task-agnostic positive at
    all, else 0, and K_i the task-agnostic positives of i and what is kept of its other partners::

        loss = t / 0.07 / 2 * mean over windows of
            - sum_i sum_j w_ij log( exp(c_ij / t) / sum_{k in K_i} exp(c_ik / t) ) / sum_ij w_ij

    where i are the positions of the window and j those of the batch but i. The losses of all kinds
    of projections are added. A window without positives adds 0.

    Parameters
    ----------
    projected
        float [kind, window, position, dim], of any length: of codes, and of mixed codes.
    agnostic, specific
        Of the same positions; without the latter, its share counts for nothing.
    share
        Weight of a task-specific positive, where a task-agnostic one has 1.
    temperature
        At least ``COLDEST``: of a colder one the exponentials overflow.
    kept
        bool, broadcast to [window, partner, anchor]: what is kept of the negatives of the anchors
        of every window alike.
    """
    unit = F.normalize(projected, dim=3)
    loss: Tensor = _Contrast.apply(unit, agnostic, specific, share, temperature, kept)
    return loss


class _Contrast(torch.autograd.Function):
    """The loss with its gradient at once: of all pairs only those of one window are ever stored."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        unit: Tensor,
        agnostic: Relation,
        specific: Relation | None,
        share: float,
        temperature: float,
        kept: Tensor,
    ) -> Tensor:
        windows = unit.shape[1]
        gradient, loss = torch.zeros_like(unit), unit.new_zeros(())
        for window in range(windows):
            positive = agnostic.find(window)
            counted = positive | kept
            counted[window].fill_diagonal_(False)
            weight = positive.to(unit.dtype)
            if specific is not None:
                weight += share * specific.find(window)
                weight *= _add_up(positive) > 0
            whole = _add_up(weight)
            # every pair weighs 1 at least, so this is 0 / 1 where there is none
            scale = temperature / _BASE_TEMPERATURE / 2 / windows / whole.sum().clamp_min(1)
            for vectors, slope in zip(unit, gradient, strict=True):
                anchors = vectors[window]
                # a cosine is at most 1, so this exponent is at most 0 and needs no search for the
                # largest
                attraction = (_multiply(vectors, anchors.T) - 1) / temperature
                mass = attraction.exp() * counted
                # an anchor without positives may have kept no negatives either
                total = _add_up(mass).where(whole > 0, 1)
                pulled = _add_up(weight * attraction)
                loss += scale * (whole * total.log() - pulled).sum()
                pull = (mass * (whole / total) - weight) * (scale / temperature)
                slope += _multiply(pull, anchors)
                slope[window] += torch.bmm(pull.transpose(1, 2), vectors).sum(dim=0)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return slope * gradient, None, None, None, None, None


def _multiply(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Multiply [window, position, channel] by one matrix, every window in a product of its own.

    One product of all would be shared out among threads, and its bytes name their number.
    """
    return torch.bmm(vectors, matrix.expand(len(vectors), -1, -1))


def _add_up(pairs: Tensor) -> Tensor:
    """Add up [window, partner, anchor] over the partners, [anchor]."""
    return pairs.sum(dim=(0, 1))


def find_neighbours(rows: int, columns: int) -> Tensor:
    """Find the 3 x 3 neighbourhood of every position of a grid, int64 [position, 9].

    Positions are numbered row by row, the position itself is the fifth; outside the grid stands the
    nearest one inside.
    """
    row, column = torch.arange(rows), torch.arange(columns)
    step = torch.arange(-1, 2)
    y = (row[:, None] + step).clamp(0, rows - 1)[:, None, :, None]
    x = (column[:, None] + step).clamp(0, columns - 1)[:, None]
    return (y * columns + x).flatten(2).flatten(0, 1)


def mix_positions(codes: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
    """Mix codes with those of the neighbours (local hidden positives: HP, section 3).

    Codes are float [window, row, column, dim]; weights, of the 3 x 3 neighbours of every position,
    [window, row, column, 9], 0 outside the grid; positions int64 [window, drawn]; the result is
    [window, drawn, dim].
    """
    rows, columns = codes.shape[1:3]
    neighbours = find_neighbours(rows, columns).to(codes.device)[positions]
    chosen = weights.flatten(1, 2).gather(1, positions[:, :, None].expand(-1, -1, 9))
    # a matrix per window: its product is quick both ways, and in the same order every time; where
    # a neighbour outside shares the place of one inside, 0 is added, in any order the same
    mixing = codes.new_zeros(*positions.shape, rows * columns)
    mixing.scatter_add_(2, neighbours, chosen.to(codes.dtype))
    return mixing @ codes.flatten(1, 2)


def draw_positions(windows: int, grid: int, positions: int, generator: Generator) -> Tensor:
    """Draw different positions of every window, int64 [window, min(grid, positions)], uniformly."""
    # doubles hardly ever tie, and a tie would prefer some positions
    keys = torch.rand(windows, grid, generator=generator, dtype=torch.float64)
    return keys.argsort(dim=1)[:, :positions]


def draw_kept(windows: int, positions: int, share: float, generator: Generator) -> Tensor:
    """Draw which negatives are kept, bool [window, partner, anchor], or [] where all are.

    One draw for the anchors of all windows, as in the authors' code.
    """
    if share == 1:
        return torch.ones((), dtype=torch.bool)
    return torch.rand(windows, positions, positions, generator=generator) < share


def specific_share(step: int, warm_up: int, steps: int) -> float:
    """Return 0 up to the warm-up's end, then rise linearly to 1 at the end of the training."""
    if step <= warm_up:
        return 0.0
    return min(1.0, (step - warm_up) / (steps - warm_up)) if steps > warm_up else 1.0


def _take(grid: Tensor, positions: Tensor) -> Tensor:
    """Take positions [window, drawn] of [window, row, column, channel]."""
    index = positions[:, :, None].expand(-1, -1, grid.shape[-1])
    return grid.flatten(1, 2).gather(1, index)


class HiddenPositives(Method):
    """Hidden positives.

    Attributes
    ----------
    projector
        One linear map between the codes and the contrast.
    average
        A head, the moving average of the trained one, whose codes fill the task-specific pool.
    agnostic, specific
        The reference pools, [reference, channel] and [reference, dim], at unit length; empty before
        the first step.
    """

    agnostic: Tensor
    specific: Tensor

    dim: ClassVar[int] = 512
    batch_size: ClassVar[int] = 64
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
        self.projector = make_layer(settings.dim, settings.dim, generator)
        self.average = ProjectionHead(channels, settings.dim, generator).requires_grad_(False)
        self.average.load_state_dict(self.head.state_dict())
        self.register_buffer("agnostic", torch.zeros(0))
        self.register_buffer("specific", torch.zeros(0))

    def compute_loss(
        self, batch: HeadBatch, step: int, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, its pools renewed when it is time, and the codes of the batch."""
        settings = self.settings
        assert settings.warm_up is not None
        self.renew_pools(step, generator)
        codes = self.make_codes(*self._drop_twice(batch.features, generator))
        share = specific_share(step, settings.warm_up, settings.steps)
        loss = self.compare(codes, batch, share, generator)
        self.move_average()
        return loss, codes

    @torch.no_grad()
    def renew_pools(self, step: int, generator: Generator) -> None:
        """Fill the task-agnostic pool before the first step, the other whenever it is time."""
        settings = self.settings
        assert settings.pool is not None and settings.renew_every is not None
        if step == 0:
            drawn = self.read_positions(settings.pool, 5, each=1)
            self.agnostic = F.normalize(self._drop(drawn, generator), dim=1)
        if step % settings.renew_every == 0:
            drawn = self.read_positions(settings.pool, 3, step, each=1)
            self.specific = F.normalize(self._average_codes(drawn, generator), dim=1)

    def _drop(self, features: Tensor, generator: Generator) -> Tensor:
        return drop_channels(features, self.settings.dropout, generator)

    def _drop_twice(self, features: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw a dropout for each of the two maps of a head."""
        return self._drop(features, generator), self._drop(features, generator)

    def _average_codes(self, features: Tensor, generator: Generator) -> Tensor:
        codes: Tensor = self.average(*self._drop_twice(features, generator))
        return self._drop(codes, generator)

    def compare(
        self, codes: Tensor, batch: HeadBatch, share: float, generator: Generator
    ) -> Tensor:
        """Compute the loss of the codes of a batch, float [window, row, column, dim] (section 3).

        The contrast of the projected codes and of the projected mixed codes, plus ``consistency`` x
        the mean Euclidean distance between the unit projections of codes and of those of the
        jittered view. Task-agnostic positives are found among the features, task-specific ones
        among the averaged head's codes of the features, on both sides, since these are what the
        pools hold. Mixing leaves both as they are: an anchor's neighbours learn from the anchor's
        positives. Dropout, of whole channels, is active in each of these. All terms are those of
        positions drawn uniformly from every window, anew at each call.
        """
        settings = self.settings
        assert batch.augmented is not None and batch.mixing is not None
        assert settings.temperature is not None and settings.negatives is not None
        windows, rows, columns, _ = codes.shape
        drawn = draw_positions(windows, rows * columns, settings.positions, generator)
        kept = draw_kept(windows, drawn.shape[1], settings.negatives, generator).to(codes.device)
        drawn = drawn.to(codes.device)
        features = _take(batch.features, drawn)
        agnostic = relate(self._drop(features, generator), self.agnostic)
        specific = None
        if share > 0:
            with torch.no_grad():
                averaged = self._average_codes(features, generator)
            specific = relate(averaged, self.specific)
        mixed = self._drop(mix_positions(codes, batch.mixing, drawn), generator)
        both = torch.cat([_take(codes, drawn), mixed])
        projected: Tensor = self.projector(both).unflatten(0, (2, windows))
        loss = hidden_positive_loss(
            projected,
            agnostic,
            specific,
            share=share,
            temperature=settings.temperature,
            kept=kept,
        )
        if not settings.consistency:
            return loss
        # in the arithmetic that made the codes, or its rounding would pass for a view's difference
        seen = self.make_codes(*self._drop_twice(_take(batch.augmented, drawn), generator))
        here, there = (F.normalize(v, dim=2) for v in (projected[0], self.projector(seen)))
        # window by window: the mean of very many at once would depend on the number of threads
        return loss + settings.consistency * F.pairwise_distance(here, there).mean(dim=1).mean()

    def make_optimiser(self) -> Optimizer:
        """Make AdamW; without decay, for the projector, it is Adam."""
        settings = self.settings
        groups: list[dict[str, Any]] = [
            {"params": list(self.head.parameters())},
            {"params": list(self.projector.parameters()), "weight_decay": 0.0},
        ]
        return AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    @torch.no_grad()
    def change_gradients(self) -> None:
        """Shorten the head's gradient, all of it as one vector, to ``clip``."""
        gradients = [p.grad for p in self.head.parameters() if p.grad is not None]
        # row by row: the sum of very many at once would depend on the number of threads
        squares = torch.stack([g.square().sum(dim=-1).sum() for g in gradients])
        factor = (self.settings.clip / (squares.sum().sqrt() + 1e-6)).clamp_max(1)
        for gradient in gradients:
            gradient *= factor

    @torch.no_grad()
    def move_average(self) -> None:
        """Move the averaged head towards the head: a <- decay * a + (1 - decay) * h."""
        assert self.settings.average is not None
        for mean, value in zip(self.average.parameters(), self.head.parameters(), strict=True):
            mean.lerp_(value, 1 - self.settings.average)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state; the pools have the size that they were saved with."""
        for name in ("agnostic", "specific"):
            setattr(self, name, torch.empty_like(state_dict[name], device=self.device))
        return super().load_state_dict(state_dict, *args, **kwargs)
