"""What the report says of every cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.run.subject import ClusterLook
from stages.report.page import ClusterCard, Cutout


def find_nearest(
    prototypes: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Find for every cluster the other one whose prototype is nearest."""
    if len(prototypes) < 2:
        return None
    values = prototypes.astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(norms > 0, norms, 1)
    cosines = (unit @ unit.T).clip(-1, 1)
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines.argmax(axis=1)
    return nearest, cosines[np.arange(len(cosines)), nearest]


def make_cards(
    block: Mapping[str, Any],
    look: ClusterLook,
    prototypes: NDArray[np.float32],
    cutouts: Mapping[int, Sequence[Cutout]],
) -> tuple[ClusterCard, ...]:
    """Gather what is known of every cluster."""
    nearest = find_nearest(prototypes)
    # without a CRF, the labels are the final ones
    final = _read_ious(block, "_crf" if block["assignment_crf"] is not None else "")
    plain = _read_ious(block, "") if block["assignment_crf"] is not None else {}
    classes = look.classes or (None,) * len(look.names)
    return tuple(
        ClusterCard(
            cluster=cluster,
            name=name,
            colour=colour,
            share=block["class_usage"][cluster],
            iou=final.get(cluster),
            iou_plain=plain.get(cluster),
            class_name=None if label is None else block["class_names"][label],
            nearest=None if nearest is None else int(nearest[0][cluster]),
            similarity=None if nearest is None else float(nearest[1][cluster]),
            cutouts=tuple(cutouts.get(cluster, ())),
        )
        for cluster, (name, colour, label) in enumerate(
            zip(look.names, look.colours, classes, strict=True)
        )
    )


def _read_ious(block: Mapping[str, Any], suffix: str) -> dict[int, float | None]:
    """Read the IoU of every cluster with the class that it is matched to."""
    assignment: Sequence[int | None] = block[f"assignment{suffix}"] or ()
    return {
        cluster: block["per_class"][label][f"iou{suffix}"]
        for cluster, label in enumerate(assignment)
        if label is not None
    }
