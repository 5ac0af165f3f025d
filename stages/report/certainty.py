"""How sure the labels are, in the report: what thresholds keep, and how much of it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.report.plots import draw_lines


def trace_risk(
    pixels: NDArray[np.int64], right: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which share a threshold at every level keeps, and which share of it is wrong.

    Both are in per cent, the surest level first; levels come in rising order, and those at which
    nothing more is kept are left out.
    """
    kept, good = np.cumsum(pixels[::-1]), np.cumsum(right[::-1])
    some = pixels[::-1] > 0
    return 100 * kept[some] / kept[-1], 100 - 100 * good[some] / kept[some]


def show_certainty(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Gather what the template shows; None of an evaluation without ``--confidence``."""
    levels = metrics.get("levels")
    if levels is None or not sum(levels["pixels"]):
        return None
    pixels = np.array(levels["pixels"])
    middle = (np.arange(len(pixels)) + 0.5) / len(pixels)
    curves = [(*trace_risk(pixels, middle * pixels), "expected")]
    plots = []
    if "right" in levels and sum(levels["labelled"]):
        known, right = np.array(levels["labelled"]), np.array(levels["right"])
        curves.append((*trace_risk(known, right), "true"))
        some = known > 0
        said, true = 100 * middle[some], 100 * right[some] / known[some]
        lines = [(said, said, "expected"), (said, true, "true")]
        plots.append(("Right, % of the pixels said to be so sure", draw_lines(*lines, unit="%")))
    risk = draw_lines(*curves, unit="% of the pixels kept")
    names, noise = metrics.get("label_names", ()), metrics["noise"]
    true_noise = noise.get("true") or [None] * len(noise["expected"])
    rows = zip(names, noise["expected"], true_noise, strict=False)
    return {
        "plots": [("Wrong, % of the pixels kept by a threshold", risk), *plots],
        "noise": [row for row in rows if row[1] is not None],
        "labelled": "right" in levels,
    }
