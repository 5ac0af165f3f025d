"""The arrays of ``features.zarr``: how a view is laid out, and what the group says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.storage.arrays import ArraySpec

GRID = ("window", "row", "column")
NEIGHBOURS = 9


def features_spec(facts: Mapping[str, Any], text: str) -> ArraySpec:
    """Lay out the features of one view: float16 [window, row, column, channel]."""
    return ArraySpec(
        shape=(*facts["grid"], facts["channels"]),
        dims=(*GRID, "channel"),
        dtype="float16",
        compress=False,
        attributes={"long_name": text, "units": "1"},
    )


def attention_spec(facts: Mapping[str, Any]) -> ArraySpec:
    """Lay out the attention to the neighbourhood: float16 [window, row, column, neighbour]."""
    return ArraySpec(
        shape=(*facts["grid"], NEIGHBOURS),
        dims=(*GRID, "neighbour"),
        dtype="float16",
        compress=False,
        attributes={
            "long_name": "last block's attention of a position to the 3 x 3 positions around it, "
            "row by row, mean over heads; 0 outside the grid",
            "units": "1",
        },
    )


def group_attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Give the attributes of the group, which are the same whichever stage writes them."""
    return {name: facts[name] for name in ("backbone", "patch", "size", "weights_source")}
