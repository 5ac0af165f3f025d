"""Colours in which label maps of different evaluations can be compared with the eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.base import Colour
from pipeline.run.subject import ClusterLook
from stages.evaluate.metrics import UNMATCHED

_MOST = 254  # the last index of a palette that does not mean ignore


@dataclass(frozen=True)
class Paint:
    """The colours of one evaluation's clusters in one split."""

    palette: NDArray[np.uint8]
    by: str


def choose_reference(looks: Sequence[ClusterLook]) -> int:
    """Choose whose colours the others take: the first that has classes, else the first."""
    return next((i for i, look in enumerate(looks) if look.classes is not None), 0)


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
        if base.classes and look.classes and _are_same(names, classes[reference]):
            paints.append(Paint(look.palette[look.index], "class"))
        elif look is base:
            paints.append(Paint(look.palette[look.index], "itself"))
        else:
            paints.append(Paint(_borrow_colours(base, matching), "pixels"))
    return paints


def _are_same(first: Sequence[str], second: Sequence[str]) -> bool:
    # labels without a name are numbered behind the others, as far as they occur in a split
    shared = min(len(first), len(second))
    return shared > 0 and list(first[:shared]) == list(second[:shared])


def _borrow_colours(base: ClusterLook, matching: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Give clusters the colours of those they are matched to, and the others unused ones."""
    used = base.index[: len(base.names)]
    taken = set(used.tolist())
    free = [i for i in range(int(used.max(initial=0)) + 1, _MOST + 1) if i not in taken]
    index = np.full(256, 255, np.uint8)
    spare = 0
    for cluster, matched in enumerate(matching):
        if matched == UNMATCHED:
            index[cluster] = free[spare % len(free)] if free else _MOST
            spare += 1
        else:
            index[cluster] = base.index[matched]
    return base.palette[index]


def list_legend(look: ClusterLook, class_names: Sequence[str]) -> list[tuple[str, Colour]]:
    """List what the colours mean: the classes, or the clusters where there are none."""
    if look.classes is not None:
        rows = look.palette[: len(class_names)].tolist()
        return [(n, (r, g, b)) for n, (r, g, b) in zip(class_names, rows, strict=True)]
    return list(zip(look.names, look.colours, strict=True))
