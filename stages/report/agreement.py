"""How far label maps of several evaluations say the same, and colours in which the eye can tell.

What is compared is what is shown: classes where both are matched to the same ones, and clusters of
one name as one. Anything else has other numbers in every evaluation, and is matched one to one by
the pixels in common, so that the agreement is largest.
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


def match_pairs(total: NDArray[np.int64], shared: int = 0) -> NDArray[np.int64]:
    """Match the numbers of one labelling to those of another by the pixels in common.

    ``total`` is int64 [first, second]; given is the first's number of every one of the second's.
    The first ``shared`` are the same in both: classes.
    """
    own = total[shared:, shared:]
    matched = np.full(total.shape[1], UNMATCHED, np.int64)
    matched[:shared] = np.arange(shared)
    found = match_clusters(own.T)
    met = [k for k, m in enumerate(found) if m != UNMATCHED and own[m, k]]
    matched[np.array(met, np.int64) + shared] = found[met] + shared
    return matched


def count_shared(
    one: ClusterLook, names: Sequence[str], other: ClusterLook, others: Sequence[str]
) -> int:
    """Count the classes that two evaluations are both matched to; none of other names."""
    # labels without a name are numbered behind the others, as far as they occur in a split
    shared = min(len(names), len(others))
    same = one.classes and other.classes and list(names[:shared]) == list(others[:shared])
    return shared if same else 0


def invert_matching(matching: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Turn a matching to ``count`` numbers around."""
    inverse = np.full(count, UNMATCHED, np.int64)
    matched = np.flatnonzero(matching != UNMATCHED)
    inverse[matching[matched]] = matched
    return inverse


def measure_agreement(*parts: tuple[coo_array, NDArray[np.int64]]) -> float:
    """Measure on which share of the pixels that both label two labellings agree; NaN of none.

    Every part of the pixels comes with its counts and its matching.
    """
    labelled = sum(int(counts.sum()) for counts, _ in parts)
    same = sum(int(c.data[matching[c.col] == c.row].sum()) for c, matching in parts)
    return same / labelled if labelled else float("nan")


@dataclass(frozen=True)
class Agreement:
    """How far the label maps of several evaluations say the same.

    ``matchings`` has, by split and pair, the first's number of every one of the second's, both ways
    around and of each with itself; ``shares`` the pixels on which a pair agrees, ``differences``
    those on which an image differs, in per cent or NaN.
    """

    matchings: dict[tuple[str, Pair], NDArray[np.int64]]
    shares: dict[Pair, float]
    differences: dict[Name, float]


def compare_labels(
    opened: Sequence[Evaluation],
    looks: Mapping[str, Sequence[ClusterLook]],
    classes: Mapping[str, Sequence[Sequence[str]]],
    chosen: Sequence[Name],
    screen: Screen,
) -> Agreement:
    """Compare what the label maps of every two evaluations show, pixel by pixel.

    Every split has the looks of all evaluations, and the names of their classes.
    """
    pairs = list(combinations(range(len(opened)), 2))
    totals = {
        (split, pair): np.zeros((IGNORE, IGNORE), np.int64) for split in looks for pair in pairs
    }

    def count(name: Name) -> dict[Pair, coo_array]:
        seen = zip(opened, looks[name[0]], strict=True)
        maps = [look.index[entry.read_labels(entry.images[name])] for entry, look in seen]
        return {(a, b): count_pairs(maps[a], maps[b]) for a, b in pairs}

    threads = count_threads()
    counts: dict[Name, dict[Pair, coo_array]] = {}
    with screen.count("compare", len(chosen), "images") as counter:
        found = map_ahead(count, chosen, threads, threads)
        for name, of_pairs in zip(chosen, found, strict=True):
            counts[name] = of_pairs
            for pair, cells in of_pairs.items():
                totals[name[0], pair][cells.row, cells.col] += cells.data
            counter.advance()
    matchings: dict[tuple[str, Pair], NDArray[np.int64]] = {}
    for (split, (a, b)), total in totals.items():
        own, names = looks[split], classes[split]
        shared = count_shared(own[a], names[a], own[b], names[b])
        matchings[split, (a, b)] = match_pairs(total, shared)
        matchings[split, (b, a)] = invert_matching(matchings[split, (a, b)], IGNORE)
    for split, own in looks.items():
        matchings |= {(split, (a, a)): np.arange(IGNORE) for a in range(len(own))}
    return Agreement(
        matchings,
        {
            pair: 100
            * measure_agreement(*((coo_array(totals[s, pair]), matchings[s, pair]) for s in looks))
            for pair in pairs
        },
        {name: _measure(name[0], of_pairs, matchings) for name, of_pairs in counts.items()},
    )


def _measure(
    split: str,
    counts: Mapping[Pair, coo_array],
    matchings: Mapping[tuple[str, Pair], NDArray[np.int64]],
) -> float:
    """Measure how far the label maps of an image differ, in per cent, as a mean over the pairs."""
    shares = [measure_agreement((cells, matchings[split, pair])) for pair, cells in counts.items()]
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
    """Choose comparable colours for the label maps of several evaluations.

    ``matchings`` has the number of the reference for every number of each.
    """
    base, paints = looks[reference], []
    for look, names, matching in zip(looks, classes, matchings, strict=True):
        if look is base:
            paints.append(Paint(look.palette[look.index], "class" if base.classes else "itself"))
            continue
        shared = count_shared(base, classes[reference], look, names)
        palette = _borrow_colours(base, len(classes[reference]), look, matching)
        paints.append(Paint(palette[look.index], "class" if shared else "pixels"))
    return paints


def _borrow_colours(
    base: ClusterLook, classes: int, look: ClusterLook, matching: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Give numbers the colours of those they are matched to, and the others unused ones."""
    taken = {IGNORE, *base.index.tolist(), *range(classes if base.classes else 0)}
    free = [n for n in range(IGNORE) if n not in taken] or [IGNORE - 1]
    index = np.full(256, IGNORE, np.uint8)
    matched = np.flatnonzero(matching != UNMATCHED)
    index[matched] = matching[matched]
    left = np.setdiff1d(look.index, [*matched, IGNORE])
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
    return list(dict.fromkeys(zip(look.names, look.colours, strict=True)))
