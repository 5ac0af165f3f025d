"""Linear discriminants: Gaussian classes of features that share one covariance, from sums that add.

A fit keeps the sums of its clusters: to join clusters into classes is then to add rows, and no
feature is read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

# The logit of a class that has no position: it never wins, and its softmax is still a number.
_NEVER = -1e6
# Variance that every channel has at least, as a share of the mean squared feature: features that
# do not vary at all (a constant image) are told apart by their classes' frequencies only.
_FLOOR = 1e-9
# Factors on the logits among which the calibration chooses: 2 to 1/128, a quarter octave apart.
GAINS = tuple(2.0 ** (1 - step / 4) for step in range(33))


@dataclass
class Moments:
    """Sums over labelled positions, in float64, relative to an origin [channel].

    About a point near the mean no digits are lost.
    """

    origin: Tensor
    count: Tensor  # [class]: positions of each class
    total: Tensor  # [class, channel]: sum of the features of each class
    scatter: Tensor  # [channel, channel]: sum of the outer products of all features

    @classmethod
    def make_empty(cls, origin: Tensor, classes: int) -> Moments:
        """Return sums of nothing."""
        channels = len(origin)
        shapes = (classes,), (classes, channels), (channels, channels)
        return cls(origin, *(origin.new_zeros(shape) for shape in shapes))

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Moments:
        """Read what :meth:`list_arrays` listed under a name."""
        parts = ("origin", "count", "total", "scatter")
        return cls(*(torch.from_numpy(np.array(arrays[f"{name}_{part}"])) for part in parts))

    def list_arrays(self, name: str, axis: str) -> dict[str, tuple[NDArray[Any], tuple[str, ...]]]:
        """List them as arrays with the names of their axes; ``axis`` is that of the classes."""
        return {
            f"{name}_origin": (self.origin.numpy(), ("channel",)),
            f"{name}_count": (self.count.numpy(), (axis,)),
            f"{name}_total": (self.total.numpy(), (axis, "channel")),
            f"{name}_scatter": (self.scatter.numpy(), ("channel", "other channel")),
        }

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add positions, float64 [position, channel], with a class each, int64 [position]."""
        centred = features - self.origin
        members = F.one_hot(labels, len(self.count)).to(centred.dtype)
        self.count += members.sum(dim=0)
        self.total += members.T @ centred
        self.scatter += centred.T @ centred

    def take(self, order: Tensor) -> Moments:
        """Return the moments of the same positions, their classes in another order."""
        return replace(self, count=self.count[order], total=self.total[order])

    def join(self, groups: Sequence[int], classes: int) -> Moments:
        """Join classes: class k becomes part of class ``groups[k]`` of so many."""
        index = torch.tensor(groups, dtype=torch.int64)
        count = self.count.new_zeros(classes).index_add_(0, index, self.count)
        total = self.total.new_zeros(classes, len(self.origin)).index_add_(0, index, self.total)
        return replace(self, count=count, total=total)

    def weigh(self, weight: float) -> Moments:
        """Return the moments of positions that count for so many each."""
        sums = (weight * getattr(self, n) for n in ("count", "total", "scatter"))
        return Moments(self.origin, *sums)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both together; they have one origin and the same classes."""
        sums = (getattr(self, n) + getattr(other, n) for n in ("count", "total", "scatter"))
        return Moments(self.origin, *sums)


class Discriminant(NamedTuple):
    """A linear classifier in float64: logits = weight [class, channel] @ feature + bias [class]."""

    weight: Tensor
    bias: Tensor

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits of features [..., channel], [..., class]."""
        return features @ self.weight.T + self.bias


def find_discriminant(moments: Moments, *, shrinkage: float) -> Discriminant:
    """Find the classifier of Gaussian classes that share one covariance.

    With the means m_k, the shares p_k and the covariance S within the classes, shrunk towards a
    multiple of the identity, the log-posterior is linear up to a constant of the position (Fisher,
    1936; Friedman, "Regularized discriminant analysis", 1989): w_k = S^-1 m_k and b_k = log p_k -
    1/2 m_k' S^-1 m_k.

    ``shrinkage`` is the share of the identity, whose scale is the mean variance. The classifier is
    relative to 0, not to ``moments.origin``; a class without positions never wins.
    """
    count, positions = moments.count, moments.count.sum()
    means = moments.total / count.clamp_min(1)[:, None]
    within = (moments.scatter - (means.T * count) @ means) / positions
    variance = within.diagonal().mean().clamp_min(0)
    identity = torch.eye(len(within), dtype=within.dtype)
    # the mean squared feature, over positions and channels, relative to 0
    across = moments.scatter.diagonal() + 2 * moments.origin * moments.total.sum(dim=0)
    square = (moments.origin.square() + across / positions).mean()
    floor = (_FLOOR * square).clamp_min(torch.finfo(within.dtype).tiny)
    shrunk = (1 - shrinkage) * within + (shrinkage * variance + floor) * identity
    weight = torch.linalg.solve(shrunk, means.T).T
    bias = (count / positions).log() - (weight * means).sum(dim=1) / 2 - weight @ moments.origin
    return Discriminant(weight, torch.where(count > 0, bias, _NEVER))


def measure_gains(logits: Tensor, labels: Tensor) -> Tensor:
    """Measure how well logits [position, class] tell the labels [position], at each of ``GAINS``.

    Gives float64 [gain]: minus the summed log-likelihood. Gaussian classes take neighbouring
    positions as independent draws, and are several times too sure: one factor on all logits mends
    that and moves no border (Guo et al., "On calibration of modern neural networks", 2017).
    """
    own = logits.gather(1, labels[:, None]).sum()
    return torch.stack([(gain * logits).logsumexp(dim=1).sum() - gain * own for gain in GAINS])
