"""The verbs that carry results elsewhere: export, predict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

from commands.options import ChoiceType, NumberType, PlaceType
from commands.shared import CRF_TYPE, RUN, em_option, head_option, screen_options
from commands.verbs import Argument, how, verb, what
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.settings import Bounds


def list_formats() -> Mapping[str, str]:
    """Return the formats that there are, each with a line on it."""
    from workflows.export import describe_formats

    return describe_formats()


@verb(
    lists=lambda: {"Formats": list_formats()},
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
    type=ChoiceType(list_formats),
    metavar="FORMAT",
    help="one of those below",
)
@em_option("the fit whose labels are exported; the run's own when not given")
@head_option("the head whose labels are exported, instead of a fit's")
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
def export(
    run: Path,
    format_: str,
    em: str | None,
    head: str | None,
    splits: tuple[str, ...],
    ids: Literal["auto", "classes", "clusters"],
    images: Literal["copy", "link", "none"],
    out: Path,
    screen: Screen,
) -> None:
    """Write the labels of a run in a format that other programs read."""
    from workflows.export.job import export_run

    lines = export_run(
        RunDirectory(run),
        format_,
        out,
        em=em,
        head=head,
        splits=splits,
        ids=ids,
        images=images,
        screen=screen,
    )
    for line in lines:
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
@click.argument(
    "images", cls=Argument, type=PlaceType(folder=True), text="a folder of images, of any depth"
)
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
def predict(
    images: Path,
    prototypes: Path,
    out: Path,
    crf: str,
    weights: Path | None,
    device: str,
    batch_size: int,
    screen: Screen,
) -> None:
    """Label new images with prototypes; no run directory is needed."""
    from workflows.prediction import predict_folder

    lines = predict_folder(
        images,
        prototypes,
        out,
        weights=weights,
        crf=crf,
        device=device,
        batch_size=batch_size,
        screen=screen,
    )
    for line in lines:
        screen.result(line, out=out)
