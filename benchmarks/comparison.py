"""What a benchmark gives: the same inputs computed by two sides, and a table of their times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.machine import Machine

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Comparison:
    """One input, computed by both sides.

    Attributes
    ----------
    group : str
        The row of the table that this belongs to.
    sample : str
        The input's name.
    ours, theirs : float
        Best of the repeated runs, in seconds.
    agreement : float
        How far both computed the same, as the section's heading says.
    limit : float
        The least time that the machine needs for what must be read, written and multiplied, in
        seconds.
    """

    group: str
    sample: str
    ours: float
    theirs: float
    agreement: float
    limit: float

    @property
    def ratio(self) -> float:
        """Say how many times faster ours is."""
        return self.theirs / self.ours

    @property
    def fraction(self) -> float:
        """Say which share of the limit's speed ours reaches."""
        return self.limit / self.ours


@dataclass(frozen=True)
class Section:
    """A comparison: its title, the other side, what agreement means, and how it is run.

    Attributes
    ----------
    title : str
        Heads the table.
    rival : str
        What a user would run instead.
    agreement : str
        Heading of the agreement's column.
    compare : callable
        Takes the number of repeats and the machine's measured limits, gives the comparisons.
    worst : callable
        Which of a group's agreements the table shows: ``min`` of shares, ``max`` of errors.
    """

    title: str
    rival: str
    agreement: str
    compare: Callable[[int, Machine], Iterator[Comparison]]
    worst: Callable[[list[float]], float] = min


def race(ours: Callable[[], A], theirs: Callable[[], B], repeats: int) -> tuple[float, float, A, B]:
    """Run two functions in turn; return the best time of each, in seconds, and their results."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        start = perf_counter()
        own = ours()
        middle = perf_counter()
        other = theirs()
        times[1].append(perf_counter() - middle)
        times[0].append(middle - start)
    return min(times[0]), min(times[1]), own, other


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch, the compiled loops and other numerical libraries one thread each for a while."""
    threads, told = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
        if told is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = told


def tabulate(section: Section, comparisons: list[Comparison]) -> Table:
    """Lay comparisons out as a table with one row per group.

    Parameters
    ----------
    section : Section
        What was compared.
    comparisons : list of Comparison
        Its results.

    Returns
    -------
    rich.table.Table
        Median times, the ratio's minimum, median and maximum, the worst agreement, the limit and
        the share of it that is reached.
    """
    table = Table(title=section.title)
    headings = (
        "",
        "inputs",
        "ours\nms",
        f"{section.rival}\nms",
        "times faster\nmin / median / max",
        section.agreement,
        "limit\nms",
        "of the\nlimit, %",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in dict.fromkeys(each.group for each in comparisons):
        members = [each for each in comparisons if each.group == group]
        ratios = [each.ratio for each in members]
        table.add_row(
            group,
            str(len(members)),
            f"{1000 * median(each.ours for each in members):.4g}",
            f"{1000 * median(each.theirs for each in members):.4g}",
            f"{min(ratios):.2f} / {median(ratios):.2f} / {max(ratios):.2f}",
            f"{section.worst([each.agreement for each in members]):.6g}",
            f"{1000 * median(each.limit for each in members):.3g}",
            f"{100 * median(each.fraction for each in members):.0f}",
        )
    return table
