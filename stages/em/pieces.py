"""What is computed of the windows of a step, piece by piece, and what of it is summed.

Every function here takes some whole groups of a step's windows (see ``stages.em.pieces``) and gives
sums per group, on the device of the prototypes that it was given. All but the features stay small.

Windows one by one, and sums over them in a fixed order.

A fit's result may not depend on how many threads or processes computed it. So on the processor
every window is computed alone, by one thread, wherever the windows beside it are; and what is
summed over windows is summed in groups of ``GROUP``, then group by group, in the order of the
batch. Whoever computes some whole groups of a batch gets their sums to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from stages.clustering import measure_clusters
from stages.em.expectation import assign_proposals
from stages.em.interpolation import map_windows
from stages.em.maximisation import Softmax, differentiate, sum_probabilities
from stages.em.prototypes import compute_logits, compute_weight_gradient

GROUP = 8
# Libraries of linear algebra may round differently on memory that begins in mid of a cache line.
_LINE = 64


def apply_windows(
    function: Callable[..., tuple[Tensor, ...]], *batches: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function to every window of a batch, on the processor one by one.

    Parameters
    ----------
    function
        Takes a run of windows of every batch, gives tensors [window, ...].
    *batches
        [window, ...], all of as many windows. On another device the function gets them whole.

    Returns
    -------
    tuple of Tensor
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
class FitBatch:
    """The windows of one step, or of a piece of one.

    Attributes
    ----------
    features
        float32 [window, row, column, channel]: what the momentum prototypes see.
    proposals
        uint8 [window, y, x]; None where the method needs none.
    student
        The same windows as the running prototypes see them; None: as the momentum prototypes do.
    """

    features: Tensor
    proposals: Tensor | None = None
    student: Tensor | None = None


@dataclass(frozen=True)
class Clusters:
    """Cosine K-means of some windows.

    Attributes
    ----------
    loss
        float64 [group]: summed over the windows.
    gradient
        float32 [group, class, channel]: of that, with respect to the directions at unit length.
    usage
        int64 [class]: positions nearest to each prototype.
    windows
        How many.
    """

    loss: Tensor
    gradient: Tensor
    usage: Tensor
    windows: int


@dataclass(frozen=True)
class Predicted:
    """Some windows between the two passes of the M-step; it stays where it was computed.

    Attributes
    ----------
    seen
        float32 [window, row, column, channel]: what the running prototypes saw.
    softmax
        The first pass.
    usage
        int64 [class]: labelled pixels of each class.
    agreed
        int64, a scalar: those of them whose own class is that of their proposal.
    home
        Where its sums go.
    """

    seen: Tensor
    softmax: Softmax
    usage: Tensor
    agreed: Tensor
    home: torch.device


@dataclass(frozen=True)
class Sums:
    """What a step must know of all its windows before any gradient.

    Attributes
    ----------
    softmax
        float64 [group, class].
    usage
        int64 [class].
    agreed
        int64, a scalar.
    pixels
        Of the windows, together.
    """

    softmax: Tensor
    usage: Tensor
    agreed: Tensor
    pixels: int


@dataclass(frozen=True)
class PieceGradient:
    """Loss and gradient of some windows, summed over their pixels.

    Attributes
    ----------
    loss
        float64 [group].
    weight
        float32 [group, class, channel]: with respect to the prototypes.
    """

    loss: Tensor
    weight: Tensor


def cluster_piece(batch: FitBatch, unit: Tensor) -> Clusters:
    """Compute the loss of cosine K-means, its gradient, and the usage of the prototypes.

    Parameters
    ----------
    batch
        The windows.
    unit
        float32 [class, channel] at unit length.
    """
    here = unit.to(batch.features.device)
    loss, gradient, usage = apply_windows(
        lambda runs: measure_clusters(runs, here), batch.features.flatten(1, 2)
    )
    home = unit.device
    return Clusters(
        sum_groups(loss.double()).to(home),
        sum_groups(gradient).to(home),
        usage.sum(dim=0).to(home),
        len(batch.features),
    )


def predict_piece(batch: FitBatch, momentum: Tensor, running: Tensor) -> Predicted:
    """Label the proposals by the momentum prototypes, and sum the running ones' softmax.

    Parameters
    ----------
    batch
        The windows, with proposals.
    momentum, running
        float32 [class, channel].
    """
    if batch.proposals is None:
        raise ValueError("PriMaPs-EM needs proposals")
    device = batch.features.device
    weights = momentum.to(device), running.to(device)
    if batch.student is None:
        # one product reads the features once for both
        teacher, student = multiply(batch.features, torch.cat(weights)).chunk(2, dim=1)
        seen = batch.features
    else:
        teacher, student = multiply(batch.features, weights[0]), multiply(batch.student, weights[1])
        seen = batch.student
    assignment = assign_proposals(teacher, batch.proposals)
    softmax = sum_probabilities(student, assignment.labels)
    return Predicted(seen, softmax, assignment.usage, assignment.agreed, running.device)


def sum_piece(predicted: Predicted) -> Sums:
    """Sum what the first pass found."""
    return Sums(
        sum_groups(predicted.softmax.sums).to(predicted.home),
        predicted.usage.to(predicted.home),
        predicted.agreed.to(predicted.home),
        predicted.softmax.labels.numel(),
    )


def differentiate_piece(predicted: Predicted, weight: Tensor) -> PieceGradient:
    """Make the second pass, and carry the gradient back to the prototypes.

    Parameters
    ----------
    predicted
        The windows after the first pass.
    weight
        float64 [class]: of the step (see :func:`stages.em.maximisation.weigh_classes`).
    """
    found = differentiate(predicted.softmax, weight.to(predicted.seen.device))
    (gradient,) = apply_windows(
        lambda logits, seen: (compute_weight_gradient(logits, seen),),
        found.logits,
        predicted.seen,
    )
    home = predicted.home
    return PieceGradient(sum_groups(found.loss).to(home), sum_groups(gradient).to(home))


def multiply(features: Tensor, weight: Tensor) -> Tensor:
    """Multiply features by prototypes (see ``compute_logits``), window by window.

    Parameters
    ----------
    features
        float32 [window, row, column, channel].
    weight
        float32 [class, channel].

    Returns
    -------
    Tensor
        float32 [window, class, row, column].
    """
    (logits,) = apply_windows(lambda windows: (compute_logits(windows, weight),), features)
    return logits
