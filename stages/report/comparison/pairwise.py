"""The label maps of every two evaluations, compared image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.progress import Screen
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.subject import Evaluation
from stages.report.comparison.agreement import (
    PairCounts,
    add_pairs,
    count_pairs,
    invert_matching,
    match_pairs,
    measure_agreement,
    pack_pairs,
)
from stages.report.comparison.common_images import Name

Pair = tuple[int, int]  # the smaller number first


@dataclass(frozen=True)
class Pairwise:
    """What comparing the label maps of every two of some evaluations gave."""

    clusters: tuple[int, ...]
    matchings: dict[Pair, NDArray[np.int64]]
    shares: dict[Pair, float]
    differences: dict[Name, float]

    def find_matching(self, entry: int, reference: int) -> NDArray[np.int64]:
        """Return the reference's cluster of every cluster of an evaluation, int64 [cluster]."""
        if entry == reference:
            return np.arange(self.clusters[entry])
        if reference < entry:
            return self.matchings[reference, entry]
        return invert_matching(self.matchings[entry, reference], self.clusters[entry])

    @property
    def table(self) -> tuple[tuple[float | None, ...], ...]:
        """``shares`` as a matrix; None on the diagonal, and where there is none."""
        count = range(len(self.clusters))
        return tuple(tuple(self._find_share(a, b) for b in count) for a in count)

    def _find_share(self, first: int, second: int) -> float | None:
        share = self.shares.get((min(first, second), max(first, second)), float("nan"))
        return None if np.isnan(share) else share


def compare_labels(
    opened: Sequence[Evaluation], chosen: Sequence[Name], screen: Screen
) -> Pairwise:
    """Compare the label maps of every two evaluations, pixel by pixel."""
    pairs = list(combinations(range(len(opened)), 2))
    totals = {
        (a, b): np.zeros((opened[a].clusters, opened[b].clusters), np.int64) for a, b in pairs
    }

    def count(name: Name) -> dict[Pair, PairCounts]:
        maps = [entry.read_labels(entry.images[name]) for entry in opened]
        return {(a, b): count_pairs(maps[a], maps[b]) for a, b in pairs}

    threads = count_threads()
    counts: dict[Name, dict[Pair, PairCounts]] = {}
    with screen.count("compare", len(chosen), "images") as counter:
        found = map_ahead(count, chosen, threads, threads)
        for name, of_pairs in zip(chosen, found, strict=True):
            counts[name] = of_pairs
            for pair, cells in of_pairs.items():
                add_pairs(totals[pair], cells)
            counter.advance()
    matchings = {pair: match_pairs(total) for pair, total in totals.items()}
    return Pairwise(
        clusters=tuple(entry.clusters for entry in opened),
        matchings=matchings,
        shares={
            pair: 100 * measure_agreement(pack_pairs(total), matchings[pair])
            for pair, total in totals.items()
        },
        differences={name: _measure(of_pairs, matchings) for name, of_pairs in counts.items()},
    )


def _measure(counts: dict[Pair, PairCounts], matchings: dict[Pair, NDArray[np.int64]]) -> float:
    shares = [measure_agreement(cells, matchings[pair]) for pair, cells in counts.items()]
    known = [share for share in shares if not np.isnan(share)]
    return 100 * (1 - float(np.mean(known))) if known else float("nan")
