"""Images that are counted by hand, for tests of what becomes of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.run.manifest import Image
from stages.evaluate.metrics import Tally, count_image, decode_counts, encode_counts
from stages.labelling import Labelling

Map = NDArray[np.uint8]


def make_row(
    plain: Any,
    truth: Any = None,
    refined: Any = None,
    *,
    id: str = "a",
    split: str = "val",
    labels: Any = None,
    confidence: float = 0.0,
    clusters: int = 2,
    **others: Any,
) -> dict[str, Any]:
    """Count one image of one row of pixels, or of several; as lists or arrays."""

    def as_map(values: Any) -> Map | None:
        return None if values is None else np.atleast_2d(np.array(values, np.uint8))

    own = as_map(plain)
    assert own is not None
    labelling = Labelling(own, torch.zeros(0), confidence, as_map(refined))
    drawn = as_map(labels)
    return count_image(
        Image(0, id, split, "", None, 1, 1, 1, 0, ""),
        np.full((1, 1), 255, np.uint8) if drawn is None else drawn,
        labelling,
        clusters,
        as_map(truth),
        {name: np.atleast_2d(np.array(values, np.uint8)) for name, values in others.items()},
    )


def count(*rows: dict[str, Any], clusters: int = 2) -> Tally:
    """Add up images, as they are read from a shard's table."""
    tally = Tally(clusters)
    tally.add(decode_counts(encode_counts(rows)))
    return tally


def make_tally(images: int = 1, *, truth: bool = True) -> Tally:
    """Count images of which one pixel in four is wrong without CRF, and none with it."""
    known = [0, 0, 1, 1]
    plain = known
    given: dict[str, Any] = {}
    if truth:
        plain = [0, 1, 1, 1]
        given = {"truth": known, "refined": known, "running_prototypes": [1, 1, 0, 0]}
        given["linear_probe"] = [0, 0, 1, 0]
    row = make_row(plain, labels=known, confidence=3.0, **given)
    return count(*[row] * images)
