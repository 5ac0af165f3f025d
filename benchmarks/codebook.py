"""How time and memory of the codebook of the robust fit grow with the number of proposals.

    python -m benchmarks.codebook            prints the table of docs/performance.md
    python -m benchmarks.codebook --write    and puts it there

Proposals are drawn about some hundred directions, a window at a time, and never held together.
Every row is measured in a process of its own, in two threads.
"""

from __future__ import annotations

import os
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time

import click
import numpy as np
import torch
from numpy.typing import NDArray

from stages.em.pieces import FitBatch

PROPOSALS = (250_000, 1_000_000)
CHANNELS, EACH, SIZE = 384, 25, 4096
THREADS = 2
_WINDOWS, _DRAWN, _BATCH = 1024, 128, 32
_PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Cost:
    """What one codebook took."""

    proposals: int
    seconds: float
    processor: float  # seconds of all threads
    memory: int  # most bytes that the process held
    start: int  # bytes that it held before: its libraries


class Drawn:
    """Windows of a 5 x 5 grid every position of which is a proposal (``stages.em.sums.Piece``)."""

    def __init__(self, windows: NDArray[np.int64]) -> None:
        self.windows = windows

    def list_batches(self) -> list[NDArray[np.int64]]:
        """Cut the windows into batches."""
        return [self.windows[low : low + _BATCH] for low in range(0, len(self.windows), _BATCH)]

    def read(self, windows: NDArray[np.int64]) -> FitBatch:
        """Draw one batch."""
        rows = len(windows) * EACH
        generator = np.random.default_rng([int(windows[0]), len(windows)])
        centres, noise = _draw()
        # parts of one stretch of noise: to draw it anew would take as long as the codebook
        first = int(generator.integers(len(noise) - rows))
        own = centres[generator.integers(len(centres), size=rows)]
        features = own + noise[first : first + rows]
        grid = np.arange(1, EACH + 1, dtype=np.uint8).reshape(1, 5, 5)
        shape = len(windows), 5, 5
        return FitBatch(
            torch.from_numpy(features.reshape(*shape, CHANNELS)),
            torch.from_numpy(np.broadcast_to(grid, shape).copy()),
        )


@lru_cache(maxsize=1)
def _draw() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((300, CHANNELS), np.float32)
    return centres, generator.standard_normal((10_000, CHANNELS), np.float32)


def cut(windows: NDArray[np.int64], size: int) -> list[Drawn]:
    """Cut windows into pieces."""
    return [Drawn(windows[low : low + size]) for low in range(0, len(windows), size)]


def measure(proposals: int) -> Cost:
    """Make a codebook of so many proposals, in this process."""
    from stages.em.codebook import make_codebook

    torch.set_num_threads(THREADS)
    _draw()
    start = _read_peak()
    windows = np.arange(proposals // EACH)
    pieces = cut(windows, _WINDOWS)
    order = np.random.default_rng(0).permutation(windows)
    draw = (Drawn(np.sort(part.windows)) for part in cut(order, _DRAWN))
    begin, busy = perf_counter(), process_time()
    book = make_codebook(pieces, draw, SIZE, 0)
    end = perf_counter(), process_time()
    assert int(book.weight.sum()) == proposals
    return Cost(proposals, end[0] - begin, end[1] - busy, _read_peak(), start)


def _read_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_all() -> list[Cost]:
    """Measure every number of proposals in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    costs = []
    for number in PROPOSALS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            costs.append(pool.submit(measure, number).result())
    return costs


def make_table(costs: list[Cost]) -> str:
    """Draw the table."""
    lines = [
        "| proposals | seconds | of the processor | memory, MB | of it libraries, MB |",
        "|---|---|---|---|---|",
    ]
    for cost in costs:
        cells = [f"{cost.proposals:,}", f"{cost.seconds:.0f}", f"{cost.processor:.0f}"]
        cells += [f"{value / 1e6:.0f}" for value in (cost.memory, cost.start)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--write", is_flag=True, help="put the table into docs/performance.md")
def main(write: bool) -> None:
    """Measure, print, and write where that is asked for."""
    table = make_table(measure_all())
    print(table)
    if write:
        # whose imports every process that measures would have in its memory
        from benchmarks.quality import replace_table

        replace_table(_PAGE, table)


if __name__ == "__main__":
    main()
