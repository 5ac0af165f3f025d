"""How time and memory of the EM grow: with images, classes, channels and pixels.

Run as ``python -m benchmarks.em_scaling [--json FILE]``. Caches of random features are written to a
temporary folder; every figure is measured in a fresh process with one thread, bar the one that
reads ahead.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.storage.arrays import ArraySpec, open_arrays, prepare_arrays, write_shard

T = TypeVar("T")

PATCH, SHARD = 14, 64
IMAGES = (100, 200, 400, 800, 2000)
# The memory at the second and the last; the time is fitted to the rest.
FEW, MANY = 200, 2000
CLASSES, CHANNELS, SIDES = (9, 27, 81), (192, 384, 768), (161, 322, 644)
USUAL = (27, 384, 322)
PROBE = 64
EPOCHS = 3
# Each number of images is measured so often, in turn: other work on the machine comes and goes.
ROUNDS = 3


@dataclass(frozen=True)
class Measurement:
    """One fit in a process of its own.

    Attributes
    ----------
    windows, classes, channels, side : int
        What was fitted; the side of a window in pixels.
    epoch : float
        The quickest epoch, seconds.
    processor : float
        What it took of the processor in all threads, seconds.
    waiting : float
        Share of that epoch that was spent waiting for the cache.
    peak : int
        Most memory that the process held, bytes.
    start : int
        What it held before the fit, its libraries, bytes.
    """

    windows: int
    classes: int
    channels: int
    side: int
    epoch: float
    processor: float
    waiting: float
    peak: int
    start: int


def write_cache(store: Path, windows: int, channels: int, side: int) -> None:
    """Write random features, and proposals that are squares, as the stages before the EM would."""
    grid = side // PATCH
    specs = {
        "clean": ArraySpec(
            (grid, grid, channels), ("window", "row", "column", "channel"), "float16", False
        ),
        "proposals": ArraySpec((side, side), ("window", "y", "x"), "uint8", True),
    }
    prepare_arrays(store, specs, windows, SHARD, {})
    generator = np.random.default_rng(0)
    for shard, low in enumerate(range(0, windows, SHARD)):
        rows = min(SHARD, windows - low)
        features = generator.standard_normal((rows, grid, grid, channels), np.float32)
        squares = generator.integers(0, 12, (rows, 12, 12)).astype(np.uint8)
        pixel = np.arange(side) * 12 // side
        blocks: dict[str, NDArray[Any]] = {
            "clean": features.astype(np.float16),
            "proposals": squares[:, pixel[:, None], pixel],
        }
        write_shard(store, blocks, shard, SHARD)


def measure_fit(store: Path, windows: int, classes: int, channels: int, side: int) -> Measurement:
    """Fit the first windows of a cache, initialisation and a few epochs, in this process."""
    import torch

    from stages.em.cache import Cache
    from stages.em.methods import Primaps, run_em_epoch
    from stages.em.settings import EmSettings

    torch.set_num_threads(1)
    settings = EmSettings(classes=classes, init_steps=0)
    start = read_memory("VmRSS")
    arrays = open_arrays(store, ["clean", "proposals"])
    cache = Cache(arrays, np.arange(windows), settings, torch.device("cpu"))
    state = Primaps().initialise(cache.read_sample, cache.read_epoch, cache.steps, settings)
    times = []
    for epoch in range(EPOCHS):
        waited = [0.0]
        begin, busy = perf_counter(), process_time()
        run_em_epoch(state, time_waiting(cache.read_epoch(epoch), waited), settings)
        times.append((perf_counter() - begin, process_time() - busy, waited[0]))
    quickest, busy_then, waited_then = min(times)
    return Measurement(
        windows,
        classes,
        channels,
        side,
        quickest,
        busy_then,
        waited_then / quickest,
        read_memory("VmHWM"),
        start,
    )


def time_waiting(items: Iterator[T], waited: list[float]) -> Iterator[T]:
    """Pass items on, and add the seconds that each was waited for."""
    while True:
        begin = perf_counter()
        item = next(items, None)
        waited[0] += perf_counter() - begin
        if item is None:
            return
        yield item


def read_memory(field: str) -> int:
    """Return a field of this process's memory in bytes: ``VmRSS`` now, ``VmHWM`` at most."""
    # not getrusage: its maximum begins with that of the parent process
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def run_alone(store: Path, windows: int, classes: int, channels: int, side: int) -> Measurement:
    """Run :func:`measure_fit` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_fit, store, windows, classes, channels, side).result()


def measure_images() -> list[Measurement]:
    """Measure the usual fit for each number of images: the quickest of some rounds."""
    classes, channels, side = USUAL
    with TemporaryDirectory() as folder:
        store = Path(folder) / "cache.zarr"
        write_cache(store, max(IMAGES), channels, side)
        rounds = [
            [run_alone(store, windows, classes, channels, side) for windows in IMAGES]
            for _ in range(ROUNDS)
        ]
    return [
        replace(
            min(same, key=lambda each: each.epoch),
            processor=min(each.processor for each in same),
            peak=max(each.peak for each in same),
        )
        for same in zip(*rounds, strict=True)
    ]


def measure_shapes() -> Iterator[Measurement]:
    """Measure fits that differ from the usual one in classes, channels or pixels."""
    classes, channels, side = USUAL
    shapes = [
        *((each, channels, side) for each in CLASSES),
        *((classes, each, side) for each in CHANNELS if each != channels),
        *((classes, channels, each) for each in SIDES if each != side),
    ]
    for shape in shapes:
        with TemporaryDirectory() as folder:
            store = Path(folder) / "cache.zarr"
            write_cache(store, PROBE, *shape[1:])
            yield run_alone(store, PROBE, *shape)


def fit_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return R^2 of the straight line through points."""
    rest = y - np.polyval(np.polyfit(x, y, 1), x)
    return float(1 - rest.var() / y.var())


def tabulate(title: str, measurements: list[Measurement]) -> Table:
    """Lay measurements out, one to a row."""
    table = Table(title=title)
    headings = ("images", "K", "D", "pixels", "epoch\ns", "an image\nms", "waiting\n%", "peak\nMB")
    for heading in (*headings, "of it\nthe fit, MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in measurements:
        table.add_row(
            str(each.windows),
            str(each.classes),
            str(each.channels),
            f"{each.side} x {each.side}",
            f"{each.epoch:.3f}",
            f"{1000 * each.epoch / each.windows:.2f}",
            f"{100 * each.waiting:.1f}",
            f"{each.peak / 1e6:.0f}",
            f"{(each.peak - each.start) / 1e6:.0f}",
        )
    return table


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write every figure here.")
def main(target: Path | None) -> None:
    """Measure and print how time and memory of the EM grow."""
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(width=None if Console().is_terminal else 120)
    images = measure_images()
    console.print(tabulate("the EM by number of images", images))
    timed = [each for each in images if each.windows < MANY]
    numbers = np.array([each.windows for each in timed], float)
    line = fit_line(numbers, np.array([each.epoch for each in timed]))
    busy = fit_line(numbers, np.array([each.processor for each in timed]))
    few, many = (next(each for each in images if each.windows == n) for n in (FEW, MANY))
    whole, own = many.peak / few.peak, (many.peak - many.start) / (few.peak - few.start)
    console.print(
        f"time of an epoch on a straight line: R^2 = {line:.5f}, processor time {busy:.5f};\n"
        f"memory at {MANY} images over that at {FEW}: {whole:.3f}, without the libraries {own:.3f}"
    )
    shapes = list(measure_shapes())
    console.print(tabulate("the EM by classes, channels and pixels", shapes))
    if target is not None:
        report = {
            "images": [asdict(each) for each in images],
            "shapes": [asdict(each) for each in shapes],
            "r_squared": line,
            "r_squared_processor": busy,
            "memory_ratio": whole,
            "memory_ratio_without_libraries": own,
        }
        target.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
