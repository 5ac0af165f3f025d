"""Time the project's own parts against what a user would run instead.

Run as ``python -m benchmarks.speed [SECTION ...] [--json FILE]``. Each section runs both sides in
turn in one process, on the same inputs, and checks that they computed the same thing.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import click
from rich.console import Console

from benchmarks.comparison import tabulate
from benchmarks.machine import measure_machine

# Each is a module of this package whose SECTIONS are its tables.
MODULES = ("crf", "crf_cuda", "masks", "em", "extract", "end_to_end")
NAMES = tuple(module.replace("_", "-") for module in MODULES)


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(NAMES))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Best of N.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write every time here.")
def main(sections: tuple[str, ...], repeats: int, target: Path | None) -> None:
    """Time the named SECTIONS, all when none is named, and print their tables."""
    machine = measure_machine()
    report: dict[str, object] = {
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            **asdict(machine),
        }
    }
    # A heading of many columns does not fit the 80 of a terminal that is a file.
    console = Console(width=None if Console().is_terminal else 120)
    console.print(
        f"this machine: {machine.bandwidth / 1e9:.1f} GB/s memory, "
        f"{machine.cache_bandwidth / 1e9:.0f} GB/s cache, {machine.flops / 1e9:.0f} GFLOP/s a "
        f"thread, {machine.threads_flops / 1e9:.0f} GFLOP/s with all"
    )
    for name in dict.fromkeys(sections or NAMES):
        module = import_module(f"benchmarks.{name.replace('-', '_')}")
        for section in module.SECTIONS:
            comparisons = list(section.compare(repeats, machine))
            if not comparisons:
                continue  # the section has said why
            console.print(tabulate(section, comparisons))
            report[section.title] = [
                asdict(each) | {"ratio": each.ratio, "fraction": each.fraction}
                for each in comparisons
            ]
            if target is not None:
                target.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
