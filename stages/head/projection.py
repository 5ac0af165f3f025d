"""The projection head: frozen features -> codes, and the dropout of its input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class ProjectionHead(nn.Module):
    """A linear map of the features plus a two-layer ReLU map of them (STEGO, section 3.3).

    Both see one position at a time; as layers of an image they are 1 x 1 convolutions.

    Parameters
    ----------
    channels
        Channels of the features, and width of the hidden layer.
    dim
        Channels of the codes.
    generator
        Draws every weight and bias from U(-1 / sqrt(channels), 1 / sqrt(channels)), as PyTorch does
        by default. A generator of the CPU; the module starts there.
    """

    def __init__(self, channels: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = make_layer(channels, dim, generator)
        self.hidden = make_layer(channels, channels, generator)
        self.output = make_layer(channels, dim, generator)

    def forward(self, features: Tensor) -> Tensor:
        """Project features, float [..., channel], to codes, float [..., dim]."""
        codes: Tensor = self.linear(features) + self.output(self.hidden(features).relu())
        return codes


def make_layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Make a linear layer, its weights uniform as by default in torch, drawn from a generator."""
    # without skip_init PyTorch would first draw weights from its global generator
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def drop_channels(features: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Set some channels of every window to zero, and scale up the others.

    Parameters
    ----------
    features
        float [window, row, column, channel].
    rate
        Probability that a channel is dropped, in [0, 1).
    generator
        Of the CPU, whatever the features' device: the same channels are dropped on all of them.

    Returns
    -------
    Tensor
        Of the features' shape and type; one set of channels for all positions of a window. Kept
        channels are scaled by 1 / (1 - rate), which leaves the expectation of the features as it
        was.

    Raises
    ------
    ValueError
        The rate is outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a share of channels to drop is in [0, 1), {rate} is not")
    windows, channels = features.shape[0], features.shape[-1]
    kept = torch.rand(windows, 1, 1, channels, generator=generator) >= rate
    return features * (kept / (1 - rate)).to(features)
