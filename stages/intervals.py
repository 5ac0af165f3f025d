"""How far an mIoU may be off by which images there happened to be: the bootstrap over images.

The images of a split are drawn anew, with replacement, a thousand times: each counts as often as a
Poisson variable of mean 1 says, which is the bootstrap of many images without its fixed number of
draws, so that images can be added up as they come (Hanley and MacGibbon, "Creating non-parametric
bootstrap samples using Poisson frequencies", 2006). How often an image counts follows from its name
alone: no result depends on an order, and two fits of the same images are drawn alike, so that their
difference is one of pairs. The matching of clusters to classes stays that of all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.storage.files import checksum

DRAWS = 1000
# Images whose pixels are laid out by class at a time.
BLOCK = 2048
LEVEL = 95
# How often an image counts, by 16 random bits: the quantiles of the Poisson distribution.
_STEPS = 2**16
_CUMULATED = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(16)])
_TABLE = np.searchsorted(_CUMULATED, (np.arange(_STEPS) + 0.5) / _STEPS).astype(np.uint8)


def draw_weights(names: Sequence[str]) -> NDArray[np.uint8]:
    """Draw how often images count, by their names, uint8 [image, draw]."""
    raw = np.empty((len(names), DRAWS // 4), np.uint64)
    for row, name in enumerate(names):
        key = int(checksum(name.encode())[:16], 16)
        raw[row] = np.random.Philox(key=key).random_raw(DRAWS // 4)
    return _TABLE[raw.astype("<u8").view("<u2")]


class Resampling:
    """The mIoU of every draw, of images that are added block by block.

    Sums are of whole numbers, and exact.
    """

    def __init__(self) -> None:
        # the last row has every image once
        self._hits = np.zeros((DRAWS + 1, IGNORE))
        self._union = np.zeros((DRAWS + 1, IGNORE))
        self._images = 0

    def add(
        self, weights: NDArray[np.uint8], hits: NDArray[np.float64], union: NDArray[np.float64]
    ) -> None:
        """Add images: their weights [image, draw], and pixels [image, class] by class.

        ``hits`` are right, ``union`` have the class or are labelled as it.
        """
        there = union.any(axis=1)
        used = np.flatnonzero(union.any(axis=0))
        once = np.ones((1, int(np.count_nonzero(there))))
        chosen = np.vstack([weights[there].T, once])
        self._hits[:, used] += chosen @ hits[there][:, used]
        self._union[:, used] += chosen @ union[there][:, used]
        self._images += int(np.count_nonzero(there))

    @property
    def miou(self) -> NDArray[np.float64] | None:
        """The mIoU of every draw, [draw], and last that of all images once, as shares.

        None of fewer than two images, which have no spread.
        """
        if self._images < 2:
            return None
        with np.errstate(invalid="ignore"):
            iou = self._hits / self._union
            # of a draw without any image nothing is known
            return np.nansum(iou, axis=1) / np.count_nonzero(self._union, axis=1)

    @property
    def interval(self) -> list[float] | None:
        """The interval of the mIoU, in per cent; None of fewer than two images."""
        draws = self.miou
        return None if draws is None else measure_interval(draws)


def resample_table(table: pa.Table, split: str) -> Resampling:
    """Draw the images of a split anew, from rows of ``images.parquet``."""
    drawn = Resampling()
    for start in range(0, len(table), BLOCK):
        part = table.slice(start, BLOCK).combine_chunks()
        counts = np.zeros((2, len(part), IGNORE))
        lists = part["classes"].combine_chunks()
        row = np.repeat(np.arange(len(part)), pc.list_value_length(lists).to_numpy())
        label = lists.flatten().to_numpy()
        for number, name in enumerate(("hits", "union")):
            counts[number, row, label] = part[name].combine_chunks().flatten().to_numpy()
        names = [f"{split}/{id_}" for id_ in part["id"].to_pylist()]
        drawn.add(draw_weights(names), *counts)
    return drawn


def measure_interval(draws: NDArray[np.float64]) -> list[float]:
    """Measure the middle ``LEVEL`` per cent of draws, all but the last; low, high, in per cent."""
    tail = (100 - LEVEL) / 2
    return [round(100 * float(v), 2) for v in np.nanpercentile(draws[:-1], [tail, 100 - tail])]
