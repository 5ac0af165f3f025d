"""How clusters look: in the colour of their class, and under its name or the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from pipeline.datasets.palettes import Colour, png_palette
from pipeline.run.subject import name_clusters


@dataclass(frozen=True)
class ClusterLook:
    """How clusters are shown."""

    index: NDArray[np.uint8]
    palette: NDArray[np.uint8]
    names: tuple[str, ...]
    classes: tuple[int | None, ...] | None = None

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Colour of every cluster."""
        rows = self.palette[self.index[: len(self.names)]].tolist()
        return tuple((red, green, blue) for red, green, blue in rows)


def choose_block(metrics: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the figures of a split whose matching says how its clusters look.

    A split without ground truth has no matching; its clusters look as in the main split, so that
    one cluster has one colour wherever no other matching says otherwise.
    """
    block = metrics["splits"][split]
    chosen = metrics if block["assignment"] is None else block
    # a cluster without a class takes the first colour that is no class's in any split
    names = max((each["class_names"] for each in metrics["splits"].values()), key=len)
    return {**chosen, "class_names": names}


def choose_look(
    clusters: int,
    assignment: Sequence[int | None] | None,
    class_names: Sequence[str],
    class_colours: Sequence[Colour],
    given: Mapping[int, str] | None = None,
) -> ClusterLook:
    """Choose name and colour of every cluster."""
    names = name_clusters(clusters, assignment, class_names, given or {})
    if assignment is None:
        palette = np.frombuffer(png_palette(()), np.uint8).reshape(256, 3)
        return ClusterLook(np.arange(256, dtype=np.uint8), palette, names)
    colours = class_colours[: len(class_names)]
    palette = np.frombuffer(png_palette(colours), np.uint8).reshape(256, 3)
    index = np.full(256, IGNORE, np.uint8)
    spare = len(class_names)
    for cluster, label in enumerate(assignment):
        if label is None:
            index[cluster] = min(spare, IGNORE - 1)
            spare += 1
        else:
            index[cluster] = label
    return ClusterLook(index, palette, names, tuple(assignment))
