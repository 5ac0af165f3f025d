"""The methods that train a head: what each keeps, and its loss of one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.head.correspondence import stego_loss
from stages.head.hidden_positives import (
    HpBatch,
    HpModules,
    HpOptions,
    HpPools,
    Projector,
    draw_pools,
    hp_loss,
    specific_share,
    update_average,
)
from stages.head.material import HeadBatch
from stages.head.projection import ProjectionHead, drop_channels
from stages.head.settings import HeadSettings


class ReadPositions(Protocol):
    """Reads random positions of random windows, float32 [position, channel]."""

    def __call__(self, total: int, *seed: int) -> Tensor:
        """Read so many; the seed names the draw."""


class Method(nn.Module):
    """A head under training, with whatever else its method keeps.

    Attributes
    ----------
    head
        The head itself.
    """

    head: ProjectionHead

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def __init__(self, channels: int, settings: HeadSettings, generator: torch.Generator) -> None:
        super().__init__()
        assert settings.dim is not None
        self.settings = settings
        self.head = ProjectionHead(channels, settings.dim, generator)

    def make_codes(self, features: Tensor) -> Tensor:
        """Make float32 codes [..., dim] of features [..., channel], in the settings' precision."""
        reduced = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            codes: Tensor = self.head(features)
        # the products of the head alone are worth reducing: cosines and losses are not
        return codes.float() if reduced else codes

    def compute_loss(
        self, batch: HeadBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and the codes of the batch for the cluster probe."""
        raise NotImplementedError

    def finish_step(self) -> None:
        """Do what follows the optimiser's step."""

    def list_trained(self) -> list[nn.Parameter]:
        """Return the parameters that the optimiser moves."""
        return [p for p in self.parameters() if p.requires_grad]


class Stego(Method):
    """Correspondence distillation (Hamilton et al., ICLR 2022)."""

    def compute_loss(
        self, batch: HeadBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of STEGO, section 3.3, and the codes of the batch."""
        assert batch.neighbours is not None
        settings = self.settings
        # two smaller passes stay in the processor's cache better than one
        windows = (batch.features, batch.neighbours)
        own, near = (
            self.make_codes(drop_channels(grid, settings.dropout, generator)) for grid in windows
        )
        features, neighbours = (
            drop_channels(grid, settings.dropout, generator) for grid in windows
        )
        loss = stego_loss(
            features,
            own,
            neighbours,
            near,
            weights=_three(settings.term_weights),
            shifts=_three(settings.term_shifts),
            others=settings.others,
            side=settings.side,
            generator=generator,
        )
        return loss, own


class HiddenPositives(Method):
    """Hidden positives (Seong et al., CVPR 2023).

    Attributes
    ----------
    projector
        Between the codes and the contrast.
    average
        The moving average of the head, whose codes fill the task-specific pool.
    agnostic, specific
        The reference pools, [reference, channel] and [reference, dim]; empty before the first step.
    """

    agnostic: Tensor
    specific: Tensor

    def __init__(
        self,
        channels: int,
        settings: HeadSettings,
        generator: torch.Generator,
        read_positions: ReadPositions,
    ) -> None:
        super().__init__(channels, settings, generator)
        assert settings.dim is not None
        self.read_positions = read_positions
        self.projector = Projector(settings.dim, generator)
        self.average = ProjectionHead(channels, settings.dim, generator).requires_grad_(False)
        self.average.load_state_dict(self.head.state_dict())
        self.register_buffer("agnostic", torch.zeros(0))
        self.register_buffer("specific", torch.zeros(0))

    def compute_loss(
        self, batch: HeadBatch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, its pools renewed when it is time, and the codes of the batch."""
        assert batch.augmented is not None and batch.attention is not None
        settings = self.settings
        assert settings.renew_every is not None and settings.temperature is not None
        if step % settings.renew_every == 0:
            pools = draw_pools(
                self.read_positions(settings.pool, 3, step), self.average, settings.pool, generator
            )
            self.agnostic, self.specific = pools.agnostic, pools.specific
        codes = self.make_codes(drop_channels(batch.features, settings.dropout, generator))
        loss, _ = hp_loss(
            codes,
            HpBatch(batch.features, batch.augmented, batch.attention),
            HpModules(self.make_codes, self.average, self.projector),
            HpPools(self.agnostic, self.specific),
            HpOptions(
                settings.temperature, settings.positions, settings.negatives, settings.consistency
            ),
            share=specific_share(step, settings.warm_up * settings.steps, settings.steps),
            generator=generator,
        )
        return loss, codes

    def finish_step(self) -> None:
        """Move the averaged head."""
        update_average(self.average, self.head, self.settings.average)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state; the pools have the size that they were saved with."""
        for name in ("agnostic", "specific"):
            setattr(self, name, torch.empty_like(state_dict[name], device=self.device))
        return super().load_state_dict(state_dict, *args, **kwargs)


def build_method(
    channels: int, settings: HeadSettings, read_positions: ReadPositions, device: torch.device
) -> Method:
    """Build a method, its weights drawn from the seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.method == "stego":
        return Stego(channels, settings, generator).to(device)
    return HiddenPositives(channels, settings, generator, read_positions).to(device)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
