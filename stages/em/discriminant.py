"""Linear discriminants: from sums over labelled positions to one weight vector and bias a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# The logit of a class that has no position: it never wins, and its softmax is still a number.
_NEVER = -1e6
# Variance that every channel has at least, as a share of the mean squared feature: features that
# do not vary at all (a constant image) are told apart by their classes' frequencies only.
_FLOOR = 1e-9
# Factors on the logits among which the calibration chooses: 2 to 1/128, a quarter octave apart.
GAINS = tuple(2.0 ** (1 - step / 4) for step in range(33))


@dataclass(frozen=True)
class Moments:
    """Sums over labelled positions; those of parts of the data add up.

    Attributes
    ----------
    origin
        float64 [channel]: the point that features are taken relative to. Sums about a point near
        the mean lose no digits.
    count
        float64 [class]: positions of each class.
    total
        float64 [class, channel]: sum of the features of each class.
    scatter
        float64 [channel, channel]: sum of the outer products of all features.
    """

    origin: Tensor
    count: Tensor
    total: Tensor
    scatter: Tensor


@dataclass(frozen=True)
class Discriminant:
    """A linear classifier: logits = weight @ feature + bias.

    Attributes
    ----------
    weight
        float64 [class, channel].
    bias
        float64 [class].
    """

    weight: Tensor
    bias: Tensor

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits of float64 [..., channel], float64 [..., class]."""
        return features @ self.weight.T + self.bias

    def take(self, order: Tensor) -> Discriminant:
        """Return the classes in another order, int64 [class]."""
        return Discriminant(self.weight[order], self.bias[order])

    def scale(self, gain: float) -> Discriminant:
        """Return the classifier whose logits are ``gain`` times as large."""
        return Discriminant(gain * self.weight, gain * self.bias)


def start_moments(origin: Tensor, classes: int) -> Moments:
    """Return the moments of no position about an origin, float64 [channel]."""
    channels = len(origin)
    return Moments(
        origin,
        origin.new_zeros(classes),
        origin.new_zeros(classes, channels),
        origin.new_zeros(channels, channels),
    )


def add_positions(moments: Moments, features: Tensor, labels: Tensor) -> Moments:
    """Add labelled positions.

    Parameters
    ----------
    moments
        What there is already.
    features
        float64 [position, channel].
    labels
        int64 [position]: a class each.
    """
    centred = features - moments.origin
    members = F.one_hot(labels, len(moments.count)).to(centred.dtype)
    return Moments(
        moments.origin,
        moments.count + members.sum(dim=0),
        moments.total + members.T @ centred,
        moments.scatter + centred.T @ centred,
    )


def find_discriminant(moments: Moments, *, shrinkage: float) -> Discriminant:
    """Find the classifier of Gaussian classes that share one covariance.

    With the means m_k, the shares p_k and the covariance S within the classes, shrunk towards a
    multiple of the identity, the log-posterior is linear up to a constant of the position (Fisher,
    1936; Friedman, "Regularized discriminant analysis", 1989): w_k = S^-1 m_k and
    b_k = log p_k - 1/2 m_k' S^-1 m_k. Directions in which positions of one class vary, such as
    where in the image they lie, count less than those in which classes differ.

    Parameters
    ----------
    moments
        Of at least one position.
    shrinkage
        Share of the identity in the covariance, in [0, 1]; its scale is the mean variance.

    Returns
    -------
    Discriminant
        Relative to 0, not to ``moments.origin``. A class without positions never wins.
    """
    count, positions = moments.count, moments.count.sum()
    means = moments.total / count.clamp_min(1)[:, None]
    within = (moments.scatter - (means.T * count) @ means) / positions
    variance = within.diagonal().mean().clamp_min(0)
    identity = torch.eye(len(within), dtype=within.dtype)
    floor = (_FLOOR * _mean_square(moments)).clamp_min(torch.finfo(within.dtype).tiny)
    shrunk = (1 - shrinkage) * within + (shrinkage * variance + floor) * identity
    weight = torch.linalg.solve(shrunk, means.T).T
    bias = (count / positions).log() - (weight * means).sum(dim=1) / 2 - weight @ moments.origin
    return Discriminant(weight, torch.where(count > 0, bias, _NEVER))


def measure_gains(logits: Tensor, labels: Tensor) -> Tensor:
    """Measure how well the logits tell the labels of positions at each of ``GAINS``.

    Neighbouring positions are much alike, so Gaussian classes, which take them as independent
    draws, are several times too sure. One factor on all logits, that under which the labels are
    likeliest, mends that and moves no border (Guo et al., "On calibration of modern neural
    networks", 2017).

    Parameters
    ----------
    logits
        float64 [position, class].
    labels
        int64 [position].

    Returns
    -------
    Tensor
        float64 [gain]: minus the summed log-likelihood; those of parts of the data add up.
    """
    own = logits.gather(1, labels[:, None]).sum()
    return torch.stack([(gain * logits).logsumexp(dim=1).sum() - gain * own for gain in GAINS])


def _mean_square(moments: Moments) -> Tensor:
    """Return the mean squared feature, over positions and channels, relative to 0."""
    across = moments.scatter.diagonal() + 2 * moments.origin * moments.total.sum(dim=0)
    return (moments.origin.square() + across / moments.count.sum()).mean()
