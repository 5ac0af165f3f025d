"""Draw what the stages make of some images: ``python docs/figure.py RUN OUT.png ID...``.

The picture of the README and of the first page is ``python docs/figure.py runs/demo docs/result.png
astronaut camera china motorcycle_left``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.definition import png_palette
from pipeline.images.decoding import read_label
from pipeline.run.directory import DEFAULT_NAME, RunDirectory
from pipeline.run.manifest import Image as Row
from stages.artefacts import Artefacts, open_artefacts
from stages.evaluate.settings import EvaluateSettings
from stages.report.pictures import (
    FeatureColours,
    colour_features,
    colour_labels,
    colour_proposals,
    fit_feature_colours,
    join_pictures,
    join_proposals,
)

SIDE = 200
GAP = 4
WIDE_GAP = 20
COLUMNS = 2


def draw_figure(run: RunDirectory, identifiers: list[str]) -> NDArray[np.uint8]:
    """Draw photograph, features, proposals and label map of every image, in a grid.

    Parameters
    ----------
    run
        An evaluated run.
    identifiers
        Images, one at least; each is cut to its middle square.

    Returns
    -------
    numpy.ndarray
        uint8 [y, x, rgba]; gaps are transparent, for light and dark pages.
    """
    artefacts = open_artefacts(run, DEFAULT_NAME, gain=EvaluateSettings().cosine_gain)
    chosen = [next(i for i in artefacts.manifest.images if i.id == name) for name in identifiers]
    features = [artefacts.read_features(image) for image in chosen]
    channels = features[0].shape[-1]
    colours = fit_feature_colours(np.concatenate([f.reshape(-1, channels) for f in features]))
    strips = [
        _draw_strip(artefacts, image, f, colours) for image, f in zip(chosen, features, strict=True)
    ]
    rows = [_join(strips[i : i + COLUMNS], 1, WIDE_GAP) for i in range(0, len(strips), COLUMNS)]
    return _join(rows, 0, GAP)


def _draw_strip(
    artefacts: Artefacts, image: Row, features: NDArray[np.float16], colours: FeatureColours
) -> NDArray[np.uint8]:
    pixels = artefacts.read_pixels(image)
    boxes, shape = artefacts.cover(image).boxes, pixels.shape[:2]
    coloured = colour_features(features, colours)
    proposals = join_proposals(artefacts.read_proposals(image), boxes, shape)
    labels = read_label(artefacts.run.labels(DEFAULT_NAME) / image.split / f"{image.id}.png")
    palette = np.frombuffer(png_palette(()), np.uint8).reshape(256, 3)
    parts = (
        pixels,
        join_pictures(coloured, boxes, shape),
        colour_proposals(proposals),
        colour_labels(labels.astype(np.uint8), palette),
    )
    return _join([_cut_square(part) for part in parts], 1, GAP)


def _cut_square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(pixels).crop((left, top, left + side, top + side))
    return np.asarray(square.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _join(parts: list[NDArray[np.uint8]], axis: int, gap: int) -> NDArray[np.uint8]:
    shape = list(parts[0].shape)
    shape[axis] = gap
    between = np.zeros(shape, np.uint8)
    line = [piece for part in parts for piece in (between, part)][1:]
    return np.concatenate(line, axis=axis)


if __name__ == "__main__":
    place, out, *names = sys.argv[1:]
    Image.fromarray(draw_figure(RunDirectory(Path(place)), names)).save(out, optimize=True)
