"""Compare every system on the same cached features: accuracy and mIoU, seed by seed.

Run as ``python -m benchmarks.quality --shared FOLDER [--work FOLDER] [--only SYSTEM ...]``. All
systems fit on the train split and are scored on the val split. The work folder holds one run per
dataset; what is finished there is kept, so the command goes on where it was stopped, and the times
are those of the ledger, whenever they were measured.

With ``--resample``, clusterings are judged on parts of train instead: see ``benchmarks.resample``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.resample import (
    BASE,
    LEAST_WINDOWS,
    SUBSETS,
    Results,
    Sample,
    Variant,
    describe_results,
    parse_variants,
    run_variant,
)
from pipeline.compute.scheduler import Execution
from pipeline.errors import PipelineError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import inspect_stage
from pipeline.settings import make_settings
from stages import SETTINGS, run_stage
from stages.head.settings import DINOV2_SHIFTS, get_preset

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
WEIGHTS = Path("weights") / f"{BACKBONE}.safetensors"
CLASSES = {"cocostuff": 27, "camvid": 11, "msrc": 23}
# Samples that may be too small to say anything when they are cut in parts.
RESAMPLED = {**CLASSES, "potsdam": 3, "cityscapes": 27}
SEEDS = (0, 1, 2)
# A head sees a hundred windows here, where its paper has tens of thousands; a step of HP costs four
# of STEGO, with a tenth of its paper's positions.
STEGO_STEPS, HP_STEPS, HP_POSITIONS = 400, 250, 64
# Stands for the shifts of the dataset that STEGO's authors tuned to DINO.
PUBLISHED = "published"
_DOCS = Path(__file__).parent.parent / "docs"
_PAGE, _RESULTS = _DOCS / "quality.md", _DOCS / "results" / "resample.json"


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes
    ----------
    name
        As ``--only`` takes it.
    title
        As the table has it.
    em
        Settings of the fit; None: the head's own clusters are scored.
    head
        Name of the head in ``HEADS``; None: the fit is on the features.
    scores
        Entry of ``metrics.json`` that holds the scores; the top level where it is empty.
    """

    name: str
    title: str
    em: Mapping[str, Any] | None = None
    head: str | None = None
    scores: str = ""


_STEGO: dict[str, Any] = {"method": "stego", "steps": STEGO_STEPS}
HEADS: dict[str, dict[str, Any]] = {
    "stego": _STEGO | {"term_shifts": PUBLISHED},
    "stego-dinov2": _STEGO | {"term_shifts": DINOV2_SHIFTS},
    "hp": {"method": "hp", "steps": HP_STEPS, "positions": HP_POSITIONS},
}
_PLAIN: dict[str, Any] = {"student": "clean", "mirror": False}

SYSTEMS = (
    System("kmeans", "K-means", em={"method": "kmeans"}),
    System("primaps-plain", "PriMaPs-EM, no augmentation", em=_PLAIN),
    System("primaps", "PriMaPs-EM, augmented student", em={}),
    System("running", "the same, running prototypes", em={}, scores="running_prototypes"),
    System("stego", "STEGO, published shifts", head="stego"),
    System("primaps-stego", "PriMaPs-EM on it", head="stego", em={}),
    System("stego-dinov2", "STEGO, shifts for DINOv2", head="stego-dinov2"),
    System("primaps-stego-dinov2", "PriMaPs-EM on it", head="stego-dinov2", em={}),
    System("hp", "HP", head="hp"),
    System("primaps-hp", "PriMaPs-EM on it", head="hp", em={}),
    System("robust", "robust", em={"method": "robust"}),
    System("linear", "linear probe (labels of train)", em={}, scores="linear_probe"),
    System(
        "discriminants",
        "linear discriminants (labels of train)",
        em={},
        scores="linear_discriminants",
    ),
)
NAMES = tuple(system.name for system in SYSTEMS)


@dataclass(frozen=True)
class Score:
    """What one system reached on one dataset, one number per seed.

    Attributes
    ----------
    accuracy, miou, accuracy_crf, miou_crf
        Per cent; the latter two empty where labels are not refined.
    minutes
        Of the fit, and of its head where it has one.
    least_usage
        Smallest share of the pixels that any class has, per cent: near 0 where classes died.
    """

    accuracy: list[float] = field(default_factory=list)
    miou: list[float] = field(default_factory=list)
    accuracy_crf: list[float] = field(default_factory=list)
    miou_crf: list[float] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    least_usage: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Material:
    """A data set: what ``--dataset`` and ``--root`` take, and how many classes are asked for."""

    dataset: str
    root: Path
    classes: int | None = None


def list_materials(shared: Path, names: Iterable[str] = tuple(CLASSES)) -> dict[str, Material]:
    """List the samples; MSRC has no definition of its own in the product."""
    own = {"msrc": str(Path(__file__).parent / "msrc.yaml")}
    return {name: Material(own.get(name, name), shared / "datasets" / name) for name in names}


def prepare_run(run: RunDirectory, dataset: str, shared: Path, *, views: bool = True) -> None:
    """Extract features, what heads and students are trained on, and proposals of a dataset."""
    material = list_materials(shared, [dataset])[dataset]
    _stage(
        run,
        "extract",
        dataset=material.dataset,
        root=material.root,
        backbone=BACKBONE,
        weights=shared / WEIGHTS,
    )
    if views:
        _stage(run, "views", views="clean,photometric,jittered", attention=True)
    _stage(run, "masks")


def run_system(run: RunDirectory, system: System, dataset: str, seed: int) -> dict[str, Any]:
    """Fit a system with one seed and score it on val; return its scores and minutes."""
    classes = CLASSES[dataset]
    keys: list[str] = []
    given: dict[str, Any] = {"splits": ("val",)}
    head = None
    if system.head is not None:
        head, settings = f"{system.head}-{seed}", dict(HEADS[system.head])
        if settings.get("term_shifts") == PUBLISHED:
            settings["term_shifts"] = get_preset("stego", dataset, "")["term_shifts"]
        _stage(run, "head", classes=classes, seed=seed, name=head, **settings)
        _stage(run, "encode", head=head)
        keys += [f"head/{head}", f"encode/{head}"]
        given["head"] = head
    if system.em is not None:
        # systems that share a fit share its name
        fit = f"{'primaps' if system.em == {} else system.name}-{head or seed}"
        _stage(run, "em", classes=classes, seed=seed, name=fit, head=head, **system.em)
        keys.append(f"em/{fit}")
        # one fit of each seed is scored beside the supervised bound
        given |= {"em": fit, "head": None, "linear_probe": fit == f"primaps-{seed}"}
    record = run_stage(
        "evaluate",
        run,
        make_settings(SETTINGS["evaluate"], "evaluate", given),
        Execution(),
        Screen(progress=False),
    )
    assert record is not None
    target = given.get("em") or f"head-{head}"
    metrics = json.loads((run.report(target) / "metrics.json").read_text())
    scores = _read_scores(metrics, system)
    if system.scores:
        # of another system's fit: its time and its classes are not this one's
        return scores
    return scores | {
        "minutes": sum(inspect_stage(run, key).seconds for key in keys) / 60,
        "least_usage": min(metrics["class_usage"]),
    }


def _read_scores(metrics: dict[str, Any], system: System) -> dict[str, Any]:
    block = metrics[system.scores] if system.scores else metrics
    names = ("accuracy", "miou", "accuracy_crf", "miou_crf")
    return {name: block[name] for name in names if block.get(name) is not None}


def _stage(run: RunDirectory, stage: str, **given: Any) -> None:
    settings = make_settings(SETTINGS[stage], stage, given)
    run_stage(stage, run, settings, Execution(), Screen(progress=False))


def compare_systems(
    shared: Path,
    work: Path,
    systems: Sequence[System],
    seeds: Sequence[int],
    datasets: Sequence[str] = tuple(CLASSES),
) -> dict[str, dict[str, Score]]:
    """Run all systems on all datasets.

    Parameters
    ----------
    shared
        Folder with ``datasets/`` and ``weights/``.
    work
        Where the runs are.
    systems, seeds, datasets
        What to run.

    Returns
    -------
    dict
        Name of the system -> dataset -> scores.
    """
    scores: dict[str, dict[str, Score]] = {}
    for dataset in datasets:
        run = RunDirectory(work / dataset)
        prepare_run(run, dataset, shared)
        for system in systems:
            score = scores.setdefault(system.name, {}).setdefault(dataset, Score())
            for seed in seeds:
                for name, value in run_system(run, system, dataset, seed).items():
                    getattr(score, name).append(value)
            click.echo(f"{dataset}: {system.title}: {_pair(score.accuracy, score.miou)}")
    return scores


def tabulate(
    scores: Mapping[str, Mapping[str, Score]],
    systems: Sequence[System],
    datasets: Sequence[str] = tuple(CLASSES),
) -> str:
    """Write the table, Markdown: one row per system, one pair of columns per dataset.

    Mean and standard deviation over the seeds, without and with the dense CRF; the share of the
    least used class, which is near 0 where a fit collapsed, and the minutes, both as means.
    """
    titles = [
        part for name in datasets for part in (name, f"{name}, CRF", "least class", "minutes")
    ]
    lines = [f"| system | {' | '.join(titles)} |", f"|{'---|' * (len(titles) + 1)}"]
    for system in systems:
        cells = [system.title]
        for name in datasets:
            score = scores[system.name][name]
            cells += [
                _pair(score.accuracy, score.miou),
                _pair(score.accuracy_crf, score.miou_crf),
                f"{mean(score.least_usage):.2f}" if score.least_usage else "-",
                f"{mean(score.minutes):.2f}" if score.minutes else "-",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(accuracy: Sequence[float], miou: Sequence[float]) -> str:
    return f"{_spread(accuracy)} / {_spread(miou)}" if accuracy else "-"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def resample_systems(
    shared: Path,
    work: Path,
    datasets: Sequence[str],
    variants: Sequence[Variant],
    results: Results,
    **given: Any,
) -> None:
    """Fit all variants to parts of all data sets; one that is too small to be cut is told."""
    for name in datasets:
        run = RunDirectory(work / name)
        prepare_run(run, name, shared, views=False)
        sample = Sample(run, RESAMPLED[name])
        if len(sample.windows) < LEAST_WINDOWS:
            click.echo(
                f"{name}: {len(sample.windows)} windows of train are too few to be cut in parts "
                f"({LEAST_WINDOWS} at least); it is left out."
            )
            continue
        for variant in variants:
            results.enter(variant)
            run_variant(variant, name, sample, results, **given)
            click.echo(f"{name}: {variant.name}")


@click.command()
@click.option(
    "--shared",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder with datasets/ and weights/.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the runs are kept; a temporary folder when not given.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(NAMES),
    help="A system to run, repeatable; all when not given.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    type=click.Choice(tuple(RESAMPLED)),
    default=tuple(CLASSES),
    show_default=True,
    help="A dataset, repeatable.",
)
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=int,
    help="Seeds, repeatable; 0, 1, 2 when not given, and 0, 1 with --resample.",
)
@click.option(
    "--resample",
    is_flag=True,
    help="Fit --variant to parts of train, and say which are better than --against.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=(BASE,),
    show_default=True,
    help="METHOD or FILE.py, with settings of em behind a colon (robust:shrinkage=0.2), "
    "repeatable.",
)
@click.option("--against", default=BASE, show_default=True, help="The name of a variant.")
@click.option("--subsets", type=click.IntRange(1), default=SUBSETS, show_default=True)
@click.option(
    "--split",
    "splits",
    multiple=True,
    type=click.Choice(("train", "val")),
    default=("val",),
    show_default=True,
    help="What resampled fits are scored on, repeatable; every look at val is counted.",
)
@click.option(
    "--results",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_RESULTS,
    help="Where scores of resampled fits and looks are kept; in docs/results when not given.",
)
@click.option(
    "--write",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Put the table into this file, between its marks; docs/quality.md when "
    "all systems are run.",
)
def main(
    shared: Path,
    work: Path | None,
    only: tuple[str, ...],
    datasets: tuple[str, ...],
    seeds: tuple[int, ...],
    resample: bool,
    variants: tuple[str, ...],
    against: str,
    subsets: int,
    splits: tuple[str, ...],
    file: Path,
    write: Path | None,
) -> None:
    """Fit and score every system on COCO-Stuff, CamVid and MSRC samples, and print the table."""
    systems = [system for system in SYSTEMS if not only or system.name in only]
    with TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        if resample:
            results, given = Results.open(file), {"splits": splits, "subsets": subsets}
            try:
                chosen = [found for text in variants for found in parse_variants(text)]
                resample_systems(
                    shared, folder, datasets, chosen, results, seeds=seeds or (0, 1), **given
                )
                table = describe_results(results, against)
            except PipelineError as error:
                raise click.ClickException(str(error)) from error
        else:
            scores = compare_systems(shared, folder, systems, seeds or SEEDS, datasets)
            table = tabulate(scores, systems, datasets)
            if write is None and not only and set(datasets) == set(CLASSES):
                write = _PAGE
    click.echo(table)
    if write is not None:
        replace_table(write, table, "resample" if resample else "table")


def replace_table(file: Path, table: str, mark: str = "table") -> None:
    """Put a table between the two marks of a Markdown file.

    Raises
    ------
    click.UsageError
        The file has no such marks.
    """
    first, last = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    text = file.read_text(encoding="utf-8")
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise click.UsageError(f"{file} lacks the marks {first} and {last}.")
    file.write_text(f"{head}{begin}\n{table}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
