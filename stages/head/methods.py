"""What a method of training a head is: the class to derive one from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from stages.head.material import HeadBatch
from stages.head.projection import ProjectionHead
from stages.head.settings import METHODS, HeadSettings


class ReadPositions(Protocol):
    """Reads random positions of random windows, float32 [position, channel]."""

    def __call__(self, total: int, *seed: int) -> Tensor:
        """Read so many; the seed names the draw."""


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
    dim : int
        Channels of a code where the settings name none.
    uses_crops : bool
        Trains on the crops, too, where the run holds them.
    needs_neighbours : bool
        A batch brings one of the nearest neighbours of every window.
    needs_views : bool
        A batch brings an augmented view and the last block's attention; without them a run is
        refused.
    head : ProjectionHead
        The head itself.
    """

    settings_class: ClassVar[type[HeadSettings]] = HeadSettings
    dim: ClassVar[int]
    uses_crops: ClassVar[bool] = False
    needs_neighbours: ClassVar[bool] = False
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

    def make_codes(self, features: Tensor) -> Tensor:
        """Make float32 codes [..., dim] of features [..., channel], in the settings' precision."""
        reduced = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            codes: Tensor = self.head(features)
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

    def finish_step(self) -> None:
        """Do what follows the optimiser's step."""

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
