"""Tables of options, made from the settings classes and the commands when the site is built.

In a page, ``<!-- settings: extract -->`` becomes the table of a stage's settings,
``<!-- command: verify -->`` that of a verb's arguments and options that are no settings,
``<!-- formats -->`` the list of export formats, ``<!-- formats: correct -->`` that of corrections,
``<!-- names -->`` that of other names of backbones, and ``<!-- events -->`` that of JSON events.
"""

from __future__ import annotations

import html
import re
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click

from cli import main
from commands.verbs import find_section, sort_sections
from pipeline.settings import StageSettings, field_extra, option_name
from stages import FOLLOWED_BY, SETTINGS

_PLACE = re.compile(
    r"^<!-- (settings|command|formats|names|events)(?:: ([a-z]+))? -->$", re.MULTILINE
)
_NOTE = re.compile(r"\s*\[([^]]*)\]$")
# with spaces that are not broken
_BOUNDS = {"ge": "≥\u00a0{}", "gt": ">\u00a0{}", "le": "≤\u00a0{}", "lt": "<\u00a0{}"}
# stages whose settings are options of another verb
VERBS = {"views": "extract"}
_WORDS = {int: "whole number", float: "number", str: "text", bool: "yes or no"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables in the places that a page keeps for them."""
    return _PLACE.sub(lambda found: make_table(found[1], found[2]), markdown)


def make_table(kind: str, name: str | None) -> str:
    """Return the Markdown table that a place asks for."""
    if kind == "settings":
        return "\n\n".join(list_settings(name or ""))
    if kind == "command":
        return join_table(("option", "default", "what it says"), command_rows(name or ""))
    if kind == "formats":
        from workflows import correct, export

        lines = correct.LINES if name == "correct" else export.LINES
        rows = ((f"`{key}`", text) for key, text in lines.items())
        return join_table(("`--format`", "what it is"), rows)
    if kind == "names":
        from stages.extract.names import OTHER_NAMES

        listed = ((_join_names(others), f"`{name}`") for name, others in OTHER_NAMES.items())
        return join_table(("other names", "timm's name"), listed)
    from pipeline.progress import SCHEMA

    return join_table(
        ("event", "field", "meaning"),
        (
            (f"`{event}`", f"`{field}`", text)
            for event, fields in SCHEMA.items()
            for field, text in fields.items()
        ),
    )


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def list_settings(stage: str) -> Iterator[str]:
    """Yield the tables of a stage's settings, in the sections that ``--help`` has them in."""
    own = [SETTINGS[name] for name in (stage, FOLLOWED_BY.get(stage)) if name]
    command, context = open_command(VERBS.get(stage, stage))
    sections: dict[str, list[tuple[str, type[StageSettings]]]] = {}
    for parameter in command.get_params(context):
        for settings in own:
            if parameter.name in settings.model_fields:
                rows = sections.setdefault(find_section(parameter), [])
                rows.append((parameter.name, settings))
                break
    head = ("option", "values", "default", "what it says", "changes the output")
    for section in sort_sections(sections):
        yield f"*{section}*"
        yield join_table(head, settings_rows(sections[section]))


def settings_rows(
    chosen: Iterable[tuple[str, type[StageSettings]]],
) -> Iterator[tuple[str, ...]]:
    """Yield the cells of some settings, each with the class that it is in."""
    for name, settings in chosen:
        field = settings.model_fields[name]
        kind, bounds = describe_values(field.annotation)
        limits = [*bounds, *_limits(field.metadata)]
        default = "**needed**" if field.is_required() else _show(field.default)
        changes = "yes" if field_extra(settings, name, "affects_output") else "no"
        values = ", ".join([kind, *limits])
        option = _as_option(option_name(settings, name))
        yield option, values, default, field.description or "", changes


def describe_values(annotation: Any) -> tuple[str, list[str]]:
    """Return the kind of values that an annotation allows, and their limits."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [describe_values(part) for part in get_args(annotation) if part is not type(None)]
        return " or ".join(kind for kind, _ in parts), [b for _, bounds in parts for b in bounds]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation)), []
    if origin is tuple:
        kind, bounds = describe_values(get_args(annotation)[0])
        return f"{kind}, repeatable", bounds
    if origin is Annotated:
        inner, *notes = get_args(annotation)
        limits = [limit for note in notes for limit in _limits(getattr(note, "metadata", [note]))]
        kind, bounds = describe_values(inner)
        return kind, [*bounds, *limits]
    return _WORDS.get(annotation, "path"), []


def open_command(name: str) -> tuple[click.Command, click.Context]:
    """Return a verb and a context to ask it in."""
    context = click.Context(main)
    command = main.get_command(context, name)
    if command is None:
        raise KeyError(f"no verb {name}")
    return command, click.Context(command, parent=context, info_name=name)


def command_rows(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the cells of a verb's arguments and options, its stage's settings left out."""
    command, inner = open_command(name)
    taken = {"extract": ("extract", "views")}.get(name, (name, FOLLOWED_BY.get(name, name)))
    left_out = {field for stage in taken if stage in SETTINGS for field in _fields(stage)}
    for parameter in command.get_params(inner):
        if parameter.name in left_out or parameter.name == "help":
            continue
        if isinstance(parameter, click.Argument):
            name = parameter.human_readable_name
            yield _as_option(name), "", getattr(parameter, "text", "")
        elif isinstance(parameter, click.Option) and not parameter.hidden:
            yield _option_cells(parameter, inner)


def _option_cells(option: click.Option, context: click.Context) -> tuple[str, ...]:
    names = " / ".join([", ".join(option.opts), *option.secondary_opts])
    if not option.is_flag and not option.count:
        names += f" {option.make_metavar(context)}"
    text = option.help or ""
    # the help page says the default, and limits, in brackets behind the text
    note = _NOTE.search(text)
    default = note[1].removeprefix("default: ") if note else ""
    return _as_option(names), default, _NOTE.sub("", text)


def _as_option(names: str) -> str:
    # not broken at its hyphens
    return f'<code class="option">{html.escape(names)}</code>'


def _fields(stage: str) -> set[str]:
    return set(SETTINGS[stage].model_fields)


def _limits(metadata: Any) -> list[str]:
    found = []
    for note in metadata:
        for key, words in _BOUNDS.items():
            if getattr(note, key, None) is not None:
                found.append(words.format(f"{getattr(note, key):g}"))
    return found


def _show(default: Any) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def join_table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
