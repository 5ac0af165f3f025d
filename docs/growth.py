"""Plot how the cost grows: ``python docs/growth.py CRF.json EM.json OUT.png``.

The two files are what ``python -m benchmarks.crf_scaling`` and ``python -m benchmarks.em_scaling``
write with ``--json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BLUE, GREY = "#2b6cb0", "#777777"


def plot_line(axes: Axes, points: list[tuple[float, float]], title: str, x: str, y: str) -> None:
    """Plot measured points and the straight line from the origin to the last of them."""
    across, up = zip(*sorted(points), strict=True)
    axes.plot([0, across[-1]], [0, up[-1]], color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(across, up, color=BLUE, marker="o", markersize=4)
    axes.set(title=title, xlabel=x, ylabel=y, xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)


def plot_growth(crf: dict[str, Any], em: dict[str, Any], target: Path) -> None:
    """Plot the CRF by labels and pixels; an epoch by images, classes, channels and pixels."""
    figure, grid = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    labels = [(float(count), 1000 * seconds) for count, seconds in crf["labels"].items()]
    plot_line(grid[0, 0], labels, "dense CRF, 320 × 320", "labels", "ms an image")
    sides = [(int(side) ** 2 / 1e3, 1000 * seconds) for side, seconds in crf["size"].items()]
    plot_line(grid[0, 1], sides, "dense CRF, 27 labels", "thousand pixels", "ms an image")
    images = [(each["windows"], each["epoch"]) for each in em["images"]]
    plot_line(grid[0, 2], images, "EM, K = 27, D = 384", "images", "s an epoch")
    usual = {"classes": 27, "channels": 384, "side": 322}
    for axes, name, text in zip(
        grid[1],
        usual,
        ("classes K", "channels D", "thousand pixels"),
        strict=True,
    ):
        others = {key: value for key, value in usual.items() if key != name}
        points = [
            (
                each[name] ** 2 / 1e3 if name == "side" else each[name],
                1000 * each["epoch"] / each["windows"],
            )
            for each in em["shapes"]
            if all(each[key] == value for key, value in others.items())
        ]
        plot_line(axes, points, "EM, one image in one epoch", text, "ms")
    figure.savefig(target, dpi=110)


def main() -> None:
    """Read both files and write the picture."""
    crf, em, target = (Path(argument) for argument in sys.argv[1:4])
    plot_growth(json.loads(crf.read_text()), json.loads(em.read_text()), target)


if __name__ == "__main__":
    main()
