"""The methods that fit class prototypes: what one is, and the two that learn epoch by epoch.

PriMaPs-EM and cosine K-means start alike, at principal directions of a sample of features and a
short K-means, or at the cluster probe of a head, and go on by Adam over streamed batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.scheduler import INLINE, Team, announce
from pipeline.errors import RunError, count_of
from pipeline.storage.files import Checkpoint
from stages.discriminants import Moments
from stages.em.cache import Cache, MeanPiece, Source, TeamCache, name_device
from stages.em.pieces import (
    Prototypes,
    add_in_order,
    cluster_piece,
    differentiate_piece,
    make_prototypes,
    measure_turn,
    predict_piece,
    sum_piece,
    update_momentum,
)
from stages.em.settings import EmSettings
from stages.em.start import ReadSample, find_initial_directions
from stages.em.sums import Assigned

# An array that is kept, and the names of its axes.
Kept = tuple[NDArray[Any], tuple[str, ...]]
CLASS_AXES = ("class", "channel")
# Windows whose sums are added up before others', and windows that are drawn at a time.
PIECE, DRAWN = 1024, 128


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Attributes
    ----------
    settings
        Resolved, of the method's ``settings_class``; ``classes`` is a number: that of the
        clusters, where more are asked for.
    cache
        The cached features, or a head's codes, and the proposals of the windows to fit on.
    checkpoint
        Where the fit may save itself: ``save(arrays, values)`` writes NumPy arrays and JSON-able
        values whole or not at all, ``load()`` gives the pair that was saved last, never that of a
        fit with other settings, or None.
    start
        float32 [class, channel], any length: the cluster probe of the head whose codes are fitted;
        None where there is no head, or the method does not ask for a start.
    pinned
        float32 [class, channel]: mean features of the classes of which something is known, whose
        clusters are the first ones; the ``pins`` of batches say what is theirs. None where nothing
        is, or the method does not pin.
    team, source
        Whoever computes with this process, alone where the method does not share its work; and what
        a worker of the team needs to open the same cache.
    """

    settings: Any
    cache: Cache
    checkpoint: Checkpoint
    start: Tensor | None
    team: Team
    source: Source
    pinned: Tensor | None = None

    @property
    def shared(self) -> Cache | TeamCache:
        """The cache, or pieces of it that the workers of a team read."""
        return TeamCache(self.team, self.source, self.cache) if self.team.remote else self.cache

    def cut_pieces(
        self, windows: np.ndarray, size: int = PIECE, *, labelled: bool = False
    ) -> list[MeanPiece]:
        """Cut windows into pieces, for whoever computes to read; ``labelled``: of that view."""
        opened = self.source if self.team.remote else self.cache
        parts = (windows[low : low + size] for low in range(0, len(windows), size))
        batch = self.cache.count_together(labelled=labelled)
        return [MeanPiece(opened, part, batch, labelled) for part in parts]

    def draw_pieces(self, *, labelled: bool = False) -> Iterator[MeanPiece]:
        """Draw all windows at random, some at a time."""
        order = np.random.default_rng(self.settings.seed).permutation(self.cache.windows)
        for low in range(0, len(order), DRAWN):
            yield from self.cut_pieces(np.sort(order[low : low + DRAWN]), labelled=labelled)


class Sums(NamedTuple):
    """Sums of positions, for clusters to be joined by: rows of clusters, or of units of them."""

    moments: Moments  # [row]
    clusters: Tensor  # int64 [row]: which cluster a row belongs to
    gain: float  # the factor that calibrates the logits of the clusters' discriminants
    # int64 [proposal], ascending: 256 x row of the window + number of the proposal, where rows are
    # proposals, or groups of some
    proposals: Tensor | None = None
    # int64 [merge, 2]: how rows were merged, as of ``stages.parts.Tree``, where they were
    merges: Tensor | None = None
    # int32 [proposal]: its row; None where every proposal has one of its own
    units: Tensor | None = None

    @property
    def assigned(self) -> Assigned | None:
        """Which row every proposal is of, where rows are of proposals."""
        if self.proposals is None:
            return None
        own = torch.arange(len(self.proposals)) if self.units is None else self.units
        return Assigned(self.proposals, own)


@dataclass(frozen=True)
class Fit:
    """What a method returns: a linear classifier of positions, and what is kept beside it.

    The logits of a feature are ``prototypes @ feature + bias``, or the cosines of feature and
    prototypes. ``evaluate``, ``predict`` and the exports label by them, and need nothing else.

    Attributes
    ----------
    prototypes
        float32 [class, channel].
    usage
        Share of the pixels of each class, for every epoch, one at least; of the last, classes that
        have died are told.
    found
        What it was made from and how it ended, for the closing line: "350 windows, loss 0.1234".
    bias
        float32 [class], or None.
    logits
        ``inner product``, or ``cosine``.
    arrays
        More arrays to keep in the group of ``em.zarr``, by name. Of ``score_NAME`` and ``loss``,
        [epoch], the report draws curves.
    others
        Name in the metrics -> array [class, channel] among ``arrays`` that is scored, too.
    attributes
        Small JSON-able facts to keep with the group: ``score_units``, name of a score -> unit.
    device
        Kind of device that computed.
    units
        How many units were clustered, where the method knows such: few for the classes are told.
    sums
        Of the positions of the clusters, where the method knows them; else they are those of the
        positions, or proposals, that the classifier gives each cluster.
    """

    prototypes: Tensor
    usage: Sequence[Sequence[float]]
    found: str
    bias: Tensor | None = None
    logits: Literal["inner product", "cosine"] = "inner product"
    arrays: Mapping[str, Kept] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    units: int | None = None
    sums: Sums | None = None


class Method(ABC):
    """A way to fit class prototypes to cached features: the class to subclass for another.

    An instance is made, without arguments, for every use and keeps nothing. One line registers it:
    in ``stages.em.settings.METHODS``, or as an entry point of another package::

        [project.entry-points."primaps_pipe.methods"]
        mine = "my_package.my_module:MyMethod"

    Attributes
    ----------
    settings_class
        ``EmSettings``, or a subclass with settings of the method's own, which become options of the
        command line and keys of recipes. Raise its ``version`` when the same settings give another
        fit: fits made before are then stale.
    needs_proposals
        Whether it reads proposals, and the stage ``masks`` therefore has to have run.
    needs_start
        Whether it starts at given directions: the cluster probe of a head, which then says the
        number of classes, or principal directions, of which there are no more than channels.
    has_student
        Whether ``cache.read_epoch`` shows windows mirrored and, as ``student``, augmented, as the
        settings of these names say.
    shares_work
        Whether it computes with the team of its task; if not, one worker makes the whole fit.
    is_quick
        Whether it may be fitted to halves, too, to tell how stable it is; its fit saves nothing.
    pins
        Whether what is known keeps its clusters in every step; if not, it joins them afterwards.
    """

    settings_class: ClassVar[type[EmSettings]] = EmSettings
    needs_proposals: ClassVar[bool] = True
    needs_start: ClassVar[bool] = False
    has_student: ClassVar[bool] = False
    shares_work: ClassVar[bool] = False
    is_quick: ClassVar[bool] = False
    pins: ClassVar[bool] = False

    def count_epochs(self, settings: EmSettings) -> int:
        """Return how many epochs progress counts: ``announce(advance=1)`` says that one is over."""
        return settings.epochs

    @abstractmethod
    def fit(self, task: Task) -> Fit:
        """Fit class prototypes.

        The same task must give the same bytes, in any number of threads, workers and interruptions.

        Parameters
        ----------
        task
            Settings, features and proposals, where to save, and who computes.

        Returns
        -------
        Fit
            Its prototypes as many as ``task.settings.classes``.

        Raises
        ------
        UsageError, RunError
            The settings ask for what cannot be, or the run has nothing to learn from.
        """


# The windows of one step: batches (``stages.em.pieces.FitBatch``) of whole groups, or pieces of a
# team that give them.
Step = Sequence[Any]
ReadEpoch = Callable[[int], Iterable[Step]]

_PROTOTYPES = ("running", "momentum", "initial")
_COUNTS = ("epoch", "step", "loss", "usage", "scores")


@dataclass
class FitState:
    """All that a fit needs to go on after any epoch.

    ``scores`` are what an epoch can be judged by without labels: ``agreement`` (see :class:`Epoch`;
    PriMaPs-EM alone) and ``turn``, the mean angle by which it turned the running prototypes, in
    degrees.
    """

    running: Prototypes  # theta_R
    momentum: Prototypes  # theta_M
    initial: Prototypes  # where both started
    # Adam's step count and first and second moments of direction and norm
    moments: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0  # since the initialisation
    loss: list[float] = field(default_factory=list)
    usage: list[list[float]] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the state as arrays and JSON-able values."""
        arrays = {}
        for name in _PROTOTYPES:
            prototypes: Prototypes = getattr(self, name)
            arrays[f"{name}_direction"] = prototypes.direction.cpu().numpy()
            arrays[f"{name}_norm"] = prototypes.norm.cpu().numpy()
        arrays |= {f"adam_{name}": value.cpu().numpy() for name, value in self.moments.items()}
        return arrays, {name: getattr(self, name) for name in _COUNTS}

    @classmethod
    def unpack(
        cls, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], device: torch.device
    ) -> FitState:
        """Return the state that :meth:`pack` gave."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        running, momentum, initial = (
            Prototypes(tensors[f"{name}_direction"].to(device), tensors[f"{name}_norm"].to(device))
            for name in _PROTOTYPES
        )
        moments = {
            # Adam keeps its step count on the host
            name.removeprefix("adam_"): value if name.endswith("_step") else value.to(device)
            for name, value in tensors.items()
            if name.startswith("adam_")
        }
        return cls(running, momentum, initial, moments, **{name: values[name] for name in _COUNTS})


def start_at(directions: Tensor) -> FitState:
    """Start a fit at given directions, float32 [class, channel] of any length."""
    started = make_prototypes(F.normalize(directions, dim=1))
    return FitState(started.copy(), started.copy(), started.copy())


def place_known(directions: Tensor, means: Tensor) -> Tensor:
    """Put the means of known classes first, each in the place of one direction near to it.

    Takes [cluster, channel] and [class, channel], no more of these; gives [cluster, channel] at
    unit length, in which the directions that keep their place are in their order. Together the
    pairs have the largest cosines.
    """
    # a fit that knows nothing does without
    from scipy.optimize import linear_sum_assignment

    known, rest = F.normalize(means.to(directions), dim=1), F.normalize(directions, dim=1)
    _, taken = linear_sum_assignment((known @ rest.T).double().cpu().numpy(), maximize=True)
    kept = np.setdiff1d(np.arange(len(rest)), taken)
    return torch.cat([known, rest[torch.from_numpy(kept).to(rest.device)]])


class Epoch(NamedTuple):
    """What one epoch says of itself."""

    loss: float  # the steps' mean
    usage: list[float]  # share of the labelled positions of each class
    # share of the labelled pixels whose own class is that of their proposal; None without proposals
    agreement: float | None


class Gradual(Method):
    """A method that learns epoch by epoch, and goes on after the last one that was finished."""

    needs_start = True
    shares_work = True
    pins = True
    logits: ClassVar[Literal["inner product", "cosine"]] = "inner product"
    others: ClassVar[Mapping[str, str]] = {}

    @staticmethod
    @abstractmethod
    def run_epoch(
        state: FitState, steps: Iterable[Step], settings: EmSettings, team: Team
    ) -> Epoch:
        """Run one epoch, and move the state on."""

    def take_over(self, clustered: FitState) -> FitState:
        """Start where the K-means of the initialisation has ended."""
        return start_at(clustered.running.direction)

    def initialise(
        self,
        read_sample: ReadSample,
        read_epoch: ReadEpoch,
        steps: int,
        settings: EmSettings,
        team: Team = INLINE,
    ) -> FitState:
        """Start from the principal directions of a sample and a short cosine K-means.

        Its epochs, of ``steps`` steps each, have negative numbers, so that their orders are none of
        the fit's.
        """
        assert isinstance(settings.classes, int)
        prototypes = make_prototypes(find_initial_directions(read_sample, settings.classes, team))
        state = FitState(prototypes, prototypes.copy(), prototypes.copy())
        least = -(-settings.init_steps // max(steps, 1))
        for epoch in range(max(settings.init_epochs, least) if settings.init_epochs else 0):
            run_kmeans_epoch(state, read_epoch(-1 - epoch), settings, team)
        return self.take_over(state)

    def run_epochs(
        self, state: FitState, read_epoch: ReadEpoch, settings: EmSettings, team: Team = INLINE
    ) -> Iterator[FitState]:
        """Run the epochs that are left, and give the state after each."""
        while state.epoch < settings.epochs:
            before = state.running
            epoch = self.run_epoch(state, read_epoch(state.epoch), settings, team)
            state.epoch += 1
            state.loss.append(epoch.loss)
            state.usage.append(epoch.usage)
            if epoch.agreement is not None:
                state.scores.setdefault("agreement", []).append(epoch.agreement)
            turn = measure_turn(before, state.running)
            state.scores.setdefault("turn", []).append(turn)
            yield state

    def fit(self, task: Task) -> Fit:
        """Fit, from the last checkpoint where there is one."""
        settings, team, shared, device = task.settings, task.team, task.shared, task.cache.device
        saved = task.checkpoint.load()
        if saved is None:
            announce(say="initialisation")
            state = (
                self.initialise(
                    shared.read_sample, shared.read_epoch, task.cache.steps, settings, team
                )
                if task.start is None
                else start_at(task.start.to(device))
            )
            if task.pinned is not None:
                state = start_at(place_known(state.running.direction, task.pinned))
            task.checkpoint.save(*state.pack())
        else:
            state = FitState.unpack(*saved, device)
            announce(advance=state.epoch)
        for _ in self.run_epochs(state, shared.read_epoch, settings, team):
            _require_usage(state, settings)
            task.checkpoint.save(*state.pack())
            shares = " ".join(f"{100 * share:.1f}" for share in state.usage[-1])
            text = f"loss {state.loss[-1]:.4f}, class usage {shares} %"
            announce(advance=1, say="", note=f"em: epoch {state.epoch}/{settings.epochs}: {text}")
        return Fit(
            state.momentum.weight(),
            state.usage,
            f"{count_of(len(task.cache.windows), 'windows')}, loss {state.loss[-1]:.4f}",
            logits=self.logits,
            arrays=_list_history(state),
            others=self.others,
            attributes={"score_units": _SCORE_UNITS},
            device=team.map(name_device, [(task.source,)])[0],
        )


# What a fit is judged by without labels, epoch by epoch.
_SCORE_UNITS = {"agreement": "%", "turn": "degrees"}


def _list_history(state: FitState) -> dict[str, Kept]:
    """List what is kept of a fit beside the prototypes that label."""
    arrays: dict[str, Kept] = {
        "prototypes": (state.running.weight().cpu().numpy(), CLASS_AXES),
        "initial_prototypes": (state.initial.weight().cpu().numpy(), CLASS_AXES),
        "loss": (np.array(state.loss, np.float32), ("epoch",)),
    }
    for name, unit in _SCORE_UNITS.items():
        if name in state.scores:
            factor = 100 if unit == "%" else 1
            values = factor * np.array(state.scores[name], np.float32)
            arrays[f"score_{name}"] = (values, ("epoch",))
    return arrays


def _require_usage(state: FitState, settings: EmSettings) -> None:
    """Refuse to go on where no pixel of an epoch had a proposal: nothing was learned."""
    if not any(state.usage[-1]):
        raise RunError(
            f"em: no window of the splits {', '.join(settings.splits)} has a proposal, so there is "
            "nothing to learn from: look at the images (are they blank?), or fit with "
            "--method kmeans, which needs none."
        )


def run_kmeans_epoch(
    state: FitState, steps: Iterable[Step], settings: EmSettings, team: Team = INLINE
) -> Epoch:
    """Run one epoch of cosine K-means by Adam."""
    sums = _Sums(state.running)
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
    return sums.summarise(proposals=False)


def run_em_epoch(
    state: FitState, steps: Iterable[Step], settings: EmSettings, team: Team = INLINE
) -> Epoch:
    """Run one epoch of PriMaPs-EM."""
    from stages.em.pixels import weigh_classes

    sums = _Sums(state.running)
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
    return sums.summarise(proposals=True)


def _add_groups(parts: Iterable[Tensor]) -> Tensor:
    """Add the groups of all pieces, [group, ...], in the order of the windows."""
    return add_in_order([group for part in parts for group in part])


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


class _Sums:
    """What an epoch says of itself, added up on the device.

    Nothing is kept of a step: small tensors that stay between large ones that go would fray the
    allocator's memory, and more of it the longer an epoch is.
    """

    def __init__(self, prototypes: Prototypes) -> None:
        norms = prototypes.norm
        self.loss = norms.new_zeros((), dtype=torch.float64)
        self.usage = norms.new_zeros(len(norms), dtype=torch.int64)
        self.agreed = norms.new_zeros((), dtype=torch.int64)
        self.steps = 0

    def add(self, loss: Tensor, usage: Tensor, agreed: Tensor | int = 0) -> None:
        """Add a step's loss, a scalar, usage, int64 [class], and agreed pixels, int64."""
        self.loss += loss
        self.usage += usage
        self.agreed += agreed
        self.steps += 1

    def summarise(self, *, proposals: bool) -> Epoch:
        """Return the means."""
        if not self.steps:
            raise ValueError("an epoch needs steps")
        total = self.usage.sum().double().clamp_min(1)
        usage = (self.usage / total).tolist()
        agreement = float(self.agreed / total) if proposals else None
        return Epoch(float(self.loss) / self.steps, usage, agreement)


class Kmeans(Gradual):
    """Cosine K-means by Adam: the baseline."""

    needs_proposals = False
    # it knows no norms
    logits = "cosine"
    run_epoch = staticmethod(run_kmeans_epoch)

    def take_over(self, clustered: FitState) -> FitState:
        """Carry the K-means of the initialisation on: neither lengths nor moments begin again."""
        running = clustered.running
        return FitState(running, running, running.copy(), clustered.moments)


class Primaps(Gradual):
    """PriMaPs-EM (Hahn et al., TMLR 2024, section 3.2)."""

    has_student = True
    others: ClassVar[Mapping[str, str]] = {"running_prototypes": "prototypes"}
    run_epoch = staticmethod(run_em_epoch)
