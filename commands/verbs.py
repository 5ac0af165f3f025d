"""What a verb and the group of verbs are: loaded when called, with a help page that teaches.

Nothing here imports more than click and the standard library: the list of verbs has to be there at
once.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import import_module
from inspect import cleandoc
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from pipeline.compute.signals import Stopped, Watch, watch_signals
from pipeline.errors import (
    MemoryShortError,
    PipelineError,
    ShardError,
    UsageError,
    did_you_mean,
)
from pipeline.progress import print_event, show_controls

PROGRAM = "primaps-pipe"
CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

WHAT = "What is computed"
FINE = "Fine points"
HOW = "Where and how it runs"
SHOWN = "What is shown"

_NOT_MAPPED = re.compile(r"failed to map|cannot (?:map|allocate)", re.IGNORECASE)
_NO_THREAD = "can't start new thread"

Rows = Mapping[str, str]


class Option(click.Option):
    """An option in a section of the help page."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Argument(click.Argument):
    """An argument with a line of help."""

    def __init__(self, *args: Any, text: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text = text


what = partial(click.option, cls=Option, section=WHAT)
how = partial(click.option, cls=Option, section=HOW)
shown = partial(click.option, cls=Option, section=SHOWN)
argument = partial(click.argument, cls=Argument)


def find_section(param: click.Parameter) -> str:
    """Return the section of an option; ``--help``, click's own, is in that of what is shown."""
    return getattr(param, "section", "") or SHOWN


def sort_sections(sections: Iterable[str]) -> list[str]:
    """Sort sections: what is computed, what a verb has besides, fine points, how, what is shown."""
    order = (WHAT, "", FINE, HOW, SHOWN)
    return sorted(sections, key=lambda name: order.index(name if name in order else ""))


class HelpFormatter(click.HelpFormatter):
    """Click's formatter with headings that stand out in a terminal, and plain text elsewhere."""

    def write_heading(self, heading: str) -> None:
        """Write the heading of a section."""
        text = f"{'':>{self.current_indent}}{heading}:"
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.write((click.style(text, bold=True) if coloured else text) + "\n")

    def write_table(self, heading: str, rows: Rows) -> None:
        """Write a section of names and their lines; nothing where there are none."""
        if rows:
            with self.section(heading):
                self.write_dl(list(rows.items()), col_max=32)


class Context(click.Context):
    """A context whose help is written by :class:`HelpFormatter`."""

    formatter_class = HelpFormatter


@contextmanager
def explain_options(command: click.Command, ctx: click.Context) -> Iterator[None]:
    """Name the option that an unknown one may have been meant for."""
    try:
        yield
    except click.NoSuchOption as error:
        known = [name for p in command.get_params(ctx) for name in (*p.opts, *p.secondary_opts)]
        close = did_you_mean(error.option_name, (name for name in known if name.startswith("-")))
        text = f"There is no option {error.option_name!r}{close}."
        raise click.UsageError(text, ctx) from None
    except click.UsageError as error:
        # a shell makes many words of a pattern that is not in quotes
        if "extra argument" in error.message and any(p.name == "root" for p in command.params):
            text = (
                f"{error.message}: --root takes one folder; give a pattern in quotes with "
                "--include, or a table of files with --dataset list:FILE.csv."
            )
            raise click.UsageError(text, ctx) from None
        raise


class Verb(click.Command):
    """One verb: its options in sections, an example or two, every error in one sentence.

    ``examples`` are commands, and on the line below each, deeper, what it does; ``lists`` gives
    further tables of the help page, by heading, and ``more`` the options that depend on what is
    installed. With ``events``, ``--json`` prints those of ``pipeline.progress``, errors among them.
    """

    context_class = Context

    def __init__(
        self,
        *args: Any,
        examples: str = "",
        lists: Callable[[], Mapping[str, Rows]] = dict,
        events: bool = True,
        more: Callable[[], Sequence[click.Parameter]] = list,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        lines = cleandoc(examples).splitlines()
        self.examples = [
            (" ".join(command.split()), does.strip())
            for command, does in zip(lines[::2], lines[1::2], strict=True)
        ]
        self.lists = lists
        self.events = events
        self.more = cache(more)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all options."""
        return [*super().get_params(ctx), *self.more()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; wrong use is an event, too, where events are asked for."""
        given = list(args)
        try:
            with explain_options(self, ctx):
                return super().parse_args(ctx, args)
        except click.UsageError as error:
            if self.events and "--json" in given and not ctx.resilient_parsing:
                print_event("error", message=error.format_message(), exit_code=error.exit_code)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Call the verb; every error is one sentence, and has its exit code."""
        verbose = ctx.params.pop("verbose", False)
        events = self.events and ctx.params["as_json"]
        if verbose:
            logging.basicConfig(level=logging.INFO)
        try:
            with watch_signals() as watch:
                try:
                    super().invoke(ctx)
                    sys.stdout.flush()
                except (click.exceptions.ClickException, click.exceptions.Exit):
                    raise
                except (Exception, KeyboardInterrupt) as error:
                    self._end(*_explain(error, watch), verbose=verbose, events=events)
        except Stopped as error:
            # on the threshold: signals were watched for already, or still
            self._end(*_explain(error, Watch(error.number)), verbose=verbose, events=events)

    def _end(self, text: str, code: int, *, verbose: bool, events: bool) -> NoReturn:
        # the terminal may be gone, or whoever read what was printed
        with suppress(OSError):
            if verbose:
                traceback.print_exc()
            click.echo(f"{PROGRAM}: {show_controls(text)}", err=True)
        with suppress(OSError):
            if events:
                print_event("error", message=text, exit_code=code)
        sys.exit(code)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples, arguments, and the options by section."""
        assert isinstance(formatter, HelpFormatter)
        with formatter.section("Examples"):
            for command, does in self.examples:
                # as written, whatever the width: for the clipboard
                formatter.write(f"{'':{formatter.current_indent}}{command}\n")
                with formatter.indentation():
                    formatter.write_text(does)
        arguments = [param for param in self.get_params(ctx) if isinstance(param, Argument)]
        formatter.write_table("Arguments", {a.human_readable_name: a.text for a in arguments})
        for heading, rows in {**self.list_options(ctx), **self.lists()}.items():
            formatter.write_table(heading, rows)

    def list_options(self, ctx: click.Context) -> dict[str, dict[str, str]]:
        """Return section -> option, as the help page writes it -> its help."""
        sections: dict[str, dict[str, str]] = {}
        for param in self.get_params(ctx):
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(find_section(param), {})[record[0]] = record[1]
        return {name: sections[name] for name in sort_sections(sections)}


def _explain(error: BaseException, watch: Watch) -> tuple[str, int]:
    """Return the sentence that an error ends a command with, and the exit code."""
    # what a signal breaks off may come up as any error
    if isinstance(error, KeyboardInterrupt) or watch.number is not None:
        return f"{watch.reason}; the same command goes on from here.", watch.code
    if isinstance(error, BrokenPipeError):
        _leave_pipe()
    if (shortage := _find_shortage(error)) is not None:
        return str(shortage), 1
    if isinstance(error, PipelineError):
        return str(error), 2 if isinstance(error, UsageError) else 1
    return f"unexpected {type(error).__name__}: {error}; -v shows where.", 1


def _find_shortage(error: BaseException) -> MemoryShortError | None:
    """Say that there was no memory to go on, to load a library into, or for a thread's stack."""
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return MemoryShortError(
            "no further thread can be started: memory is short, or too many are at work; run the "
            "same command again with fewer --workers, close other programs, or raise the limits "
            "that `ulimit -u` and `ulimit -v` name."
        )
    if isinstance(error, ShardError) and error.__cause__ is not None:
        return _find_shortage(error.__cause__)
    mapping = isinstance(error, ImportError) and _NOT_MAPPED.search(str(error))
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (isinstance(error, MemoryError) or full or mapping):
        return None
    return MemoryShortError(
        f"memory is short ({str(error) or type(error).__name__}); close other programs, or raise "
        "the limit that `ulimit -v` names."
    )


verb = partial(click.command, cls=Verb, context_settings=CONTEXT)


def _leave_pipe() -> NoReturn:
    """End as a program does whose reader has gone (``| head``): silently."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    sys.exit(128 + signal.SIGPIPE)


class Contents(click.Group):
    """A group of verbs, in sections, each with its module and a line; imported when called."""

    context_class = Context

    def __init__(
        self, *args: Any, sections: Mapping[str, Mapping[str, tuple[str, str]]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self.entries = {name: entry for rows in sections.values() for name, entry in rows.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the verbs, in the order of the table."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in self.entries:
            return None
        command: click.Command = getattr(import_module(self.entries[cmd_name][0]), cmd_name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the verb."""
        with explain_options(self, ctx):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; an unknown one is explained."""
        name = args[0]
        if name not in self.entries and not ctx.resilient_parsing and not name.startswith("-"):
            close, known = did_you_mean(name, self.entries), ", ".join(self.entries)
            ctx.fail(f"There is no command {name!r}{close}; there are {known}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of contents."""
        assert isinstance(formatter, HelpFormatter)
        # one column for all sections
        width = max(map(len, self.entries)) + 2
        for section, rows in self.sections.items():
            formatter.write_table(
                section, {f"{name:{width}}": line for name, (_, line) in rows.items()}
            )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete verbs from the table, without importing them."""
        found = [
            CompletionItem(name, help=line)
            for name, (_, line) in self.entries.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)
