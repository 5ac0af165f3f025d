"""Shell completion: the script, and names that only a run or the install can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from commands.options import ChoiceType
from commands.verbs import PROGRAM, Argument, verb

VARIABLE = "_PRIMAPS_PIPE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
MOST_IMAGES = 1000

_HOW = {
    "bash": 'eval "$(primaps-pipe completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(primaps-pipe completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "primaps-pipe completion fish > ~/.config/fish/completions/primaps-pipe.fish",
}


@verb(
    events=False,
    examples=tuple((f"primaps-pipe completion {shell}", _HOW[shell]) for shell in SHELLS),
)
@click.argument(
    "shell", cls=Argument, type=ChoiceType(SHELLS), text="the shell that reads the script"
)
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes verbs, options and names in a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())


def complete_fits(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the name of a fit of the run that the command names."""
    return _complete(lambda: _list_names(ctx, "em"), incomplete)


def complete_heads(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the name of a head of the run that the command names."""
    return _complete(lambda: _list_names(ctx, "head"), incomplete)


def complete_images(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the id of an image of the run that the command names."""

    def list_images() -> Iterable[str]:
        # the column alone: to check the whole table takes as long as there are images
        import pyarrow.parquet as pq

        found = [
            image
            for run in _list_runs(ctx)
            for image in pq.read_table(run / "manifest.parquet", columns=["id"])["id"].to_pylist()
            if image.startswith(incomplete)
        ]
        return found[:MOST_IMAGES]

    return _complete(list_images, incomplete)


def complete_recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the name of a recipe that comes with the install, or of a file."""

    def list_names() -> Iterable[str]:
        from workflows.recipes import list_recipes

        return list_recipes()

    return _complete(list_names, incomplete) or [CompletionItem(incomplete, type="file")]


def complete_datasets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the name of a dataset, or of a file that defines one."""

    def list_names() -> Iterable[str]:
        from pipeline.datasets import DATASET_NAMES

        return DATASET_NAMES

    return _complete(list_names, incomplete) or [CompletionItem(incomplete, type="file")]


def _list_names(ctx: click.Context, stage: str) -> list[str]:
    from pipeline.run.directory import RunDirectory

    names = [name for run in _list_runs(ctx) for name in RunDirectory(run).names(stage)]
    return list(dict.fromkeys(names))


def _list_runs(ctx: click.Context) -> list[Path]:
    """Return the runs that the command line names so far."""
    given = ctx.params.get("run") or ctx.params.get("runs")
    if given:
        return [given] if isinstance(given, Path) else list(given)
    # click stops at an option whose value is still missing, and leaves the arguments as they are
    from pipeline.storage.places import parse_place

    return [parse_place(text) for text in ctx.args[: None if "runs" in ctx.params else 1]]


def _complete(list_names: Callable[[], Iterable[str]], incomplete: str) -> list[CompletionItem]:
    try:
        names = list(list_names())
    except Exception:  # a prompt is no place for errors: what cannot be read completes nothing
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
