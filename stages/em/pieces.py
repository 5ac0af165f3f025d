"""What is computed of the windows of a step, piece by piece, and what of it is summed.

A fit's result may not depend on how many threads or processes computed it. So on the processor
every window is computed alone, by one thread; and what is summed over windows is summed in groups
of ``GROUP``, then group by group, in the order of the batch. Whoever computes some whole groups of
a batch, a piece, gets their sums to the last bit. Pieces give sums per group on the device of the
prototypes; all but the features stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from stages.clustering import measure_clusters

if TYPE_CHECKING:
    from stages.em.pixels import Softmax

GROUP = 8
# Libraries of linear algebra may round differently on memory that begins in mid of a cache line.
_LINE = 64


def apply_windows(
    function: Callable[..., tuple[Tensor, ...]], *batches: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function to every window of batches [window, ...], on the processor one by one.

    It takes a run of windows of every batch, all of them on another device, and gives tensors
    [window, ...].
    """
    if batches[0].device.type != "cpu":
        return function(*batches)
    parts: list[tuple[Tensor, ...]] = [()] * len(batches[0])

    def apply(run: slice) -> None:
        # a thread that is new to torch starts with as many as the environment says
        torch.set_num_threads(1)
        for window in range(run.start, run.stop):
            parts[window] = function(*(_align(batch[window : window + 1]) for batch in batches))

    # numba, which a finished run does without, takes half a second to import
    from stages.em.pixels import map_windows

    with one_thread():
        map_windows(apply, len(parts))
    return tuple(torch.cat(same) for same in zip(*parts, strict=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's own operations use one thread each: with several, their sums round as they do."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _align(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % _LINE == 0 else tensor.clone()


def sum_groups(values: Tensor) -> Tensor:
    """Sum every ``GROUP`` windows: [window, ...] to [group, ...]."""
    return torch.stack([add_in_order(list(group)) for group in values.split(GROUP)])


def add_in_order(values: Sequence[Tensor]) -> Tensor:
    """Add tensors of one shape, the first two first."""
    return reduce(add, values)


@dataclass(frozen=True)
class Prototypes:
    """One prototype per class, its length learned apart from its direction.

    ``direction`` is float32 [class, channel], its own length means nothing; ``norm`` [class, 1].
    """

    direction: Tensor
    norm: Tensor

    def weight(self) -> Tensor:
        """Return float32 [class, channel]: the directions, scaled to their norms."""
        return self.norm * F.normalize(self.direction, dim=1)

    def copy(self) -> Prototypes:
        """Return a copy that shares no memory and needs no gradient."""
        return Prototypes(self.direction.detach().clone(), self.norm.detach().clone())


def make_prototypes(directions: Tensor) -> Prototypes:
    """Start prototypes of norm 1 at the given directions, [class, channel]."""
    return Prototypes(directions.clone(), directions.new_ones(len(directions), 1))


def measure_turn(before: Prototypes, after: Prototypes) -> float:
    """Return the mean angle between the directions of two sets of prototypes, in degrees."""
    one, other = (F.normalize(p.direction.double(), dim=1) for p in (before, after))
    # the chord, for the cosine of a small angle has no digits left for it
    chord = (one - other).norm(dim=1).clamp_max(2)
    return float(torch.rad2deg(2 * torch.asin(chord / 2)).mean())


def update_momentum(
    momentum: Prototypes, running: Prototypes, decay: float, updates: int
) -> Prototypes:
    """Move the momentum prototypes theta_M, updated so often before, towards the running theta_R.

    ``theta_M <- d * theta_M + (1 - d) * theta_R`` for directions and norms (PriMaPs, section 3.2),
    with ``d = min(decay, updates / (updates + 1))``: a plain average until there are enough
    updates, without which the few hundred steps of a small set leave theta_M near the
    initialisation.
    """
    decay = min(decay, updates / (updates + 1))
    return Prototypes(
        torch.lerp(running.direction.detach(), momentum.direction, decay),
        torch.lerp(running.norm.detach(), momentum.norm, decay),
    )


def compute_logits(features: Tensor, weight: Tensor) -> Tensor:
    """Multiply features [window, row, column, channel] by prototypes [class, channel].

    Gives float32 [window, class, row, column]. Up-sampling is linear and so is this, hence logits
    are up-sampled instead of features.
    """
    # prototypes times positions: the other way round the same product takes half as long again
    positions = features.flatten(1, 2).transpose(1, 2)
    return (weight @ positions).unflatten(2, features.shape[1:3])


def compute_weight_gradient(gradient: Tensor, features: Tensor) -> Tensor:
    """Carry a gradient [window, class, row, column] back: to float32 [window, class, channel]."""
    return torch.bmm(gradient.flatten(2), features.flatten(1, 2))


class Pins(NamedTuple):
    """Whose what is known in some windows is: numbers of clusters, 255 where it is free."""

    positions: Tensor  # uint8 [window, row, column]
    proposals: Tensor  # uint8 [window, 256], by the number of the proposal

    def refine(self, rows: int, columns: int) -> Pins:
        """Give every position of another grid what is known of the one that its centre is in."""
        there = self.positions.shape[1:]
        y, x = (find_centres(*each) for each in zip((rows, columns), there, strict=True))
        return self._replace(positions=self.positions[:, y[:, None], x])


def find_centres(count: int, length: int) -> Tensor:
    """Find where the centres of so many equal cells lie among ``length`` others, int64 [cell]."""
    return ((torch.arange(count) + 0.5) * (length / count)).long()


@dataclass(frozen=True)
class FitBatch:
    """The windows of one step, or of a piece of one."""

    # float32 [window, row, column, channel]: what the momentum prototypes see
    features: Tensor
    # uint8 [window, y, x]: 0 = no proposal; None where the method needs none
    proposals: Tensor | None = None
    # what the running prototypes see of the same windows; None: the same
    student: Tensor | None = None
    # None where nothing is known of any window
    pins: Pins | None = None


class Clusters(NamedTuple):
    """Cosine K-means of some windows, summed over them."""

    loss: Tensor  # float64 [group]
    gradient: Tensor  # float32 [group, class, channel], of the directions at unit length
    usage: Tensor  # int64 [class]: positions nearest to each prototype
    windows: int


class Predicted(NamedTuple):
    """Some windows between the two passes of the M-step; it stays where it was computed."""

    seen: Tensor  # float32 [window, row, column, channel]: what the running prototypes saw
    softmax: Softmax  # the first pass
    usage: Tensor  # int64 [class]: labelled pixels of each class
    agreed: Tensor  # int64, a scalar: those of them whose own class is that of their proposal
    home: torch.device  # where its sums go


class Sums(NamedTuple):
    """What a step must know of all its windows before any gradient."""

    softmax: Tensor  # float64 [group, class]
    usage: Tensor  # int64 [class]
    agreed: Tensor  # int64, a scalar
    pixels: int  # of the windows, together


class PieceGradient(NamedTuple):
    """Loss and gradient of some windows, summed over their pixels."""

    loss: Tensor  # float64 [group]
    weight: Tensor  # float32 [group, class, channel]: with respect to the prototypes


def cluster_piece(batch: FitBatch, unit: Tensor) -> Clusters:
    """Compute cosine K-means with prototypes [class, channel] at unit length, and its gradient."""
    here = unit.to(batch.features.device)
    seen = [batch.features.flatten(1, 2)]
    if batch.pins is not None:
        seen.append(batch.pins.positions.flatten(1))
    loss, gradient, usage = apply_windows(
        lambda runs, *pins: measure_clusters(runs, here, *pins), *seen
    )
    home = unit.device
    return Clusters(
        sum_groups(loss.double()).to(home),
        sum_groups(gradient).to(home),
        usage.sum(dim=0).to(home),
        len(batch.features),
    )


def predict_piece(batch: FitBatch, momentum: Tensor, running: Tensor) -> Predicted:
    """Label the proposals by the momentum prototypes, and sum the running ones' softmax."""
    from stages.em.pixels import assign_proposals, sum_probabilities

    if batch.proposals is None:
        raise ValueError("PriMaPs-EM needs proposals")
    device = batch.features.device
    weights = momentum.to(device), running.to(device)
    if batch.student is None:
        # one product reads the features once for both
        teacher, student = _multiply(batch.features, torch.cat(weights)).chunk(2, dim=1)
        seen = batch.features
    else:
        teacher = _multiply(batch.features, weights[0])
        student, seen = _multiply(batch.student, weights[1]), batch.student
    pins = None if batch.pins is None else batch.pins.proposals
    assignment = assign_proposals(teacher, batch.proposals, pins)
    softmax = sum_probabilities(student, assignment.labels)
    return Predicted(seen, softmax, assignment.usage, assignment.agreed, running.device)


def _multiply(features: Tensor, weight: Tensor) -> Tensor:
    (logits,) = apply_windows(lambda windows: (compute_logits(windows, weight),), features)
    return logits


def sum_piece(predicted: Predicted) -> Sums:
    """Sum what the first pass found."""
    return Sums(
        sum_groups(predicted.softmax.sums).to(predicted.home),
        predicted.usage.to(predicted.home),
        predicted.agreed.to(predicted.home),
        predicted.softmax.labels.numel(),
    )


def differentiate_piece(predicted: Predicted, weight: Tensor) -> PieceGradient:
    """Make the second pass, with the step's weights of the classes, float64 [class].

    The gradient is carried back to the prototypes.
    """
    from stages.em.pixels import differentiate

    found = differentiate(predicted.softmax, weight.to(predicted.seen.device))
    (gradient,) = apply_windows(
        lambda logits, seen: (compute_weight_gradient(logits, seen),),
        found.logits,
        predicted.seen,
    )
    home = predicted.home
    return PieceGradient(sum_groups(found.loss).to(home), sum_groups(gradient).to(home))
