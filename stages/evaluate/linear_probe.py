"""The linear probe: the best linear classifier of the features, given the labels.

It bounds from above what any choice of prototypes can reach on the same features. As in STEGO its
logits are up-sampled bilinearly before they meet the labels, because that is how they are used; but
to a few points in each cell of the grid, with the pixels that lie around each, instead of to every
pixel. That changes the scores little and makes the problem so small that it need not be left to a
number of steps of Adam: it is convex, and L-BFGS solves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from torch import Tensor

from pipeline.datasets import IGNORE

# From strong to weak. Which is best depends on how many images and classes there are: 0.1 on 80
# images of COCO-Stuff, 0.001 on 74 of CamVid; 0.01 loses one to four points of mIoU on both.
DECAYS = (1.0, 0.1, 0.01, 0.001, 0.0001)
DEFAULT_DECAY = 0.01
STEPS = 300
# Of the loss, relative; a hundredth of it moves no score by half a point. To compare decays on the
# way there, ten times as much is good enough.
_TOLERANCE = 1e-5
_ROUGH = 1e-4
_HISTORY = 20
# The bias of a class that was never seen, in place of minus infinity, which interpolation would
# turn into NaN.
NEVER = -1e6

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier with bias.

    Attributes
    ----------
    weight
        float32 [class, channel], of features as they are cached.
    bias
        float32 [class].
    decay
        The weight decay that it was trained with.
    loss
        Mean cross entropy of the pixels that it was trained on, nats.
    steps
        Steps of the solver.
    """

    weight: Tensor
    bias: Tensor
    decay: float
    loss: float
    steps: int


@dataclass(frozen=True)
class ChannelScale:
    """Mean and spread of the features, float64 [channel] each; the spread is never 0."""

    mean: Tensor
    spread: Tensor


def count_labels(labels: NDArray[np.uint8], grid: tuple[int, int]) -> csr_array:
    """Count the pixels of every label in the cells of a grid.

    Parameters
    ----------
    labels
        uint8 [window, y, x]; 255 = ignore.
    grid
        Rows and columns; cells differ by a pixel where the sides are no multiples of them.

    Returns
    -------
    scipy.sparse.csr_array
        float32 [window * row * column, label], 255 labels.
    """
    windows, height, width = labels.shape
    rows, columns = grid
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    cell = (np.arange(windows)[:, None, None] * rows + row[:, None]) * columns + column
    valid = labels != IGNORE
    found, counts = np.unique(cell[valid] * IGNORE + labels[valid], return_counts=True)
    shape = (windows * rows * columns, IGNORE)
    return csr_array((counts.astype(np.float32), np.divmod(found, IGNORE)), shape=shape)


def choose_linear_probe(
    read_all: Batches, read_train: Batches, read_held: Batches, classes: int
) -> LinearProbe:
    """Fit a linear probe with the weight decay that predicts held-out images best.

    Parameters
    ----------
    read_all
        All data, as of :func:`fit_linear_probe`.
    read_train, read_held
        Its two parts, both with labelled pixels.
    classes
        Number of classes.
    """
    best, most, worse = None, -1.0, 0
    probe = None
    for decay in DECAYS:
        probe = fit_linear_probe(read_train, classes, decay=decay, start=probe, tolerance=_ROUGH)
        accuracy = measure_accuracy(read_held(), probe)
        if accuracy > most:
            best, most, worse = probe, accuracy, 0
        else:
            worse += 1
        if worse == 2:
            break
    assert best is not None
    return fit_linear_probe(read_all, classes, decay=best.decay, start=best)


def fit_linear_probe(
    read_batches: Batches,
    classes: int,
    *,
    decay: float = DEFAULT_DECAY,
    start: LinearProbe | None = None,
    steps: int = STEPS,
    tolerance: float = _TOLERANCE,
) -> LinearProbe:
    """Fit a multinomial logistic regression with up-sampled logits.

    Parameters
    ----------
    read_batches
        Called for every look at the data, which is never in memory as a whole. Gives features,
        float [window, row, column, channel], and counts, float [window, class, y, x]: the labelled
        pixels of each class around the points to which the logits are up-sampled.
    classes
        Number of classes, each of which occurs.
    decay
        Weight of half the squared norm of the weights on standardised features, beside the mean
        cross entropy of a pixel; the bias is free.
    start
        Where to begin; at 0 when None. It changes the time, and the result by the tolerance.
    steps
        Most steps of the solver.
    tolerance
        Relative change of the objective at which it ends.

    Returns
    -------
    LinearProbe
        On the device of the features. The same data in the same batches give the same bytes.

    Raises
    ------
    ValueError
        No pixel is labelled.

    References
    ----------
    Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989; scipy
    solves it.
    """
    scale, pixels = measure_channels(read_batches())

    def evaluate(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        table = torch.from_numpy(parameters.reshape(classes, -1))
        loss, gradient = 0.0, np.zeros(tuple(table.shape))
        for features, counts in read_batches():
            now = table.to(features)
            standard = (features - scale.mean.to(features)) / scale.spread.to(features)
            part, slope, shift = differentiate(now[:, :-1], now[:, -1], standard, counts)
            loss += part
            gradient[:, :-1] += slope.double().cpu().numpy()
            gradient[:, -1] += shift.double().cpu().numpy()
        weight = parameters.reshape(gradient.shape)[:, :-1]
        gradient /= pixels
        gradient[:, :-1] += decay * weight
        return loss / pixels + decay / 2 * float((weight**2).sum()), gradient.ravel()

    found = minimize(
        evaluate,
        _pack(start, scale, classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxcor": _HISTORY, "ftol": tolerance, "gtol": tolerance / 10},
    )
    table = torch.from_numpy(found.x.reshape(classes, -1)).to(scale.mean)
    weight = table[:, :-1] / scale.spread
    bias = table[:, -1] - weight @ scale.mean
    loss = float(found.fun) - decay / 2 * float(table[:, :-1].square().sum())
    return LinearProbe(weight.float(), bias.float(), decay, loss, int(found.nit))


def _pack(start: LinearProbe | None, scale: ChannelScale, classes: int) -> NDArray[np.float64]:
    if start is None:
        return np.zeros(classes * (len(scale.mean) + 1))
    weight = start.weight.double()
    bias = start.bias.double() + weight @ scale.mean
    packed = torch.cat([weight * scale.spread, bias[:, None]], dim=1)
    return packed.cpu().numpy().ravel()


def measure_channels(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[ChannelScale, float]:
    """Measure the channels over the labelled pixels, each with the features of its cell.

    Parameters
    ----------
    batches
        As of :func:`fit_linear_probe`.

    Returns
    -------
    scale
        Mean and standard deviation; 1 instead of this where a channel is constant.
    pixels
        Number of labelled pixels.

    Raises
    ------
    ValueError
        There is none.
    """
    first = second = None
    pixels = 0.0
    for features, counts in batches:
        weight = _pool(counts.sum(dim=1), features.shape[1:3]).double().flatten()
        values = features.double().flatten(0, 2)
        pixels += float(weight.sum())
        one, two = weight @ values, weight @ values.square()
        first = one if first is None else first + one
        second = two if second is None else second + two
    if first is None or second is None or not pixels:
        raise ValueError("no pixel is labelled")
    mean, power = first / pixels, second / pixels
    variance = power - mean.square()
    # rounding leaves a constant channel some variance, or a negative one
    constant = variance <= 1e-12 * power
    return ChannelScale(mean, torch.where(constant, 1.0, variance.clamp_min(0).sqrt())), pixels


def _pool(values: Tensor, grid: Sequence[int]) -> Tensor:
    """Sum [window, y, x] over the cells of a grid whose sides divide it."""
    rows, columns = grid
    return values.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).sum(dim=(2, 4))


def differentiate(
    weight: Tensor, bias: Tensor, features: Tensor, counts: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Compute the summed cross entropy of some windows, and its gradient.

    Parameters
    ----------
    weight
        float [class, channel].
    bias
        float [class].
    features
        float [window, row, column, channel].
    counts
        float [window, class, y, x]: pixels of each class around every point.

    Returns
    -------
    loss
        Sum over the pixels, nats.
    slope, shift
        Gradients with respect to weight and bias, of their shapes.
    """
    down, across = _make_spreads(features, counts)
    log_probability = _enlarge(weight, bias, features, down, across).log_softmax(dim=1)
    loss = -float((counts * log_probability).sum(dtype=torch.float64))
    residual = counts.sum(dim=1, keepdim=True) * log_probability.exp() - counts
    grid = (down.T @ residual @ across).permute(1, 0, 2, 3).flatten(1)
    return loss, grid @ features.flatten(0, 2), grid.sum(dim=1)


def measure_accuracy(batches: Iterable[tuple[Tensor, Tensor]], probe: LinearProbe) -> float:
    """Return the share of the labelled pixels whose class is the most likely one."""
    right = pixels = 0.0
    for features, counts in batches:
        down, across = _make_spreads(features, counts)
        weight, bias = probe.weight.to(features), probe.bias.to(features)
        winner = _enlarge(weight, bias, features, down, across).argmax(dim=1, keepdim=True)
        right += float(counts.gather(1, winner).sum(dtype=torch.float64))
        pixels += float(counts.sum(dtype=torch.float64))
    return right / pixels


def _enlarge(
    weight: Tensor, bias: Tensor, features: Tensor, down: Tensor, across: Tensor
) -> Tensor:
    """Compute logits and up-sample them, [window, class, y, x]."""
    grid = torch.addmm(bias, features.flatten(0, 2), weight.T)
    grid = grid.unflatten(0, features.shape[:3]).permute(0, 3, 1, 2)
    return down @ grid @ across.T


def _make_spreads(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Make the matrices of bilinear up-sampling, [y, row] and [x, column].

    As matrices, their transposes take gradients back, in one order of summation on any device.
    """

    def spread(length: int, wanted: int) -> Tensor:
        unit = torch.eye(length, dtype=features.dtype, device=features.device)
        return F.interpolate(unit[None], wanted, mode="linear", align_corners=False)[0].T

    rows, columns = features.shape[1:3]
    return spread(rows, counts.shape[2]), spread(columns, counts.shape[3])


def spread_classes(probe: LinearProbe, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Give every label below the largest a row; those never seen get one that never wins.

    Parameters
    ----------
    probe
        With one row per label that occurs.
    labels
        Those labels, int64 [class], ascending.

    Returns
    -------
    weight, bias
        float32 [label, channel] and [label].
    """
    rows = torch.from_numpy(labels).to(probe.weight.device)
    count = int(labels.max()) + 1
    weight = probe.weight.new_zeros(count, probe.weight.shape[1])
    bias = probe.bias.new_full((count,), NEVER)
    weight[rows], bias[rows] = probe.weight, probe.bias
    return weight, bias
