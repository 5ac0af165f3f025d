"""Hand-crafted features: colour, edges and texture on a grid of cells, for want of any weights.

The local channels of a cell of 8 x 8 pixels, all linear poolings of per-pixel maps:

- colour: mean of CIE L*, a* and b* in the cell, and the spread of L* and of the chroma;
- gradient: histograms of the unsigned gradient direction, six bins at two scales;
- texture: energy of the Laplacian of Gaussian at three scales.

The same channels averaged over the neighbouring 3 x 3 and 7 x 7 cells follow: what a cell belongs
to is seen from what surrounds it. Position is left out. Each channel is centred and scaled by
constants written below, never by the statistics of a batch, so that a window's features depend on
it alone; each group then has the share of a feature's squared length that is written there too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from stages.extract.backbones import Backbone

CELL = 8
CONTEXTS = (1, 3, 7)
DIRECTIONS = 6
GRADIENT_SCALES = (1.0, 2.0)
TEXTURE_SCALES = (1.0, 2.0, 4.0)

COLOUR_CHANNELS = 5
GRADIENT_CHANNELS = DIRECTIONS * len(GRADIENT_SCALES)
TEXTURE_CHANNELS = len(TEXTURE_SCALES)
LOCAL_CHANNELS = COLOUR_CHANNELS + GRADIENT_CHANNELS + TEXTURE_CHANNELS
CHANNELS = LOCAL_CHANNELS * len(CONTEXTS)

# Centre and spread of each local channel over ordinary photographs, rounded on purpose: they set
# what "of order one" means and need no more digits.
CENTRES = (50.0, 2.0, 4.0, 1.6, 1.2, *[0.65] * GRADIENT_CHANNELS, 0.85, 1.05, 1.25)
SPREADS = (27.0, 11.0, 15.0, 0.9, 0.8, *[0.65] * GRADIENT_CHANNELS, 0.6, 0.7, 0.8)
# Channels of each group, and its share in the squared length of a feature, however many they are.
SHARES = ((COLOUR_CHANNELS, 0.5), (GRADIENT_CHANNELS, 0.2), (TEXTURE_CHANNELS, 0.3))

# sRGB primaries to CIE XYZ, rows divided by the D65 white point (IEC 61966-2-1).
RGB_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


class HandcraftedBackbone(Backbone):
    """The features of this module, which need no weights."""

    patch = CELL
    channels = CHANNELS

    def compute_features(self, images: Tensor) -> Tensor:
        """Compute the hand-crafted features of a batch of windows."""
        return compute_features(images)


def srgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB in 0..1 to CIE 1976 L*a*b* under D65, [window, channel, y, x].

    L* is in 0..100, a* and b* about -128..127 (IEC 61966-2-1 for the linearisation, CIE 15:2004).
    """
    linear = torch.where(
        images <= 0.04045, images / 12.92, ((images.clamp_min(0.0) + 0.055) / 1.055) ** 2.4
    )
    xyz = torch.einsum("ij,bjyx->biyx", images.new_tensor(RGB_TO_XYZ), linear)
    edge = 6.0 / 29.0
    root = torch.where(
        xyz > edge**3, xyz.clamp_min(edge**3) ** (1 / 3), xyz / (3 * edge**2) + 4.0 / 29.0
    )
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def compute_features(images: Tensor) -> Tensor:
    """Compute the features of windows: sRGB in 0..1 [window, rgb, y, x].

    Gives float32 [window, row, column, channel], one cell per 8 x 8 pixels, 60 channels: the 20
    local ones, then their averages over 3 x 3 and 7 x 7 cells. Of order one or less; the same
    whatever the other windows are.
    """
    # Autocast would round colours to 8 bits of mantissa and gain nothing on filters this small.
    with torch.autocast(images.device.type, enabled=False):
        local = _standardise(compute_local(images.float()))
        groups = [_average_cells(local, size) for size in CONTEXTS]
        return torch.cat(groups, dim=1).permute(0, 2, 3, 1).contiguous()


def compute_local(images: Tensor) -> Tensor:
    """Compute the 20 local channels, in the order of `CENTRES`: [window, channel, row, column].

    They are not centred and scaled yet.
    """
    lab = srgb_to_lab(images)
    light = lab[:, :1]
    directions = [_gradient_directions(light, scale) for scale in GRADIENT_SCALES]
    texture = [_laplacian_energy(light, scale) for scale in TEXTURE_SCALES]
    return torch.cat([_colour(lab), *directions, *texture], dim=1)


def _colour(lab: Tensor) -> Tensor:
    mean = functional.avg_pool2d(lab, CELL)
    spread = (functional.avg_pool2d(lab**2, CELL) - mean**2).clamp_min(0.0)
    light = spread[:, :1].sqrt()
    chroma = spread[:, 1:].sum(1, keepdim=True).sqrt()
    return torch.cat([mean, torch.log1p(light), torch.log1p(chroma)], dim=1)


def _gradient_directions(light: Tensor, scale: float) -> Tensor:
    """Give the share of each direction in a cell's contrast: [window, bin, row, column]."""
    smooth = _smooth(light, scale)
    padded = functional.pad(smooth, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * (scale / 2)
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * (scale / 2)
    strength = torch.sqrt(across**2 + down**2 + 1e-12)
    # The doubled angle makes light-to-dark and dark-to-light one direction, with no arctangent.
    cosine = (across**2 - down**2) / strength**2
    sine = 2 * across * down / strength**2
    angles = torch.arange(DIRECTIONS, device=light.device) * (2 * math.pi / DIRECTIONS)
    angles = angles.to(light.dtype).view(1, DIRECTIONS, 1, 1)
    agreement = cosine * torch.cos(angles) + sine * torch.sin(angles)
    votes = functional.avg_pool2d(strength * agreement.clamp_min(0.0) ** 2, CELL)
    # One unit of L* is about the noise of a photograph: below it a cell has no direction.
    return votes * DIRECTIONS / (votes.sum(1, keepdim=True) + 1.0)


def _laplacian_energy(light: Tensor, scale: float) -> Tensor:
    """Give the log of the mean scale-normalised |Laplacian|: [window, 1, row, column]."""
    padded = functional.pad(_smooth(light, scale), (1, 1, 1, 1), mode="replicate")
    neighbours = (
        padded[..., 1:-1, 2:]
        + padded[..., 1:-1, :-2]
        + padded[..., 2:, 1:-1]
        + padded[..., :-2, 1:-1]
    )
    laplacian = (neighbours - 4 * padded[..., 1:-1, 1:-1]) * scale**2
    return torch.log1p(functional.avg_pool2d(laplacian.abs(), CELL))


def _smooth(maps: Tensor, scale: float) -> Tensor:
    """Blur [window, 1, y, x] by a Gaussian of `scale` pixels, the border repeated."""
    radius = math.ceil(3 * scale)
    steps = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (steps / scale) ** 2)
    kernel = kernel / kernel.sum()
    maps = functional.pad(maps, (radius, radius, radius, radius), mode="replicate")
    maps = functional.conv2d(maps, kernel.view(1, 1, 1, -1))
    return functional.conv2d(maps, kernel.view(1, 1, -1, 1))


def _average_cells(cells: Tensor, size: int) -> Tensor:
    """Average [window, channel, row, column] over size x size cells, fewer at the border."""
    return functional.avg_pool2d(cells, size, stride=1, padding=size // 2, count_include_pad=False)


def _standardise(local: Tensor) -> Tensor:
    """Centre, scale and weight the local channels, [window, channel, row, column]."""
    weights = torch.cat([torch.full((n,), math.sqrt(share / n)) for n, share in SHARES])
    centres, factors = torch.tensor(CENTRES), weights / torch.tensor(SPREADS)
    shape = (1, LOCAL_CHANNELS, 1, 1)
    return (local - centres.to(local).view(shape)) * factors.to(local).view(shape)
