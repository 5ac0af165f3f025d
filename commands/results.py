"""The verbs that look at a run: status, verify, inspect, compare.

Tables for people: how a run stands, in the width of the terminal, plain where there is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from commands.options import NumberType, PlaceType, complete_images
from commands.shared import (
    AS_JSON,
    PROGRESS,
    RUN,
    RUN_TEXT,
    SCHEDULER,
    VERBOSE,
    WORKERS,
    em_option,
    head_option,
    screen_options,
)
from commands.verbs import argument, shown, verb, what
from pipeline.compute.scheduler import Execution
from pipeline.errors import UsageError, count_of
from pipeline.progress import Screen, show_bytes, show_controls, show_seconds
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import Condition
from pipeline.settings import Bounds
from stages import FOLLOWED_BY

if TYPE_CHECKING:
    from pipeline.run.status import StageStatus

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
    stage, options = condition.key.partition("/")[0], ""
    # one that follows another has its verb
    verb = next((verb for verb, other in FOLLOWED_BY.items() if other == stage), stage)
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


@verb(
    events=False,
    examples=(
        ("primaps-pipe status runs/demo", "One row a stage, and why what is stale is stale."),
        ("primaps-pipe status runs/demo --json", "The same for programs."),
    ),
)
@RUN
@AS_JSON
@VERBOSE
def status(run: Path, as_json: bool) -> None:
    """Show how every stage of a run stands.

    \b
    missing     it was never run
    incomplete  some shards are finished; the same command goes on with the others
    stale       what it was made from has changed since
    fresh       finished, and made from what is there
    """
    from pipeline.run.status import inspect_run
    from stages import SETTINGS

    rows = inspect_run(RunDirectory(run), SETTINGS)
    if as_json:
        click.echo(json.dumps([row.describe() for row in rows], indent=1))
        return

    print_status(rows, RunDirectory(run))


@verb(
    events=False,
    examples=(
        ("primaps-pipe verify runs/demo", "Exits with 1 where something is damaged."),
        ("primaps-pipe verify runs/demo --repair", "Computes again what is, and nothing else."),
    ),
)
@RUN
@what(
    "--repair",
    is_flag=True,
    help="make again what is damaged, and nothing else",
)
@WORKERS
@SCHEDULER
@PROGRESS
@AS_JSON
@VERBOSE
def verify(
    run: Path,
    repair: bool,
    as_json: bool,
    workers: int,
    scheduler: str | None,
    progress: bool,
) -> None:
    """Check every file of a run against the checksums in its ledger."""
    from pipeline.run.verification import Findings, repair_run, verify_run
    from stages import SETTINGS

    screen = Screen(progress=progress)

    def check() -> Findings:
        findings = verify_run(
            RunDirectory(run), lambda total: screen.count("verify", total, "files")
        )
        if not as_json:
            for damage in findings.damages:
                click.echo(show_controls(damage.describe()))
            verdict = f"{len(findings.damages)} damaged" if findings.damages else "all as written"
            files = count_of(findings.files, "files")
            click.echo(f"{files}, {show_bytes(findings.bytes)}: {verdict}")
        return findings

    findings = check()
    if findings.damages and repair:
        execution = Execution(workers=workers, scheduler=scheduler)
        repair_run(RunDirectory(run), SETTINGS, findings.damages, execution, screen)
        findings = check()
    if as_json:
        click.echo(json.dumps(asdict(findings), indent=1))
    if findings.damages:
        sys.exit(1)


@verb(
    examples=(
        (
            "primaps-pipe inspect runs/demo astronaut --out astronaut.png",
            "The image, its features, proposals and labels, side by side.",
        ),
    ),
)
@RUN
@argument(
    "image",
    shell_complete=complete_images,
    text="the image's id, split/id, the photograph's path, or the last part of it",
)
@em_option(help="the fit whose labels are drawn; the run's own when not given")
@head_option(help="the head whose labels are drawn, instead of a fit's")
@shown(
    "--out",
    type=PlaceType(),
    help="the PNG to write  [default: NAME-inspect.png, in the folder you are in]",
)
@screen_options
def inspect(
    run: Path, image: str, em: str | None, head: str | None, out: Path | None, screen: Screen
) -> None:
    """Draw what every stage has made of one image, into one PNG."""
    from stages.report.inspection import inspect_image

    # no name that an image or its label map has
    place = out or Path(f"{Path(image).name}-inspect.png")
    written = inspect_image(RunDirectory(run), image, place, em=em, head=head)
    screen.result(str(written), picture=written)


@verb(
    examples=(
        (
            "primaps-pipe compare runs/demo runs/mine --out comparison.html",
            "Two runs, the same images in the same rows.",
        ),
        (
            "primaps-pipe compare runs/demo --em default --em auto",
            "Two fits of one run.",
        ),
    ),
)
@argument(
    "runs",
    nargs=-1,
    required=True,
    type=PlaceType(folder=True),
    metavar="RUN...",
    text=f"{RUN_TEXT}; one or more",
)
@em_option(help="a fit, repeatable; each of each run is compared", multiple=True)
@head_option(help="a head, repeatable; each of each run is compared", multiple=True)
@shown(
    "--images",
    type=NumberType(int, Bounds(least=0)),
    default=12,
    help="images of each split that are shown side by side: half of them those that differ most  "
    "[default: 12; at least 0]",
)
@shown(
    "--out",
    type=PlaceType(),
    default="comparison.html",
    help="the page to write  [default: comparison.html]",
)
@screen_options
def compare(
    runs: tuple[Path, ...],
    em: tuple[str, ...],
    head: tuple[str, ...],
    images: int,
    out: Path,
    screen: Screen,
) -> None:
    """Compare runs, or fits of one run, on one page: scores, classes, images side by side.

    Without names, the fit that evaluate would take of each run is compared.
    """
    names: list[tuple[str | None, str | None]] = [(name, None) for name in em]
    names += [(None, name) for name in head]
    subjects = [(RunDirectory(run), *name) for run, name in product(runs, names or [(None, None)])]
    if len(subjects) < 2:
        raise UsageError("compare takes two runs or more, or two names of one run (--em, --head).")
    from stages.report.comparison import compare_runs

    page = compare_runs(subjects, out, images=images, screen=screen)
    screen.result(f"the comparison is at {page.absolute()}", page=page.absolute())
