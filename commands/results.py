"""The verbs that look at a run: status, verify, inspect, compare."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import click

from commands.completion import complete_images
from commands.shared import (
    AS_JSON,
    PROGRESS,
    RUN,
    RUN_TEXT,
    SCHEDULER,
    VERBOSE,
    WORKERS,
    em_option,
    guard,
    head_option,
    screen_options,
)
from commands.verbs import Argument, verb
from pipeline.bounds import Bounds
from pipeline.errors import UsageError
from pipeline.options import NumberType
from pipeline.places import PlaceType
from pipeline.progress import Screen
from pipeline.run_directory import RunDirectory
from pipeline.scheduler import Execution
from pipeline.sections import shown, what
from pipeline.wording import count_of, show_bytes, show_controls


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
@guard
def status(run: Path, as_json: bool) -> None:
    """Show how every stage of a run stands.

    \b
    missing     it was never run
    incomplete  some shards are finished; the same command goes on with the others
    stale       what it was made from has changed since
    fresh       finished, and made from what is there
    """
    from stages.status import describe_row, inspect_run

    rows = inspect_run(RunDirectory(run))
    if as_json:
        click.echo(json.dumps([describe_row(row) for row in rows], indent=1))
        return
    from commands.tables import print_status

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
@guard
def verify(
    run: Path,
    repair: bool,
    as_json: bool,
    workers: int,
    scheduler: str | None,
    progress: bool,
) -> None:
    """Check every file of a run against the checksums in its ledger."""
    from pipeline.verification import Findings, verify_run
    from stages.repair import repair_run

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
        repair_run(RunDirectory(run), findings.damages, execution, screen)
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
@click.argument(
    "image",
    cls=Argument,
    shell_complete=complete_images,
    text="the image's id, split/id, the photograph's path, or the last part of it",
)
@em_option("the fit whose labels are drawn; the run's own when not given")
@head_option("the head whose labels are drawn, instead of a fit's")
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
    from stages.evaluate.inspection.inspection import inspect_image

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
@click.argument(
    "runs",
    cls=Argument,
    nargs=-1,
    required=True,
    type=PlaceType(folder=True),
    metavar="RUN...",
    text=f"{RUN_TEXT}; one or more",
)
@em_option("a fit, repeatable; each of each run is compared", multiple=True)
@head_option("a head, repeatable; each of each run is compared", multiple=True)
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
    from stages.evaluate.comparison.comparison import compare_runs

    page = compare_runs(subjects, out, images=images, screen=screen)
    screen.result(f"the comparison is at {page.absolute()}", page=page.absolute())
