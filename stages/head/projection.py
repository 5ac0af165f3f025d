"""The projection head: frozen features -> codes, and the dropout of its input."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import skip_init

from pipeline.compute.memory import compute_halving

# Vectors that are multiplied together where they are not those of windows.
_RUN = 128


class Layer(nn.Linear):
    """A linear map whose bytes do not depend on the number of threads.

    The product of one large matrix is shared out among the threads, and by their number it is
    decided in which order sums are taken. Here every window, or run of vectors, has a product of
    its own, which one thread computes as long as there are as many of them as threads. A step of
    training takes a tenth longer for it.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors, float [..., channel], to float [..., output].

        Of four axes, the first is that of the windows.
        """
        if vectors.ndim == 4:
            runs = vectors.flatten(1, 2)
            return self._multiply(runs).unflatten(1, vectors.shape[1:3])
        rows = vectors.reshape(-1, vectors.shape[-1])
        runs = F.pad(rows, (0, 0, 0, -len(rows) % _RUN)).unflatten(0, (-1, _RUN))
        outputs = self._multiply(runs).flatten(0, 1)[: len(rows)]
        return outputs.reshape(*vectors.shape[:-1], self.out_features)

    def _multiply(self, runs: Tensor) -> Tensor:
        count = len(runs)
        bias, weight = self.bias.expand(count, 1, -1), self.weight.T.expand(count, -1, -1)
        return torch.baddbmm(bias, runs, weight)


class ProjectionHead(nn.Module):
    """A linear map of the features plus a two-layer ReLU map of them (STEGO, section 3.3).

    Both see one position at a time; as layers of an image they are 1 x 1 convolutions.

    The hidden layer is as wide as the features. The generator, one of the CPU, draws every weight
    and bias from U(-1 / sqrt(channels), 1 / sqrt(channels)), as PyTorch does by default.
    """

    def __init__(self, channels: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = make_layer(channels, dim, generator)
        self.hidden = make_layer(channels, channels, generator)
        self.output = make_layer(channels, dim, generator)

    def forward(self, features: Tensor, bent: Tensor | None = None) -> Tensor:
        """Project features, float [..., channel], to codes, float [..., dim].

        ``bent`` are those of the ReLU map where it sees others: of another dropout.
        """
        bent = features if bent is None else bent
        codes: Tensor = self.linear(features) + self.output(self.hidden(bent).relu())
        return codes


def make_layer(inputs: int, outputs: int, generator: torch.Generator) -> Layer:
    """Make a linear layer, its weights uniform as by default in torch, drawn from a generator."""
    # without skip_init PyTorch would first draw weights from its global generator
    layer: Layer = skip_init(Layer, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def drop_channels(features: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Set some channels of every window to zero, and scale up the others.

    One set of channels for all positions of a window, [window, ..., channel]. Kept channels
    are scaled by 1 / (1 - rate), which leaves the expectation of the features as it was. The
    generator is one of the CPU: the same channels are dropped on all devices.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a share of channels to drop is in [0, 1), {rate} is not")
    shape = (len(features), *[1] * (features.ndim - 2), features.shape[-1])
    kept = torch.rand(shape, generator=generator) >= rate
    return features * (kept / (1 - rate)).to(features)


def encode(head: ProjectionHead, features: Tensor) -> np.ndarray:
    """Encode features [window, row, column, channel] as float16 [window, row, column, code]."""
    with torch.inference_mode():
        codes: np.ndarray = head(features.float()).half().cpu().numpy()
    return codes


def encode_windows(
    head: ProjectionHead, features: np.ndarray, batch: int, device: torch.device
) -> np.ndarray:
    """Encode many windows, so many at once; fewer where memory is short."""
    # batches of one length: on a processor, threads share out the windows of a batch
    even = -(-len(features) // -(-len(features) // batch))
    parts = compute_halving(
        lambda part: encode(head, torch.from_numpy(part).to(device)),
        features,
        even,
        what="encode",
        device=device,
    )
    return np.concatenate(parts)
