"""The report in words: figures, what was unusual, what to try next, how to make it again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeGuard

import numpy as np

from pipeline.errors import UsageError, count_of
from pipeline.run.directory import DEFAULT_NAME, FINE, RunDirectory, Subject
from pipeline.run.ledger import list_sources
from pipeline.settings import StageSettings, choose_class, option_name
from stages.clustering import UNUSED
from stages.scores import OTHERS

NOTHING = "–"
IN_USE = 0.1  # per cent of the pixels from which on a class counts as used
_LARGEST_CONFUSIONS = 6
_LEAST_CONFUSION = 0.005  # of all labelled pixels
_PROCESSOR = "cpu"
_MOST_LISTED = 20
# A fit with so much more classes is another view of the same images, and not the same again.
_MORE = 1.5
# Settings whose value is a name that is meant anyway where it is the default.
_NAMES = ("name", "em")
_MOST_LINES = 200
_LONGEST_LINE = 600
_LONGEST_SETTINGS = 100_000
_NOTES = {
    "running_prototypes": "Running prototypes: those that the gradient moves, which the momentum "
    "prototypes, that made the labels, follow; without CRF, matched to the classes on their own.",
    "corrected": "After correction: the labels under what you have said of the images. "
    "Images that were corrected are scored by what was said of them.",
    "linear_probe": "Linear probe: a linear classifier of the same features, trained on the labels "
    "of the split train, to the optimum of its loss there; without CRF. It bounds nothing on other "
    "images: see the discriminants.",
    "linear_discriminants": "Linear discriminants: the same labels, of positions, with Gaussian "
    "classes that share one covariance; without CRF. Better than the probe where images are few.",
}
# What is worth a word where it is not 0: its name, its count, and a text about the counts.
_UNUSUAL = (
    ("images rejected", "images_rejected", "of {images}: {rejected_for}"),
    (
        "windows whose features are not finite",
        "windows_not_finite",
        "of {windows}; their images are among the rejected",
    ),
    (
        "windows whose features are all equal",
        "windows_constant",
        "of {windows}: nothing in them tells one place from another",
    ),
    (
        "windows without a proposal",
        "windows_without_proposal",
        "of {windows}: no class is learned from them",
    ),
    ("windows with exactly one proposal", "windows_with_one_proposal", "of {windows}"),
    (
        "windows with as many proposals as --max-proposals allows",
        "windows_with_most_proposals",
        "of {windows}: they may hold more",
    ),
    ("classes that no pixel was given", "unused", "of {classes}: {classes_unused}"),
    ("label maps left out of the scores", "label_maps_left_out", "in all: {left_out_for}"),
)
_IMAGE_FIGURES = (
    ("accuracy_crf", "accuracy with CRF"),
    ("accuracy", "accuracy without CRF"),
    ("miou_crf", "mIoU with CRF"),
    ("miou", "mIoU without CRF"),
    ("coverage", "pixels with a cluster"),
    ("confidence", "confidence"),
)

# A sentence, and the commands that do what it says.
Step = tuple[str, list[str]]


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether something is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def format_number(value: object, digits: int = 1) -> str:
    """Format a number with so many decimals; a dash where there is none."""
    return f"{value:.{digits}f}" if is_number(value) else NOTHING


def format_percent(value: object) -> str:
    """Format a share that is given in per cent."""
    return f"{format_number(value)} %" if is_number(value) else NOTHING


# --- what ran, and what it came to ----------------------------------------------------------------


def find_version() -> str:
    """Return the version of primaps-pipe that is installed, or nothing."""
    try:
        return version("primaps-pipe")
    except PackageNotFoundError:
        return ""  # run from its sources


def describe_facts(
    facts: Mapping[str, Any], metrics: Mapping[str, Any], dataset: str, root: str
) -> list[tuple[str, str]]:
    """List what ran on what, for the report's first screen."""
    head = metrics.get("head")
    named = (metrics.get("label_names") or [None])[0] is not None
    maker = f"fit {metrics['em']}" if head is None else f"cluster probe of the head {head}"
    return [
        ("dataset", dataset),
        ("folder", root),
        ("images", ", ".join(f"{s}: {b['images']}" for s, b in metrics["splits"].items())),
        ("backbone", str(facts["backbone"])),
        ("weights", str(facts["weights_source"])),
        ("window", f"{facts['size']} px, {facts['grid'][0]} x {facts['grid'][1]} positions"),
        ("named classes" if named else "clusters", str(metrics["classes"])),
        ("made by", maker + (", on the fine view" if metrics.get("view") == FINE else "")),
        ("CRF", str(metrics["crf"])),
    ]


# A cluster of which two halves share less, in per cent, comes and goes.
STABLE = 50.0


def describe_stability(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say how far fits on two halves of the images agree, where it was measured."""
    if "stability" not in attributes:
        return []
    agreement, clusters = 100 * attributes["stability"], attributes["cluster_stability"]
    unsure = sum(100 * value < STABLE for value in clusters)
    told = f"two halves agree by {format_percent(agreement)} beyond chance"
    return [("stability", f"{told}, {unsure} of {len(clusters)} clusters come and go")]


def describe_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Put the figures of an image into words, those that there are."""
    return [(title, format_percent(scores[n])) for n, title in _IMAGE_FIGURES if n in scores]


def count_effectively(usage: Sequence[float]) -> float:
    """Count the classes that are in use: as many equally large ones would be as even.

    Hill, "Diversity and evenness: a unifying notation and its consequences", 1973 (order 1).
    """
    total = math.fsum(usage)
    shares = [share / total for share in usage if share > 0] if total > 0 else []
    return math.exp(-math.fsum(p * math.log(p) for p in shares)) if shares else 0.0


def list_others(block: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """List what else was scored in a split: what it is called, its scores, a note."""
    return [
        (title, block[name], _NOTES[name])
        for name, title in OTHERS.items()
        if is_number(block.get(name, {}).get("accuracy"))
    ]


def list_confusions(
    confusion: Sequence[Sequence[int]],
    assignment: Sequence[int | None],
    class_names: Sequence[str],
    cluster_names: Sequence[str],
) -> list[dict[str, str]]:
    """List what is most often taken for something else."""
    counts = np.array(confusion, np.int64)
    total, sizes = int(counts.sum()), counts.sum(axis=0)
    wrong = [
        (int(counts[cluster, index]), cluster, index)
        for cluster, index in np.argwhere(counts >= max(_LEAST_CONFUSION * total, 1)).tolist()
        if assignment[cluster] != index
    ]
    # of equal ones the first
    largest = sorted(wrong, key=lambda entry: -entry[0])[:_LARGEST_CONFUSIONS]
    return [
        {
            "truth": class_names[index],
            "prediction": cluster_names[cluster],
            "share": format_number(100 * count / total),
            "part": format_number(100 * count / int(sizes[index]), 0),
        }
        for count, cluster, index in largest
    ]


# --- what was unusual -----------------------------------------------------------------------------


def describe_unusual(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Put the counts that are not 0 into words."""
    unused = counts["classes_unused"]
    more = len(unused) - _MOST_LISTED
    said = {
        **counts,
        "unused": len(unused),
        "classes_unused": ", ".join(map(str, unused[:_MOST_LISTED]))
        + (f" and {more} more" if more > 0 else ""),
    }
    for key in ("rejected_for", "left_out_for"):
        said[key] = ", ".join(f"{reason} ({number})" for reason, number in counts[key].items())
    return [
        (name, f"{said[key]} {text.format_map(said)}") for name, key, text in _UNUSUAL if said[key]
    ]


def describe_repeatability(counts: Mapping[str, Any]) -> str:
    """Say whether the same commands give the same bytes, and which stage cannot promise it."""
    if counts["same_bytes_again"]:
        return (
            "Computed on the processor: the same commands on the same machine give the same bytes, "
            "with any number of workers and in any order of the shards."
        )
    others = [
        f"{key} ({', '.join(device for device in devices if device != _PROCESSOR)})"
        for key, devices in counts["devices"].items()
        if devices != [_PROCESSOR]
    ]
    return (
        f"Not promised to give the same bytes again: {', '.join(others)}. A GPU may add numbers in "
        "another order every time, so a repeat can differ in the last digits of features and "
        "prototypes, and in single pixels of the labels; with --device cpu it does not."
    )


def shorten_lines(lines: Sequence[str], more: str) -> list[str]:
    """Shorten a list of sentences that would make the page too long to open."""
    short = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…" for line in lines]
    left = len(short) - _MOST_LINES
    return short if left <= 0 else [*short[:_MOST_LINES], f"{left} {more}"]


def shorten_settings(text: str, file: object) -> str:
    """Cut settings that would make the page too long to open; ``file`` has all of them."""
    if len(text) <= _LONGEST_SETTINGS:
        return text
    return f"{text[:_LONGEST_SETTINGS]}\n# … the rest is in {file}\n"


# --- what to do next ------------------------------------------------------------------------------


def suggest_steps(
    run: RunDirectory,
    subject: Subject,
    metrics: Mapping[str, Any],
    *,
    named: bool,
    unused: Collection[int] = (),
    counted: bool = False,
) -> list[Step]:
    """Suggest what to try next.

    ``unused`` are the classes that died in the fit. Of a number that was ``counted``, which
    ``--classes auto`` does, no larger one is suggested: nothing speaks for it.
    """
    begin, classes = "primaps-pipe", int(metrics["classes"])
    steps: list[Step] = []
    if metrics["accuracy"] is None and not named:
        file = run.names_file(subject.title)
        text = f"Name the clusters in {file}, a line such as 7: water for each, and show them so"
        steps.append((text, [f"{begin} evaluate {run.quoted}{subject.options}"]))
    if subject.kind == "em":
        shares = enumerate(metrics["class_usage"])
        dead = len({*unused, *(k for k, share in shares if share < 100 * UNUSED)})
        why, other = "", classes
        if 0 < dead < classes - 1:
            why, other = f"{count_of(dead, 'clusters')} hardly used: fit fewer", classes - dead
        elif not dead and not counted:
            why = "Fit more classes"
            other = min(max(classes + 1, round(_MORE * classes)), 255)
        name = f"k{other}"
        commands = [
            f"{begin} em {run.quoted} --classes {other} --name {name}",
            f"{begin} evaluate {run.quoted} --em {name}",
            f"{begin} compare {run.quoted} --em {subject.name} --em {name}",
        ]
        text = f"{why}, and look at both side by side; it costs only the fit"
        if why:
            steps.append((text, commands))
    export = f"{begin} export {run.quoted}{subject.options} --format mmseg --out training"
    steps.append(("Train on the labels: export --help lists the formats", [export]))
    return steps


def list_commands(
    run: RunDirectory, key: str, classes: Mapping[str, type[StageSettings]]
) -> list[str]:
    """List the commands that lead to a stage."""
    sources = list_sources(run, key)
    commands = []
    for source, record in sources.items():
        # one that has another stage's verb is run by the command of that stage
        if record.verb:
            continue
        options = write_options(classes[record.stage], run.read_given(source), record.options)
        if source == "extract" and any(name.partition("/")[0] == "views" for name in sources):
            options += write_options(classes["views"], run.read_given("views"))
        if record.stage == "evaluate":
            # the verb makes the report, too, and takes its options
            given = run.read_given(source.replace("evaluate", "report", 1))
            own = {n: given[n] for n in given if n not in classes["evaluate"].model_fields}
            options += write_options(classes["report"], own)
        commands.append(f"primaps-pipe {record.stage} {run.quoted}{options}")
    return commands


def write_options(settings: type[StageSettings], given: Mapping[str, Any], own: str = "") -> str:
    """Write settings as a shell takes them, with a space in front, or nothing."""
    # those of a variant whose package is gone are not known any more
    with suppress(UsageError):
        settings = choose_class(settings, "", given)
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
