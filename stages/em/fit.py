"""The fit: PCA start, K-means, PriMaPs-EM, epoch by epoch over streamed batches.

Where prototypes start: the principal directions of a sample of features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.compute.scheduler import INLINE, Team
from stages.em.maximisation import weigh_classes
from stages.em.pieces import (
    GROUP,
    add_in_order,
    apply_windows,
    cluster_piece,
    differentiate_piece,
    one_thread,
    predict_piece,
    sum_piece,
)
from stages.em.prototypes import Prototypes, make_prototypes, measure_turn, update_momentum
from stages.em.settings import EmSettings

# The blocks of a sample, or pieces of a team that give them.
ReadSample = Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Moments:
    """Moments of some positions, in float64.

    Attributes
    ----------
    count
        Number of positions.
    mean
        [channel].
    scatter
        [channel, channel]: sum of the products of the differences from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor


def find_initial_directions(read_sample: ReadSample, classes: int, team: Team = INLINE) -> Tensor:
    """Find the first principal directions of a stream of features.

    A prototype is compared by cosine, so it uses one end of its axis only, and a principal
    direction does not say which. The end with the longer tail (positive skewness of the
    projections) is taken: there lies a group far from the mean, at the other end the bulk that all
    directions share.

    Parameters
    ----------
    read_sample
        Gives the features, float [..., channel], in any number of blocks, the same ones at each of
        its two calls; no block is kept. The first axis of a block of three or more is the window.
    classes
        Number of directions K.
    team
        Who sums over the blocks; the sums are added in their order.

    Returns
    -------
    Tensor
        float32 [class, channel], orthonormal, by falling variance.

    Raises
    ------
    ValueError
        There are no features, or fewer channels than classes.
    """
    # a worker's device is not this process's
    home = torch.device("cpu") if team.remote else None
    moments: Moments | None = None
    for block in team.stream(measure_moments, read_sample(), home):
        moments = block if moments is None else merge_moments(moments, block)
    if moments is None:
        raise ValueError("no features to take principal directions of")
    mean = moments.mean
    if classes > len(mean):
        raise ValueError(f"{classes} classes need as many channels, there are {len(mean)}")
    with one_thread():
        _, vectors = torch.linalg.eigh(moments.scatter / moments.count)
    directions = vectors.T.flip(0)[:classes]
    skewness = torch.zeros(classes, dtype=torch.float64, device=mean.device)
    for tail in team.stream(measure_skewness, read_sample(), mean, directions):
        skewness += tail
    signs = torch.where(skewness < 0, -1.0, 1.0)
    return (directions * signs[:, None]).float()


def measure_moments(block: Tensor, home: torch.device | None = None) -> Moments:
    """Measure the moments of one block, [..., channel]; they stay on its device, or go home."""
    runs = _list_windows(block)
    # sums about a point near the mean lose no digits when they are centred at the end
    origin = runs[0].mean(dim=0, dtype=torch.float64)

    def multiply(windows: Tensor) -> tuple[Tensor, Tensor]:
        # a difference from float64 is float64 at once, without a copy of the block in between
        apart = windows - origin
        return apart.sum(dim=1), torch.bmm(apart.transpose(1, 2), apart)

    count = runs.shape[0] * runs.shape[1]
    total, scatter = origin.new_zeros(len(origin)), origin.new_zeros(len(origin), len(origin))
    # a square matrix per window: not those of all at once
    for group in runs.split(GROUP):
        sums, products = apply_windows(multiply, group)
        total += add_in_order(list(sums))
        scatter += add_in_order(list(products))
    shift = total / count
    scatter -= count * torch.outer(shift, shift)
    return Moments(count, (origin + shift).to(home), scatter.to(home))


def merge_moments(one: Moments, other: Moments) -> Moments:
    """Return the moments of both together (Chan, Golub & LeVeque, 1979)."""
    count = one.count + other.count
    step = other.mean - one.mean
    between = torch.outer(step, step) * (one.count * other.count / count)
    return Moments(
        count, one.mean + step * (other.count / count), one.scatter + other.scatter + between
    )


def measure_skewness(block: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Sum the cubes of one block's projections, float64 [class]."""
    origin, axes = mean.to(block.device), directions.T.to(block.device)

    def project(windows: Tensor) -> tuple[Tensor]:
        return (((windows - origin) @ axes).pow(3).sum(dim=1),)

    (tails,) = apply_windows(project, _list_windows(block))
    return add_in_order(list(tails)).to(mean.device)


def _list_windows(block: Tensor) -> Tensor:
    """Lay out a block as [window, position, channel]."""
    return block.flatten(1, -2) if block.ndim > 2 else block[None]


# The windows of one step: batches (``stages.em.pieces.FitBatch``) of whole groups, or pieces of a
# team that give them.
Step = Sequence[Any]
ReadEpoch = Callable[[int], Iterable[Step]]


@dataclass
class FitState:
    """All that a fit needs to go on after any epoch.

    Attributes
    ----------
    running, momentum, initial
        theta_R, theta_M, and where both started.
    moments
        Adam's step count and first and second moments of direction and norm.
    epoch
        Finished epochs.
    step
        Finished steps since the initialisation.
    loss
        Mean loss of every finished epoch.
    usage
        Share of the labelled positions of each class, for every finished epoch.
    scores
        What an epoch can be judged by without labels, for every finished epoch: ``agreement``
        (see :class:`Epoch`; PriMaPs-EM alone) and ``turn``, the mean angle by which the epoch
        turned the running prototypes, in degrees.
    """

    running: Prototypes
    momentum: Prototypes
    initial: Prototypes
    moments: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    loss: list[float] = field(default_factory=list)
    usage: list[list[float]] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """What one epoch says of itself.

    Attributes
    ----------
    loss
        The steps' mean.
    usage
        Share of the labelled positions of each class.
    agreement
        Share of the labelled pixels whose own class is that of their proposal: how much of what
        the prototypes say of single pixels the proposals confirm. None without proposals.
    """

    loss: float
    usage: list[float]
    agreement: float | None


def initialise(
    read_sample: ReadSample,
    read_epoch: ReadEpoch,
    steps: int,
    settings: EmSettings,
    team: Team = INLINE,
) -> FitState:
    """Start a fit from the principal directions of a sample and a short cosine K-means.

    Parameters
    ----------
    read_sample
        Gives the features for the PCA, float32 [window, row, column, channel]; called twice.
    read_epoch
        Gives the steps of an epoch by its number; the initialisation uses
        negative numbers, so that its orders are none of the fit's.
    steps
        Steps per epoch.
    settings
        Classes, epochs and steps of the initialisation, learning rate.
    team
        Who computes the pieces.
    """
    assert isinstance(settings.classes, int)
    prototypes = make_prototypes(find_initial_directions(read_sample, settings.classes, team))
    state = FitState(prototypes, prototypes.copy(), prototypes.copy())
    least = -(-settings.init_steps // max(steps, 1))
    for epoch in range(max(settings.init_epochs, least) if settings.init_epochs else 0):
        run_kmeans_epoch(state, read_epoch(-1 - epoch), settings, team)
    if settings.method == "kmeans":
        # the baseline is this K-means, carried on: neither lengths nor moments begin again
        return FitState(state.running, state.running, state.running.copy(), state.moments)
    return start_at(state.running.direction)


def start_at(directions: Tensor) -> FitState:
    """Start a fit at given directions, float32 [class, channel] of any length."""
    started = make_prototypes(torch.nn.functional.normalize(directions, dim=1))
    return FitState(started.copy(), started.copy(), started.copy())


def run_kmeans_epoch(
    state: FitState, steps: Iterable[Step], settings: EmSettings, team: Team = INLINE
) -> Epoch:
    """Run one epoch of cosine K-means by Adam."""
    sums = _Sums()
    running, adam = _open(state, settings.learning_rate)
    for step in steps:
        unit = F.normalize(running.direction, dim=1)
        parts = team.map(cluster_piece, [(piece, unit.detach()) for piece in step])
        windows = sum(part.windows for part in parts)
        adam.zero_grad()
        unit.backward(_add_groups(part.gradient for part in parts) / windows)
        adam.step()
        state.step += 1
        loss = _add_groups(part.loss for part in parts) / windows
        sums.add(loss, add_in_order([part.usage for part in parts]))
    _close(state, running, adam)
    state.momentum = state.running
    return sums.summarise()


def run_em_epoch(
    state: FitState, steps: Iterable[Step], settings: EmSettings, team: Team = INLINE
) -> Epoch:
    """Run one epoch of PriMaPs-EM."""
    sums = _Sums()
    running, adam = _open(state, settings.learning_rate)
    for step in steps:
        weight = running.weight()
        momentum = state.momentum.weight()
        found = [team.start(predict_piece, piece, momentum, weight.detach()) for piece in step]
        totals = team.map(sum_piece, [(piece,) for piece in found])
        pixels = sum(part.pixels for part in totals)
        classes = weigh_classes(
            _add_groups(part.softmax for part in totals), pixels, settings.focus
        )
        parts = team.map(differentiate_piece, [(piece, classes) for piece in found])
        adam.zero_grad()
        weight.backward(_add_groups(part.weight for part in parts) / pixels)
        adam.step()
        state.step += 1
        updates, rest = divmod(state.step, settings.momentum_every)
        if rest == 0:
            state.momentum = update_momentum(
                state.momentum, running, settings.momentum, updates - 1
            )
        loss = _add_groups(part.loss for part in parts) / pixels
        usage = add_in_order([part.usage for part in totals])
        sums.add(loss, usage, add_in_order([part.agreed for part in totals]))
    _close(state, running, adam)
    return sums.summarise()


def _add_groups(parts: Iterable[Tensor]) -> Tensor:
    """Add the groups of all pieces, [group, ...], in the order of the windows."""
    return add_in_order([group for part in parts for group in part])


def run_epochs(
    state: FitState, read_epoch: ReadEpoch, settings: EmSettings, team: Team = INLINE
) -> Iterator[FitState]:
    """Run the epochs that are left, and give the state after each."""
    run_epoch = {"primaps": run_em_epoch, "kmeans": run_kmeans_epoch}[settings.method]
    while state.epoch < settings.epochs:
        before = state.running
        epoch = run_epoch(state, read_epoch(state.epoch), settings, team)
        state.epoch += 1
        state.loss.append(epoch.loss)
        state.usage.append(epoch.usage)
        if epoch.agreement is not None:
            state.scores.setdefault("agreement", []).append(epoch.agreement)
        turn = measure_turn(before, state.running)
        state.scores.setdefault("turn", []).append(turn)
        yield state


_PARAMETERS = ("direction", "norm")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _open(state: FitState, learning_rate: float) -> tuple[Prototypes, torch.optim.Adam]:
    copy = state.running.copy()
    running = Prototypes(copy.direction.requires_grad_(), copy.norm.requires_grad_())
    adam = torch.optim.Adam([running.direction, running.norm], lr=learning_rate)
    for name, parameter in zip(_PARAMETERS, adam.param_groups[0]["params"], strict=True):
        if f"{name}_step" in state.moments:
            adam.state[parameter] = {
                moment: state.moments[f"{name}_{moment}"].clone() for moment in _MOMENTS
            }
    return running, adam


def _close(state: FitState, running: Prototypes, adam: torch.optim.Adam) -> None:
    state.running = running.copy()
    # K-means leaves the norm alone, so Adam knows nothing of it
    state.moments = {
        f"{name}_{moment}": adam.state[parameter][moment].clone()
        for name, parameter in zip(_PARAMETERS, adam.param_groups[0]["params"], strict=True)
        if parameter in adam.state
        for moment in _MOMENTS
    }


@dataclass
class _Sums:
    """What an epoch says of itself, added up on the device.

    Nothing is kept of a step: small tensors that stay between large ones that go would fray the
    allocator's memory, and more of it the longer an epoch is.
    """

    loss: Tensor | None = None
    usage: Tensor | None = None
    agreed: Tensor | None = None
    steps: int = 0

    def add(self, loss: Tensor, usage: Tensor, agreed: Tensor | None = None) -> None:
        """Add a step's loss, a scalar, usage, int64 [class], and agreed pixels, int64."""
        if self.loss is None or self.usage is None:
            self.loss, self.usage = loss.double(), usage.clone()
            self.agreed = None if agreed is None else agreed.clone()
        else:
            self.loss += loss
            self.usage += usage
            if self.agreed is not None and agreed is not None:
                self.agreed += agreed
        self.steps += 1

    def summarise(self) -> Epoch:
        """Return the means."""
        if self.loss is None or self.usage is None:
            raise ValueError("an epoch needs steps")
        usage = self.usage.double()
        total = usage.sum().clamp_min(1)
        agreement = None if self.agreed is None else float(self.agreed / total)
        return Epoch(float(self.loss) / self.steps, (usage / total).tolist(), agreement)
