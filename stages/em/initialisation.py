"""Where prototypes start: the principal directions of a sample of features."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ReadSample = Callable[[], Iterable[Tensor]]


def find_initial_directions(read_sample: ReadSample, classes: int) -> Tensor:
    """Find the first principal directions of a stream of features.

    A prototype is compared by cosine, so it uses one end of its axis only, and a principal
    direction does not say which. The end with the longer tail (positive skewness of the
    projections) is taken: there lies a group far from the mean, at the other end the bulk that all
    directions share.

    Parameters
    ----------
    read_sample
        Gives the features, float [..., channel], in any number of blocks, the same ones at each of
        its two calls; no block is kept.
    classes
        Number of directions K.

    Returns
    -------
    Tensor
        float32 [class, channel], orthonormal, by falling variance.

    Raises
    ------
    ValueError
        There are no features, or fewer channels than classes.
    """
    mean, covariance = _measure_moments(read_sample())
    if classes > len(mean):
        raise ValueError(f"{classes} classes need as many channels, there are {len(mean)}")
    _, vectors = torch.linalg.eigh(covariance)
    directions = vectors.T.flip(0)[:classes]
    skewness = torch.zeros(classes, dtype=torch.float64, device=mean.device)
    for block in read_sample():
        # a difference from float64 is float64 at once, without a copy of the block in between
        flat = block.reshape(-1, block.shape[-1])
        skewness += ((flat - mean) @ directions.T).pow(3).sum(dim=0)
    signs = torch.where(skewness < 0, -1.0, 1.0)
    return (directions * signs[:, None]).float()


def _measure_moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    count, origin = 0, None
    total = scatter = torch.empty(0)
    for block in blocks:
        flat = block.reshape(-1, block.shape[-1])
        if origin is None:
            # sums about a point near the mean lose no digits when they are centred at the end
            origin = flat.mean(dim=0, dtype=torch.float64)
            total = torch.zeros_like(origin)
            scatter = origin.new_zeros(len(origin), len(origin))
        flat = flat - origin
        count += len(flat)
        total += flat.sum(dim=0)
        scatter += flat.T @ flat
    if origin is None:
        raise ValueError("no features to take principal directions of")
    shift = total / count
    return origin + shift, scatter / count - torch.outer(shift, shift)
