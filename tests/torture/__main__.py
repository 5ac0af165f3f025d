"""Every fault that the guarantees name, injected, and a table of what became of the runs.

    python -m tests.torture                        all of it
    python -m tests.torture --only kills --only power --minutes 5
    python -m tests.torture --write                and put the table into docs/guarantees.md

Exit code 1 where anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture import parts
from tests.torture.server import REPOSITORY
from tests.torture.workshop import OPTIONAL, STAGES, Trial, Workshop, open_workshop

PAGE = REPOSITORY / "docs" / "guarantees.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SUM = "all"
HEAD = ("guarantee", "faults injected", "survived", "bytes lost", "wrong results", "seconds")


@dataclass
class Row:
    """What became of the trials of one guarantee."""

    name: str
    faults: int = 0
    survived: int = 0
    lost: int = 0
    wrong: int = 0
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, trial: Trial) -> None:
        """Count a trial; one whose fault came too late to strike is none."""
        with self.lock:
            self.faults += trial.struck
            self.survived += trial.struck and not trial.wrong
            self.lost += trial.lost
            self.wrong += bool(trial.wrong)
            if trial.wrong or trial.lost:
                text = f"{trial.what}: {'; '.join(trial.wrong) or f'{trial.lost} bytes lost'}"
                self.complaints.append(text)
                print(f"WRONG {text[:2000]}", flush=True)

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        numbers = (self.faults, self.survived, self.lost, self.wrong, round(self.seconds))
        return (self.name, *(f"{number:,}" for number in numbers))


def main() -> None:
    """Run the parts, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=parts.NAMES, help="repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="at most so long for each part [60]"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    given = parser.parse_args()
    chosen = given.only or parts.NAMES
    rows = []
    if any(name in parts.WITH_WORKSHOP for name in chosen):
        rows += _run_in_workshops(chosen, given.seed, given.minutes, given.workers)
    for name, (title, run) in parts.ALONE.items():
        if name in chosen:
            rows.append(_run_alone(title, run(given.seed), given.minutes))
    _print_table(rows)
    if given.write:
        write_table(PAGE, rows, given.seed)
    sys.exit(any(row.wrong or row.lost or row.faults > row.survived for row in rows))


def _run_in_workshops(chosen: list[str], seed: int, minutes: float, workers: int) -> list[Row]:
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        shops = [
            stack.enter_context(open_workshop(folder / str(number), (*STAGES, *OPTIONAL)))
            for number in range(workers)
        ]
        for name, (title, list_tasks) in parts.WITH_WORKSHOP.items():
            if name not in chosen:
                continue
            tasks = list_tasks(shops[0], seed)
            # whatever the time allows is then a sample of all of it
            random.Random(seed).shuffle(tasks)
            row = Row(title)
            rows.append(row)
            start = time.monotonic()
            _share_out(tasks, shops, row, start + 60 * minutes)
            row.seconds = time.monotonic() - start
            print(" | ".join(row.cells), flush=True)
    return rows


def _share_out(tasks: list[parts.Task], shops: list[Workshop], row: Row, end: float) -> None:
    """Let every workshop take the next task until there are none, or the time is over."""
    waiting: queue.SimpleQueue[parts.Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work(shop: Workshop) -> None:
        while time.monotonic() < end:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                row.add(task(shop))
            except Exception as error:
                row.add(Trial(f"{task}", True, [f"{type(error).__name__}: {error}"], 0, 0.0))

    threads = [threading.Thread(target=work, args=(shop,)) for shop in shops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not waiting.empty():
        print(f"{row.name}: time is over, {waiting.qsize()} of {len(tasks)} left out", flush=True)


def _run_alone(title: str, trials: Iterator[Trial], minutes: float) -> Row:
    row = Row(title)
    start = time.monotonic()
    try:
        for trial in trials:
            row.add(trial)
            if time.monotonic() - start > 60 * minutes:
                print(f"{title}: time is over", flush=True)
                break
    except Exception as error:
        row.add(Trial(title, True, [f"{type(error).__name__}: {error}"], 0, 0.0))
    row.seconds = time.monotonic() - start
    print(" | ".join(row.cells), flush=True)
    return row


def _sum_up(rows: list[Row]) -> Row:
    total = Row(SUM)
    for name in ("faults", "survived", "lost", "wrong", "seconds"):
        setattr(total, name, sum(getattr(row, name) for row in rows))
    return total


def _print_table(rows: list[Row]) -> None:
    lines = [HEAD, *(row.cells for row in [*rows, _sum_up(rows)])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    print()
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [c.rjust(width) for c, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells))
    complaints = [complaint for row in rows for complaint in row.complaints]
    for complaint in complaints[:20]:
        print(f"- {complaint[:500]}")


def read_table(text: str) -> list[Row]:
    """Read the rows of a table that was written before, but for the sum."""
    rows = []
    for line in text.splitlines():
        name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        numbers = [cell.replace(",", "") for cell in cells]
        if len(numbers) == len(HEAD) - 1 and numbers[0].isdigit() and name != SUM:
            rows.append(Row(name, *map(int, numbers)))
    return rows


def write_table(page: Path, rows: list[Row], seed: int) -> None:
    """Put rows into the table between the markers of a page, in the place of their earlier ones."""
    text = page.read_text(encoding="utf-8")
    above, _, rest = text.partition(BEGIN)
    old, end, below = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no place for the table: {BEGIN} and {END}")
    known = {row.name: row for row in read_table(old)} | {row.name: row for row in rows}
    titles = [title for title, _ in [*parts.WITH_WORKSHOP.values(), *parts.ALONE.values()]]
    merged = [known[title] for title in titles if title in known]
    lines = ["| " + " | ".join(HEAD) + " |", "|---" + "|---:" * (len(HEAD) - 1) + "|"]
    lines += ["| " + " | ".join(row.cells) + " |" for row in [*merged, _sum_up(merged)]]
    table = "\n".join(lines)
    page.write_text(
        f"{above}{BEGIN}\n{table}\n\nSeed {seed}, {os.cpu_count()} cores.\n{END}{below}",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
