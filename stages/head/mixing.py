"""Local hidden positives: codes mixed with those of the neighbours that attention points to."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the attention values of a window, the quantiles that they are clipped to.
LOWEST, HIGHEST = 0.1, 0.9


def find_neighbours(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Find the 3 x 3 neighbourhood of every position of a grid.

    Parameters
    ----------
    rows, columns
        Of the grid.

    Returns
    -------
    neighbours : Tensor
        int64 [position, 9]: positions numbered row by row, neighbours too, the position itself
        fifth. Outside the grid stands the nearest position inside.
    inside : Tensor
        bool [position, 9]: whether the neighbour is inside the grid.
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

    The values of a window are clipped to the range between their 10 % and 90 % quantiles, which are
    taken over all positions and neighbours of that window together; at every position they are
    soft-maxed over the neighbours; those below the neighbours' mean become 0; what is left is
    scaled to the sum 1, so that mixing equal codes changes nothing. Neighbours outside the grid
    take part in none of these, neither in the quantiles nor in the mean.

    Parameters
    ----------
    attention
        float [window, row, column, 9]: attention of every position to its 3 x 3 neighbourhood,
        row by row, itself fifth; outside the grid any number.

    Returns
    -------
    Tensor
        float [window, row, column, 9], not negative, of sum 1 over the neighbours; 0 outside the
        grid.
    """
    windows, rows, columns, _ = attention.shape
    inside = find_neighbours(rows, columns)[1].to(attention.device)
    values = attention.reshape(windows, rows * columns, 9)
    # quantiles of values in the grid, as many in every window
    order = values[:, inside].new_tensor([LOWEST, HIGHEST])
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

    Parameters
    ----------
    codes
        float [window, row, column, dim].
    weights
        float [window, row, column, 9], as of :func:`weigh_neighbours`.
    positions
        int64 [window, drawn]: positions of every window, numbered row by row.

    Returns
    -------
    Tensor
        float [window, drawn, dim]: convex combinations of codes.
    """
    rows, columns = codes.shape[1:3]
    neighbours = find_neighbours(rows, columns)[0].to(codes.device)[positions]
    chosen = weights.flatten(1, 2).gather(1, positions[:, :, None].expand(-1, -1, 9))
    # a matrix per window: its product is quick both ways, and in the same order every time; where
    # a neighbour outside shares the place of one inside, 0 is added, in any order the same
    mixing = codes.new_zeros(*positions.shape, rows * columns)
    mixing.scatter_add_(2, neighbours, chosen.to(codes.dtype))
    return mixing @ codes.flatten(1, 2)
