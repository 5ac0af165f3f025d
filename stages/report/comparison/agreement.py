"""How far two sets of labels say the same, whatever numbers their clusters have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from stages.evaluate.metrics import UNMATCHED, match_clusters


@dataclass(frozen=True)
class PairCounts:
    """How often each cluster of one label map meets each cluster of another, non-zero ones only."""

    cells: NDArray[np.int64]
    pixels: NDArray[np.int64]


def count_pairs(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> PairCounts:
    """Count which clusters two label maps of one image give to the same pixels."""
    if first.shape != second.shape:
        raise ValueError(f"label maps of shapes {first.shape} and {second.shape}")
    counts = np.bincount((first.astype(np.intp) * 256 + second).ravel(), minlength=256 * 256)
    counts = counts.reshape(256, 256)
    counts[IGNORE, :] = counts[:, IGNORE] = 0
    cells = np.flatnonzero(counts)
    return PairCounts(cells, counts.ravel()[cells])


def add_pairs(total: NDArray[np.int64], counts: PairCounts) -> None:
    """Add the counts of an image to ``total``, int64 [first, second] of at most 256 x 256."""
    rows, columns = np.divmod(counts.cells, 256)
    total[rows, columns] += counts.pixels


def match_pairs(total: NDArray[np.int64]) -> NDArray[np.int64]:
    """Match the clusters of one labelling to those of another by the pixels in common."""
    matched = match_clusters(total.T)
    apart = np.array([m != UNMATCHED and not total[m, k] for k, m in enumerate(matched)], bool)
    matched[apart] = UNMATCHED
    return matched


def measure_agreement(counts: PairCounts, matching: NDArray[np.int64]) -> float:
    """Measure on which share of the pixels two labellings agree."""
    if not len(counts.cells):
        return float("nan")
    rows, columns = np.divmod(counts.cells, 256)
    same = counts.pixels[matching[columns] == rows].sum()
    return float(same / counts.pixels.sum())


def pack_pairs(total: NDArray[np.int64]) -> PairCounts:
    """Turn a matrix, int64 [first, second], into its non-zero counts."""
    rows, columns = np.nonzero(total)
    return PairCounts(rows * 256 + columns, total[rows, columns])


def invert_matching(matching: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Turn a matching around."""
    inverse = np.full(count, UNMATCHED, np.int64)
    matched = np.flatnonzero(matching != UNMATCHED)
    inverse[matching[matched]] = matched
    return inverse
