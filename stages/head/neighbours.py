"""Which windows look alike: the nearest neighbours by cosine of mean-pooled features."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Steps in a unit of a descriptor's component: products of unit vectors then stay below 2 ** 53,
# under which float64 adds whole numbers without rounding.
_STEPS = 2**26


def pool_descriptors(features: Tensor) -> Tensor:
    """Describe windows by the directions of their mean features.

    Parameters
    ----------
    features
        float [window, row, column, channel].

    Returns
    -------
    Tensor
        float32 [window, channel] of length 1; a mean of zero stays zero.
    """
    return F.normalize(features.mean(dim=(1, 2), dtype=torch.float32), dim=1)


def find_neighbours(
    descriptors: Tensor, groups: Tensor, count: int, *, queries: int = 1024, keys: int = 8192
) -> Tensor:
    """Find the windows most similar to every window, those of its own group excepted.

    Parameters
    ----------
    descriptors
        float [window, channel] of length 1 or 0, as :func:`pool_descriptors` gives.
    groups
        int64 [window]: windows of one group, as those of one image, are no neighbours.
    count
        Neighbours to find.
    queries, keys
        Windows that are compared at once, rows and columns of a block of the cosine matrix.

    Returns
    -------
    Tensor
        int64 [window, min(count, windows outside the largest group)]: by falling cosine, of equal
        cosines the smaller index first. Where there is one group alone, every window is its own
        neighbour, [window, 1].

    Raises
    ------
    ValueError
        There are no windows, no neighbours are asked for, a descriptor is longer than 1, or the
        groups are not one for each window.

    Notes
    -----
    Nothing depends on the size of the blocks, the number of threads or the device: components are
    rounded to whole multiples of 2^-26, so that the products are exact in whatever order they are
    summed, and cosines to 2^(bits - 52), where windows < 2^bits.

    Beside the descriptors and the result, memory holds one block and its rows and columns: 0.1 GB
    at 384 channels, however many windows there are. Of 10^6 windows, descriptors and 7 neighbours
    take 1.6 GB; time grows with the square of their number.
    """
    windows = len(descriptors)
    if windows == 0 or count < 1:
        raise ValueError(f"cannot find {count} neighbours among {windows} windows")
    if float(torch.linalg.vector_norm(descriptors, dim=1).max()) > 1 + 1e-3:
        raise ValueError("descriptors must have a length of 1")
    if groups.shape != (windows,):
        raise ValueError(f"groups are {tuple(groups.shape)} for {windows} windows")
    groups = groups.to(descriptors.device)
    count = min(count, windows - int(groups.unique(return_counts=True)[1].max()))
    if count == 0:
        return torch.arange(windows, device=descriptors.device)[:, None]
    found = [
        _search(descriptors, groups, slice(start, start + queries), count, keys)
        for start in range(0, windows, queries)
    ]
    return torch.cat(found)


def _search(descriptors: Tensor, groups: Tensor, rows: slice, count: int, keys: int) -> Tensor:
    windows, device = len(descriptors), descriptors.device
    span = 2 ** windows.bit_length()
    wanted, own = _quantise(descriptors[rows]), groups[rows]
    best = torch.empty(len(own), 0, dtype=torch.float64, device=device)
    index = torch.empty(len(own), 0, dtype=torch.int64, device=device)
    for start in range(0, windows, keys):
        block = torch.arange(start, min(start + keys, windows), device=device)
        ranks = wanted @ _quantise(descriptors[start : start + keys]).T
        # cosine and index in one number, which therefore occurs once in a row: no choice is left to
        # the order in which top-k visits equal cosines
        ranks.div_(span).round_().mul_(span).sub_(block)
        ranks.masked_fill_(groups[block] == own[:, None], -torch.inf)
        ranks, place = ranks.topk(min(count, len(block)))
        best, index = torch.cat([best, ranks], dim=1), torch.cat([index, block[place]], dim=1)
        best, place = best.topk(min(count, best.shape[1]))
        index = index.gather(1, place)
    return index


def _quantise(descriptors: Tensor) -> Tensor:
    return (descriptors.double() * _STEPS).round_()
