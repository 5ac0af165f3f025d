"""Hidden Positives: the loss of one batch, and what moves along with its head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn

from stages.head.contrast import hidden_positive_loss
from stages.head.mixing import mix_positions, weigh_neighbours
from stages.head.pools import draw_rows, find_hidden_positives
from stages.head.projection import make_layer


class Projector(nn.Module):
    """A two-layer ReLU map of the codes that the contrast sees; only training uses it.

    Parameters
    ----------
    dim
        Channels of the codes, of the hidden layer and of the projected codes.
    generator
        Draws the weights, as for ``ProjectionHead``. A generator of the CPU.
    """

    def __init__(self, dim: int, generator: Generator) -> None:
        super().__init__()
        self.hidden = make_layer(dim, dim, generator)
        self.output = make_layer(dim, dim, generator)

    def forward(self, codes: Tensor) -> Tensor:
        """Project codes, float [..., dim], to float [..., dim]."""
        projected: Tensor = self.output(self.hidden(codes).relu())
        return projected


@dataclass(frozen=True)
class HpModules:
    """The networks of the method.

    Attributes
    ----------
    make_codes
        The head: features, float [..., channel] -> codes, float [..., dim]. In the arithmetic that
        made the codes of the batch, or its rounding would pass for a view's inconsistency.
    average
        A head of the same architecture, the moving average of its weights.
    projector
        Codes -> projected codes.
    """

    make_codes: Callable[[Tensor], Tensor]
    average: nn.Module
    projector: nn.Module


@dataclass(frozen=True)
class HpBatch:
    """What the cache holds of the windows of one step.

    Attributes
    ----------
    features
        float [window, row, column, channel].
    augmented
        The same of a photometrically augmented view.
    attention
        float [window, row, column, 9], as for ``mixing.weigh_neighbours``.
    """

    features: Tensor
    augmented: Tensor
    attention: Tensor


@dataclass(frozen=True)
class HpPools:
    """The reference pools.

    Attributes
    ----------
    agnostic
        float [reference, channel]: features at unit length.
    specific
        float [reference, dim]: codes of the averaged head at unit length.
    """

    agnostic: Tensor
    specific: Tensor


@dataclass(frozen=True)
class HpOptions:
    """How the terms are computed and weighed.

    Attributes
    ----------
    temperature
        Divides the cosines of the contrast.
    positions
        Drawn of every window, all of a smaller one.
    negatives
        Share of the negatives that is kept, in (0, 1].
    consistency
        Weight of the augmented view's term.
    """

    temperature: float
    positions: int
    negatives: float
    consistency: float


@dataclass(frozen=True)
class HpParts:
    """What the loss of a batch consists of, all scalars without gradient.

    Attributes
    ----------
    whole
        Contrast of the projected codes.
    mixed
        Contrast of the projected mixed codes.
    consistency
        Distance to the augmented view, before its weight.
    agnostic, specific
        Mean number of positives of an anchor, itself left out; 0 for a kind of share 0, which is
        not looked for.
    """

    whole: Tensor
    mixed: Tensor
    consistency: Tensor
    agnostic: Tensor
    specific: Tensor


@torch.no_grad()
def draw_pools(features: Tensor, average: nn.Module, size: int, generator: Generator) -> HpPools:
    """Draw both reference pools, at the same positions.

    Parameters
    ----------
    features
        float [position, channel], at least one position.
    average
        The averaged head.
    size
        Entries wanted; of fewer positions, all are taken.
    generator
        Of the processor.
    """
    drawn = features[draw_rows(len(features), size, generator).to(features.device)]
    return HpPools(F.normalize(drawn, dim=1), F.normalize(average(drawn), dim=1))


def hp_loss(
    codes: Tensor,
    batch: HpBatch,
    modules: HpModules,
    pools: HpPools,
    options: HpOptions,
    *,
    share: float,
    generator: Generator,
) -> tuple[Tensor, HpParts]:
    """Compute the loss of Hidden Positives for one batch (Seong et al., CVPR 2023, section 3).

    With C_ag and C_ts the contrast with task-agnostic and task-specific hidden positives, z the
    projected codes and z' the projected mixed codes::

        loss = (1 - share) * (C_ag(z) + C_ag(z')) + share * (C_ts(z) + C_ts(z'))
               + consistency * mean(1 - cosine(code, code of the augmented view))

    Task-agnostic positives are found among the features, task-specific ones among the averaged
    head's codes of the features. Mixing leaves both as they are: an anchor's neighbours learn from
    the anchor's positives.

    Parameters
    ----------
    codes
        float [window, row, column, dim]: the head's, of the batch's features, with dropout or
        without.
    batch
        Features, augmented features and attention of the windows.
    modules
        Head, averaged head and projector.
    pools
        The reference pools.
    options
        Temperature, numbers of positions and negatives, weight of the consistency.
    share
        Of the task-specific positives, in [0, 1], as of :func:`specific_share`.
    generator
        Of the processor; draws positions and negatives.

    Returns
    -------
    loss : Tensor
        Scalar.
    parts : HpParts
        What it consists of.

    Raises
    ------
    ValueError
        The share, or an option, is out of its range.

    Notes
    -----
    All terms are those of positions drawn uniformly from every window, anew at each call, not of
    all positions: cosines between all 17 000 positions of 32 windows are too many for a processor.
    The task-specific positives use codes of the averaged head on both sides, since its codes are
    what the pool holds.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} of the task-specific positives is not in [0, 1]")
    windows, rows, columns, _ = codes.shape
    drawn = draw_positions(windows, rows * columns, options.positions, generator).to(codes.device)
    features, chosen = _take(batch.features, drawn), _take(codes, drawn)
    weights = weigh_neighbours(batch.attention.to(codes.dtype))
    mixed = mix_positions(codes, weights, drawn).flatten(0, 1)
    shares = {"agnostic": 1 - share, "specific": share}
    positives: dict[str, Tensor] = {}
    # a kind without a share costs as much as one that has one
    if shares["agnostic"]:
        positives["agnostic"] = _find_positives(features, pools.agnostic)
    if shares["specific"]:
        with torch.no_grad():
            averaged = modules.average(features)
        positives["specific"] = _find_positives(averaged, pools.specific)

    def contrast(vectors: Tensor) -> Tensor:
        projected = modules.projector(vectors)
        loss = projected.new_zeros(())
        for kind, found in positives.items():
            loss = loss + shares[kind] * hidden_positive_loss(
                projected,
                found,
                temperature=options.temperature,
                negatives=options.negatives,
                generator=generator,
            )
        return loss

    whole, local = contrast(chosen), contrast(mixed)
    augmented = modules.make_codes(_take(batch.augmented, drawn))
    distances = 1 - F.cosine_similarity(chosen, augmented, dim=1)
    # window by window: the mean of very many at once would depend on the number of threads
    consistency = distances.unflatten(0, drawn.shape).mean(dim=1).mean()
    loss = whole + local + options.consistency * consistency
    counts = {kind: found.count_nonzero() / len(found) for kind, found in positives.items()}
    parts = HpParts(
        whole=whole.detach(),
        mixed=local.detach(),
        consistency=consistency.detach(),
        agnostic=counts.get("agnostic", torch.zeros_like(loss)),
        specific=counts.get("specific", torch.zeros_like(loss)),
    )
    return loss, parts


def draw_positions(windows: int, grid: int, positions: int, generator: Generator) -> Tensor:
    """Draw different positions of every window, uniformly.

    Parameters
    ----------
    windows, grid
        How many windows there are, and positions in each.
    positions
        How many to draw; of fewer, all.
    generator
        Of the processor.

    Returns
    -------
    Tensor
        int64 [window, min(grid, positions)], on the processor.
    """
    # doubles hardly ever tie, and a tie would prefer some positions
    keys = torch.rand(windows, grid, generator=generator, dtype=torch.float64)
    return keys.argsort(dim=1)[:, :positions]


def specific_share(step: int, warm_up: float, steps: int) -> float:
    """Compute the share of the task-specific positives at a step.

    Parameters
    ----------
    step
        Finished steps.
    warm_up
        Steps with task-agnostic positives alone.
    steps
        Steps of the whole training.

    Returns
    -------
    float
        0 up to the warm-up's end, then linear to 1 at the end of the training.
    """
    if step <= warm_up:
        return 0.0
    return min(1.0, (step - warm_up) / (steps - warm_up)) if steps > warm_up else 1.0


@torch.no_grad()
def update_average(average: nn.Module, head: nn.Module, decay: float) -> None:
    """Move the averaged head towards the head, in place: a <- decay * a + (1 - decay) * h.

    Parameters
    ----------
    average, head
        Modules of the same architecture.
    decay
        In [0, 1].
    """
    for mean, value in zip(average.parameters(), head.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


def _take(grid: Tensor, positions: Tensor) -> Tensor:
    """Take positions [window, drawn] of [window, row, column, channel], one after the other."""
    index = positions[:, :, None].expand(-1, -1, grid.shape[-1])
    return grid.flatten(1, 2).gather(1, index).flatten(0, 1)


def _find_positives(vectors: Tensor, pool: Tensor) -> Tensor:
    """Find the other positions that are hidden positives, bool [position, position]."""
    unit = F.normalize(vectors.detach(), dim=1)
    return find_hidden_positives(unit, unit, pool).fill_diagonal_(False)
