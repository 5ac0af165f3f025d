"""Time the project's own parts against what a user would pick instead.

Run as ``python -m benchmarks.speed SECTION ... [--json FILE]``. Each section runs both sides in
turn in one process, on one thread, and checks that they computed the same thing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.samples import PHOTOGRAPHS, draw_unary, load_square
from stages.crf import CrfSettings, choose_backend
from stages.crf.backends import Backend

CRF_SIZE = 320
CRF_LABELS = (6, 12, 27)
CRF_SHARPNESS = (0.5, 3.0, 20.0)


@dataclass(frozen=True)
class Comparison:
    """One input, computed by both sides.

    Parameters
    ----------
    group : str
        The row of the table that this belongs to.
    sample : str
        The input's name.
    ours, theirs : float
        Best of the repeated runs, in seconds.
    agreement : float
        Share of equal results, 0..1.
    """

    group: str
    sample: str
    ours: float
    theirs: float
    agreement: float

    @property
    def ratio(self) -> float:
        """Say how many times faster ours is."""
        return self.theirs / self.ours


def compare_crf(repeats: int) -> Iterator[Comparison]:
    """Compare the own dense CRF with pydensecrf: all photographs, each number of labels.

    Parameters
    ----------
    repeats : int
        Runs of each side per input, in turn; the best counts.

    Yields
    ------
    Comparison
        Times of a whole refinement, from energies and image to the posterior. As in a run, the
        own backend keeps the spatial lattice from one image to the next of the same size.
    """
    settings = CrfSettings()
    ours, theirs = choose_backend("numba"), choose_backend("pydensecrf")
    assert ours is not None and theirs is not None
    images = {name: load_square(path, CRF_SIZE) for name, path in PHOTOGRAPHS.items()}
    first = next(iter(images.values()))
    ours.refine(draw_unary(first, 2, 1.0, 0), first, settings)
    for labels in CRF_LABELS:
        for seed, (name, image) in enumerate(images.items()):
            unary = draw_unary(image, labels, CRF_SHARPNESS[seed % len(CRF_SHARPNESS)], seed)
            runs = [
                (_time(ours, unary, image, settings), _time(theirs, unary, image, settings))
                for _ in range(repeats)
            ]
            (_, own), (_, other) = runs[0]
            yield Comparison(
                group=f"L = {labels}",
                sample=name,
                ours=min(run[0][0] for run in runs),
                theirs=min(run[1][0] for run in runs),
                agreement=float((own == other).mean()),
            )


def _time(
    backend: Backend,
    unary: NDArray[np.float32],
    image: NDArray[np.uint8],
    settings: CrfSettings,
) -> tuple[float, NDArray[np.int64]]:
    start = perf_counter()
    posterior = backend.refine(unary, image, settings)
    return perf_counter() - start, posterior.argmax(axis=0)


@dataclass(frozen=True)
class Section:
    """A comparison that can be asked for by name: its title, the other side, and how it is run."""

    title: str
    rival: str
    compare: Callable[[int], Iterator[Comparison]]


SECTIONS = {
    "crf": Section(f"dense CRF, {CRF_SIZE} x {CRF_SIZE}, one thread", "pydensecrf", compare_crf),
}


def tabulate(section: Section, comparisons: list[Comparison]) -> Table:
    """Lay the comparisons out as a table with one row per group.

    Parameters
    ----------
    section : Section
        What was compared.
    comparisons : list of Comparison
        Its results.

    Returns
    -------
    rich.table.Table
        Median times, the ratio's minimum, median and maximum, and the lowest agreement.
    """
    table = Table(title=section.title)
    headings = (
        "",
        "inputs",
        "ours\nms",
        f"{section.rival}\nms",
        "times faster\nmin / median / max",
        "agreement\nlowest, %",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in dict.fromkeys(each.group for each in comparisons):
        members = [each for each in comparisons if each.group == group]
        ratios = [each.ratio for each in members]
        table.add_row(
            group,
            str(len(members)),
            f"{1000 * median(each.ours for each in members):.0f}",
            f"{1000 * median(each.theirs for each in members):.0f}",
            f"{min(ratios):.2f} / {median(ratios):.2f} / {max(ratios):.2f}",
            f"{100 * min(each.agreement for each in members):.3f}",
        )
    return table


@click.command()
@click.argument("sections", nargs=-1, required=True, type=click.Choice(list(SECTIONS)))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Best of N.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write every time here.")
def main(sections: tuple[str, ...], repeats: int, target: Path | None) -> None:
    """Time the named SECTIONS and print one table each."""
    report: dict[str, object] = {
        "machine": {"platform": platform.platform(), "python": platform.python_version()}
    }
    with threadpool_limits(1):
        for name in dict.fromkeys(sections):
            comparisons = list(SECTIONS[name].compare(repeats))
            Console().print(tabulate(SECTIONS[name], comparisons))
            report[name] = [asdict(each) | {"ratio": each.ratio} for each in comparisons]
    if target is not None:
        target.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
