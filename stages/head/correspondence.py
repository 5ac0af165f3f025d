"""STEGO: codes correspond where the frozen features do (Hamilton et al., ICLR 2022)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from stages.head.material import HeadBatch
from stages.head.methods import Method
from stages.head.projection import drop_channels


def draw_positions(windows: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw where grids are read, float32 [window, side, side, 2]: x and y, uniform in [-1, 1]."""
    return 2 * torch.rand(windows, side, side, 2, generator=generator) - 1


def read_bilinear(grid: Tensor, positions: Tensor) -> Tensor:
    """Read grids [window, row, column, channel] between their positions, [window, ..., 2].

    A position is x and y: -1 is the centre of the first column or row, 1 that of the last; beyond
    them the border is continued. The values are [window, position, channel], of the grid's type.

    ``torch.nn.functional.grid_sample`` calls this ``align_corners=True`` with border padding. That
    is how STEGO reads: positions in [-1, 1] then lie between features, and none is extrapolated.
    Written as a weighted sum of four rows of a table it takes a quarter of the time, because a
    position's channels lie side by side, and its gradient has one order of summation on a CUDA
    device too, where that of ``grid_sample`` has not.
    """
    rows, columns = grid.shape[1:3]
    left, right, x = _find_neighbours(positions[..., 0].flatten(1), columns)
    above, below, y = _find_neighbours(positions[..., 1].flatten(1), rows)
    first = rows * columns * torch.arange(len(grid), device=grid.device)[:, None, None]
    corners = torch.stack([above, above, below, below], dim=-1) * columns
    corners = corners + torch.stack([left, right, left, right], dim=-1) + first
    shares = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], dim=-1)
    values = F.embedding_bag(
        corners.flatten(0, 1),
        grid.flatten(0, 2),
        mode="sum",
        per_sample_weights=shares.flatten(0, 1).to(grid.dtype),
    )
    return values.unflatten(0, corners.shape[:2])


def _find_neighbours(positions: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the indices before and after positions along an axis, and the share of the latter."""
    along = ((positions + 1) * ((length - 1) / 2)).clamp(0, length - 1)
    before = along.floor()
    index = before.long()
    return index, (index + 1).clamp(max=length - 1), along - before


def normalise(vectors: Tensor) -> Tensor:
    """Scale vectors to length 1, so that their inner products are cosines (section 3.1).

    A zero vector stays zero, with a gradient of 0.
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    # a floor instead would leave zero vectors a gradient of its inverse
    return vectors / length.masked_fill(length == 0, math.inf)


def centre(volume: Tensor) -> Tensor:
    """Centre a correspondence volume spatially (section 3.2).

    The paper's formula stops at the subtraction. Its authors put the mean back, so that images
    alike still attract each other more than images unlike do, and tuned their shifts to that. The
    mean is the one over all windows of the volume.
    """
    means = volume.mean(dim=2, keepdim=True)
    return volume - means + _average(means)


def _average(volume: Tensor) -> Tensor:
    """Average everything of [window, position_a, position_b], in one order of summation.

    A full reduction splits a large volume among the threads, so that its bytes name their number;
    one axis at a time, every sum is a single thread's.
    """
    return volume.mean(dim=2).mean(dim=1).mean()


def correspondence_loss(
    features_a: Tensor, features_b: Tensor, codes_a: Tensor, codes_b: Tensor, shift: float
) -> Tensor:
    """Compute the loss of the codes of pairs of images (section 3.2).

    With F and S the cosine volumes of features and codes, and F centred:
    loss = - mean of (F - shift) * max(S, 0).

    Features and codes are float [window, position, ...], as of :func:`normalise`, at the same
    positions, whose numbers in a and b may differ; no gradient reaches the features. Features less
    similar than the shift push their codes apart.
    """
    with torch.no_grad():
        pull = centre(features_a @ features_b.transpose(1, 2)) - shift
    return -_average(pull * (codes_a @ codes_b.transpose(1, 2)).relu())


def draw_others(windows: int, generator: torch.Generator) -> Tensor:
    """Draw another window for every window of a batch.

    A permutation, int64 [window], of those with a single cycle, hence without a fixed point: every
    other window is equally likely. Of one window none is another, a ValueError.
    """
    if windows < 2:
        raise ValueError(f"of {windows} windows none is another")
    order = torch.randperm(windows, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


class Stego(Method):
    """Correspondence distillation."""

    dim: ClassVar[int] = 70
    uses_crops: ClassVar[bool] = True
    needs_neighbours: ClassVar[bool] = True

    def compute_loss(
        self, batch: HeadBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of STEGO, section 3.3, and the codes of the batch."""
        assert batch.neighbours is not None
        rate = self.settings.dropout
        # two smaller passes stay in the processor's cache better than one
        windows = (batch.features, batch.neighbours)
        own, near = (self.make_codes(drop_channels(grid, rate, generator)) for grid in windows)
        features, neighbours = (drop_channels(grid, rate, generator) for grid in windows)
        return self.compare(features, own, neighbours, near, generator), own

    def compare(
        self,
        features: Tensor,
        codes: Tensor,
        neighbour_features: Tensor,
        neighbour_codes: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Compute the loss of a batch (section 3.3).

        The sum over the terms self, knn and random of weight * correspondence loss: of every window
        and itself, one of its nearest neighbours, and windows of the batch drawn anew ``others``
        times, whose losses are averaged. In a batch of one window there is none to meet, and the
        term is left out.

        Features, to which no gradient flows, and codes are float [window, row, column, ...], those
        of a neighbour of every window, too. They are read at ``side ** 2`` positions: one set where
        a window meets, one where it, or its neighbour, is met; with itself a window uses the first
        for both sides.
        """
        settings = self.settings
        weights, shifts = settings.term_weights, settings.term_shifts
        windows, device = len(features), features.device
        meeting = draw_positions(windows, settings.side, generator).to(device)
        met = draw_positions(windows, settings.side, generator).to(device)
        here, there, near = (
            # normalised here once: a window is compared more often than it is read
            normalise(read_bilinear(grid.detach(), positions))
            for grid, positions in ((features, meeting), (features, met), (neighbour_features, met))
        )
        codes_here, codes_there, codes_near = (
            normalise(read_bilinear(grid, positions))
            for grid, positions in ((codes, meeting), (codes, met), (neighbour_codes, met))
        )
        loss = weights[0] * correspondence_loss(here, here, codes_here, codes_here, shifts[0])
        near_loss = correspondence_loss(here, near, codes_here, codes_near, shifts[1])
        loss = loss + weights[1] * near_loss
        if windows == 1:
            return loss
        strangers = [draw_others(windows, generator).to(device) for _ in range(settings.others)]
        apart = [
            correspondence_loss(here, there[other], codes_here, codes_there[other], shifts[2])
            for other in strangers
        ]
        return loss + weights[2] * torch.stack(apart).mean()
