"""How far label maps of several evaluations say the same, and colours in which the eye can tell.

Clusters have other numbers in every evaluation. Those of one are matched one to one to those of
another by the pixels that they have in common, so that the agreement is largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from pipeline.datasets.definition import IGNORE, Colour
from pipeline.progress import Screen
from pipeline.run.evaluation import ClusterLook, Evaluation
from pipeline.run.frames import count_threads, map_ahead
from stages.scores import UNMATCHED, match_clusters

Name = tuple[str, str]  # split and id of an image
Pair = tuple[int, int]  # positions of two evaluations


def count_pairs(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> coo_array:
    """Count which clusters two label maps of one image give to the same pixels.

    Given are the counts that are not 0, int64 [first, second].
    """
    if first.shape != second.shape:
        raise ValueError(f"label maps of shapes {first.shape} and {second.shape}")
    counts = np.bincount((first.astype(np.intp) * 256 + second).ravel(), minlength=256 * 256)
    return coo_array(counts.reshape(256, 256)[:IGNORE, :IGNORE])


def match_pairs(total: NDArray[np.int64]) -> NDArray[np.int64]:
    """Match the clusters of one labelling to those of another by the pixels in common.

    ``total`` is int64 [first, second]; given is the first's cluster of every one of the second's.
    """
    matched = match_clusters(total.T)
    apart = np.array([m != UNMATCHED and not total[m, k] for k, m in enumerate(matched)], bool)
    matched[apart] = UNMATCHED
    return matched


def invert_matching(matching: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Turn a matching to ``count`` clusters around."""
    inverse = np.full(count, UNMATCHED, np.int64)
    matched = np.flatnonzero(matching != UNMATCHED)
    inverse[matching[matched]] = matched
    return inverse


def measure_agreement(counts: coo_array, matching: NDArray[np.int64]) -> float:
    """Measure on which share of the pixels that both label two labellings agree; NaN of none."""
    if not counts.nnz:
        return float("nan")
    same = counts.data[matching[counts.col] == counts.row].sum()
    return float(same / counts.data.sum())


def compare_labels(
    opened: Sequence[Evaluation], chosen: Sequence[Name], screen: Screen
) -> tuple[dict[Pair, NDArray[np.int64]], dict[Pair, float], dict[Name, float]]:
    """Compare the label maps of every two evaluations, pixel by pixel.

    Given are for a pair the first's cluster of every one of the second's, both ways around and of
    each with itself; the share of the pixels on which they agree; and how far those of an image
    differ. Both are in per cent, or NaN.
    """
    pairs = list(combinations(range(len(opened)), 2))
    totals = {
        (a, b): np.zeros((opened[a].clusters, opened[b].clusters), np.int64) for a, b in pairs
    }

    def count(name: Name) -> dict[Pair, coo_array]:
        maps = [entry.read_labels(entry.images[name]) for entry in opened]
        return {(a, b): count_pairs(maps[a], maps[b]) for a, b in pairs}

    threads = count_threads()
    counts: dict[Name, dict[Pair, coo_array]] = {}
    with screen.count("compare", len(chosen), "images") as counter:
        found = map_ahead(count, chosen, threads, threads)
        for name, of_pairs in zip(chosen, found, strict=True):
            counts[name] = of_pairs
            for pair, cells in of_pairs.items():
                totals[pair][cells.row, cells.col] += cells.data
            counter.advance()
    matchings = {pair: match_pairs(total) for pair, total in totals.items()}
    turned = {(b, a): invert_matching(m, opened[a].clusters) for (a, b), m in matchings.items()}
    same = {(a, a): np.arange(entry.clusters) for a, entry in enumerate(opened)}
    shares = {
        pair: 100 * measure_agreement(coo_array(total), matchings[pair])
        for pair, total in totals.items()
    }
    differences = {name: _measure(of_pairs, matchings) for name, of_pairs in counts.items()}
    return {**matchings, **turned, **same}, shares, differences


def _measure(
    counts: Mapping[Pair, coo_array], matchings: Mapping[Pair, NDArray[np.int64]]
) -> float:
    """Measure how far the label maps of an image differ, in per cent, as a mean over the pairs."""
    shares = [measure_agreement(cells, matchings[pair]) for pair, cells in counts.items()]
    known = [share for share in shares if not np.isnan(share)]
    return 100 * (1 - float(np.mean(known))) if known else float("nan")


@dataclass(frozen=True)
class Paint:
    """The colours of one evaluation's clusters in one split, uint8 [256, rgb].

    They are taken ``by`` the class, by the pixels in common with other clusters, or are its own.
    """

    palette: NDArray[np.uint8]
    by: str


def paint_looks(
    looks: Sequence[ClusterLook],
    classes: Sequence[Sequence[str]],
    matchings: Sequence[NDArray[np.int64]],
    reference: int,
) -> list[Paint]:
    """Choose comparable colours for the label maps of several evaluations."""
    base = looks[reference]
    paints = []
    for look, names, matching in zip(looks, classes, matchings, strict=True):
        # labels without a name are numbered behind the others, as far as they occur in a split
        shared = min(len(names), len(classes[reference]))
        same = shared > 0 and list(names[:shared]) == list(classes[reference][:shared])
        if base.classes and look.classes and same:
            paints.append(Paint(look.palette[look.index], "class"))
        elif look is base:
            paints.append(Paint(look.palette[look.index], "itself"))
        else:
            paints.append(Paint(_borrow_colours(base, matching), "pixels"))
    return paints


def _borrow_colours(base: ClusterLook, matching: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Give clusters the colours of those they are matched to, and the others unused ones."""
    largest = int(base.index[: len(base.names)].max(initial=0))
    free = np.arange(min(largest + 1, IGNORE - 1), IGNORE)
    left = np.flatnonzero(matching == UNMATCHED)
    index = np.full(256, IGNORE, np.uint8)
    index[: len(matching)] = base.index[matching]
    index[left] = np.resize(free, len(left))
    return base.palette[index]


def choose_reference(looks: Sequence[ClusterLook]) -> int:
    """Choose whose colours the others take: the first that has classes, else the first."""
    return next((i for i, look in enumerate(looks) if look.classes is not None), 0)


def list_legend(look: ClusterLook, class_names: Sequence[str]) -> list[tuple[str, Colour]]:
    """List what the colours mean: the classes, or the clusters where there are none."""
    if look.classes is not None:
        rows = look.palette[: len(class_names)].tolist()
        return [(n, (r, g, b)) for n, (r, g, b) in zip(class_names, rows, strict=True)]
    return list(zip(look.names, look.colours, strict=True))
