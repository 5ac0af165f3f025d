"""The E-step: one class for every proposal, by majority of the momentum prototypes' pixels.

The E-step on the processor: predictions of pixels that are counted and never stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets import IGNORE
from stages.clustering import count_numbers
from stages.crf.vectors import compile_kernel
from stages.em.interpolation import (
    Taps,
    allocate_rows,
    find_taps,
    map_windows,
    pad_classes,
    runs_compiled,
    split_windows,
    upsample,
    widen_row,
)

# Rows of pixels predicted together: their winners stay in the first-level cache between classes.
BAND = 16


def vote_windows(
    logits: NDArray[np.float32],
    proposals: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    usage: NDArray[np.int64],
    agreed: NDArray[np.int64],
) -> None:
    """Give every proposal the class that most of its pixels have.

    Parameters
    ----------
    logits : float32 [window, class, row, column]
        Finite; an even number of classes.
    proposals : uint8 [window, y, x]
        0 = no proposal, j = proposal j of the window.
    labels : uint8 [window, y, x]
        Written: the class, ``IGNORE`` where there is no proposal. Of equal logits and of equally
        frequent classes the smallest class wins.
    usage : int64 [window, class]
        The labelled pixels of each class are added.
    agreed : int64 [window]
        The labelled pixels whose own class is that of their proposal are added.
    """
    classes, *grid = logits.shape[1:]
    height, width = proposals.shape[1:]
    rows, columns = find_taps(grid[0], height), find_taps(grid[1], width)
    planes, best = allocate_rows(2, classes, width), allocate_rows(BAND, width)
    winner = allocate_rows(BAND, width).view(np.int32)
    for window, one in enumerate(logits):
        ids, target, used = proposals[window], labels[window], usage[window]
        agreed[window] += _vote_window(one, ids, rows, columns, planes, best, winner, target, used)


@compile_kernel
def _vote_window(  # type: ignore[no-untyped-def]
    logits, proposals, rows: Taps, columns: Taps, planes, best, winner, labels, usage
):
    first, second, starts, share = rows
    counts = np.zeros((256, len(logits)), np.int64)
    upper, lower = planes[0], planes[1]
    held = -1
    for strip in range(len(first)):
        if held == first[strip]:
            upper, lower = lower, upper
        else:
            widen_row(logits[:, first[strip]], columns, upper)
        widen_row(logits[:, second[strip]], columns, lower)
        held = second[strip]
        for low in range(starts[strip], starts[strip + 1], BAND):
            high = min(low + BAND, starts[strip + 1])
            _find_winners(upper, lower, share[low:high], best, winner)
            _count_winners(proposals[low:high], winner, counts)
    return _label_proposals(proposals, counts, labels, usage)


@compile_kernel
def _find_winners(upper, lower, shares, best, winner):  # type: ignore[no-untyped-def]
    """Find the largest class of every pixel of a band between two rows of the grid."""
    classes, width = upper.shape
    best[: len(shares)] = -np.inf
    winner[: len(shares)] = 0
    # two classes at once: half as many visits to the leader
    for label in range(0, classes, 2):
        above, other_above = upper[label], upper[label + 1]
        below, other_below = lower[label], lower[label + 1]
        for row in range(len(shares)):
            share, highest, leader = shares[row], best[row], winner[row]
            for x in range(width):
                logit = above[x] + share * (below[x] - above[x])
                other = other_above[x] + share * (other_below[x] - other_above[x])
                larger = max(logit, other)
                candidate = np.int32(label) if logit >= other else np.int32(label + 1)
                leader[x] = candidate if larger > highest[x] else leader[x]
                highest[x] = max(larger, highest[x])


@compile_kernel
def _count_winners(proposals, winner, counts):  # type: ignore[no-untyped-def]
    # Neighbours mostly agree, so runs are counted: adding to one counter pixel by pixel waits for
    # the sum before every time.
    height, width = proposals.shape
    for y in range(height):
        proposal, label, run = proposals[y, 0], winner[y, 0], 0
        for x in range(width):
            if proposals[y, x] != proposal or winner[y, x] != label:
                counts[proposal, label] += run
                proposal, label, run = proposals[y, x], winner[y, x], 0
            run += 1
        counts[proposal, label] += run


@compile_kernel
def _label_proposals(proposals, counts, labels, usage):  # type: ignore[no-untyped-def]
    of_proposal = np.empty(256, np.uint8)
    of_proposal[0] = IGNORE
    agreed = 0
    for proposal in range(1, 256):
        winner = np.argmax(counts[proposal])
        of_proposal[proposal] = winner
        usage[winner] += counts[proposal].sum()
        agreed += counts[proposal, winner]
    height, width = proposals.shape
    for y in range(height):
        for x in range(width):
            labels[y, x] = of_proposal[proposals[y, x]]
    return agreed


# Proposals are numbered by a byte, labels too.
_NUMBERS = 256


@dataclass(frozen=True)
class Assignment:
    """The classes of the proposals of a batch, pixel by pixel.

    Attributes
    ----------
    labels
        uint8 [window, y, x]: the class of the pixel's proposal, ``IGNORE`` where there is none.
    usage
        int64 [class]: labelled pixels of each class.
    agreed
        int64, a scalar: labelled pixels whose own largest class is that of their proposal.
    """

    labels: Tensor
    usage: Tensor
    agreed: Tensor


def assign_proposals(logits: Tensor, proposals: Tensor) -> Assignment:
    """Give every proposal the class that is the largest at most of its pixels.

    Parameters
    ----------
    logits
        float [window, class, row, column], at most 255 classes.
    proposals
        uint8 [window, y, x]: 0 = no proposal, j = proposal j of the window.

    Returns
    -------
    Assignment
        Of equal logits and of equally frequent classes the smallest class wins.
    """
    if runs_compiled(logits):
        return _assign_compiled(logits, proposals)
    classes, size = logits.shape[1], (proposals.shape[-2], proposals.shape[-1])
    predictions = predict_pixels(logits, size)
    labels = vote_proposals(predictions, proposals, classes)
    usage = count_numbers(labels, _NUMBERS)[:classes]
    return Assignment(labels.to(torch.uint8), usage, (predictions == labels).sum())


def _assign_compiled(logits: Tensor, proposals: Tensor) -> Assignment:
    padded, ids = pad_classes(logits), proposals.contiguous().numpy()
    labels = np.empty_like(ids)
    usage, agreed = np.zeros(padded.shape[:2], np.int64), np.zeros(len(ids), np.int64)

    def vote(run: slice) -> None:
        vote_windows(padded[run], ids[run], labels[run], usage[run], agreed[run])

    map_windows(vote, len(ids))
    return Assignment(
        torch.from_numpy(labels),
        torch.from_numpy(usage.sum(axis=0)[: logits.shape[1]]),
        torch.tensor(agreed.sum()),
    )


def predict_pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the largest class of every pixel at image size.

    Parameters
    ----------
    logits
        float [window, class, row, column].
    size
        Height and width of the image, pixels.

    Returns
    -------
    Tensor
        int64 [window, y, x].
    """
    runs = split_windows(logits, size)
    return torch.cat([upsample(logits[run], size).argmax(dim=1) for run in runs])


def vote_proposals(predictions: Tensor, proposals: Tensor, classes: int) -> Tensor:
    """Give every proposal the class that most of its pixels have.

    Parameters
    ----------
    predictions
        int64 [window, y, x] in 0..K-1.
    proposals
        uint8 [window, y, x]: 0 = no proposal, j = proposal j.
    classes
        K.

    Returns
    -------
    Tensor
        int64 [window, y, x]: the class, ``IGNORE`` where there is no proposal. Of equally frequent
        classes the smallest wins.
    """
    ids, windows = proposals.long(), len(proposals)
    region = ids + _NUMBERS * torch.arange(windows, device=ids.device)[:, None, None]
    votes = count_numbers(region * classes + predictions, windows * _NUMBERS * classes)
    winner = votes.reshape(windows * _NUMBERS, classes).argmax(dim=1)
    return torch.where(ids > 0, winner[region], IGNORE)
