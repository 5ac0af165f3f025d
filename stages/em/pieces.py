"""What is computed of the windows of a step, piece by piece, and what of it is summed.

Every function here takes some whole groups of a step's windows (see ``stages.em.groups``) and gives
sums per group, on the device of the prototypes that it was given. All but the features stay small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.clustering import measure_clusters
from stages.em.assignment import assign_proposals
from stages.em.groups import apply_windows, sum_groups
from stages.em.prototypes import compute_logits, compute_weight_gradient
from stages.em.updates import Softmax, differentiate, sum_probabilities


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
        float64 [class]: of the step (see :func:`stages.em.updates.weigh_classes`).
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
