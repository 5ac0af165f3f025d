"""What a method of training a head is, the class to derive one from; and its steps.

A method is trained beside its cluster probe; what is kept of that is all that it needs to go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from stages.clustering import cluster_loss
from stages.head.material import HeadBatch
from stages.head.projection import ProjectionHead
from stages.head.settings import METHODS, HeadSettings

# Positions that the probe's start is chosen from.
_POSITIONS = 4096


class ReadPositions(Protocol):
    """Reads random positions of random windows, float32 [position, channel]."""

    def __call__(self, total: int, *seed: int, each: int = 16) -> Tensor:
        """Read so many, ``each`` of a window; the seed names the draw."""


class Method(nn.Module, ABC):
    """A head under training, with whatever else its method keeps.

    A method of another package is a subclass, found by its entry point in ``primaps_pipe.heads``.
    All that training needs to go on is in the module's ``state_dict``.

    Parameters
    ----------
    channels
        Channels of a feature.
    settings
        Resolved.
    generator
        Draws the weights; one of the CPU.
    read_positions
        Gives random features, where the method asks for more than its batches.

    Attributes
    ----------
    settings_class
        A subclass of ``HeadSettings`` where the method has settings of its own: its fields become
        options of ``head``.
    head : ProjectionHead
        The head itself.
    """

    settings_class: ClassVar[type[HeadSettings]] = HeadSettings
    # channels of a code, and windows in a step, where neither settings nor dataset name them
    dim: ClassVar[int]
    batch_size: ClassVar[int] = 32
    # trains on the crops, too, where the run holds them
    uses_crops: ClassVar[bool] = False
    # a batch brings one of the nearest neighbours of every window
    needs_neighbours: ClassVar[bool] = False
    # a batch brings a jittered view and the mixing of the neighbours; a run without is refused
    needs_views: ClassVar[bool] = False
    head: ProjectionHead

    def __init__(
        self,
        channels: int,
        settings: HeadSettings,
        generator: torch.Generator,
        read_positions: ReadPositions,
    ) -> None:
        super().__init__()
        assert settings.dim is not None
        self.settings = settings
        self.read_positions = read_positions
        self.head = ProjectionHead(channels, settings.dim, generator)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def make_codes(self, *features: Tensor) -> Tensor:
        """Make float32 codes [..., dim] of features [..., channel], in the settings' precision.

        Features are given once, or once for each part of the head.
        """
        reduced = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            codes: Tensor = self.head(*features)
        # the products of the head alone are worth reducing: cosines and losses are not
        return codes.float() if reduced else codes

    @abstractmethod
    def compute_loss(
        self, batch: HeadBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of one step.

        Parameters
        ----------
        batch
            Features and what else was asked for, float32 [window, row, column, channel].
        step
            Finished steps.
        generator
            Of the CPU, named by seed and step: every draw of the step comes from it.

        Returns
        -------
        loss : Tensor
            Scalar.
        codes : Tensor
            float32 [window, row, column, dim], for the cluster probe.
        """

    def change_gradients(self) -> None:
        """Do what comes between the gradients and the optimiser's step."""

    def make_optimiser(self) -> Optimizer:
        """Make the optimiser of the parameters that are trained."""
        return Adam(self.list_trained(), lr=self.settings.learning_rate)

    def list_trained(self) -> list[nn.Parameter]:
        """Return the parameters that the optimiser moves."""
        return [p for p in self.parameters() if p.requires_grad]


def build_method(
    channels: int, settings: HeadSettings, read_positions: ReadPositions, device: torch.device
) -> Method:
    """Build a method; its weights are drawn from the seed, and the same on any device."""
    generator = torch.Generator().manual_seed(settings.seed)
    return METHODS[settings.method](channels, settings, generator, read_positions).to(device)


class Training:
    """A head under training, beside the cluster probe of its codes."""

    def __init__(self, method: Method) -> None:
        settings = method.settings
        self.method = method
        self.probe = nn.Parameter(_choose_codes(method).to(method.device))
        self.optimisers: dict[str, Optimizer] = {
            "head": method.make_optimiser(),
            "probe": Adam([self.probe], lr=settings.probe_learning_rate),
        }
        self.step = 0
        self.loss: list[float] = []
        self.usage: list[list[float]] = []

    def run_round(self, batches: Iterable[HeadBatch]) -> None:
        """Run one step for every batch, and note the round's mean loss and the probe's usage.

        Every draw of a step comes from a generator of its own, named by seed and number, so that a
        training that was stopped goes on to the same bytes.
        """
        losses: list[Tensor] = []
        usage: Tensor | None = None
        for batch in batches:
            name = (self.method.settings.seed, 2, self.step)
            seed = np.random.SeedSequence(name).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            loss, codes = self.method.compute_loss(batch, self.step, generator)
            distance, counts = cluster_loss(codes.detach(), self.probe)
            for optimiser in self.optimisers.values():
                optimiser.zero_grad()
            # they share no parameter: the probe sees codes, but moves none
            (loss + distance).backward()
            self.method.change_gradients()
            for optimiser in self.optimisers.values():
                optimiser.step()
            self.step += 1
            losses.append(loss.detach())
            usage = counts if usage is None else usage + counts
        if usage is None:
            raise ValueError("a round needs batches")
        self.loss.append(float(torch.stack(losses).double().mean()))
        self.usage.append((usage.double() / usage.sum().clamp_min(1)).tolist())

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that training needs to go on: arrays, and JSON-able values."""
        arrays = {f"method.{n}": t.cpu().numpy() for n, t in self.method.state_dict().items()}
        arrays["probe"] = self.probe.detach().cpu().numpy()
        for name, optimiser in self.optimisers.items():
            for number, moments in optimiser.state_dict()["state"].items():
                for moment, value in moments.items():
                    arrays[f"{name}.{number}.{moment}"] = value.cpu().numpy()
        return arrays, {"step": self.step, "loss": self.loss, "usage": self.usage}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Bring a training that was just started to where :meth:`pack` left it."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        kept = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith("method.")}
        self.method.load_state_dict(kept)
        with torch.no_grad():
            self.probe.copy_(tensors["probe"])
        for name, optimiser in self.optimisers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                if key.startswith(f"{name}."):
                    _, number, moment = key.split(".")
                    state.setdefault(int(number), {})[moment] = tensor
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        self.step = values["step"]
        self.loss, self.usage = list(values["loss"]), list(values["usage"])


def _choose_codes(method: Method) -> Tensor:
    """Choose where the probe starts: at codes of k-means++ (Arthur and Vassilvitskii, 2007).

    At random directions, as STEGO starts it, several of its clusters are nearest to no code and
    stay so: on CamVid 3 of 11, which a fit that starts at the probe would inherit.
    """
    # a finished head is passed over without it
    from sklearn.cluster import kmeans_plusplus

    settings = method.settings
    assert settings.classes is not None
    with torch.no_grad():
        codes = F.normalize(method.head(method.read_positions(_POSITIONS, 4)), dim=1)
    points = codes.cpu().double().numpy()
    if len(points) < settings.classes:
        raise ValueError(f"{settings.classes} clusters need as many positions")
    chosen, _ = kmeans_plusplus(points, settings.classes, random_state=settings.seed)
    return torch.from_numpy(chosen).float()
