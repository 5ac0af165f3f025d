"""The command line: verbs. Parses, calls a stage, prints."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from pipeline import signals
from pipeline.datasets import DATASET_NAMES
from pipeline.errors import PipelineError, UsageError
from pipeline.ledger import StageRecord
from pipeline.options import given_settings, settings_options
from pipeline.places import PlaceType
from pipeline.progress import Screen, show_controls
from pipeline.run_directory import RunDirectory
from pipeline.scheduler import Execution
from pipeline.settings import parse_assignments
from stages import SETTINGS, recall_settings, run_stage
from stages.crf.backends import BACKENDS

C = TypeVar("C", bound=Callable[..., Any])

RUN = click.argument("run", type=PlaceType(folder=True))
WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="compute the shards in N local processes; 0: in this one",
)
SCHEDULER = click.option(
    "--scheduler", metavar="ADDRESS", help="compute on a dask cluster, for instance tcp://host:8786"
)
FORCE = click.option("--force", is_flag=True, help="compute finished shards again")
DRY_RUN = click.option("--dry-run", is_flag=True, help="say what would be computed, and stop")
FORGET = click.option(
    "--forget",
    is_flag=True,
    help="forget the options that were given to this stage of the run before",
)
PROGRESS = click.option("--progress/--no-progress", default=True, help="show progress")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="show tracebacks and library logs")


class ClassCountType(click.ParamType):
    """A number of classes, or ``auto``."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``auto`` as it is, anything else as an integer."""
        return value if value == "auto" else click.INT.convert(value, param, ctx)


CHOICES: dict[str, click.ParamType] = {
    "classes": ClassCountType(),
    "dataset": click.Choice(DATASET_NAMES),
    "crf": click.Choice(BACKENDS),
}


def execution_options(command: C) -> C:
    """Give a command the options that every stage has, and its errors one sentence."""
    for option in (VERBOSE, PROGRESS, DRY_RUN, FORCE, SCHEDULER, WORKERS):
        command = option(_guard(command) if option is VERBOSE else command)
    return command


def _guard(command: C) -> C:
    @functools.wraps(command)
    def guarded(*args: Any, verbose: bool = False, **kwargs: Any) -> None:
        if verbose:
            logging.basicConfig(level=logging.INFO)
        with signals.watch_signals() as watch:
            try:
                command(*args, **kwargs)
                sys.stdout.flush()
            except click.exceptions.ClickException:
                raise
            except (Exception, KeyboardInterrupt) as error:
                # what a signal breaks off may come up as any error
                if isinstance(error, KeyboardInterrupt) or watch.number is not None:
                    _fail(
                        f"{watch.reason}; the same command goes on from here.", watch.code, verbose
                    )
                if isinstance(error, BrokenPipeError):
                    _leave_pipe()
                _fail(*_describe(error), verbose)

    return guarded  # type: ignore[return-value]


def _describe(error: BaseException) -> tuple[str, int]:
    """Return what is said of an error, and the exit code."""
    if isinstance(error, PipelineError):
        return str(error), 2 if isinstance(error, UsageError) else 1
    return f"unexpected {type(error).__name__}: {error}; -v shows where.", 1


def _fail(text: str, code: int, verbose: bool) -> NoReturn:
    # the terminal may be gone, or whoever read what was printed
    with suppress(OSError):
        if verbose:
            traceback.print_exc()
        click.echo(f"primaps-pipe: {show_controls(text)}", err=True)
    sys.exit(code)


def _leave_pipe() -> NoReturn:
    """End as a program does whose reader has gone (``| head``): silently."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    sys.exit(128 + signal.SIGPIPE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="primaps-pipe")
def main() -> None:
    """From a folder of unlabelled photographs to semantic pseudo-label PNGs.

    The four stages work on one run directory, each on what those before it left there:

    \b
      primaps-pipe extract  RUN --dataset folder --root PHOTOS
      primaps-pipe masks    RUN
      primaps-pipe em       RUN --classes 12
      primaps-pipe evaluate RUN

    head trains a STEGO or HP head on the same features, which em and evaluate take with --head.
    """


def _run_one(
    name: str, path: Path, options: dict[str, Any], given: dict[str, Any] | None = None
) -> StageRecord | None:
    run = RunDirectory(path)
    if given is None:
        given = given_settings(SETTINGS[name], options)
    settings = recall_settings(name, run, given, forget=options["forget"])
    screen = Screen(progress=options["progress"])
    return run_stage(name, run, settings, _execution(options), screen)


def _execution(options: dict[str, Any]) -> Execution:
    names = ("workers", "scheduler", "force", "dry_run")
    return Execution(**{name: options[name] for name in names})


@main.command()
@RUN
@FORGET
@settings_options(SETTINGS["extract"], CHOICES)
@settings_options(SETTINGS["views"])
@execution_options
def extract(run: Path, **options: Any) -> None:
    """Extract the frozen ViT features of every image, and of its mirror image.

    \b
    primaps-pipe extract runs/mine --dataset folder --root ~/photographs
    primaps-pipe extract runs/mine --views clean,photometric --crops five --attention

    More views may be added at any time; what was made of the clean one stays valid.
    """
    record = _run_one("extract", run, options)
    # extra views are a stage of their own, which most runs do without
    wanted = given_settings(SETTINGS["views"], options) or RunDirectory(run).has_been_run("views")
    if record is not None and wanted:
        _run_one("views", run, options)


@main.command()
@RUN
@FORGET
@settings_options(SETTINGS["masks"], CHOICES)
@execution_options
def masks(run: Path, **options: Any) -> None:
    """Split every image into principal mask proposals.

    \b
    primaps-pipe masks runs/mine --threshold 0.4
    """
    _run_one("masks", run, options)


@main.command()
@RUN
@FORGET
@settings_options(SETTINGS["head"])
@execution_options
def head(run: Path, **options: Any) -> None:
    """Train a head on the frozen features (STEGO, HP), and make codes of them with it.

    \b
    primaps-pipe head     runs/mine --method stego --classes 12
    primaps-pipe evaluate runs/mine --head stego                   # the head's own clusters
    primaps-pipe em       runs/mine --head stego --name on-stego   # PriMaPs-EM on its codes
    """
    record = _run_one("head", run, options)
    if record is not None:
        _run_one("encode", run, options, given={"head": record.settings["name"]})


@main.command()
@RUN
@FORGET
@settings_options(SETTINGS["em"], CHOICES)
@execution_options
def em(run: Path, **options: Any) -> None:
    """Fit class prototypes to the cached features and proposals.

    \b
    primaps-pipe em runs/mine --classes 12
    """
    _run_one("em", run, options)


@main.command()
@RUN
@FORGET
@settings_options(SETTINGS["evaluate"], CHOICES)
@execution_options
def evaluate(run: Path, **options: Any) -> None:
    """Write label PNGs, metrics and a report.

    \b
    primaps-pipe evaluate runs/mine
    """
    _run_one("evaluate", run, options)


@main.command("run")
@RUN
@click.option(
    "--workflow", required=True, metavar="FILE", help="recipe, or the name of a shipped one"
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="STAGE.OPTION=VALUE",
    help="change a setting of the recipe, repeatable",
)
@execution_options
def run_(run: Path, workflow: str, assignments: tuple[str, ...], **options: Any) -> None:
    """Run all four stages from a recipe.

    \b
    primaps-pipe run runs/camvid --workflow camvid --set extract.root=~/data/camvid
    """
    from workflows.recipes import read_recipe, resolve_recipe, run_recipe

    settings = resolve_recipe(read_recipe(workflow), parse_assignments(assignments))
    screen = Screen(progress=options["progress"])
    execution = _execution(options)
    report = run_recipe(RunDirectory(run), settings, execution, screen)
    if not execution.dry_run:
        click.echo(report)


@main.command()
@RUN
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@VERBOSE
@_guard
def status(run: Path, as_json: bool) -> None:
    """Show how every stage of a run stands."""
    from stages.status import inspect_run

    rows = inspect_run(RunDirectory(run))
    if as_json:
        click.echo(json.dumps([_row(row) for row in rows], indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("stage", "state", "shards", "size", "time", "CRF", ""):
        table.add_column(title, justify="right" if title in ("shards", "size", "time") else "left")
    for row in rows:
        c = row.condition
        shards = f"{c.done}/{c.total}" if c.total else "-"
        size, time = f"{row.bytes / 1e6:.1f} MB", f"{c.seconds:.0f} s"
        cells = (c.key, c.state, shards, size, time, row.crf, c.reason)
        # no markup: names of files are among them
        table.add_row(*(Text(show_controls(cell)) for cell in cells))
    Console().print(table)


def _row(row: Any) -> dict[str, Any]:
    c = row.condition
    return {
        "stage": c.key,
        "state": c.state,
        "shards_done": c.done,
        "shards_total": c.total,
        "bytes": row.bytes,
        "seconds": round(c.seconds, 3),
        "crf": row.crf,
        "reason": c.reason,
    }


@main.command()
@RUN
@click.option("--repair", is_flag=True, help="make again what is damaged, and nothing else")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@WORKERS
@SCHEDULER
@PROGRESS
@VERBOSE
@_guard
def verify(
    run: Path,
    repair: bool,
    as_json: bool,
    workers: int,
    scheduler: str | None,
    progress: bool,
) -> None:
    """Check every file of a run against the checksums in its ledger.

    \b
    primaps-pipe verify runs/mine
    primaps-pipe verify runs/mine --repair

    Exits with 1 where something is damaged and was not repaired.
    """
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
            click.echo(f"{findings.files} files, {findings.bytes / 1e6:.1f} MB: {verdict}")
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


@main.command()
@click.argument("run", type=PlaceType(folder=True), default="runs/demo")
@execution_options
def demo(run: Path, **options: Any) -> None:
    """Run all four stages on photographs that come with the install.

    RUN is runs/demo when it is not given.
    """
    from workflows.demo.job import run_demo

    execution = _execution(options)
    report = run_demo(RunDirectory(run), execution, Screen(progress=options["progress"]))
    if not execution.dry_run:
        click.echo(f"the report is at {report.absolute()}")


if __name__ == "__main__":
    main()
