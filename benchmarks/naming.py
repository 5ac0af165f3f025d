"""What names are worth: a script plays the person who names clusters, and val is scored.

Run as ``python -m benchmarks.naming --shared FOLDER [--work FOLDER] [--fine PX] [--json FILE]
[--write]``. The person sees what the report shows of a cluster, its ten most typical proposals, and
calls it what most of them are in the true labels of train. Fits, names, corrections and scores are
the product's own: ``em --clusters``, ``corrections/names.yaml``, painted maps, ``evaluate``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import (
    BACKBONE,
    SEEDS,
    WEIGHTS,
    Material,
    list_materials,
    replace_table,
)
from pipeline.compute.scheduler import Execution
from pipeline.datasets.definition import IGNORE
from pipeline.errors import DatasetError, PipelineError
from pipeline.progress import Screen
from pipeline.run.corrections import CLASSES, MAPS, NOT_SAID, Corrections
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import Part
from pipeline.run.frames import open_truth
from pipeline.settings import make_settings
from pipeline.storage.arrays import read_group
from stages import SETTINGS, run_stage
from stages.artefacts import Artefacts, open_artefacts
from stages.parts import Tree
from stages.report.typical import MOST, PART, choose_typical

# Names for each class, and clusters for each class that the person is shown at first: the other
# names go to halves of those that look mixed.
NAMES, START = 8, 2
# Share of the cut-outs that are one class, below which a cluster looks mixed.
PURE = 0.85
# What a split is worth beside a name for a cluster that has none; and that of one that looks mixed
# hardly, for when there is no other.
SPLIT, HARDLY = 4.0, 0.1
# A part of twice the size is worth 2 to the power of this.
POWER = 0.75
SHARES = (0.25, 0.5, 0.75, 1.0)
PER_IMAGE = 2
CORRECTED = 4
# A label map is a byte.
CLUSTERS = 254
_PAGE = Path(__file__).parent.parent / "docs" / "naming.md"


@dataclass(frozen=True)
class Shown:
    """What a fit with many clusters shows: its proposals, and how they were merged.

    Attributes
    ----------
    tree
        The clusters and their parts.
    proposals
        int64 [unit, 2]: row of the window and number of the proposal in it.
    images
        int64 [unit]: the image.
    positions
        float64 [unit]: positions of each.
    means
        float64 [unit, channel]: mean feature, relative to the mean of all.
    """

    tree: Tree
    proposals: NDArray[np.int64]
    images: NDArray[np.int64]
    positions: NDArray[np.float64]
    means: NDArray[np.float64]

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """The means at unit length."""
        return _normalise(self.means)

    def find_direction(self, part: Part) -> NDArray[np.float64]:
        """Return the mean direction of a part, float64 [channel]."""
        return _normalise(self.directions[self.tree.find_units(part)].mean(axis=0))

    def measure(self, part: Part) -> float:
        """Return the number of positions of a part."""
        return float(self.positions[self.tree.find_units(part)].sum())

    def choose(self, part: Part) -> NDArray[np.int64]:
        """Choose the units of a part whose cut-outs are shown, the most typical first."""
        units = self.tree.find_units(part)
        rated = np.zeros(len(units), PART)
        rated["number"], rated["image"] = units, self.images[units]
        rated["similarity"] = self.directions[units] @ self.find_direction(part)
        return np.asarray(choose_typical(rated, MOST, PER_IMAGE)["number"], np.int64)


def _normalise(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float64).tiny)


def read_shown(artefacts: Artefacts) -> Shown:
    """Read what a fit shows."""
    arrays, _ = read_group(artefacts.run.em, artefacts.subject.name)
    rows, numbers = np.divmod(arrays["moments_proposal"].astype(np.int64), 256)
    windows = artefacts.manifest.windows
    count = arrays["moments_count"].astype(np.float64)
    return Shown(
        Tree(arrays["moments_merges"], arrays["moments_cluster"]),
        np.stack([rows, numbers], axis=1),
        np.array([windows[row].image for row in rows.tolist()], np.int64),
        count,
        arrays["moments_total"] / np.maximum(count, 1)[:, None],
    )


def classify_units(artefacts: Artefacts, shown: Shown, classes: int) -> NDArray[np.int64]:
    """Return the true class of most labelled pixels of every unit, int64 [unit]; -1 for none."""
    found = np.full(len(shown.proposals), -1, np.int64)
    for row in np.unique(shown.images).tolist():
        image = artefacts.manifest.images[row]
        truth, proposals = artefacts.read_truth(image), artefacts.read_proposals(image)
        if truth is None or proposals is None:
            continue
        cover = artefacts.cover(image)
        counts = []
        for ids, (x0, y0, x1, y1) in zip(proposals, cover.boxes, strict=True):
            part = truth[y0:y1, x0:x1]
            known = part != IGNORE
            pairs = ids[known].astype(np.int64) * classes + part[known]
            counts.append(np.bincount(pairs, minlength=256 * classes).reshape(256, classes))
        for unit in np.flatnonzero(shown.images == row).tolist():
            window, number = shown.proposals[unit]
            own = counts[window - cover.rows.start][number]
            found[unit] = own.argmax() if own.any() else -1
    return found


class Person:
    """Names clusters and parts of clusters by what most of the cut-outs are.

    The next to be named is the largest that is unlike those that have a name; or the two halves of
    a named part that looked mixed, where that is larger: the more unlike each other, and the more
    alike in size, the sooner.
    """

    def __init__(
        self, shown: Shown, classes: NDArray[np.int64], *, pure: float = PURE, split: float = SPLIT
    ) -> None:
        self.names: dict[Part, int] = {}
        self._shown, self._classes = shown, classes
        self._pure, self._split = pure, split
        # what a part promises, of those that may be named and of those that may be split
        self._waiting = {
            (int(k),): shown.measure((int(k),)) ** POWER for k in np.unique(shown.tree.clusters)
        }
        self._directions = {part: shown.find_direction(part) for part in self._waiting}
        self._novelty = dict.fromkeys(self._waiting, 1.0)
        self._mixed: dict[Part, float] = {}

    def go_on(self, count: int) -> bool:
        """Name until there are so many names; False where nothing is left to name."""
        while len(self.names) < count:
            named = {part: size * self._novelty[part] for part, size in self._waiting.items()}
            part = max(named, key=lambda each: (named[each], each), default=None)
            mixed = max(self._mixed, key=lambda each: (self._mixed[each], each), default=None)
            if mixed is not None and (part is None or self._mixed[mixed] > named[part]):
                del self._mixed[mixed], self.names[mixed]
                for half in (0, 1):
                    self._name((*mixed, half))
            elif part is not None:
                del self._waiting[part]
                self._name(part)
                near = self._directions.pop(part)
                for other, direction in self._directions.items():
                    self._novelty[other] = min(self._novelty[other], 1 - float(near @ direction))
            else:
                return False
        return True

    def _name(self, part: Part) -> None:
        shown = self._classes[self._shown.choose(part)]
        votes = np.bincount(shown[shown >= 0], minlength=1)
        # a part that shows nothing with a label is to be left out: nothing is called so here
        self.names[part] = int(votes.argmax()) if votes.any() else -1
        share = votes.max() / max(votes.sum(), 1)
        # one whose cut-outs are all alike is not looked into
        if 0 < share < 1 and self._pure and self._shown.tree.measure(part) > 1:
            halves = (*part, 0), (*part, 1)
            first, second = (self._shown.measure(half) for half in halves)
            balance = 2 * np.sqrt(first * second) / (first + second)
            one, other = (self._shown.find_direction(half) for half in halves)
            worth = self._split * (1 if share < self._pure else HARDLY) * (1 - float(one @ other))
            self._mixed[part] = worth * balance * (first + second) ** POWER * (1 - float(share))


@dataclass
class Score:
    """Scores in per cent and the machine's seconds, one for each seed.

    ``miou`` is over the classes that the labels of val have, ``miou_all`` that of ``metrics.json``:
    also over those that it has not, but of which a pixel is predicted.
    """

    names: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    miou: list[float] = field(default_factory=list)
    miou_all: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A run whose train split has true labels, and the fits of one seed on it."""

    run: RunDirectory
    class_names: tuple[str, ...]
    classes: int
    units: int  # proposals of train that are clustered: there are no more clusters
    fine: bool = False  # whether the fine view is labelled

    def stage(self, stage: str, **given: Any) -> None:
        """Run a stage as its verb does."""
        settings = make_settings(SETTINGS[stage], stage, given)
        run_stage(stage, self.run, settings, Execution(), Screen(progress=False))

    def fit(self, name: str, seed: int, **given: Any) -> None:
        """Fit by the robust method."""
        given = {"classes": self.classes, "method": "robust", "splits": ("train",), **given}
        given["fine"] = self.fine
        self.stage("em", name=name, seed=seed, **given)

    def evaluate(self, name: str) -> tuple[float, float, float, float]:
        """Score val without CRF; return the columns of :class:`Score`."""
        begun = perf_counter()
        self.stage("evaluate", em=name, splits=("val",), crf="none")
        seconds = perf_counter() - begun
        metrics = json.loads((self.run.report(name) / "metrics.json").read_text())
        return metrics["accuracy"], average_present(metrics), metrics["miou"], seconds

    def write_names(self, name: str, names: Mapping[Part, int]) -> None:
        """Write names as a person's editor would."""
        words = {part: self.class_names[k] for part, k in names.items() if k >= 0}
        Corrections(self.run).write_names(name, words, replace=True)

    def open(self, name: str) -> Artefacts:
        """Open a fit."""
        return open_artefacts(self.run, name, gain=1.0)

    def unsay(self) -> None:
        """Take away what was painted: every seed paints images of its own."""
        rmtree(self.run.corrections / MAPS, ignore_errors=True)
        (self.run.corrections / CLASSES).unlink(missing_ok=True)

    def paint(self, artefacts: Artefacts, seed: int) -> None:
        """Paint the true labels of some images of train, and nothing else."""
        manifest = artefacts.manifest
        images = [image for image in manifest.images if image.ok and image.split == "train"]
        images = [image for image in images if manifest.label_path(image) is not None]
        generator = np.random.default_rng([seed, CORRECTED])
        for row in generator.permutation(len(images))[:CORRECTED].tolist():
            path = manifest.label_path(images[row])
            assert path is not None
            truth = open_truth(artefacts.dataset, path, images[row]).classes
            said = np.where(truth == IGNORE, NOT_SAID, truth).astype(np.uint8)
            Corrections(self.run).write_map(images[row], said, self.class_names)


def average_present(metrics: Mapping[str, Any]) -> float:
    """Average IoU over the classes that occur in the labels, per cent."""
    present = np.array(metrics["confusion"]).sum(axis=0) > 0
    iou = np.array([each["iou"] or 0.0 for each in metrics["per_class"]])
    return float(iou[present].mean())


def prepare(run: RunDirectory, material: Material, weights: Path, side: int | None = None) -> Bench:
    """Extract features and proposals, where they are not there yet.

    With a ``side``, in pixels, the fine view is extracted, too, and is what fits label.
    """
    bench = Bench(run, (), 0, 0)
    bench.stage(
        "extract",
        dataset=material.dataset,
        root=material.root,
        backbone=BACKBONE,
        weights=weights,
    )
    if side is not None:
        bench.stage("views", views=f"clean,fine:{side}")
    bench.stage("masks")
    # a small fit tells what there is
    given = {"classes": 2, "clusters": 2, "clusterings": 1}
    bench.stage("em", method="robust", splits=("train",), name="small", **given)
    artefacts = bench.open("small")
    manifest, units = artefacts.manifest, len(read_shown(artefacts).images)
    found = tuple(manifest.open_dataset().class_names(manifest.labels))
    if not found:
        raise DatasetError("the data set names no classes: a person would not know what to call.")
    return Bench(run, found, material.classes or len(found), units, side is not None)


K_ONLY, FLAT, FULL, PAINTED = "K clusters", "flat", "named", "painted"


def run_seed(bench: Bench, seed: int, scores: dict[str, Score]) -> None:
    """Play the person with one seed, and add what each step reached."""

    def add(key: str, count: int, found: tuple[float, ...]) -> None:
        score = scores.setdefault(key, Score())
        score.names.append(count)
        columns = score.accuracy, score.miou, score.miou_all, score.seconds
        for values, value in zip(columns, found, strict=True):
            values.append(value)

    bench.unsay()
    budget = NAMES * bench.classes
    # names of a fit that is replaced would be carried over to the new one
    of = f"{seed}-fine" if bench.fine else f"{seed}"
    matched, flat, name, painted = (f"{k}-{of}" for k in ("matched", "flat", "named", "painted"))
    bench.fit(matched, seed)
    add(K_ONLY, 0, bench.evaluate(matched))
    most, few = (min(each * bench.classes, bench.units, CLUSTERS) for each in (NAMES, START))
    bench.fit(flat, seed, clusters=most)
    artefacts = bench.open(flat)
    shown = read_shown(artefacts)
    person = Person(shown, classify_units(artefacts, shown, len(bench.class_names)), pure=0)
    person.go_on(budget)
    bench.write_names(flat, person.names)
    add(FLAT, len(person.names), bench.evaluate(flat))
    bench.fit(name, seed, clusters=few)
    artefacts = bench.open(name)
    shown = read_shown(artefacts)
    person = Person(shown, classify_units(artefacts, shown, len(bench.class_names)))
    for share in SHARES:
        person.go_on(round(share * budget))
        bench.write_names(name, person.names)
        add(FULL if share == 1 else f"{share:g}", len(person.names), bench.evaluate(name))
    bench.paint(artefacts, seed)
    begun = perf_counter()
    bench.fit(painted, seed, clusters=few, labels_from="corrections")
    fitted = perf_counter() - begun
    bench.write_names(painted, person.names)
    *reached, seconds = bench.evaluate(painted)
    add(PAINTED, len(person.names), (*reached, fitted + seconds))
    bench.unsay()


def summarise(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Any]]:
    """Return what ``--json`` writes: the means over the seeds, and every step below ``steps``."""
    found: dict[str, dict[str, Any]] = {}
    for name, steps in scores.items():
        means = {key: _mean(score) for key, score in steps.items()}
        found[name] = {**means[FULL], "steps": means}
    return found


def _mean(score: Score) -> dict[str, float]:
    return {
        "names": mean(score.names),
        "accuracy": mean(score.accuracy),
        "miou": mean(score.miou),
        "miou_all": mean(score.miou_all),
        # the slowest turn of any seed
        "seconds": max(score.seconds),
    }


def tabulate(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """Write the table, Markdown: one row a step, accuracy / mIoU for each data set."""
    titles = {
        K_ONLY: "K clusters, matched one to one",
        FLAT: f"{NAMES} K clusters, each with a name",
        **{f"{s:g}": f"{START} K clusters and halves, {s:.0%} of {NAMES} K names" for s in SHARES},
        FULL: f"{START} K clusters and halves, {NAMES} K names",
        PAINTED: f"the same, and {CORRECTED} painted images",
    }
    lines = [
        f"| | {' | '.join(f'{name} | names | s' for name in scores)} |",
        f"|{'---|' * (3 * len(scores) + 1)}",
    ]
    for key, title in titles.items():
        rows = [steps.get(key) for steps in scores.values()]
        if any(row is not None for row in rows):
            cells = [_write_cells(row) for row in rows]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _write_cells(score: Score | None) -> str:
    if score is None:
        return "- | - | -"
    pair = f"{_spread(score.accuracy)} / {_spread(score.miou)}"
    return f"{pair} | {mean(score.names):.0f} | {max(score.seconds):.0f}"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


@click.command()
@click.option(
    "--shared",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with datasets/ and weights/.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="camvid, cocostuff or msrc, repeatable; or a definition (YAML) of any other set, with "
    "--root. All three when not given.",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the data set of --dataset lies.",
)
@click.option("--classes", type=click.IntRange(2), help="K; the classes of the data set.")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Weights of the backbone; those in --shared when not given.",
)
@click.option("--seeds", type=click.IntRange(1), default=len(SEEDS), show_default=True)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the runs are kept; a temporary folder when not given. What is painted there is "
    "painted by this command.",
)
@click.option("--fine", type=click.IntRange(1), help="Label the fine view, at PX pixels a side.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--write", is_flag=True, help="Put the table into docs/naming.md.")
def main(
    shared: Path | None,
    datasets: tuple[str, ...],
    root: Path | None,
    classes: int | None,
    weights: Path | None,
    seeds: int,
    work: Path | None,
    fine: int | None,
    file: Path | None,
    write: bool,
) -> None:
    """Name clusters as a person would, and score val after every quarter of the names."""
    if weights is None and shared is None:
        raise click.UsageError("give --shared FOLDER, or --weights FILE.")
    if root is not None:
        if len(datasets) != 1:
            raise click.UsageError("--root is that of one --dataset; give one.")
        materials = {Path(datasets[0]).stem: Material(datasets[0], root, classes)}
    else:
        if shared is None:
            raise click.UsageError("give --shared FOLDER, or --dataset FILE with --root DIR.")
        known = list_materials(shared)
        if unknown := [name for name in datasets if name not in known]:
            raise click.UsageError(f"--dataset {unknown[0]}: give its --root, too.")
        materials = {name: known[name] for name in datasets or known}
    if weights is None:
        assert shared is not None
        weights = shared / WEIGHTS
    scores: dict[str, dict[str, Score]] = {}
    with TemporaryDirectory() as temporary:
        for name, material in materials.items():
            try:
                folder = (work or Path(temporary)) / name
                bench = prepare(RunDirectory(folder), material, weights, fine)
                for seed in range(seeds):
                    run_seed(bench, seed, scores.setdefault(name, {}))
            except PipelineError as error:
                raise click.ClickException(str(error)) from error
            full = scores[name][FULL]
            click.echo(f"{name}: {_spread(full.accuracy)} / {_spread(full.miou)}", err=True)
    table = tabulate(scores)
    click.echo(table)
    if file is not None:
        file.write_text(json.dumps(summarise(scores), indent=1) + "\n", encoding="utf-8")
    if write:
        replace_table(_PAGE, table)


if __name__ == "__main__":
    main()
