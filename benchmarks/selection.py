"""What `select` is worth: images or proposals that it chooses, against as many drawn at random.

Run as ``python -m benchmarks.selection RUN... [--write]`` on runs with proposals and the splits
train and val with ground truth for both. A person is played by the true labels of train: whole
images are labelled, alone or on top of clusters that have names already, or proposals are named one
by one. The linear discriminants of what is known then classify val, without CRF.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.downstream import score
from benchmarks.quality import replace_table
from pipeline import Run
from pipeline.datasets.definition import IGNORE
from pipeline.errors import PipelineError
from pipeline.run.frames import resize_labels
from stages.discriminants import Discriminant, Moments, find_discriminant
from stages.em.robust import cluster_directions
from stages.labelling import average_views
from workflows.selection import select

IMAGES = (4, 8, 16)
PROPOSALS = (16, 32, 64, 128)
SEEDS = 5
ALONE, NAMED, ONE_BY_ONE = "images", "images, on top of named clusters", "proposals"
# Clusters for each class, and how many of the most typical proposals of each are looked at.
_CLUSTERS, _LOOKED_AT = 8, 10
_SHRINKAGE = 0.1
_PAGE = Path(__file__).parent.parent / "docs" / "results" / "select.md"


@dataclass(frozen=True)
class Split:
    """The windows of one split.

    Attributes
    ----------
    features
        float64 [window, position, channel]: mean of both views.
    grid
        Positions along a side.
    labels
        int64 [window, position]: true class in the middle of the position; 255 = none.
    proposals
        int64 [window, position]: number of the proposal there, 0 = none.
    truth
        uint8 [window, y, x].
    images
        int64 [window]: row of the image.
    """

    features: Tensor
    grid: int
    labels: Tensor
    proposals: Tensor
    truth: NDArray[np.uint8]
    images: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """The mIoU on val, in per cent, of one way at one cost: one value for each seed."""

    dataset: str
    way: str
    count: int
    random: list[float]
    select: list[float]


def read_split(run: Run, split: str) -> Split:
    """Read the windows of a split, and what is true of them."""
    clean, mirror = (
        torch.from_numpy(run.features(split, view=view)).float() for view in ("clean", "mirror")
    )
    proposals, windows = run.proposals(split), run.windows(split)
    truth = []
    for window in windows:
        image = run.images[window.image]
        whole = resize_labels(run.ground_truth(image.id, split), window.width, window.height)
        left, top, right, bottom = window.box
        truth.append(whole[top:bottom, left:right])
    stacked = np.stack(truth)
    rows, size = clean.shape[1], stacked.shape[1]
    middle = ((np.arange(rows) + 0.5) * size / rows).astype(int)

    def sample(maps: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(maps[:, middle[:, None], middle].astype(np.int64)).flatten(1)

    return Split(
        features=average_views(clean, mirror).flatten(1, 2).double(),
        grid=rows,
        labels=sample(stacked),
        proposals=sample(proposals),
        truth=stacked,
        images=np.array([window.image for window in windows]),
        rows=np.array([window.index for window in windows]),
    )


def score_classes(found: Discriminant, val: Split, classes: int) -> float:
    """Return the mIoU of a classifier on the pixels of a split's windows, in per cent."""
    predictions = []
    for features, truth in zip(val.features, val.truth, strict=True):
        logits = found.classify(features).float().T.reshape(1, classes, val.grid, val.grid)
        large = F.interpolate(logits, truth.shape, mode="bilinear", align_corners=False)
        predictions.append(large[0].argmax(dim=0).numpy().astype(np.uint8))
    return score(predictions, list(val.truth), classes)[1]


class Person:
    """Knows the true labels of train, and gives them for what is asked."""

    def __init__(self, train: Split, classes: int) -> None:
        self.train, self.classes = train, classes
        self.origin = train.features.mean(dim=(0, 1))
        self.images = np.unique(train.images)
        owner = 256 * torch.arange(len(train.images))[:, None] + train.proposals
        held = train.proposals > 0
        # of every proposal that has a position
        self.unit, self._inverse = torch.unique(owner[held], return_inverse=True)
        self._held = held
        shown = F.one_hot(train.labels[held].clamp_max(classes), classes + 1)
        self._counts = torch.zeros(len(self.unit), classes + 1, dtype=torch.int64)
        self._counts.index_add_(0, self._inverse, shown)

    def label_images(self, chosen: Sequence[int] | NDArray[np.int64]) -> Moments:
        """Label every position of some images."""
        rows = torch.from_numpy(np.isin(self.train.images, chosen))
        labels = self.train.labels[rows]
        known = labels < self.classes
        return self._sum(self.train.features[rows][known], labels[known], self.classes)

    def name_proposals(self, units: Sequence[int] | NDArray[np.int64]) -> Moments:
        """Name some proposals by the class of most of their positions."""
        names = torch.full((len(self.unit),), self.classes)
        majority = self._counts[:, : self.classes].argmax(dim=1)
        asked = torch.zeros(len(self.unit), dtype=torch.bool)
        asked[torch.as_tensor(np.asarray(units))] = True
        asked &= self._counts[:, : self.classes].any(dim=1)
        names[asked] = majority[asked]
        labels = names[self._inverse]
        known = labels < self.classes
        return self._sum(self.train.features[self._held][known], labels[known], self.classes)

    def name_clusters(self, seed: int) -> Moments:
        """Name clusters of proposals, eight for each class, by the most typical of each."""
        features = self.train.features[self._held]
        pooled = torch.zeros(len(self.unit), features.shape[1], dtype=features.dtype)
        points = F.normalize(pooled.index_add_(0, self._inverse, features), dim=1)
        clusters = min(_CLUSTERS * self.classes, 254, len(points))
        labels = cluster_directions(points, clusters, np.random.default_rng(seed))
        groups = []
        for cluster in range(clusters):
            own = torch.nonzero(labels == cluster)[:, 0]
            centre = F.normalize(points[own].sum(dim=0), dim=0)
            typical = own[(points[own] @ centre).argsort(descending=True)[:_LOOKED_AT]]
            shown = self._counts[typical, : self.classes]
            votes = F.one_hot(shown.argmax(dim=1), self.classes)[shown.any(dim=1)].sum(dim=0)
            groups.append(int(votes.argmax()))
        moments = self._sum(features, labels[self._inverse], clusters)
        return moments.join(groups, self.classes)

    def _sum(self, features: Tensor, labels: Tensor, classes: int) -> Moments:
        moments = Moments.make_empty(self.origin, classes)
        moments.add(features, labels)
        return moments


def compare(run: Run, seeds: int) -> list[Row]:
    """Score every way at every cost, chosen and drawn."""
    name, train, val = run.path.name, read_split(run, "train"), read_split(run, "val")
    # where nobody has named them, those that occur
    used = max(int(part.truth[part.truth != IGNORE].max(initial=0)) for part in (train, val)) + 1
    classes = len(run.class_names) or used
    person = Person(train, classes)

    def measure(moments: Moments) -> float:
        return score_classes(find_discriminant(moments, shrinkage=_SHRINKAGE), val, classes)

    most_images, most = max(IMAGES), max(PROPOSALS)
    picks = select(run.directory, images=most_images, splits=("train",)).picks
    chosen = np.array([pick.image.image for pick in picks])
    drawn = [np.random.default_rng(seed).permutation(person.images) for seed in range(seeds)]
    named = [person.name_clusters(seed) for seed in range(seeds)]
    rows = []
    for count in IMAGES:
        labelled = [person.label_images(order[:count]) for order in (chosen, *drawn)]
        alone = [measure(moments) for moments in labelled]
        rows.append(Row(name, ALONE, count, alone[1:], alone[:1]))
        above = [
            [measure(base.merge(moments)) for moments in pair]
            for base, pair in zip(
                named, zip([labelled[0]] * seeds, labelled[1:], strict=True), strict=True
            )
        ]
        rows.append(Row(name, NAMED, count, [b for _, b in above], [a for a, _ in above]))
        click.echo(f"{name}: {count} images, {mean(alone[1:]):.1f}, {alone[0]:.1f}", err=True)
    place = {int(row): window for window, row in enumerate(train.rows)}
    pairs = [p.proposal for p in select(run.directory, proposals=most, splits=("train",)).picks]
    asked = [256 * place[pair[0]] + pair[1] for pair in pairs if pair is not None]
    for count in PROPOSALS:
        known = np.flatnonzero(np.isin(person.unit.numpy(), asked[:count]))
        scores = [measure(person.name_proposals(known))]
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(person.unit))[:count]
            scores.append(measure(person.name_proposals(order)))
        rows.append(Row(name, ONE_BY_ONE, count, scores[1:], scores[:1]))
    return rows


def tabulate(rows: Sequence[Row]) -> str:
    """Write the table, Markdown."""
    lines = [
        "| run | labelled | how many | drawn at random, mIoU | `select`, mIoU | better than |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.dataset, row.way)):
        pairs = zip(row.random, row.select * (len(row.random) // len(row.select)), strict=True)
        wins = sum(chosen > drawn for drawn, chosen in pairs)
        lines.append(
            f"| {row.dataset} | {row.way} | {row.count} | {_spread(row.random)} "
            f"| {_spread(row.select)} | {wins} of {len(row.random)} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f} – {max(values):.1f})"


@click.command()
@click.argument("paths", metavar="RUN...", nargs=-1, required=True)
@click.option("--seeds", type=click.IntRange(1), default=SEEDS, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the values.")
@click.option("--write", is_flag=True, help="Put the table into docs/results/select.md.")
def main(paths: tuple[str, ...], seeds: int, file: Path | None, write: bool) -> None:
    """Compare what `select` chooses of each RUN with as much drawn at random."""
    begun = perf_counter()
    rows: list[Row] = []
    try:
        for path in paths:
            rows += compare(Run(path), seeds)
    except PipelineError as error:
        raise click.ClickException(str(error)) from error
    minutes = (perf_counter() - begun) / 60
    table = (
        f"{tabulate(rows)}\n\nMean (smallest – largest) of {seeds} seeds of the draw and of the "
        f"clusters; `select` has no seed. {minutes:.1f} minutes."
    )
    click.echo(table)
    if file is not None:
        file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if write:
        replace_table(_PAGE, table)


if __name__ == "__main__":
    main()
