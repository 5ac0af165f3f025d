"""How sure the classifier of named classes is: calibrated by fits that did not see the positions.

A classifier judged on the positions that made it is too sure: clusters are not pure, and where they
are not, it has learned to be wrong with them. So a fit keeps its sums fold by fold, a window being
of one fold, and some positions. Whatever the clusters are named, the discriminants of the other
folds then say what those positions are, and how often they say what the names do is how sure they
may be. Nothing but the names is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.discriminants import GAINS, Moments, find_discriminant

FOLDS = 5
# Positions that are kept, at most.
MOST = 8192
# Shares of the positions among which the floor is chosen: nothing is sure beyond the share left.
_FLOORS = tuple(step / 100 for step in range(51))
# The factors on logits that are calibrated for their clusters: 8 to 1/32.
_SCALE = 4


class HeldOut(NamedTuple):
    """What a fit keeps to be judged by: of which fold its proposals are, and some positions."""

    moments: Moments  # [row]: of every proposal
    fold: Tensor  # int64 [row]
    scatters: Tensor  # float64 [fold, channel, channel]: the scatter of every fold
    features: Tensor  # float64 [position, channel]
    rows: Tensor  # int64 [position]: which proposal a position is of

    def list_arrays(self) -> dict[str, tuple[NDArray[Any], tuple[str, ...]]]:
        """List it as arrays with the names of their axes; sums of products need no float64."""
        square = ("fold", "channel", "other channel")
        return {
            "held_fold": (self.fold.numpy().astype(np.uint8), ("unit",)),
            "held_scatter": (self.scatters.float().numpy(), square),
            "held_features": (self.features.half().numpy(), ("position", "channel")),
            "held_unit": (self.rows.numpy().astype(np.int32), ("position",)),
        }

    def leave_out(self, fold: int) -> Moments:
        """Return the sums of all other folds."""
        kept = (self.fold != fold).double()
        others = [n for n in range(len(self.scatters)) if n != fold]
        return replace(
            self.moments,
            count=self.moments.count * kept,
            total=self.moments.total * kept[:, None],
            scatter=self.scatters[others].sum(dim=0),
        )


def read_held(arrays: Mapping[str, NDArray[Any]], moments: Moments) -> HeldOut | None:
    """Read what :meth:`HeldOut.list_arrays` lists; None of a fit that kept nothing."""
    if "held_fold" not in arrays:
        return None
    names = ("fold", "scatter", "features", "unit")
    parts = [torch.from_numpy(np.array(arrays[f"held_{name}"])) for name in names]
    return HeldOut(moments, parts[0].long(), parts[1].double(), parts[2].double(), parts[3].long())


def scatter_folds(centred: Tensor, fold: Tensor) -> Tensor:
    """Sum the outer products of positions, float64 [position, channel], fold by fold.

    ``fold`` is that of every position, int64 [position]; gives [fold, channel, channel].
    """
    mine = (centred[fold == number] for number in range(FOLDS))
    return torch.stack([points.T @ points for points in mine])


class Calibration(NamedTuple):
    """How logits become probabilities that are as sure as they are right.

    One factor on all logits, ``gain``, and a share of the probability, ``floor``, that is spread
    over all classes alike: names of clusters that are not pure are wrong at any distance from a
    border, which no factor says. Neither changes which class is the largest.
    """

    gain: float
    floor: float

    def apply(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits [class, ...]."""
        return (1 - self.floor) * (self.gain * logits).softmax(dim=0) + self.floor / len(logits)


def calibrate(
    held: HeldOut,
    join: Callable[[Moments], Moments],
    numbers: Tensor,
    classes: int,
    *,
    shrinkage: float,
    gain: float,
) -> Calibration | None:
    """Calibrate logits, ``gain`` times those of the discriminants of joined clusters.

    Parameters
    ----------
    held
        What the fit kept.
    join
        Joins sums of proposals to sums of classes.
    numbers
        Class of every proposal, int64 [row]. Positions of those whose class is none of ``classes``
        say nothing.
    classes
        How many classes the logits are of, the first that ``join`` gives.
    shrinkage, gain
        Of the discriminants, and the factor that the logits have already.

    Returns
    -------
    Calibration or None
        The factor and floor of the least Brier score (Brier, "Verification of forecasts expressed
        in terms of probability", 1950) on positions that the discriminants did not see; None where
        no position tells.
    """
    truth, own = numbers[held.rows], held.fold[held.rows]
    logits, places = [], []
    for fold in range(len(held.scatters)):
        rest = held.leave_out(fold)
        mine = torch.nonzero((own == fold) & (truth < classes))[:, 0]
        if not len(mine) or not rest.count.sum():
            continue
        moments = join(rest)
        found = find_discriminant(moments, shrinkage=shrinkage)
        # a class that no other fold has cannot be found
        mine = mine[moments.count[truth[mine]] > 0]
        logits.append(found.classify(held.features[mine])[:, :classes])
        places.append(mine)
    if not sum(map(len, places)):
        return None
    return _fit(gain * torch.cat(logits), truth[torch.cat(places)])


def _fit(logits: Tensor, truth: Tensor) -> Calibration:
    """Find the gain and the floor of the least Brier score, logits [position, class]."""
    classes = logits.shape[1]
    best = (torch.inf, Calibration(1.0, 0.0))
    for gain in GAINS:
        each = _SCALE * gain
        p = (each * logits).softmax(dim=1)
        square, own = float(p.square().sum(1).mean()), float(p.gather(1, truth[:, None]).mean())
        for floor in _FLOORS:
            # of q = (1 - floor) p + floor / classes: the mean of |q|^2 - 2 q_truth + 1
            keep = 1 - floor
            norm = keep**2 * square + (1 - keep**2) / classes
            score = norm - 2 * (keep * own + floor / classes) + 1
            best = min(best, (score, Calibration(each, floor)))
    return best[1]


# Levels at which confidences are counted: shares of 2.5 %.
LEVELS = 40


def count_levels(
    probability: Tensor, labels: NDArray[np.uint8], truth: NDArray[np.uint8] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count labels and their true classes, both uint8 [y, x], by how sure the labels are.

    ``probability`` is float32 [class, y, x]. Gives what occurs, (level * 256 + label) * 256 +
    class, 255 where none is known, and how often.
    """
    sure = take_labelled(probability, labels).numpy()
    level = np.minimum(sure * LEVELS, LEVELS - 1).astype(np.int64)
    known = np.full_like(labels, 255) if truth is None else truth
    codes = (level * 256 + labels) * 256 + known
    counts = np.bincount(codes.ravel(), minlength=LEVELS * 2**16)
    found = np.flatnonzero(counts)
    return found, counts[found]


def take_labelled(probability: Tensor, labels: NDArray[np.uint8]) -> Tensor:
    """Take the probability, [class, y, x], of the class of every pixel's label: [y, x]."""
    index = torch.from_numpy(labels.astype(np.int64)).clamp_max(len(probability) - 1)
    return probability.gather(0, index[None])[0]
