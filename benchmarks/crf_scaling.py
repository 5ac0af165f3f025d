"""How the dense CRF's time grows with labels and with pixels.

Run as ``python -m benchmarks.crf_scaling [--json FILE]``. One thread, medians over the photographs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import click
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import one_thread
from benchmarks.samples import PHOTOGRAPHS, draw_unary, load_square
from stages.crf.backends import NumbaBackend
from stages.crf.settings import CrfSettings

LABELS = (2, 6, 8, 12, 16, 27, 32, 54)
SIZES = (160, 224, 320, 448, 640)


def time_refinement(size: int, labels: int, repeats: int) -> float:
    """Return the median over the photographs of the best time of a refinement, in seconds."""
    backend, settings = NumbaBackend(), CrfSettings()
    times = []
    for seed, path in enumerate(PHOTOGRAPHS.values()):
        image = load_square(path, size)
        unary = draw_unary(image, labels, 3.0, seed)
        best = float("inf")
        # The first run compiles and builds the spatial operator.
        for run in range(repeats + 1):
            start = perf_counter()
            backend.refine(unary, image, settings)
            if run:
                best = min(best, perf_counter() - start)
        times.append(best)
    return median(times)


def tabulate(title: str, heading: str, values: Sequence[int], seconds: Sequence[float]) -> Table:
    """Lay the times out as a table."""
    table = Table(title=title)
    for name in (heading, "ms an image"):
        table.add_column(name, justify="right")
    for value, time in zip(values, seconds, strict=True):
        table.add_row(str(value), f"{1000 * time:.0f}")
    return table


@click.command()
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Best of N.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write every time here.")
def main(repeats: int, target: Path | None) -> None:
    """Time the dense CRF for growing numbers of labels and of pixels."""
    with one_thread():
        by_labels = [time_refinement(320, labels, repeats) for labels in LABELS]
        by_size = [time_refinement(size, 27, repeats) for size in SIZES]
    console = Console()
    console.print(tabulate("320 x 320 pixels", "labels", LABELS, by_labels))
    console.print(tabulate("27 labels", "side, pixels", SIZES, by_size))
    if target is not None:
        report = {
            "labels": dict(zip(LABELS, by_labels, strict=True)),
            "size": dict(zip(SIZES, by_size, strict=True)),
        }
        target.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
