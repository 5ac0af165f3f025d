"""Several evaluations side by side on one page: scores, settings, agreement, images in one row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.datasets import Colour
from pipeline.errors import ImageError, RunError, StaleError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import Evaluation, open_evaluation
from pipeline.run.frames import count_threads, map_ahead, read_frame, read_truth, resize_labels
from pipeline.run.ledger import list_sources
from pipeline.run.manifest import Image
from pipeline.run.status import find_upstream_changes
from pipeline.settings import field_extra
from pipeline.storage.files import write_text
from stages import SETTINGS
from stages.artefacts import read_group_of
from stages.report.agreement import (
    Name,
    Paint,
    Pair,
    Pairwise,
    choose_reference,
    compare_labels,
    list_legend,
    paint_looks,
)
from stages.report.content import make_curve
from stages.report.page import check_picture, render_page
from stages.report.pictures import colour_labels, make_thumbnail, sample_evenly
from stages.report.plots import draw_loss, draw_usage
from stages.report.words import count_effectively, find_version, is_number, list_commands

MOST_SUBJECTS = 12
COMPARED = 200  # images of each split whose label maps are compared pixel by pixel
SIDE = 384  # longest side of a picture, pixels
BUDGET = 18_000_000  # characters of all pictures: with text and plots, the page is below 25 MB
# By this a page is known as one of a comparison.
WRITER = 'data-writer="primaps-pipe compare"'
_SCORES = (
    ("accuracy_crf", "Accuracy with CRF, %"),
    ("accuracy", "Accuracy without CRF, %"),
    ("miou_crf", "Mean IoU with CRF, %"),
    ("miou", "Mean IoU without CRF, %"),
)
# what has no better and worse between one method and another
_FIGURES = (("coverage", "Coverage, %"), ("confidence", "Confidence, %"))
# names of fits and heads, by which the columns are called, and of a view's parts
_NAMES = frozenset(
    {"em.name", "evaluate.em", "evaluate.head", "head.name", "encode.head", "views.part"}
)
_LONGEST_VALUE = 120

Role = Literal["most", "sample"]
Value = float | int | str | None


# --- what the page says --------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One evaluation that is compared."""

    name: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One figure of every evaluation."""

    name: str
    values: tuple[Value, ...]
    best: tuple[int, ...] = ()
    colour: Colour | None = None


@dataclass(frozen=True)
class Table:
    """Figures of one split."""

    split: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class ComparedImage:
    """One row of the gallery."""

    id: str
    split: str
    role: Role
    difference: float | None
    photograph: str | None
    truth: str | None
    labels: tuple[str, ...]
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True)
class ComparisonContent:
    """Everything that the page says; ``curves`` has name and plots, title and SVG, of each."""

    title: str
    verdict: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    scores: tuple[Table, ...]
    classes: tuple[Table, ...]
    settings: tuple[Row, ...]
    agreement: tuple[tuple[float | None, ...], ...]
    agreement_note: str
    gallery: tuple[ComparedImage, ...]
    gallery_note: str
    legend: tuple[tuple[str, Colour], ...]
    other_colours: bool
    curves: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    commands: tuple[str, ...]
    version: str


def render_comparison(content: ComparisonContent) -> str:
    """Render the page."""
    for image in content.gallery:
        for source in (image.photograph, image.truth, *image.labels):
            if source is not None:
                check_picture(source, f"of {image.id!r}")
    sections = [
        ("scores", "Scores", content.scores),
        ("gallery", "Images", content.gallery),
        ("agreement", "Agreement", content.agreement),
        ("settings", "Settings", True),
        ("classes", "Classes", content.classes),
        ("curves", "Training", content.curves),
    ]
    return render_page(
        "comparison.html.j2",
        styles=("style.css", "comparison.css"),
        scripts=("common.js", "comparison.js"),
        content=content,
        writer=Markup(WRITER),
        count=len(content.columns),
        sections=[(identity, name) for identity, name, there in sections if there],
        has_photographs=any(image.photograph for image in content.gallery),
        has_truth=any(image.truth for image in content.gallery),
        gallery_splits=list(dict.fromkeys(image.split for image in content.gallery)),
        curves=[
            (name, [(title, Markup(svg)) for title, svg in plots]) for name, plots in content.curves
        ],
    )


# --- the page as a whole -------------------------------------------------------------------------


def compare_runs(
    subjects: Sequence[tuple[RunDirectory, str | None, str | None]],
    out: Path,
    *,
    images: int,
    screen: Screen,
) -> Path:
    """Write one page that compares several evaluated fits or heads."""
    if images < 0:
        raise UsageError(f"--images {images}: give 0 or more.")
    # not over anything but an earlier comparison, such as a report
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: give the name of a file that ends in .html.")
    if out.exists() and WRITER.encode() not in out.read_bytes():
        raise UsageError(
            f"--out {out} is there already and was not written by compare; give another name."
        )
    opened = [open_evaluation(run, em, head, SETTINGS) for run, em, head in subjects]
    _check_subjects(opened)
    for entry in opened:
        if changed := find_upstream_changes(entry.run, f"evaluate/{entry.subject.title}"):
            screen.warn(
                f"compare: {entry.subject.key} of {entry.run.path}: {changed.rstrip('.')}; what is "
                "shown was evaluated before. "
                f"`primaps-pipe status {entry.run.quoted}` says what to run."
            )
    write_text(out, render_comparison(build_comparison(opened, images, screen)))
    return out


def _check_subjects(opened: Sequence[Evaluation]) -> None:
    if len(opened) < 2:
        raise UsageError(
            "there is only one fit to compare: give another run, or --em NAME more than once."
        )
    if len(opened) > MOST_SUBJECTS:
        raise UsageError(f"{len(opened)} fits are too many for one page: give {MOST_SUBJECTS}.")
    seen = set()
    for entry in opened:
        key = (_locate(entry.run), entry.subject.title)
        if key in seen:
            raise UsageError(f"{entry.subject.key} of {entry.run.path} is given twice.")
        seen.add(key)


def _locate(run: RunDirectory) -> Path:
    """Return the one place of a run, by whatever way it was given."""
    return run.path.resolve()


def build_comparison(
    opened: Sequence[Evaluation], images: int, screen: Screen
) -> ComparisonContent:
    """Gather what the page says of some evaluations."""
    called = [
        e.subject.name if e.subject.kind == "em" else f"head {e.subject.name}" for e in opened
    ]
    names = name_columns([(_locate(e.run), name) for e, name in zip(opened, called, strict=True)])
    common = find_common([entry.images for entry in opened])
    chosen = sample_common(common, max(COMPARED, images))
    pairs = compare_labels(opened, chosen, screen)
    rows = choose_rows(pairs.differences, images)
    reference, paints = _choose_paints(opened, pairs, list(common.splits))
    gallery = draw_gallery(opened, rows, pairs.differences, paints, reference, screen)
    main = next(iter(common.splits))
    block = opened[reference].metrics["splits"][main]
    legend = list_legend(opened[reference].look(main), block["class_names"])
    commands = (
        command
        for entry in opened
        for command in list_commands(entry.run, f"evaluate/{entry.subject.title}", SETTINGS)
    )
    return ComparisonContent(
        title=f"Comparison of {', '.join(names[:-1])} and {names[-1]}",
        verdict=describe_verdict(names, opened, list(pairs.shares.values())),
        columns=tuple(map(_describe_column, names, opened)),
        notes=_describe_images(names, common, gallery),
        scores=tuple(_tabulate_scores(opened, split) for split in _list_splits(opened)),
        classes=tabulate_classes(opened),
        settings=list_differences(opened),
        agreement=tabulate_agreement(pairs.shares, len(opened)),
        agreement_note=_count_compared(len(chosen), common),
        gallery=gallery.images,
        gallery_note=_describe_gallery(names, gallery, paints[main], reference),
        legend=tuple(legend),
        other_colours=_has_others(opened, paints, legend),
        curves=tuple(
            (name, _draw_curves(entry)) for name, entry in zip(names, opened, strict=True)
        ),
        # those of a run that several share once
        commands=tuple(dict.fromkeys(commands)),
        version=find_version(),
    )


def name_columns(places: Sequence[tuple[Path, str]]) -> list[str]:
    """Name what is compared as shortly as tells them apart."""
    runs = list(dict.fromkeys(path for path, _ in places))
    short = dict(zip(runs, _shorten_paths(runs), strict=True))
    if len(runs) == 1:
        return [title for _, title in places]
    if len(runs) == len(places) and len({title for _, title in places}) == 1:
        return [short[path] for path, _ in places]
    return [f"{short[path]} · {title}" for path, title in places]


def _shorten_paths(paths: Sequence[PurePath]) -> list[str]:
    """Give each path by as few of its last parts as tell it from the others."""
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if max(Counter(names).values(), default=1) == 1:
            return names
    return [str(path) for path in paths]


def _choose_paints(
    opened: Sequence[Evaluation], pairs: Pairwise, splits: Sequence[str]
) -> tuple[int, dict[str, list[Paint]]]:
    """Choose whose colours the others take, and the colours of every split."""
    looks = {split: [entry.look(split) for entry in opened] for split in splits}
    reference = choose_reference(looks[splits[0]])
    matchings = [pairs.matchings[reference, entry] for entry in range(len(opened))]
    names = {split: [e.metrics["splits"][split]["class_names"] for e in opened] for split in splits}
    return reference, {
        split: paint_looks(looks[split], names[split], matchings, reference) for split in splits
    }


def _has_others(
    opened: Sequence[Evaluation],
    paints: Mapping[str, Sequence[Paint]],
    legend: Sequence[tuple[str, Colour]],
) -> bool:
    """Whether some cluster has a colour that the legend does not name."""
    named = {colour for _, colour in legend}
    return any(
        tuple(colour) not in named
        for of_split in paints.values()
        for entry, paint in zip(opened, of_split, strict=True)
        for colour in paint.palette[: entry.clusters].tolist()
    )


def _describe_column(name: str, entry: Evaluation) -> Column:
    return Column(
        name=name,
        facts=(
            ("run", str(entry.run.path)),
            ("made by", f"fit {entry.subject.name}" if entry.subject.kind == "em" else name),
            ("dataset", entry.manifest.dataset),
            ("images", str(len(entry.images))),
            ("clusters", str(entry.clusters)),
            ("CRF", str(entry.metrics["crf"])),
        ),
    )


def _draw_curves(entry: Evaluation) -> tuple[tuple[str, str], ...]:
    """Draw how a fit or head went."""
    curve = make_curve(*read_group_of(entry.run, entry.subject))
    plots = []
    if curve.loss:
        plots.append(("Loss", draw_loss(curve.loss, curve.unit)))
    if curve.usage:
        colours = entry.look().colours
        plots.append(("Share of every cluster", draw_usage(curve.usage, colours, curve.unit)))
    return tuple(plots)


# --- scores, classes and settings ----------------------------------------------------------------


def _list_splits(opened: Sequence[Evaluation]) -> list[str]:
    """List the splits that any evaluation scored: the one that matters most first."""
    primary = [str(entry.metrics["split"]) for entry in opened]
    return list(dict.fromkeys([*primary, *(s for entry in opened for s in entry.splits)]))


def _list_blocks(opened: Sequence[Evaluation], split: str) -> list[dict[str, Any]]:
    return [entry.metrics["splits"].get(split, {}) for entry in opened]


def _tabulate_scores(opened: Sequence[Evaluation], split: str) -> Table:
    """Put the scores of a split side by side."""
    blocks = _list_blocks(opened, split)

    def pick(key: str) -> tuple[Value, ...]:
        return tuple(block.get(key) for block in blocks)

    rows = [Row("Images", pick("images"))]
    if any(pick("labelled_images")):
        rows.append(Row("with labels", pick("labelled_images")))
    for key, title in _SCORES:
        values = pick(key)
        if any(map(is_number, values)):
            rows.append(Row(title, values, find_best(values)))
    rows += [Row(title, pick(key)) for key, title in _FIGURES]
    rows.append(Row("Clusters", pick("classes")))
    usage = [block.get("class_usage") or [] for block in blocks]
    even: tuple[Value, ...] = tuple(count_effectively(u) if u else None for u in usage)
    rows.append(Row("Clusters in use, effectively", even))
    scored = {block["labelled_images"] for block in blocks if is_number(block.get("accuracy"))}
    note = ""
    if len(scored) > 1:
        note = "Every score is over the images of its own run, and these are not as many in all."
    return Table(split, tuple(rows), note)


def find_best(values: Sequence[Any]) -> tuple[int, ...]:
    """Find which of some figures are the largest; none where fewer than two differ."""
    known = {round(value, 2) for value in values if is_number(value)}
    if len(known) < 2:
        return ()
    largest = max(known)
    return tuple(i for i, v in enumerate(values) if is_number(v) and round(v, 2) == largest)


def tabulate_classes(opened: Sequence[Evaluation]) -> tuple[Table, ...]:
    """Put the IoU of every class side by side, for every split that has labels."""
    tables = []
    for split in _list_splits(opened):
        blocks = _list_blocks(opened, split)
        scored = [_read_classes(block) for block in blocks]
        colours: dict[str, Colour] = {}
        for entry, block in zip(opened, blocks, strict=True):
            for index, name in enumerate(block.get("class_names", ())):
                red, green, blue = entry.class_palette[min(index, 254)].tolist()
                colours.setdefault(name, (red, green, blue))
        rows = []
        for name in dict.fromkeys(name for classes in scored for name in classes):
            values = tuple(classes.get(name) for classes in scored)
            rows.append(Row(name, values, find_best(values), colours.get(name)))
        if any(is_number(value) for row in rows for value in row.values):
            tables.append(Table(split, tuple(rows)))
    return tuple(tables)


def _read_classes(block: dict[str, Any]) -> dict[str, float | None]:
    """Read the IoU of the final labels, by class."""
    if not is_number(block.get("accuracy")):
        return {}
    key = "iou" if block.get("accuracy_crf") is None else "iou_crf"
    return {entry["name"]: entry.get(key) for entry in block["per_class"]}


def list_differences(opened: Sequence[Evaluation]) -> tuple[Row, ...]:
    """List the settings in which the evaluations differ, in the order of the stages."""
    settings = [_list_settings(entry.run, f"evaluate/{entry.subject.title}") for entry in opened]
    return tuple(
        Row(name, tuple(map(_show, values)))
        for name, values in find_differences(settings).items()
        if name not in _NAMES
    )


def _list_settings(run: RunDirectory, key: str) -> dict[str, Any]:
    """List every setting that has a part in what a stage wrote, those of all before it included."""
    return {
        f"{record.stage}.{name}": value
        for record in list_sources(run, key).values()
        for name, value in record.settings.items()
        # what is no longer known may have had a part
        if name not in SETTINGS[record.stage].model_fields
        or field_extra(SETTINGS[record.stage], name, "affects_output")
    }


def find_differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Find the settings in which some differ."""
    names = dict.fromkeys(name for mapping in settings for name in mapping)
    rows = {name: tuple(mapping.get(name) for mapping in settings) for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _show(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def describe_verdict(
    names: Sequence[str], opened: Sequence[Evaluation], shares: Sequence[float]
) -> str:
    """Say in a sentence or two what the figures come to."""
    known = [share for share in shares if is_number(share)]
    agreement = ""
    if known:
        low, high = f"{min(known):.0f}", f"{max(known):.0f}"
        span = low if low == high else f"{low} to {high}"
        pairs = "The label maps agree" if len(shares) == 1 else "Every two of the label maps agree"
        agreement = f" {pairs} on {span} % of the pixels."
    return _rank(names, opened) + agreement


def _rank(names: Sequence[str], opened: Sequence[Evaluation]) -> str:
    """Say which has the highest mean IoU of the final labels, split by split."""
    told, scored = [], set()
    for split in _list_splits(opened):
        blocks = _list_blocks(opened, split)
        scores = [b.get("miou") if b.get("miou_crf") is None else b["miou_crf"] for b in blocks]
        ranked = sorted(
            ((score, -i) for i, score in enumerate(scores) if is_number(score)), reverse=True
        )
        scored |= {names[-i] for _, i in ranked}
        if len(ranked) < 2:
            continue
        (best, first), (second, _) = ranked[:2]
        lead = round(best, 1) - round(second, 1)
        told.append(
            f"{split}: {names[-first]}, {best:.1f} %, {lead:.1f} points above the next"
            if lead > 0
            else f"{split}: no one alone, {best:.1f} %"
        )
    if not told and scored:
        return f"Only {', '.join(sorted(scored))} could be scored by labels: look at the images."
    if not told:
        return "There are no labels to score these by: look at the images."
    return f"Highest mean IoU of the final labels on {'; on '.join(told)}."


def tabulate_agreement(
    shares: Mapping[Pair, float], count: int
) -> tuple[tuple[float | None, ...], ...]:
    """Make a matrix of the shares; None on the diagonal, and where there is none."""
    known = {frozenset(pair): share for pair, share in shares.items() if not np.isnan(share)}
    return tuple(tuple(known.get(frozenset((a, b))) for b in range(count)) for a in range(count))


# --- the images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CommonImages:
    """The ids of the images that all evaluations labelled, by split.

    ``others`` counts what each has besides; ``resized`` those of another size, which are left out;
    ``changed`` those of the same size that are another file.
    """

    splits: dict[str, list[str]]
    others: tuple[int, ...]
    resized: int
    changed: int

    @property
    def count(self) -> int:
        """Number of the images in common."""
        return sum(map(len, self.splits.values()))


def find_common(images: Sequence[Mapping[Name, Image]]) -> CommonImages:
    """Find the images that all of some evaluations labelled, by split and id."""
    first, *rest = images
    named = [name for name in first if all(name in other for other in rest)]
    same = [name for name in named if len({(i[name].width, i[name].height) for i in images}) == 1]
    if not same:
        resized = " of the same size" if named else ""
        apart = (other for other in rest if not any(name in first for name in other))
        raise RunError(
            f"the runs have no image{resized} in common, by split and id "
            f"(the first has, for instance, {_name_example(first)}, another "
            f"{_name_example(next(apart, rest[-1]))}); compare runs on the same photographs."
        )
    splits: dict[str, list[str]] = {}
    for split, identity in same:
        splits.setdefault(split, []).append(identity)
    return CommonImages(
        splits=splits,
        others=tuple(len(mapping) - len(same) for mapping in images),
        resized=len(named) - len(same),
        changed=sum(len({i[name].digest for i in images}) > 1 for name in same),
    )


def _name_example(images: Mapping[Name, Image]) -> str:
    for (split, identity), image in images.items():
        return f"{split}/{identity} of {image.width} x {image.height}"
    return "none at all"


def sample_common(common: CommonImages, wanted: int) -> list[Name]:
    """Choose up to ``wanted`` images of every split, evenly spaced, without chance."""
    return [
        (split, ids[position])
        for split, ids in common.splits.items()
        for position in sample_evenly(len(ids), wanted)
    ]


def choose_rows(differences: Mapping[Name, float], wanted: int) -> dict[Name, Role]:
    """Choose the images to show: of every split those that differ most, and some of the others."""
    rows: dict[Name, Role] = {}
    for split in dict.fromkeys(split for split, _ in differences):
        values = {name: value for name, value in differences.items() if name[0] == split}
        # where nothing is known comes last
        ordered = sorted(values, key=lambda n: (1.0 if np.isnan(values[n]) else -values[n], n))
        most = -(-wanted // 2)
        rest = ordered[most:]
        rows |= dict.fromkeys(ordered[:most], "most")
        rows |= dict.fromkeys((rest[i] for i in sample_evenly(len(rest), wanted - most)), "sample")
    return rows


@dataclass(frozen=True)
class Gallery:
    """The rows, how many found no room, and the files that cannot be read, with the reasons."""

    images: tuple[ComparedImage, ...]
    left_out: int
    unreadable: tuple[tuple[str, str], ...]


def draw_gallery(
    opened: Sequence[Evaluation],
    rows: Mapping[Name, Role],
    differences: Mapping[Name, float],
    paints: Mapping[str, Sequence[Paint]],
    reference: int,
    screen: Screen,
    budget: int = BUDGET,
) -> Gallery:
    """Draw as many rows as there is room for, fair to all splits."""
    splits = dict.fromkeys(split for split, _ in rows)
    turns = zip_longest(*([name for name in rows if name[0] == split] for split in splits))
    ordered = [name for turn in turns for name in turn if name is not None]
    scores = [entry.read_scores(ordered) for entry in opened]

    def draw(name: Name) -> tuple[ComparedImage, list[tuple[str, str]]]:
        value = differences[name]
        faults: list[tuple[str, str]] = []
        final = [found.get(name, {}) for found in scores]
        image = ComparedImage(
            id=name[1],
            split=name[0],
            role=rows[name],
            difference=None if np.isnan(value) else value,
            photograph=_draw_photograph(opened, name, faults),
            truth=_draw_truth(opened[reference], name, faults),
            labels=tuple(
                _draw_map(entry.read_labels(entry.images[name]), paint.palette)
                for entry, paint in zip(opened, paints[name[0]], strict=True)
            ),
            accuracy=tuple(found.get("accuracy_crf", found.get("accuracy")) for found in final),
        )
        return image, faults

    drawn: dict[Name, ComparedImage] = {}
    unreadable: list[tuple[str, str]] = []
    size, threads = 0, count_threads()
    with screen.count("draw", len(ordered), "images") as counter:
        for name, (image, faults) in zip(
            ordered, map_ahead(draw, ordered, threads, threads), strict=False
        ):
            size += sum(len(s) for s in (image.photograph, image.truth, *image.labels) if s)
            if size > budget:
                break
            drawn[name] = image
            unreadable += faults
            counter.advance()
    images = tuple(drawn[name] for name in rows if name in drawn)
    return Gallery(images, len(rows) - len(images), tuple(unreadable))


def _draw_photograph(
    opened: Sequence[Evaluation], name: Name, faults: list[tuple[str, str]]
) -> str | None:
    """Draw the photograph of the first evaluation that still has it."""
    for entry in opened:
        image = entry.images[name]
        size = _fit(image.width, image.height)
        try:
            pixels = read_frame(entry.manifest.root, image, *size)
        except (ImageError, StaleError) as error:
            fault = (image.path, str(error))
            continue
        return make_thumbnail(pixels, "photograph", SIDE)
    faults.append(fault)
    return None


def _draw_truth(entry: Evaluation, name: Name, faults: list[tuple[str, str]]) -> str | None:
    image = entry.images[name]
    path = entry.manifest.label_path(image)
    if path is None:
        return None
    try:
        truth = read_truth(entry.dataset, path, image)
    except ImageError as error:
        faults.append((str(image.label), str(error)))
        return None
    return _draw_map(truth, entry.class_palette)


def _draw_map(ids: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    # ids are made small before they are coloured: a colour takes three times the memory
    small = resize_labels(ids, *_fit(ids.shape[1], ids.shape[0]))
    return make_thumbnail(colour_labels(small, palette), "map", SIDE)


def _fit(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(width, height))
    return max(1, round(scale * width)), max(1, round(scale * height))


def _describe_images(
    names: Sequence[str], common: CommonImages, gallery: Gallery
) -> tuple[str, ...]:
    """Say what is not compared, and what else a reader must know of the images."""
    notes = []
    apart = [
        f"{count} of {name}" for name, count in zip(names, common.others, strict=True) if count
    ]
    if apart:
        notes.append(
            f"{common.count} images are in common, by split and id; not in common, and left out of "
            f"the images and the agreement below: {', '.join(apart)}."
        )
    if common.resized:
        notes.append(
            f"{common.resized} images have the same split and id in all, but another size: they "
            "are left out."
        )
    if common.changed:
        notes.append(
            f"{common.changed} of the images in common are not the same file in all: what differs "
            "there may be the photograph."
        )
    if gallery.unreadable:
        path, reason = gallery.unreadable[0]
        more = len(gallery.unreadable) - 1
        others = f" ({more} more)" if more else ""
        notes.append(f"{path} could not be read and is not shown: {reason}{others}.")
    return tuple(notes)


def _count_compared(count: int, common: CommonImages) -> str:
    if count == common.count:
        return f"All {count} images in common were compared, every pixel that both label."
    return (
        f"Compared were {count} of the {common.count} images in common, evenly spaced, at most "
        f"{COMPARED} of each split, and of these every pixel that both label."
    )


def _describe_gallery(
    names: Sequence[str], gallery: Gallery, paints: Sequence[Paint], reference: int
) -> str:
    """Say which images are shown and what their colours mean."""
    shown = (
        "Of each split, half of the images are those on which the label maps differ most, and half "
        "are an even sample of the others; those that differ most come first."
    )
    if gallery.left_out:
        shown += f" {gallery.left_out} more found no room: the page is kept under 25 MB."
    base = names[reference]
    borrowed = [name for name, paint in zip(names, paints, strict=True) if paint.by == "pixels"]
    if not borrowed:
        return f"{shown} Clusters have the colour of the class they are matched to."
    if paints[reference].by == "class":
        first = f"Clusters of {base} have the colour of the class they are matched to"
    else:
        first = f"Clusters of {base} have colours of their own"
    return (
        f"{shown} {first}; those of {', '.join(borrowed)} have the colour of the cluster of {base} "
        "with which they have most pixels in common, one to one."
    )
