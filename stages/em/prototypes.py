"""Class prototypes: a direction with a norm per class, and the logits they give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class Prototypes:
    """One prototype per class, its length learned apart from its direction.

    Attributes
    ----------
    direction
        float32 [class, channel]; its own length means nothing.
    norm
        float32 [class, 1].
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


def compute_logits(features: Tensor, weight: Tensor) -> Tensor:
    """Multiply features by prototypes.

    Up-sampling is linear and so is this, hence logits are up-sampled instead of features.

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
    # prototypes times positions: the other way round the same product takes half as long again
    positions = features.flatten(1, 2).transpose(1, 2)
    return (weight @ positions).unflatten(2, features.shape[1:3])


def compute_weight_gradient(gradient: Tensor, features: Tensor) -> Tensor:
    """Carry a gradient from the logits back to the prototypes, window by window.

    Parameters
    ----------
    gradient
        float32 [window, class, row, column]: with respect to the logits.
    features
        float32 [window, row, column, channel] that they were computed from.

    Returns
    -------
    Tensor
        float32 [window, class, channel].
    """
    return torch.bmm(gradient.flatten(2), features.flatten(1, 2))


def update_momentum(
    momentum: Prototypes, running: Prototypes, decay: float, updates: int
) -> Prototypes:
    """Move the momentum prototypes towards the running ones.

    ``theta_M <- d * theta_M + (1 - d) * theta_R`` for directions and norms (PriMaPs, section 3.2),
    with ``d = min(decay, updates / (updates + 1))``: a plain average until there are enough updates
    for the exponential one. The authors' code warms up in the same way; without it the few hundred
    steps of a small set leave theta_M near the initialisation.

    Parameters
    ----------
    momentum, running
        theta_M and theta_R.
    decay
        Final decay, in [0, 1).
    updates
        How many updates theta_M has had; the first copies theta_R.
    """
    decay = min(decay, updates / (updates + 1))
    return Prototypes(
        torch.lerp(running.direction.detach(), momentum.direction, decay),
        torch.lerp(running.norm.detach(), momentum.norm, decay),
    )
