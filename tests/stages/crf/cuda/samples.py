"""Small energies and images to refine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Sample = tuple[NDArray[np.float32], NDArray[np.uint8]]


def draw_sample(labels: int, height: int, width: int, seed: int = 0) -> Sample:
    """Draw energies and a blotchy image."""
    generator = np.random.default_rng(seed)
    unary = generator.gamma(2.0, 1.0, (labels, height, width)).astype(np.float32)
    image = 40 * generator.integers(0, 3, (height, width, 1)) + generator.integers(
        0, 8, (height, width, 3)
    )
    return unary, image.astype(np.uint8)


def draw_photograph(labels: int, height: int, width: int, seed: int = 0) -> Sample:
    """Draw a scene of shaded, grainy areas, and the energies of a segmenter unsure of them."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices((height, width)) / max(height, width)
    areas = (np.sin(5 * rows + seed) + np.cos(7 * columns * (1 + rows)) > 0).astype(int)
    areas += 2 * ((rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.06)
    colours = generator.integers(30, 220, (4, 3))[areas]
    shade = 30 * np.stack([rows, columns, rows * columns], axis=-1)
    image = colours + shade + generator.normal(0.0, 4.0, (height, width, 3))
    logits = generator.normal(0.0, 1.0, (labels, height, width))
    logits += 1.5 * (areas[None] == np.arange(labels)[:, None, None] % 4)
    unary = np.log(np.exp(logits).sum(axis=0)) - logits
    return unary.astype(np.float32), image.clip(0, 255).astype(np.uint8)
