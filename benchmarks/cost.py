"""What a run of many images costs, from what a finished run has measured.

Run as ``python -m benchmarks.cost RUN [--json FILE]``. Seconds are those that the ledger has noted,
bytes those that lie in the run directory; both grow with the images, and are multiplied.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Condition
from pipeline.run.manifest import read_manifest
from pipeline.run.status import inspect_run
from stages import SETTINGS

SCALES = {
    "3 k (Cityscapes)": 2_975,
    "49 k (COCO-Stuff)": 49_629,
    "1 M": 1_000_000,
    "100 M": 100_000_000,
}


@dataclass(frozen=True)
class Cost:
    """What a run of some images takes.

    Attributes
    ----------
    name : str
        The row of the table.
    images : int
        Number of images.
    disk : float
        Bytes of all artefacts.
    hours : dict of str to float
        Hours of the machine that the finished run was made on, by stage.
    """

    name: str
    images: int
    disk: float
    hours: dict[str, float]


def scale_costs(rows: list[Condition], images: int) -> list[Cost]:
    """Scale a finished run's figures to the sizes of `SCALES`.

    Parameters
    ----------
    rows : list of Condition
        The stages of the run, all fresh.
    images : int
        Images of the run that were used.

    Returns
    -------
    list of Cost
    """
    costs = []
    for name, scale in SCALES.items():
        factor = scale / images
        hours = {row.key: factor * row.seconds / 3600 for row in rows}
        costs.append(Cost(name, scale, factor * sum(row.bytes for row in rows), hours))
    return costs


def tabulate(costs: list[Cost], cores: int) -> Table:
    """Lay the costs out as a table."""
    table = Table(title=f"hours of {cores} cores")
    for heading in ("images", *costs[0].hours, "all", "core hours", "disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in costs:
        total = sum(cost.hours.values())
        parts = [f"{hours:.3g}" for hours in cost.hours.values()]
        disk = f"{cost.disk / 1e9:.4g} GB"
        table.add_row(cost.name, *parts, f"{total:.3g}", f"{cores * total:.3g}", disk)
    return table


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path, exists=True))
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the figures here.")
def main(path: Path, target: Path | None) -> None:
    """Print what more images than those of the finished RUN would cost."""
    run = RunDirectory(path)
    rows = inspect_run(run, SETTINGS)
    unfinished = [row.key for row in rows if row.state != "fresh"]
    if unfinished:
        raise click.ClickException(f"{', '.join(unfinished)} of {path} is not finished; run it.")
    images = len({window.image for window in read_manifest(run).usable_windows()})
    costs = scale_costs(rows, images)
    Console(width=120).print(tabulate(costs, os.cpu_count() or 1))
    if target is not None:
        target.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")


if __name__ == "__main__":
    main()
