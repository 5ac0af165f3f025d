"""Tables for people: how a run stands, in the width of the terminal, plain where there is none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from textwrap import wrap

import click

from pipeline.condition import Condition
from pipeline.run_directory import RunDirectory
from pipeline.wording import show_bytes, show_controls, show_seconds
from stages.status import StageStatus

COLOURS = {"fresh": "green", "stale": "yellow", "incomplete": "yellow", "missing": "bright_black"}
TITLES = ("stage", "state", "shards", "size", "time", "CRF")
_RIGHT = {2, 3, 4}
_GAP = "  "


def print_status(rows: Sequence[StageStatus], run: RunDirectory) -> None:
    """Print one row a stage, below it why it is stale, and at the end which command is the next."""
    cells = [_list_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(TITLES, *cells, strict=True)]
    click.echo(_style(_line(TITLES, widths).rstrip(), bold=True))
    for row, line in zip(rows, cells, strict=True):
        text = _line(line, widths)
        state = row.condition.state
        # the second column, as wide as it is: names may hold the same word
        start = widths[0] + len(_GAP)
        end = start + len(state)
        coloured = _style(text[start:end], fg=COLOURS.get(state))
        click.echo((text[:start] + coloured + text[end:]).rstrip())
        reason = show_controls(row.condition.reason)
        for part in wrap(reason, _measure_width() - 4, break_on_hyphens=False):
            click.echo(f"    {part}")
    conditions = [row.condition for row in rows]
    # a stage that was left out is missed by none of those that were run after it
    run_last = max((n for n, c in enumerate(conditions) if c.record is not None), default=-1)
    behind = [
        row
        for number, row in enumerate(rows)
        if row.condition.state != "fresh" and (row.condition.record or number > run_last)
    ]
    if behind:
        key = behind[0].first or behind[0].condition.key
        chosen = next(condition for condition in conditions if condition.key == key)
        click.echo(f"next: {_name_command(chosen, run)}")


def _name_command(condition: Condition, run: RunDirectory) -> str:
    """Return the command that brings a stage up to date."""
    verb, options = condition.key.partition("/")[0], ""
    if condition.record is not None:
        verb, options = condition.record.command, condition.record.options
    return f"primaps-pipe {verb} {run.quoted}{options}"


def _list_cells(row: StageStatus) -> tuple[str, ...]:
    c = row.condition
    if c.record is None:
        return (show_controls(c.key), c.state, "", "", "", "")
    shards = f"{c.done}/{c.total}" if c.total else ""
    return (
        show_controls(c.key),
        c.state,
        shards,
        show_bytes(row.bytes),
        show_seconds(c.seconds),
        show_controls(row.crf),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if number in _RIGHT else cell.ljust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return _GAP.join(aligned)


def _measure_width() -> int:
    from shutil import get_terminal_size

    # piped, one remark is one line, for grep
    return max(get_terminal_size().columns, 40) if sys.stdout.isatty() else 10_000


def _style(text: str, **style: object) -> str:
    # click.echo takes the codes out where there is no terminal
    return click.style(text, **style)  # type: ignore[arg-type]
