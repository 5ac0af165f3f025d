"""Cosine K-means by gradient descent: the start of a fit, and the cluster probe of a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.datasets.definition import IGNORE

# Share of the positions below which a class has as good as died.
UNUSED = 1e-3


def cluster_loss(features: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss of cosine K-means on float32 features [window, ..., channel].

    It is minus the mean over positions of the largest cosine (STEGO, section 3.4): its gradient
    moves every prototype, a direction [class, channel] of any length, towards the positions nearest
    to it. Gives also the number of these, int64 [class].
    """
    runs = features.reshape(len(features), -1, features.shape[-1])
    unit = F.normalize(direction, dim=-1)
    cosine, nearest, _ = _find_nearest(runs, unit)
    return -cosine.mean(dim=1).mean(), count_numbers(nearest, len(direction))


def measure_clusters(
    runs: Tensor, unit: Tensor, pins: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss of cosine K-means and its gradient, window by window.

    Takes float32 [window, position, channel] and prototypes [class, channel] at unit length; gives
    the loss [window], as of :func:`cluster_loss`, its gradient with respect to the prototypes
    [window, class, channel], and the positions nearest to each, int64 [window, class]. ``pins``,
    uint8 [window, position], say whose a position is, whatever is nearest; 255 where it is free.
    """
    cosine, nearest, length = _find_nearest(runs, unit, pins)
    positions = runs.shape[1]
    share = runs.new_zeros(len(runs), len(unit), positions)
    share.scatter_(1, nearest[:, None], -1 / (length * positions)[:, None])
    usage = nearest.new_zeros(len(runs), len(unit))
    usage.scatter_add_(1, nearest, torch.ones_like(nearest))
    return -cosine.mean(dim=1), torch.bmm(share, runs), usage


def _find_nearest(
    runs: Tensor, unit: Tensor, pins: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the largest cosine of every position, whose it is, and the position's length."""
    # One product a window, and means window by window: libraries cut larger ones up by the number
    # of threads, which then decides how sums round.
    products = torch.bmm(unit.expand(len(runs), -1, -1), runs.transpose(1, 2))
    best, nearest = products.max(dim=1)
    if pins is not None:
        nearest = torch.where(pins == IGNORE, nearest, pins.long())
        best = products.gather(1, nearest[:, None])[:, 0]
    # lengths divide one number a position instead of all its channels, and change no order
    length = torch.linalg.vector_norm(runs, dim=-1).clamp_min(1e-12)
    return best / length, nearest, length


def count_numbers(numbers: Tensor, length: int) -> Tensor:
    """Count how often each of 0 .. length - 1 occurs, int64 [number].

    Unlike ``torch.bincount`` on a CUDA device, the host need not wait to learn the largest.
    """
    flat = numbers.flatten()
    return flat.new_zeros(length).scatter_add_(0, flat, torch.ones_like(flat))


def warn_of_unused(warn: Callable[[str], object], key: str, usage: Sequence[float]) -> None:
    """Say which classes of a fit or head have died, by the shares of all."""
    if dead := list_unused(usage):
        warn(
            f"{key}: {len(dead)} of {len(usage)} classes are hardly used (under "
            f"{100 * UNUSED:g} % of the pixels: {', '.join(map(str, dead))}); fewer --classes, or "
            "another --seed, may fit better."
        )


def list_unused(usage: Sequence[float]) -> list[int]:
    """List the classes that have at most ``UNUSED`` of the positions, of all classes' shares."""
    return [k for k, share in enumerate(usage) if share <= UNUSED]
