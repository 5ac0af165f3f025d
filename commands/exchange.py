"""The verbs that carry something elsewhere: export, predict, completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from commands.options import ChoiceType, NumberType, PlaceType
from commands.shared import CRF_TYPE, RUN, em_option, head_option, screen_options
from commands.verbs import PROGRAM, argument, how, verb, what
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.settings import Bounds
from workflows.export import FORMATS, describe_formats

VARIABLE = "_PRIMAPS_PIPE_COMPLETE"
SHELLS = {
    "bash": 'eval "$(primaps-pipe completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(primaps-pipe completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "primaps-pipe completion fish > ~/.config/fish/completions/primaps-pipe.fish",
}
"""Shell -> how its script is read."""


@verb(
    lists=lambda: {"Formats": describe_formats()},
    examples=(
        (
            "primaps-pipe export runs/demo --format mmseg --out exports/demo-mmseg",
            "Images and labels as mmsegmentation reads them.",
        ),
        (
            "primaps-pipe export runs/demo --format prototypes --out exports/demo.safetensors",
            "What `primaps-pipe predict` labels other images with.",
        ),
    ),
)
@RUN
@what(
    "--format",
    "format_",
    required=True,
    type=ChoiceType(FORMATS),
    metavar="FORMAT",
    help="one of those below",
)
@em_option(help="the fit whose labels are exported; the run's own when not given")
@head_option(help="the head whose labels are exported, instead of a fit's")
@what(
    "--split",
    "splits",
    multiple=True,
    help="split to export, repeatable; all that are labelled when not given",
)
@what(
    "--ids",
    type=ChoiceType(("auto", "classes", "clusters")),
    default="auto",
    help="what the numbers in the label maps are; auto: the dataset's classes where clusters are "
    "matched to them, else clusters  [default: auto]",
)
@what(
    "--images",
    type=ChoiceType(("copy", "link", "none")),
    default="copy",
    help="what becomes of the photographs themselves  [default: copy]",
)
@what(
    "--out",
    type=PlaceType(),
    required=True,
    help="where to: a new or empty folder, or a file for prototypes",
)
@screen_options
def export(run: Path, format_: str, out: Path, screen: Screen, **options: Any) -> None:
    """Write the labels of a run in a format that other programs read."""
    from workflows.export.job import export_run

    for line in export_run(RunDirectory(run), format_, out, screen=screen, **options):
        screen.result(line, out=out)


@verb(
    examples=(
        (
            "primaps-pipe predict runs/demo/photographs/images "
            "--prototypes exports/demo.safetensors --out labels",
            "Labels photographs with what `primaps-pipe export --format prototypes` wrote.",
        ),
    ),
)
@argument("images", type=PlaceType(folder=True), text="a folder of images, of any depth")
@what(
    "--prototypes",
    type=PlaceType(),
    required=True,
    help="the .safetensors file that export --format prototypes wrote",
)
@what("--out", type=PlaceType(), required=True, help="folder of the labels")
@what(
    "--crf",
    type=CRF_TYPE,
    default="auto",
    help="refinement of the labels  [default: auto]",
)
@how(
    "--weights",
    type=PlaceType(),
    help=".safetensors or .pth of the backbone; found by itself when not given",
)
@how(
    "--device",
    default="auto",
    help="auto, cpu, cuda or cuda:N  [default: auto]",
)
@how(
    "--batch-size",
    type=NumberType(int, Bounds(least=1)),
    default=16,
    help="windows per forward pass  [default: 16; at least 1]",
)
@screen_options
def predict(images: Path, prototypes: Path, out: Path, screen: Screen, **options: Any) -> None:
    """Label new images with prototypes; no run directory is needed."""
    from workflows.prediction import predict_folder

    for line in predict_folder(images, prototypes, out, screen=screen, **options):
        screen.result(line, out=out)


@verb(
    events=False,
    examples=[(f"primaps-pipe completion {shell}", does) for shell, does in SHELLS.items()],
)
@argument("shell", type=ChoiceType(SHELLS), text="the shell that reads the script")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes verbs, options and names in a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
