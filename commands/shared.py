"""What verbs share: arguments and options, one sentence for every error, how a stage is called."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from commands.completion import complete_fits, complete_heads
from commands.options import ChoiceType, Completer, NumberType, PlaceType
from commands.verbs import Argument, Verb, how, shown, what
from pipeline.compute import signals
from pipeline.compute.scheduler import Execution
from pipeline.errors import PipelineError, UsageError
from pipeline.progress import EventScreen, Screen, print_event
from pipeline.settings import Bounds
from pipeline.wording import show_controls
from stages.crf.settings import BACKENDS

if TYPE_CHECKING:
    from pipeline.run.directory import RunDirectory
    from pipeline.run.ledger import StageRecord

C = TypeVar("C", bound=Callable[..., Any])

RUN_TEXT = "the run directory: a folder, or s3://bucket/prefix"
RUN = click.argument("run", cls=Argument, type=PlaceType(folder=True), text=RUN_TEXT)
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
FORCE = how("--force", is_flag=True, help="compute finished shards again")
DRY_RUN = how(
    "--dry-run",
    is_flag=True,
    help="say what would be computed, and stop",
)
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
VERBOSE = shown(
    "-v",
    "--verbose",
    is_flag=True,
    help="show tracebacks and library logs",
)


CRF_TYPE = ChoiceType(BACKENDS)


def em_option(help: str, **facts: Any) -> Callable[[C], C]:
    """Return the option that names a fit of the run at hand."""
    return _name_option("--em", help, complete_fits, facts)


def head_option(help: str, **facts: Any) -> Callable[[C], C]:
    """Return the option that names a head of the run at hand."""
    return _name_option("--head", help, complete_heads, facts)


def _name_option(
    name: str, help: str, complete: Completer, facts: dict[str, Any]
) -> Callable[[C], C]:
    return what(
        name,
        metavar="NAME",
        help=help,
        shell_complete=complete,
        **facts,
    )


def screen_options(command: C) -> C:
    """Give a verb a screen: ``--progress``, ``--json`` and ``-v``; its errors get one sentence."""

    @functools.wraps(command)
    def shown(*args: Any, progress: bool, as_json: bool, **kwargs: Any) -> None:
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

    decorated: Any = guard(shown)
    for option in (VERBOSE, EVENTS, PROGRESS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


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

    decorated: Any = screen_options(executed)
    for option in (WAIT, DRY_RUN, FORCE, SCHEDULER, WORKERS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def guard(command: C) -> C:
    """Say every error in one sentence, and end with the exit code that belongs to it."""

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
    context = click.get_current_context()
    if isinstance(context.command, Verb) and context.command.events and context.params["as_json"]:
        with suppress(OSError):
            print_event("error", message=text, exit_code=code)
    sys.exit(code)


def _leave_pipe() -> NoReturn:
    """End as a program does whose reader has gone (``| head``): silently."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _read_version() -> str:
    from importlib.metadata import version

    return version("primaps-pipe")


def run_one(
    name: str,
    path: Path,
    given: dict[str, Any],
    *,
    forget: bool,
    execution: Execution,
    screen: Screen,
) -> StageRecord | None:
    """Bring one stage up to date, with what was given to it before and is given now.

    Returns the record of its last run, if there is one and no dry run leaves it to do.
    """
    from pipeline.run.directory import RunDirectory
    from stages import recall_settings, run_stage

    run: RunDirectory = RunDirectory(path)
    settings = recall_settings(name, run, given, forget=forget)
    records = run_stage(name, run, settings, execution, screen)
    return records[-1] if records else None
