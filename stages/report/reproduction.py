"""The commands that make a run again, in an empty directory, with all that was asked for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.errors import UsageError
from pipeline.run.directory import DEFAULT_NAME, RunDirectory
from pipeline.run.ledger import list_sources
from pipeline.settings import StageSettings, option_name

# Settings whose value is a name that is meant anyway where it is the default.
_NAMES = ("name", "em")


def list_commands(
    run: RunDirectory, key: str, classes: Mapping[str, type[StageSettings]]
) -> tuple[str, ...]:
    """List the commands that lead to a stage."""
    sources = list_sources(run, key)
    options = {
        source: write_options(classes[record.stage], run.read_given(source), record.options)
        for source, record in sources.items()
        # one that has another stage's verb is run by the command of that stage
        if not record.verb
    }
    if any(source.partition("/")[0] == "views" for source in sources):
        options["extract"] += write_options(classes["views"], run.read_given("views"))
    for source, record in sources.items():
        # the verb makes the report, too, and takes its options
        if record.stage == "evaluate":
            given = run.read_given(source.replace("evaluate", "report", 1))
            own = {n: given[n] for n in given if n not in classes["evaluate"].model_fields}
            options[source] += write_options(classes["report"], own)
    return tuple(
        f"primaps-pipe {sources[source].stage} {run.quoted}{text}"
        for source, text in options.items()
    )


def write_options(settings: type[StageSettings], given: Mapping[str, Any], own: str = "") -> str:
    """Write settings as a shell takes them, with a space in front, or nothing."""
    # those of a variant whose package is gone are not known any more
    with suppress(UsageError):
        settings = settings.choose(given)
    written = set(shlex.split(own))
    words = []
    for name, value in given.items():
        if name not in settings.model_fields or value in (None, [], ()):
            continue
        option = option_name(settings, name)
        if option in written or (name in _NAMES and value == DEFAULT_NAME):
            continue
        if isinstance(value, bool):
            words.append(option if value else "--no-" + option.removeprefix("--"))
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"{option} {shlex.quote(str(each))}" for each in values]
    return own + "".join(f" {word}" for word in words)
