"""Where prototypes start: the principal directions of a sample of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.team import INLINE, Team
from stages.em.groups import GROUP, add_in_order, apply_windows, one_thread

# The blocks of a sample, or pieces of a team that give them.
ReadSample = Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Moments:
    """Moments of some positions, in float64.

    Attributes
    ----------
    count
        Number of positions.
    mean
        [channel].
    scatter
        [channel, channel]: sum of the products of the differences from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor


def find_initial_directions(read_sample: ReadSample, classes: int, team: Team = INLINE) -> Tensor:
    """Find the first principal directions of a stream of features.

    A prototype is compared by cosine, so it uses one end of its axis only, and a principal
    direction does not say which. The end with the longer tail (positive skewness of the
    projections) is taken: there lies a group far from the mean, at the other end the bulk that all
    directions share.

    Parameters
    ----------
    read_sample
        Gives the features, float [..., channel], in any number of blocks, the same ones at each of
        its two calls; no block is kept. The first axis of a block of three or more is the window.
    classes
        Number of directions K.
    team
        Who sums over the blocks; the sums are added in their order.

    Returns
    -------
    Tensor
        float32 [class, channel], orthonormal, by falling variance.

    Raises
    ------
    ValueError
        There are no features, or fewer channels than classes.
    """
    # a worker's device is not this process's
    home = torch.device("cpu") if team.remote else None
    moments: Moments | None = None
    for block in team.stream(measure_moments, read_sample(), home):
        moments = block if moments is None else merge_moments(moments, block)
    if moments is None:
        raise ValueError("no features to take principal directions of")
    mean = moments.mean
    if classes > len(mean):
        raise ValueError(f"{classes} classes need as many channels, there are {len(mean)}")
    with one_thread():
        _, vectors = torch.linalg.eigh(moments.scatter / moments.count)
    directions = vectors.T.flip(0)[:classes]
    skewness = torch.zeros(classes, dtype=torch.float64, device=mean.device)
    for tail in team.stream(measure_skewness, read_sample(), mean, directions):
        skewness += tail
    signs = torch.where(skewness < 0, -1.0, 1.0)
    return (directions * signs[:, None]).float()


def measure_moments(block: Tensor, home: torch.device | None = None) -> Moments:
    """Measure the moments of one block, [..., channel]; they stay on its device, or go home."""
    runs = _list_windows(block)
    # sums about a point near the mean lose no digits when they are centred at the end
    origin = runs[0].mean(dim=0, dtype=torch.float64)

    def multiply(windows: Tensor) -> tuple[Tensor, Tensor]:
        # a difference from float64 is float64 at once, without a copy of the block in between
        apart = windows - origin
        return apart.sum(dim=1), torch.bmm(apart.transpose(1, 2), apart)

    count = runs.shape[0] * runs.shape[1]
    total, scatter = origin.new_zeros(len(origin)), origin.new_zeros(len(origin), len(origin))
    # a square matrix per window: not those of all at once
    for group in runs.split(GROUP):
        sums, products = apply_windows(multiply, group)
        total += add_in_order(list(sums))
        scatter += add_in_order(list(products))
    shift = total / count
    scatter -= count * torch.outer(shift, shift)
    return Moments(count, (origin + shift).to(home), scatter.to(home))


def merge_moments(one: Moments, other: Moments) -> Moments:
    """Return the moments of both together (Chan, Golub & LeVeque, 1979)."""
    count = one.count + other.count
    step = other.mean - one.mean
    between = torch.outer(step, step) * (one.count * other.count / count)
    return Moments(
        count, one.mean + step * (other.count / count), one.scatter + other.scatter + between
    )


def measure_skewness(block: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Sum the cubes of one block's projections, float64 [class]."""
    origin, axes = mean.to(block.device), directions.T.to(block.device)

    def project(windows: Tensor) -> tuple[Tensor]:
        return (((windows - origin) @ axes).pow(3).sum(dim=1),)

    (tails,) = apply_windows(project, _list_windows(block))
    return add_in_order(list(tails)).to(mean.device)


def _list_windows(block: Tensor) -> Tensor:
    """Lay out a block as [window, position, channel]."""
    return block.flatten(1, -2) if block.ndim > 2 else block[None]
