"""Photographs that come with scikit-image and scikit-learn, and energies and features of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_softmax
from torch import Tensor

from stages.extract.handcrafted import CELL, compute_features

# The photographs lie in the wheels themselves: nothing is fetched.
PHOTOGRAPHS = {
    "astronaut": Path(skimage.__file__).parent / "data/astronaut.png",
    "coffee": Path(skimage.__file__).parent / "data/coffee.png",
    "chelsea": Path(skimage.__file__).parent / "data/chelsea.png",
    "rocket": Path(skimage.__file__).parent / "data/rocket.jpg",
    "motorcycle": Path(skimage.__file__).parent / "data/motorcycle_left.png",
    "china": Path(sklearn.datasets.__file__).parent / "images/china.jpg",
    "flower": Path(sklearn.datasets.__file__).parent / "images/flower.jpg",
}
GRID = 23
CHANNELS = 384


def load_square(path: Path, size: int) -> NDArray[np.uint8]:
    """Read a photograph, its shorter side resized to `size`, and cut out the centred square.

    Parameters
    ----------
    path : Path
        The image file.
    size : int
        Side of the square, in pixels.

    Returns
    -------
    uint8 [y, x, rgb]
        The square.
    """
    with Image.open(path) as photograph:
        image = photograph.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(resized.crop((left, top, left + size, top + size)))


def draw_unary(
    image: NDArray[np.uint8], labels: int, sharpness: float, seed: int
) -> NDArray[np.float32]:
    """Draw label energies like those of a coarse segmenter: smooth fields that follow colour a bit.

    Parameters
    ----------
    image : uint8 [y, x, rgb]
        The photograph.
    labels : int
        Number of labels, at least 1.
    sharpness : float
        Factor of the logits: 0.5 is hesitant, 20 nearly certain.
    seed : int
        Seed of the fields.

    Returns
    -------
    float32 [label, y, x]
        Negative log probabilities.
    """
    generator = np.random.default_rng(seed)
    height, width = image.shape[:2]
    coarse = generator.standard_normal((labels, GRID, GRID)).astype(np.float32)
    smooth = [
        np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BILINEAR))
        for field in coarse
    ]
    directions = generator.standard_normal((labels, 3))
    colour = np.einsum("lc,yxc->lyx", directions, image / 127.5 - 1.0)
    logits = sharpness * (np.stack(smooth) + 2.0 * colour)
    return np.asarray(-log_softmax(logits, axis=0), np.float32)


def draw_features(name: str, side: int) -> Tensor:
    """Make features of a photograph like those of a small Vision Transformer, without its weights.

    The hand-crafted channels go through two fixed random layers and a layer norm, and a little
    noise fills the directions that the 60 channels leave empty.

    Parameters
    ----------
    name : str
        One of ``PHOTOGRAPHS``.
    side : int
        Rows and columns of the grid.

    Returns
    -------
    float32 tensor [row, column, channel]
        384 channels, rounded to float16 as in the cache.
    """
    pixels = torch.from_numpy(load_square(PHOTOGRAPHS[name], CELL * side))
    local = compute_features(pixels.permute(2, 0, 1).float().div(255).unsqueeze(0))[0]
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(local.shape[-1], CHANNELS, generator=generator)
    second = torch.randn(CHANNELS, CHANNELS, generator=generator) / math.sqrt(CHANNELS)
    mixed = torch.relu(4 * local @ first) @ second
    mixed = F.layer_norm(mixed - mixed.mean(dim=(0, 1)), (CHANNELS,))
    noise = torch.randn(mixed.shape, generator=generator)
    return F.layer_norm(mixed + 0.4 * noise, (CHANNELS,)).half().float()
