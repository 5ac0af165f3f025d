"""What a verb and the group of verbs are: loaded when called, with a help page that teaches.

Nothing here imports more than click: the list of verbs has to be there at once.

The sections of a help page, and options that know theirs; imports click alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline.wording import did_you_mean

WHAT = "What is computed"
FINE = "Fine points"
HOW = "Where and how it runs"
SHOWN = "What is shown"


class Option(click.Option):
    """An option in a section of the help page."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


what = partial(click.option, cls=Option, section=WHAT)
how = partial(click.option, cls=Option, section=HOW)
shown = partial(click.option, cls=Option, section=SHOWN)


def find_section(param: click.Parameter) -> str:
    """Return the section of an option; ``--help``, click's own, is in that of what is shown."""
    return getattr(param, "section", "") or SHOWN


def sort_sections(sections: Iterable[str]) -> list[str]:
    """Sort sections: what is computed, what a verb has besides, fine points, how, what is shown."""
    order = (WHAT, "", FINE, HOW, SHOWN)
    return sorted(sections, key=lambda name: order.index(name if name in order else ""))


PROGRAM = "primaps-pipe"
CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
_MARGIN = 2

Rows = Mapping[str, str]


class HelpFormatter(click.HelpFormatter):
    """Click's formatter with headings that stand out in a terminal, and plain text elsewhere."""

    def write_heading(self, heading: str) -> None:
        """Write the heading of a section."""
        text = f"{'':>{self.current_indent}}{heading}:"
        self.write((click.style(text, bold=True) if _is_coloured() else text) + "\n")


def _is_coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


class Context(click.Context):
    """A context whose help is written by :class:`HelpFormatter`."""

    formatter_class = HelpFormatter


class Argument(click.Argument):
    """An argument with a line of help."""

    def __init__(self, *args: Any, text: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text = text


class Verb(click.Command):
    """One verb: its options in sections, an example or two, and unknown options explained."""

    context_class = Context

    def __init__(
        self,
        *args: Any,
        examples: Sequence[tuple[str, str]] = (),
        lists: Callable[[], Mapping[str, Rows]] = dict,
        events: bool = False,
        more: Callable[[], Sequence[click.Parameter]] = list,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._more = more
        self.examples = tuple(examples)
        self.lists = lists
        self.events = events

    @cached_property
    def more(self) -> Sequence[click.Parameter]:
        """Options that depend on what is installed, looked up when the verb is called."""
        return self._more()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all options."""
        return [*super().get_params(ctx), *self.more]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; wrong use is an event, too, where events are asked for."""
        given = list(args)
        try:
            with explain_options(self, ctx):
                return super().parse_args(ctx, args)
        except click.UsageError as error:
            if self.events and "--json" in given and not ctx.resilient_parsing:
                from pipeline.progress import print_event

                print_event("error", message=error.format_message(), exit_code=error.exit_code)
            raise

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, what the verb does, examples, and the options by section."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self._write_examples(formatter)
        arguments = [param for param in self.get_params(ctx) if isinstance(param, Argument)]
        write_table(formatter, "Arguments", {a.human_readable_name: a.text for a in arguments})
        for heading, rows in {**self.list_options(ctx), **self.lists()}.items():
            write_table(formatter, heading, rows)

    def list_options(self, ctx: click.Context) -> dict[str, dict[str, str]]:
        """Return section -> option, as the help page writes it -> its help."""
        sections: dict[str, dict[str, str]] = {}
        for param in self.get_params(ctx):
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(find_section(param), {})[record[0]] = record[1]
        return {name: sections[name] for name in sort_sections(sections)}

    def _write_examples(self, formatter: click.HelpFormatter) -> None:
        if not self.examples:
            return
        with formatter.section("Examples"):
            for command, does in self.examples:
                # as written, whatever the width: for the clipboard
                formatter.write(f"{'':{formatter.current_indent}}{command}\n")
                formatter.indent()
                formatter.write_text(does)
                formatter.dedent()


def verb(
    *,
    examples: Sequence[tuple[str, str]],
    events: bool = True,
    lists: Callable[[], Mapping[str, Rows]] = dict,
    more: Callable[[], Sequence[click.Parameter]] = list,
) -> Callable[[Callable[..., Any]], Verb]:
    """Make a verb of a function; see :class:`Verb`."""
    return click.command(
        cls=Verb,
        context_settings=CONTEXT,
        examples=examples,
        events=events,
        lists=lists,
        more=more,
    )


def write_table(formatter: click.HelpFormatter, heading: str, rows: Rows) -> None:
    """Write a section of names and their lines; nothing where there are none."""
    if rows:
        with formatter.section(heading):
            formatter.write_dl(list(rows.items()), col_max=32)


@contextmanager
def explain_options(command: click.Command, ctx: click.Context) -> Any:
    """Name the option that an unknown one may have been meant for."""
    try:
        yield
    except click.NoSuchOption as error:
        known = [name for p in command.get_params(ctx) for name in (*p.opts, *p.secondary_opts)]
        close = did_you_mean(error.option_name, (name for name in known if name.startswith("-")))
        text = f"There is no option {error.option_name!r}{close}."
        raise click.UsageError(text, ctx) from None


@dataclass(frozen=True)
class Entry:
    """A line of the table of contents."""

    place: str
    line: str

    def load(self) -> click.Command:
        """Import the verb."""
        module, _, name = self.place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


class Contents(click.Group):
    """A group of verbs that are imported when they are called, in sections."""

    context_class = Context

    def __init__(
        self, *args: Any, entries: Mapping[str, Mapping[str, Entry]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections = dict(entries or {})
        self.entries = {name: e for rows in self.sections.values() for name, e in rows.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the verbs, in the order of the table."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        entry = self.entries.get(cmd_name)
        return None if entry is None else entry.load()

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
            close = did_you_mean(name, self.entries)
            ctx.fail(f"There is no command {name!r}{close}; there are {_join(self.entries)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of contents."""
        width = max(map(len, self.entries)) + _MARGIN
        for section, rows in self.sections.items():
            # one column for all sections
            write_table(
                formatter,
                section,
                {f"{name:{width}}": entry.line for name, entry in rows.items()},
            )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete verbs from the table, without importing them."""
        found = [
            CompletionItem(name, help=entry.line)
            for name, entry in self.entries.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
