"""What pseudo-labels are worth downstream: train on them and on true labels, score on true labels.

Run as ``python -m benchmarks.downstream RUN [--em NAME] [--write]`` on a finished run with the
splits train and val and ground truth for both (``primaps-pipe run RUN --workflow camvid``). It
reads the run through :class:`pipeline.Run` alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.quality import replace_table
from benchmarks.side_by_side import draw_grid
from benchmarks.students import (
    IGNORE,
    Decoder,
    Recipe,
    UNet,
    draw_features,
    draw_pixels,
    predict,
    train,
)
from pipeline import Run
from pipeline.errors import PipelineError, count_of
from stages.labelling import scale_box
from stages.report.pictures import colour_labels
from stages.scores import count_confusion, score_assignment

SIDE = 128
SEEDS = (0, 1, 2)
RECIPES = {"decoder": Recipe(1000, 2e-3), "U-Net": Recipe(300, 2e-3)}
TITLES = {
    "decoder": "decoder on the run's frozen features",
    "U-Net": "U-Net on pixels, from random weights",
}
PSEUDO = "pseudo-labels"
TRUE = "true labels"


@dataclass(frozen=True)
class Samples:
    """The windows of one split, with both kinds of labels.

    Attributes
    ----------
    pixels
        uint8 [window, rgb, y, x], ``SIDE`` pixels.
    clean, mirror
        float16 [window, row, column, channel]: the run's features, and those of the mirror images.
    pseudo, truth
        uint8 [y, x] of every window at the photograph's own resolution: the pseudo-labels as
        classes and the true ones, 255 = ignore.
    images
        Id of every window's image.
    """

    pixels: Tensor
    clean: Tensor
    mirror: Tensor
    pseudo: tuple[NDArray[np.uint8], ...]
    truth: tuple[NDArray[np.uint8], ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Condition:
    """What a network is trained on: pseudo-labels or true labels, of all images or of some."""

    labels: str
    images: int | None = None

    @property
    def title(self) -> str:
        """As the table has it."""
        if self.images is None:
            return self.labels
        return f"{self.labels} of {self.images} {'images' if self.images > 1 else 'image'}"


@dataclass
class Result:
    """Scores in per cent and seconds, one for each seed."""

    accuracy: list[float] = field(default_factory=list)
    miou: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def read_samples(
    run: Run, split: str, matching: NDArray[np.uint8], em: str | None = None
) -> Samples:
    """Read the windows of a split.

    Parameters
    ----------
    run
        The run.
    split
        Its name.
    em
        Name of the fit.
    matching
        Class of every cluster, as :meth:`pipeline.Run.matching` gives it.
    """
    pixels, pseudo, truth, names = [], [], [], []
    opened: dict[int, tuple[NDArray[np.uint8], ...]] = {}
    for window in run.windows(split):
        image = run.images[window.image]
        if window.image not in opened:
            labels = matching[run.labels(image.id, split, em=em)]
            opened = {
                window.image: (
                    run.photograph(image.id, split),
                    labels,
                    run.ground_truth(image.id, split),
                )
            }
        resized, own = (window.width, window.height), (image.width, image.height)
        left, top, right, bottom = scale_box(window.box, resized, own)
        part = [values[top:bottom, left:right] for values in opened[window.image]]
        pixels.append(shrink_pixels(part[0], SIDE))
        pseudo.append(part[1])
        truth.append(part[2])
        names.append(image.id)
    return Samples(
        torch.stack(pixels),
        torch.from_numpy(run.features(split)),
        torch.from_numpy(run.features(split, view="mirror")),
        tuple(pseudo),
        tuple(truth),
        tuple(names),
    )


def shrink_pixels(pixels: NDArray[np.uint8], side: int) -> Tensor:
    """Resize uint8 [y, x, rgb] to a square, uint8 [rgb, y, x]."""
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    resized = F.interpolate(values, (side, side), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def shrink_labels(labels: Sequence[NDArray[np.uint8]], side: int) -> Tensor:
    """Resize label maps to squares by the nearest label, uint8 [window, y, x]."""
    tensors = [torch.from_numpy(each.copy())[None, None].float() for each in labels]
    squares = [F.interpolate(each, (side, side), mode="nearest-exact")[0, 0] for each in tensors]
    return torch.stack(squares).to(torch.uint8)


def score(
    predictions: Sequence[NDArray[np.uint8]], truths: Sequence[NDArray[np.uint8]], classes: int
) -> tuple[float, float]:
    """Return pixel accuracy and mean IoU of class maps in per cent; 255 in a truth is left out.

    A prediction of 255 where there is a true label counts as wrong.
    """
    wrong = classes
    confusion = np.zeros((classes + 1, classes), np.int64)
    for prediction, truth in zip(predictions, truths, strict=True):
        given = np.where(prediction == IGNORE, wrong, prediction).astype(np.uint8)
        confusion += count_confusion(given, truth, classes + 1, classes)
    assignment = np.array([*range(classes), -1])
    scores = score_assignment(confusion, assignment)
    return 100 * scores.accuracy, 100 * scores.miou


def choose_images(samples: Samples, count: int | None, seed: int) -> list[int]:
    """Choose the windows of some images, drawn by a seed; all when ``count`` is None."""
    names = list(dict.fromkeys(samples.images))
    if count is not None:
        order = np.random.default_rng(seed).permutation(len(names))[:count]
        names = [names[number] for number in order]
    return [row for row, name in enumerate(samples.images) if name in set(names)]


def train_network(
    kind: str, samples: Samples, condition: Condition, classes: int, recipe: Recipe, seed: int
) -> nn.Module:
    """Train one network; all but the labels depend on the seed alone."""
    rows = choose_images(samples, condition.images, seed)
    maps = samples.pseudo if condition.labels == PSEUDO else samples.truth
    labels = shrink_labels([maps[row] for row in rows], SIDE)
    if kind == "U-Net":
        draw = draw_pixels(samples.pixels[rows], labels)
        return train(partial(UNet, classes), draw, len(rows), recipe, seed)
    draw = draw_features(samples.clean[rows], samples.mirror[rows], labels)
    channels = samples.clean.shape[-1]
    return train(partial(Decoder, channels, classes), draw, len(rows), recipe, seed)


def predict_all(kind: str, network: nn.Module, samples: Samples) -> list[NDArray[np.uint8]]:
    """Predict every window at the resolution of its photograph, averaged with its mirror image."""
    predictions = []
    for row, truth in enumerate(samples.truth):
        if kind == "U-Net":
            pixels = samples.pixels[row].float()[None] / 255
            inputs = torch.cat([pixels, pixels.flip(-1)])
        else:
            inputs = torch.stack([samples.clean[row], samples.mirror[row]])
            inputs = inputs.permute(0, 3, 1, 2).float()
        predictions.append(predict(network, inputs, *truth.shape).numpy())
    return predictions


Predictions = dict[tuple[str, str], list[NDArray[np.uint8]]]


def compare(
    teacher: tuple[Samples, Samples],
    classes: int,
    plan: Mapping[str, tuple[Recipe, Sequence[Condition]]],
    seeds: Sequence[int],
) -> tuple[dict[str, dict[Condition, Result]], Predictions]:
    """Train every network under every condition and seed, and score it on the true labels of val.

    Parameters
    ----------
    teacher
        The samples of train and val.
    classes
        Number of classes.
    plan
        Name of the network to how it is trained, and on what.
    seeds
        One training each.

    Returns
    -------
    results, predictions
        Network -> condition -> scores; (network, labels) -> predictions of the first seed.
    """
    material, held_out = teacher
    results: dict[str, dict[Condition, Result]] = {}
    kept: Predictions = {}
    for kind, (recipe, conditions) in plan.items():
        for condition in conditions:
            result = results.setdefault(kind, {}).setdefault(condition, Result())
            for seed in seeds:
                begun = perf_counter()
                network = train_network(kind, material, condition, classes, recipe, seed)
                result.seconds.append(perf_counter() - begun)
                predictions = predict_all(kind, network, held_out)
                accuracy, miou = score(predictions, held_out.truth, classes)
                result.accuracy.append(accuracy)
                result.miou.append(miou)
                if condition.images is None:
                    kept.setdefault((kind, condition.labels), predictions)
            click.echo(f"{kind}, {condition.title}: {_spread(result.miou)} mIoU", err=True)
    return results, kept


def tabulate(
    samples: tuple[Samples, Samples],
    results: Mapping[str, Mapping[Condition, Result]],
    classes: int,
) -> str:
    """Write the table, Markdown: the labels' own scores, then the networks on val."""
    lines = [
        "| network | trained on | accuracy | mIoU | of the mIoU with all true labels |",
        "|---|---|---|---|---|",
    ]
    for split, part in zip(("train", "val"), samples, strict=True):
        accuracy, miou = score(part.pseudo, part.truth, classes)
        lines.append(
            f"| none: the pseudo-labels of {split} | - | {accuracy:.1f} | {miou:.1f} | - |"
        )
    for kind, by_condition in results.items():
        best = next((median(r.miou) for c, r in by_condition.items() if c == Condition(TRUE)), None)
        for condition, result in by_condition.items():
            share = f"{100 * median(result.miou) / best:.0f} %" if best else "-"
            lines.append(
                f"| {TITLES[kind]} | {condition.title} | {_spread(result.accuracy)} "
                f"| {_spread(result.miou)} | {share} |"
            )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{median(values):.1f} ({min(values):.1f} – {max(values):.1f})"


def draw_figure(
    run: Run,
    held_out: Samples,
    predictions: Predictions,
    count: int,
    side: int,
    em: str | None = None,
) -> Image.Image:
    """Draw windows of val side by side: pixels, truth, pseudo-labels, and every network's classes.

    Parameters
    ----------
    run
        Gives names and colours of the classes.
    held_out
        The samples of val.
    predictions
        As :func:`compare` gives them.
    count
        Windows to draw, evenly spaced.
    side
        Side of a picture, pixels.
    em
        Name of the fit.
    """
    rows = []
    for row in np.linspace(0, len(held_out.truth) - 1, count).round().astype(int).tolist():
        maps = [held_out.truth[row], held_out.pseudo[row]]
        maps += [each[row] for each in predictions.values()]
        pixels = held_out.pixels[row].permute(1, 2, 0).numpy()
        rows.append([pixels, *(colour_labels(each, run.palette) for each in maps)])
    titles = ["photograph", "true labels", "pseudo-labels"]
    titles += [f"{kind} on\n{labels}" for kind, labels in predictions]
    names = run.metrics(em)["class_names"]
    legend = [(name, run.palette[n].tolist()) for n, name in enumerate(names)]
    return draw_grid(rows, titles, legend, side)


@click.command()
@click.argument("path", metavar="RUN")
@click.option("--seed", "seeds", multiple=True, type=int, default=SEEDS, show_default=True)
@click.option(
    "--few",
    multiple=True,
    type=click.IntRange(1),
    default=(2, 8),
    show_default=True,
    help="Also train the decoder on the true labels of so few images, repeatable.",
)
@click.option(
    "--only", type=click.Choice(tuple(RECIPES)), help="One of the networks; both when not given."
)
@click.option("--em", help="Name of the fit, where there are several.")
@click.option("--write", is_flag=True, help="Put table and picture into docs/downstream.md.")
def main(
    path: str,
    seeds: tuple[int, ...],
    few: tuple[int, ...],
    only: str | None,
    em: str | None,
    write: bool,
) -> None:
    """Train networks on the pseudo-labels of RUN and on its true labels, and print both scores."""
    begun = perf_counter()
    try:
        run = Run(path)
        matching = run.matching("train", em=em)
        train_samples, val_samples = (read_samples(run, s, matching, em) for s in ("train", "val"))
    except PipelineError as error:
        raise click.ClickException(str(error)) from error
    all_images = [Condition(PSEUDO), Condition(TRUE)]
    # the U-Net takes most of the time as it is
    some = {"decoder": [Condition(TRUE, n) for n in sorted(few)], "U-Net": []}
    plan = {
        kind: (recipe, [*all_images, *some[kind]])
        for kind, recipe in RECIPES.items()
        if only in (None, kind)
    }
    samples, classes = (train_samples, val_samples), len(run.metrics(em)["class_names"])
    results, predictions = compare(samples, classes, plan, seeds)
    minutes = (perf_counter() - begun) / 60
    table = f"{tabulate(samples, results, classes)}\n\n{describe(run, em, samples, seeds, minutes)}"
    click.echo(table)
    if write:
        replace_table(_PAGE, table)
        figure = draw_figure(run, samples[1], predictions, count=4, side=150, em=em)
        figure.quantize(128).save(_PAGE.with_name("downstream.png"), optimize=True)


def describe(
    run: Run,
    em: str | None,
    samples: tuple[Samples, Samples],
    seeds: Sequence[int],
    minutes: float,
) -> str:
    """Say what the table was measured on."""
    train_images, val_images = (len(set(part.images)) for part in samples)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    threads = count_of(torch.get_num_threads(), "threads")
    clusters = f"{len(run.prototypes(em))} clusters"
    # label maps of named clusters hold the names' numbers
    if named := run.metrics(em).get("label_names"):
        clusters += f" with {len(named)} names"
    return (
        f"Median (smallest – largest) of {len(seeds)} seeds; {train_images} images of train, "
        f"{val_images} of val, {clusters}, {len(run.class_names)} classes. "
        f"{minutes:.1f} minutes with {threads} (load {load:.1f})."
    )


_PAGE = Path(__file__).parent.parent / "docs" / "downstream.md"

if __name__ == "__main__":
    main()
