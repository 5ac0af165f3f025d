"""Options: what their values are, what completes them, those of a settings class and of all verbs.

Of a settings class they are made, so that a default is said once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from commands.verbs import FINE, HOW, WHAT, Option, argument, how, shown, what
from pipeline.compute.scheduler import Execution
from pipeline.dataset_names import DATASET_NAMES
from pipeline.errors import UsageError, did_you_mean
from pipeline.progress import EventScreen, Screen
from pipeline.registry import Registry
from pipeline.run.directory import RunDirectory
from pipeline.settings import Bounds, StageSettings, Values, field_extra, option_name, read_values
from pipeline.storage.places import is_remote, parse_place
from stages.crf.settings import BACKENDS

if TYPE_CHECKING:
    from pipeline.run.ledger import StageRecord

C = TypeVar("C", bound=Callable[..., Any])
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
MOST_IMAGES = 1000


def _complete(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class WordType(click.ParamType):
    """A value that may be one of some words, which are completed."""

    words: Collection[str]

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete a word."""
        return _complete(self.words, incomplete)


class ChoiceType(WordType):
    """One of some words; a wrong one is told which it may have been meant for."""

    name = "choice"

    def __init__(self, words: Collection[str]) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the words as the help page shows them."""
        return f"[{'|'.join(self.words)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word, or end the command."""
        if value not in self.words:
            known, close = ", ".join(self.words), did_you_mean(value, self.words)
            self.fail(f"{value!r}{close} is none of {known}.", param, ctx)
        return value


class NumberType(WordType):
    """A number in a range, or one of some words."""

    def __init__(
        self, kind: type[int] | type[float], bounds: Bounds | None, words: Collection[str] = ()
    ) -> None:
        self.kind, self.bounds, self.words = kind, bounds, words
        self.name = "|".join(("integer" if kind is int else "float", *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number or the word, or end the command."""
        if value in self.words:
            return value
        try:
            number = self.kind(value)
        except (TypeError, ValueError):
            wanted = " or ".join(
                ("a whole number" if self.kind is int else "a number", *self.words)
            )
            close = did_you_mean(str(value), self.words)
            self.fail(f"it must be {wanted}, not {value!r}{close}.", param, ctx)
        if self.bounds is not None and not self.bounds.hold(number):
            wanted = ", or ".join((str(self.bounds), *self.words))
            self.fail(f"it must be {wanted}, not {value}.", param, ctx)
        return number


class PlaceType(click.ParamType):
    """A local path or an object-store URL on the command line, as :func:`parse_place` reads it."""

    name = "path"

    def __init__(self, *, folder: bool = False) -> None:
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the place, or end the command with the reason why it is none."""
        try:
            place = parse_place(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        if self.folder and not is_remote(place) and place.is_file():
            self.fail(f"Directory {str(place)!r} is a file.", param, ctx)
        return place

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete names of files, or of folders alone."""
        return [CompletionItem(incomplete, type="dir" if self.folder else "file")]


def complete_with(
    list_names: Callable[[click.Context, str], Iterable[str]], *, or_file: bool = False
) -> Completer:
    """Complete what names there are, of those that begin so far; or else a file."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        try:
            found = _complete(list_names(ctx, incomplete), incomplete)
        except Exception:  # a prompt is no place for errors: what cannot be read completes nothing
            found = []
        return found or ([CompletionItem(incomplete, type="file")] if or_file else [])

    return complete


def _list_runs(ctx: click.Context) -> list[Path]:
    """Return the runs that the command line names so far."""
    given = ctx.params.get("run") or ctx.params.get("runs")
    if given:
        return [given] if isinstance(given, Path) else list(given)
    # click stops at an option whose value is still missing, and leaves the arguments as they are
    return [parse_place(text) for text in ctx.args[: None if "runs" in ctx.params else 1]]


def _list_made(ctx: click.Context, stage: str) -> Iterable[str]:
    found = (name for run in _list_runs(ctx) for name in RunDirectory(run).names(stage))
    return dict.fromkeys(found)


def _list_images(ctx: click.Context, incomplete: str) -> list[str]:
    # the column alone: to check the whole table takes as long as there are images
    import pyarrow.parquet as pq

    found = [
        image
        for run in _list_runs(ctx)
        for image in pq.read_table(run / "manifest.parquet", columns=["id"])["id"].to_pylist()
        if image.startswith(incomplete)
    ]
    return found[:MOST_IMAGES]


def _list_recipes(ctx: click.Context, incomplete: str) -> list[str]:
    from workflows.recipes import list_recipes

    return list_recipes()


complete_fits = complete_with(lambda ctx, _: _list_made(ctx, "em"))
complete_heads = complete_with(lambda ctx, _: _list_made(ctx, "head"))
complete_images = complete_with(_list_images)
complete_recipes = complete_with(_list_recipes, or_file=True)
complete_datasets = complete_with(lambda *_: DATASET_NAMES, or_file=True)

CRF_TYPE = ChoiceType(BACKENDS)
BESIDES: Mapping[str, Mapping[str, Any]] = {
    "crf": {"type": CRF_TYPE},
    "dataset": {"shell_complete": complete_datasets},
    "em": {"shell_complete": complete_fits},
    "head": {"shell_complete": complete_heads},
}
"""What options have that their settings do not say, by the name of the setting."""


def settings_options(
    settings: type[StageSettings],
    first: Collection[str] = (),
    *,
    names: Collection[str] = (),
    section: str = FINE,
    besides: Mapping[str, Mapping[str, Any]] = BESIDES,
    remembered: bool = True,
) -> Callable[[C], C]:
    """Give a command one option per field of a settings class, or for those that are named.

    An option that is not given stays out of the settings: what ``run.yaml`` remembers, or else the
    class's default, holds; where nothing is remembered, it is the default. The first say what is
    computed; the others are in a section, but for those that say how the stage runs.
    """

    def decorate(command: C) -> C:
        for name in reversed([*(names or settings.model_fields)]):
            changes_output = field_extra(settings, name, "affects_output")
            place = WHAT if name in first else section if changes_output else HOW
            words, facts = _describe_option(settings, name, place)
            facts.update(besides.get(name, {}))
            if not remembered:
                facts["default"] = settings.model_fields[name].default
            command = click.option(*words, cls=Option, **facts)(command)
        return command

    return decorate


def variant_options(
    variants: Registry[Any], settings: type[StageSettings]
) -> list[click.Parameter]:
    """Make options of the settings that variants of other packages have of their own."""
    found: dict[str, click.Parameter] = {}
    for variant in variants.brought:
        try:
            theirs: type[StageSettings] = variants[variant].settings_class
        except UsageError:
            continue  # why it cannot be imported is said when it is asked for
        for name in theirs.model_fields:
            if name in settings.model_fields or name in found:
                continue
            words, facts = _describe_option(theirs, name, f"Of the {variants.kind} {variant}")
            found[name] = Option(words, **facts)
    return list(found.values())


def given_settings(settings: type[StageSettings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the command line gives, out of all its values."""
    return {name: values[name] for name in settings.model_fields if is_given(values.get(name))}


def is_given(value: Any) -> bool:
    """Whether the command line gives an option: click says None, or nothing of what is repeated."""
    return value not in (None, ())


def _describe_option(
    settings: type[StageSettings], name: str, section: str
) -> tuple[list[str], dict[str, Any]]:
    """Return the words and the facts of the option of a setting, as click takes them."""
    field = settings.model_fields[name]
    values, option, default = read_values(field), option_name(settings, name), field.default
    if values.kind is bool:
        # both words, so that what run.yaml remembers can be taken back
        off = "--no-" + option.removeprefix("--")
        default = option if default else off
        option = f"{option}/{off}"
    notes = ["required at first"] if field.is_required() else []
    if not field.is_required() and is_given(field.default):
        notes.append(f"default: {default}")
    if values.bounds is not None:
        notes.append(str(values.bounds))
    text = field.description or ""
    return [option, name], {
        "section": section,
        "type": _choose_type(values),
        "multiple": values.many,
        "default": None,
        "help": f"{text}  [{'; '.join(notes)}]" if notes else text,
    }


def _choose_type(values: Values) -> click.ParamType:
    if values.kind in (int, float):
        return NumberType(values.kind, values.bounds, values.words)
    if values.words:
        return ChoiceType(values.words)
    if values.kind is Path:
        # not click's own, which makes s3:/bucket of s3://bucket
        return PlaceType()
    return click.BOOL if values.kind is bool else click.STRING


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
    "--scheduler", metavar="ADDRESS", help="compute on a dask cluster, for instance tcp://host:8786"
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

em_option = partial(what, "--em", metavar="NAME", shell_complete=complete_fits)
head_option = partial(what, "--head", metavar="NAME", shell_complete=complete_heads)


def screen_options(command: C) -> C:
    """Give a verb a screen: ``--progress``, ``--json`` and ``-v``."""

    @functools.wraps(command)
    def with_screen(*args: Any, progress: bool, as_json: bool, **kwargs: Any) -> None:
        from importlib.metadata import version

        screen = EventScreen(progress=progress) if as_json else Screen(progress=progress)
        context = click.get_current_context()
        run = context.params.get("run")
        screen.begin(
            command=context.command.name,
            run=None if run is None else str(run),
            version=version("primaps-pipe") if as_json else "",
        )
        command(*args, screen=screen, **kwargs)
        screen.end()

    return _add(with_screen, PROGRESS, EVENTS, VERBOSE)


def execution_options(command: C) -> C:
    """Give a verb what every stage has: how it is executed, and a screen."""

    @functools.wraps(command)
    def executed(*args: Any, **kwargs: Any) -> None:
        names = ("workers", "scheduler", "force", "dry_run", "wait")
        execution = Execution(**{name: kwargs.pop(name) for name in names})
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
