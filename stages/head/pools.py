"""Reference pools, and the global hidden positives that they single out."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

# Anchors compared at once: of the cosines only one block is ever stored.
_BLOCK = 1024
# Units in the last place within which two cosines count as equal: equal vectors at different places
# of a matrix product differ by rounding, and rounding must not single out a positive.
_ROUNDING = 16


def draw_rows(rows: int, size: int, generator: Generator) -> Tensor:
    """Draw different rows of a table, uniformly.

    Parameters
    ----------
    rows
        How many there are.
    size
        How many to draw; of fewer rows, all are drawn.
    generator
        Of the processor, so that every device gets the same numbers.

    Returns
    -------
    Tensor
        int64 [min(rows, size)], on the processor, in random order.
    """
    return torch.randperm(rows, generator=generator)[:size]


@torch.no_grad()
def find_hidden_positives(anchors: Tensor, candidates: Tensor, pool: Tensor) -> Tensor:
    """Find the candidates that are more similar to an anchor than everything in a pool.

    The pool says how similar a random position is at best; what is more similar than that belongs
    to the anchor (global hidden positives: HP, section 3). Every anchor has a threshold of its own,
    so the relation need not be mutual.

    Parameters
    ----------
    anchors
        float [anchor, channel], unit length.
    candidates
        float [candidate, channel], unit length.
    pool
        float [reference, channel], unit length, at least one entry.

    Returns
    -------
    Tensor
        bool [anchor, candidate]: whether the cosine is larger than the anchor's largest to any
        entry of the pool, by more than rounding errors. An anchor that is its own candidate is
        found as well, unless the pool holds its equal; the loss leaves it out.

    Raises
    ------
    ValueError
        The pool is empty.
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
