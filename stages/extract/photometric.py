"""Photometric augmentation: blur, then other colours or none; every position keeps its place.

A Gaussian blur, always; then, at even odds, colour jitter or greyscale (PriMaPs-EM: Hahn et al.,
"Boosting Unsupervised Semantic Segmentation with Principal Mask Proposals", TMLR 2024). The blur's
kernel of 23 pixels and its sigma, uniform in 0.1..2, are those of SimCLR (Chen et al., ICML 2020,
appendix A). The strengths of the jitter, 0.3 for brightness, contrast and saturation and 0.1 for
the hue, are those of STEGO's photometric transform (Hamilton et al., ICLR 2022).

An augmentation is drawn from what it is of (the image's content, the box of the window, the number
of the view, a seed), never from where the window stands among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.storage.files import fingerprint

BLUR_KERNEL = 23
BLUR_SIGMA = (0.1, 2.0)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, 0.3, 0.3, 0.1
GREY_ODDS = 0.5


@dataclass(frozen=True)
class Augmentation:
    """What is done to one window."""

    # of the blur, pixels
    sigma: float
    # in place of the jitter
    grey: bool
    # factors; 1 changes nothing
    brightness: float
    contrast: float
    saturation: float
    # a shift, in turns of the colour circle
    hue: float
    # in which brightness (0), contrast (1), saturation (2) and hue (3) are changed
    order: tuple[int, ...]


def draw_augmentation(
    digest: str, box: tuple[int, int, int, int], view: int, seed: int
) -> Augmentation:
    """Draw the augmentation of one view of one window: the same on every machine.

    ``digest`` is that of the image's content, ``box`` the window in the resized image in pixels.
    """
    state = int(fingerprint("photometric", digest, box, view, seed), 16)
    generator = np.random.Generator(np.random.PCG64(state))
    # All numbers are drawn, whichever are used: what one of them means depends on no other.
    grey = generator.random() < GREY_ODDS
    sigma = _between(generator, *BLUR_SIGMA)
    brightness, contrast, saturation = (
        _between(generator, 1 - strength, 1 + strength)
        for strength in (BRIGHTNESS, CONTRAST, SATURATION)
    )
    hue = _between(generator, -HUE, HUE)
    order = tuple(int(step) for step in np.argsort(generator.random(4)))
    return Augmentation(sigma, bool(grey), brightness, contrast, saturation, hue, order)


def _between(generator: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(generator.random())


def augment(pixels: Tensor, augmentations: Sequence[Augmentation]) -> Tensor:
    """Augment some windows, uint8 [window, rgb, y, x] of at least 12 pixels, each in its own way.

    They are rounded only once: what float arithmetic leaves uncertain in its last bits does not
    reach them. The blur reflects the border, hence the 12 pixels.
    """
    images = pixels.float() / 255
    done = [
        _augment_one(image, augmentation)
        for image, augmentation in zip(images, augmentations, strict=True)
    ]
    return (torch.stack(done) * 255).round().to(torch.uint8)


def _augment_one(image: Tensor, augmentation: Augmentation) -> Tensor:
    """Augment float32 [rgb, y, x] in 0..1."""
    from torchvision.transforms.v2 import functional

    # Along one axis and then the other: a Gaussian factors, and the square kernel takes 3 times as
    # long.
    for kernel in ([BLUR_KERNEL, 1], [1, BLUR_KERNEL]):
        image = functional.gaussian_blur(image, kernel, [augmentation.sigma] * 2)
    if augmentation.grey:
        return functional.rgb_to_grayscale(image, num_output_channels=3)
    steps = (
        (functional.adjust_brightness, augmentation.brightness),
        (functional.adjust_contrast, augmentation.contrast),
        (functional.adjust_saturation, augmentation.saturation),
        (functional.adjust_hue, augmentation.hue),
    )
    for number in augmentation.order:
        adjust, amount = steps[number]
        image = adjust(image, amount)
    return image
