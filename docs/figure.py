"""Draw images of a run beside proposals and labels: ``python docs/figure.py RUN OUT.png ID...``.

The README's picture is ``python docs/figure.py runs/demo docs/result.png astronaut camera china
motorcycle_left``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.palettes import png_palette
from pipeline.images import read_label
from pipeline.run_directory import DEFAULT_NAME, RunDirectory
from stages.evaluate.artefacts import open_artefacts
from stages.evaluate.gallery import colour_labels, colour_proposals

HEIGHT = 220
GAP = 8


def draw_image(run: RunDirectory, identifier: str) -> NDArray[np.uint8]:
    """Draw image, proposals and label map of one image side by side, uint8 [y, x, rgb]."""
    artefacts = open_artefacts(run, DEFAULT_NAME)
    (image,) = (i for i in artefacts.manifest.images if i.id == identifier)
    pixels = artefacts.read_pixels(image)
    proposals = np.zeros_like(pixels)
    ids = artefacts.read_proposals(image)
    if ids is not None:
        for window, (left, top, right, bottom) in zip(
            ids, artefacts.cover(image).boxes, strict=True
        ):
            proposals[top:bottom, left:right] = colour_proposals(window)
    labels = read_label(run.labels(DEFAULT_NAME) / image.split / f"{image.id}.png")
    palette = np.frombuffer(png_palette(()), np.uint8).reshape(256, 3)
    coloured = colour_labels(labels.astype(np.uint8), palette)
    return np.concatenate([_scale(part) for part in (pixels, proposals, coloured)], axis=1)


def _scale(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    width = round(pixels.shape[1] * HEIGHT / pixels.shape[0])
    resized = Image.fromarray(pixels).resize((width, HEIGHT), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(resized), ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def draw_figure(run: RunDirectory, identifiers: list[str], columns: int = 2) -> NDArray[np.uint8]:
    """Draw several images in a grid, uint8 [y, x, rgb]."""
    strips = [draw_image(run, identifier) for identifier in identifiers]
    rows = [strips[i : i + columns] for i in range(0, len(strips), columns)]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(columns)]
    lines = [
        np.concatenate(
            [
                np.pad(
                    strip, ((0, 0), (0, width - strip.shape[1] + GAP), (0, 0)), constant_values=255
                )
                for strip, width in zip(row, widths, strict=True)
            ],
            axis=1,
        )
        for row in rows
    ]
    return np.concatenate(lines, axis=0)


if __name__ == "__main__":
    place, out, *names = sys.argv[1:]
    Image.fromarray(draw_figure(RunDirectory(Path(place)), names)).save(out, optimize=True)
