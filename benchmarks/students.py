"""Two small segmentation networks, trained on whatever label maps they are given.

Both are trained by the same loop, from a seed that fixes the weights, the order of the images and
their augmentation, so that two trainings differ in nothing but the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

IGNORE = 255
BATCH = 8
# Scales of the random crops, relative to the square that a network sees.
SCALES = (1.0, 1.6)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes
    ----------
    steps
        Optimiser steps of ``BATCH`` images.
    learning_rate
        Largest rate of AdamW; it rises for a tenth of the steps and falls to 0 as a cosine.
    """

    steps: int
    learning_rate: float


class UNet(nn.Module):
    """A U-Net of four scales on pixels (Ronneberger et al., MICCAI 2015), from random weights.

    Its first scale has half the resolution of the pixels, which a processor has time for.

    Parameters
    ----------
    classes
        Number of classes C.
    width
        Channels of the first scale; they double with every one.
    """

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip([width, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _block(below + beside, beside)
            for below, beside in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map float [image, rgb, y, x] in [0, 1] to logits [image, class, row, column]."""
        beside = []
        values = self.first((pixels - 0.45) / 0.25)
        for level, block in enumerate(self.down):
            values = block(F.max_pool2d(values, 2) if level else values)
            beside.append(values)
        for block, other in zip(self.up, beside[-2::-1], strict=True):
            values = F.interpolate(values, other.shape[2:], mode="bilinear", align_corners=False)
            values = block(torch.cat([values, other], dim=1))
        return self.last(values)  # type: ignore[no-any-return]


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            nn.Conv2d(channels, after, 3, padding=1, bias=False),
            # of every image alone: light differs from drive to drive, and a batch mixes them
            nn.GroupNorm(8, after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class Decoder(nn.Module):
    """A light decoder on frozen features: two 3 x 3 convolutions on the grid, then up-sampling.

    Parameters
    ----------
    channels
        Channels D of the features.
    classes
        Number of classes C.
    width
        Channels between.
    """

    def __init__(self, channels: int, classes: int, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, classes, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map float [image, channel, row, column] to logits [image, class, row, column]."""
        return self.layers(features)  # type: ignore[no-any-return]


Draw = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Gives inputs and labels of some images, augmented: their numbers and a generator come in."""


def train(
    make: Callable[[], nn.Module], draw: Draw, images: int, recipe: Recipe, seed: int
) -> nn.Module:
    """Train a network.

    Parameters
    ----------
    make
        Makes the network; called under the seed.
    draw
        Gives the batches.
    images
        Number of images to draw from.
    recipe
        Steps and learning rate.
    seed
        Of weights, order and augmentation.

    Returns
    -------
    nn.Module
        The trained network, in evaluation mode.
    """
    torch.manual_seed(seed)
    network = make().train()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: shape_rate(step, recipe.steps)
    )
    for _ in range(recipe.steps):
        numbers = torch.randint(images, (BATCH,), generator=generator)
        inputs, labels = draw(numbers, generator)
        loss = segmentation_loss(network(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def shape_rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: a short rise, then a cosine down to 0."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of up-sampled logits, mean over the labelled pixels.

    Parameters
    ----------
    logits
        float [image, class, row, column].
    labels
        int64 [image, y, x]; 255 = ignore. A batch without a label costs nothing.
    """
    enlarged = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(enlarged, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp_min(1)


def draw_pixels(pixels: Tensor, labels: Tensor) -> Draw:
    """Draw augmented squares: mirrored, cropped at a random scale, brighter or darker.

    Parameters
    ----------
    pixels
        uint8 [image, rgb, y, x], squares.
    labels
        uint8 [image, y, x].
    """
    side = pixels.shape[-1]

    def draw(numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs, wanted = [], []
        for number in numbers.tolist():
            mirrored, scale, left, top, gain, shift = torch.rand(6, generator=generator).tolist()
            size = round(side / (SCALES[0] + scale * (SCALES[1] - SCALES[0])))
            x, y = round(left * (side - size)), round(top * (side - size))
            square = pixels[number, :, y : y + size, x : x + size].float()[None] / 255
            own = labels[number, y : y + size, x : x + size].float()[None, None]
            square = F.interpolate(square, (side, side), mode="bilinear", align_corners=False)[0]
            own = F.interpolate(own, (side, side), mode="nearest")[0, 0].long()
            square = (square * (0.7 + 0.6 * gain) + 0.2 * (shift - 0.5)).clamp(0, 1)
            inputs.append(square.flip(-1) if mirrored < 0.5 else square)
            wanted.append(own.flip(-1) if mirrored < 0.5 else own)
        return torch.stack(inputs), torch.stack(wanted)

    return draw


def draw_features(clean: Tensor, mirror: Tensor, labels: Tensor) -> Draw:
    """Draw features of squares, or those of their mirror images.

    Parameters
    ----------
    clean, mirror
        float16 [image, row, column, channel]; the columns of the mirror images still mirrored.
    labels
        uint8 [image, y, x].
    """

    def draw(numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mirrored = torch.rand(len(numbers), generator=generator) < 0.5
        inputs = torch.where(mirrored[:, None, None, None], mirror[numbers], clean[numbers])
        wanted = labels[numbers].long()
        wanted = torch.where(mirrored[:, None, None], wanted.flip(-1), wanted)
        return inputs.permute(0, 3, 1, 2).float(), wanted

    return draw


@torch.inference_mode()
def predict(network: nn.Module, inputs: Tensor, height: int, width: int) -> Tensor:
    """Predict the classes of one image, averaged with its mirror image where two are given.

    Parameters
    ----------
    network
        Trained.
    inputs
        float [view, channel, row, column]: the image and, optionally, its mirror image.
    height, width
        Size of the prediction, pixels.

    Returns
    -------
    Tensor
        uint8 [y, x].
    """
    logits = network(inputs)
    if len(logits) == 2:
        logits = (logits[:1] + logits[1:].flip(-1)) / 2
    enlarged = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return enlarged[0].argmax(dim=0).to(torch.uint8)
