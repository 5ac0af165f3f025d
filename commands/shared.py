"""What verbs share: arguments and options, and how a stage is called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from commands.options import (
    ChoiceType,
    NumberType,
    PlaceType,
    complete_fits,
    complete_heads,
    is_given,
)
from commands.verbs import argument, how, shown, what
from pipeline.compute.scheduler import Execution
from pipeline.progress import EventScreen, Screen
from pipeline.run.directory import RunDirectory
from pipeline.settings import Bounds
from stages.crf.settings import BACKENDS

if TYPE_CHECKING:
    from pipeline.run.ledger import StageRecord

C = TypeVar("C", bound=Callable[..., Any])

RUN_TEXT = "the run directory: a folder, or s3://bucket/prefix"
RUN = argument("run", type=PlaceType(folder=True), text=RUN_TEXT)
WORKERS = how(
    "--workers",
    type=NumberType(int, Bounds(least=0)),
    default=0,
    metavar="N",
    help="compute the shards in N local processes; 0: in this one  [default: 0; at least 0]",
)
SCHEDULER = how(
    "--scheduler",
    metavar="ADDRESS",
    help="compute on a dask cluster, for instance tcp://host:8786",
)
FORGET = how(
    "--forget",
    is_flag=True,
    help="forget the options that were given to this stage of the run before",
)
FORCE = how("--force", is_flag=True, help="compute finished shards again")
DRY_RUN = how("--dry-run", is_flag=True, help="say what would be computed, and stop")
WAIT = how(
    "--wait",
    is_flag=True,
    help="wait for another process that computes the same stage of the run, rather than stop",
)
PROGRESS = shown(
    "--progress/--no-progress",
    default=True,
    help="speed, time left and bytes written  [default: --progress]",
)
EVENTS = shown(
    "--json",
    "as_json",
    is_flag=True,
    help="print one JSON object a line, for programs: start, progress, note, warning, and at the "
    "end done or error",
)
AS_JSON = shown("--json", "as_json", is_flag=True, help="print JSON")
VERBOSE = shown("-v", "--verbose", is_flag=True, help="show tracebacks and library logs")

CRF_TYPE = ChoiceType(BACKENDS)
em_option = partial(what, "--em", metavar="NAME", shell_complete=complete_fits)
head_option = partial(what, "--head", metavar="NAME", shell_complete=complete_heads)


def screen_options(command: C) -> C:
    """Give a verb a screen: ``--progress``, ``--json`` and ``-v``."""

    @functools.wraps(command)
    def with_screen(*args: Any, progress: bool, as_json: bool, **kwargs: Any) -> None:
        screen = EventScreen(progress=progress) if as_json else Screen(progress=progress)
        context = click.get_current_context()
        run = context.params.get("run")
        screen.begin(
            command=context.command.name,
            run=None if run is None else str(run),
            version=_read_version() if as_json else "",
        )
        command(*args, screen=screen, **kwargs)
        screen.end()

    return _add(with_screen, PROGRESS, EVENTS, VERBOSE)


def execution_options(command: C) -> C:
    """Give a verb what every stage has: how it is executed, and a screen."""

    @functools.wraps(command)
    def executed(
        *args: Any,
        workers: int,
        scheduler: str | None,
        force: bool,
        dry_run: bool,
        wait: bool,
        **kwargs: Any,
    ) -> None:
        execution = Execution(workers, scheduler, force=force, dry_run=dry_run, wait=wait)
        command(*args, execution=execution, **kwargs)

    return _add(screen_options(executed), WORKERS, SCHEDULER, FORCE, DRY_RUN, WAIT)


@dataclass(frozen=True)
class Caller:
    """Brings stages of a run up to date, as the command line says how."""

    run: RunDirectory
    forget: bool
    execution: Execution
    screen: Screen

    def __call__(self, stage: str, options: dict[str, Any]) -> StageRecord | None:
        """Run a stage with what was given to it before and is given now.

        Returns the record of its last run; None where a dry run leaves one to do.
        """
        from stages import recall_settings, run_stage

        given = {name: value for name, value in options.items() if is_given(value)}
        settings = recall_settings(stage, self.run, given, forget=self.forget)
        records = run_stage(stage, self.run, settings, self.execution, self.screen)
        return records[-1] if records else None


def stage_options(command: Callable[..., None]) -> Callable[..., Any]:
    """Give the verb of a stage the run, and how it is executed, as a :class:`Caller`."""

    @functools.wraps(command)
    def called(
        run: Path, forget: bool, execution: Execution, screen: Screen, **options: Any
    ) -> None:
        command(Caller(RunDirectory(run), forget, execution, screen), **options)

    return RUN(FORGET(execution_options(called)))


def _add(command: Any, *options: Callable[[Any], Any]) -> Any:
    """Decorate with options, which are shown in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def _read_version() -> str:
    from importlib.metadata import version

    return version("primaps-pipe")
