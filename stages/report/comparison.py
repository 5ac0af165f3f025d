"""Several evaluations side by side on one page: scores, settings, agreement, images in one row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE_COLOUR, Colour
from pipeline.errors import ImageError, RunError, StaleError, UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import (
    Evaluation,
    choose_block,
    open_evaluation,
    tabulate_colours,
)
from pipeline.run.frames import count_threads, map_ahead, read_frame, read_truth, resize_labels
from pipeline.run.ledger import list_sources
from pipeline.run.manifest import Image
from pipeline.run.status import find_upstream_changes
from pipeline.settings import field_extra
from pipeline.storage.files import write_text
from stages import SETTINGS
from stages.artefacts import read_group_of
from stages.intervals import measure_interval, resample_table
from stages.report.agreement import (
    Name,
    Paint,
    Pair,
    choose_reference,
    compare_labels,
    list_legend,
    paint_looks,
)
from stages.report.content import Content, draw_fit
from stages.report.page import check_picture, render_page
from stages.report.pictures import (
    colour_labels,
    make_thumbnail,
    sample_evenly,
    scale_size,
    take_turns,
    take_within,
)
from stages.report.words import count_effectively, find_version, is_number, list_commands

MOST_SUBJECTS = 12
COMPARED = 200  # images of each split whose label maps are compared pixel by pixel
SIDE = 384  # longest side of a picture, pixels
BUDGET = 18_000_000  # characters of all pictures: with text and plots, the page is below 25 MB
# By this a page is known as one of a comparison.
WRITER = 'data-writer="primaps-pipe compare"'
# Of every split: its name in the metrics, in the table, and whether more of it is better. Coverage,
# confidence and numbers of clusters have no better and worse between one method and another.
_FIGURES = (
    ("images", "Images", False),
    ("labelled_images", "with labels", False),
    ("accuracy_crf", "Accuracy with CRF, %", True),
    ("accuracy", "Accuracy without CRF, %", True),
    ("miou_crf", "Mean IoU with CRF, %", True),
    ("miou", "Mean IoU without CRF, %", True),
    ("coverage", "Coverage, %", False),
    ("confidence", "Confidence, %", False),
    ("classes", "Clusters", False),
)
# the plots of a fit that are shown, and what they are called here
_PLOTS = {"Loss": "Loss", "Class usage": "Share of every cluster"}
# names of fits and heads, by which the columns are called, and of a view's parts
_NAMES = frozenset(
    {"em.name", "evaluate.em", "evaluate.head", "head.name", "encode.head", "views.part"}
)
_LONGEST_VALUE = 120

Role = Literal["most", "sample"]
Value = float | int | str | None


# --- the page as a whole -------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One figure of every evaluation, and which of them are the best."""

    name: str
    values: Sequence[Value]
    best: Sequence[int] = ()
    colour: Colour | None = None


@dataclass(frozen=True)
class ComparedImage:
    """One row of the gallery; label maps and their accuracies are those of every evaluation."""

    id: str
    split: str
    role: Role
    difference: float | None
    photograph: str | None
    truth: str | None
    labels: Sequence[str]
    accuracy: Sequence[float | None]

    @property
    def pictures(self) -> list[str]:
        """All its pictures that there are."""
        return [source for source in (self.photograph, self.truth, *self.labels) if source]


def render_comparison(content: Content) -> str:
    """Render the page."""
    gallery = content["gallery"]
    for image in gallery:
        for source in image.pictures:
            check_picture(source, f"of {image.id!r}")
    return render_page(
        "comparison.html.j2",
        styles=("style.css", "comparison.css"),
        scripts=("common.js", "comparison.js"),
        content=content,
        writer=Markup(WRITER),
    )


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
        if changed := find_upstream_changes(entry.run, _key(entry)):
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
        # a run is one, by whatever way it was given
        place = (entry.run.path.resolve(), entry.subject.title)
        if place in seen:
            raise UsageError(f"{entry.subject.key} of {entry.run.path} is given twice.")
        seen.add(place)


def _key(entry: Evaluation) -> str:
    return f"evaluate/{entry.subject.title}"


def build_comparison(opened: Sequence[Evaluation], images: int, screen: Screen) -> Content:
    """Gather what the page says of some evaluations."""
    names = name_columns([(entry.run.path.resolve(), _call(entry)) for entry in opened])
    common = find_common([entry.images for entry in opened])
    chosen = sample_common(common, max(COMPARED, images))
    # how the clusters of each look in every split; the others take the colours of one
    looks = {split: [entry.look(split) for entry in opened] for split in common.splits}
    classes = {
        split: [choose_block(entry.metrics, split)["class_names"] for entry in opened]
        for split in looks
    }
    agreement = compare_labels(opened, looks, classes, chosen, screen)
    rows = choose_rows(agreement.differences, images)
    main = next(iter(looks))
    reference = choose_reference(looks[main])
    paints = {}
    for split, own in looks.items():
        matchings = [agreement.matchings[split, (reference, n)] for n in range(len(opened))]
        paints[split] = paint_looks(own, classes[split], matchings, reference)
    gallery, unreadable = draw_gallery(
        opened, rows, agreement.differences, paints, reference, screen, BUDGET
    )
    legend = list_legend(looks[main][reference], classes[main][reference])
    shown = {
        tuple(colour)
        for own in paints.values()
        for entry, paint in zip(opened, own, strict=True)
        for colour in paint.palette[: entry.clusters].tolist()
    }
    commands = [c for entry in opened for c in list_commands(entry.run, _key(entry), SETTINGS)]
    return {
        "title": f"Comparison of {', '.join(names[:-1])} and {names[-1]}",
        "verdict": describe_verdict(names, opened, list(agreement.shares.values())),
        "columns": [_describe_column(*each) for each in zip(names, opened, strict=True)],
        "notes": _describe_images(names, common, unreadable),
        "scores": [_tabulate_scores(opened, split) for split in _list_splits(opened)],
        "classes": tabulate_classes(opened),
        "settings": list_differences(opened),
        "agreement": tabulate_agreement(agreement.shares, len(opened)),
        "compared": len(chosen),
        "in_common": common.count,
        "most_compared": COMPARED,
        "gallery": gallery,
        "left_out": len(rows) - len(gallery),
        "reference": names[reference],
        "reference_by": paints[main][reference].by,
        "borrowed": [
            name for name, paint in zip(names, paints[main], strict=True) if paint.by == "pixels"
        ],
        "legend": legend,
        # a colour of some cluster that the legend does not name
        "other_colours": not shown <= {IGNORE_COLOUR, *(colour for _, colour in legend)},
        "curves": [(name, _draw_curves(e)) for name, e in zip(names, opened, strict=True)],
        # those of a run that several share once
        "commands": list(dict.fromkeys(commands)),
        "version": find_version(),
    }


def _call(entry: Evaluation) -> str:
    return entry.subject.name if entry.subject.kind == "em" else f"head {entry.subject.name}"


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
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _describe_column(name: str, entry: Evaluation) -> Content:
    made = f"fit {entry.subject.name}" if entry.subject.kind == "em" else name
    facts = [
        ("run", str(entry.run.path)),
        ("made by", made),
        ("dataset", entry.manifest.dataset),
        ("images", str(len(entry.images))),
        ("clusters", str(entry.clusters)),
        ("CRF", str(entry.metrics["crf"])),
    ]
    return {"name": name, "facts": facts}


def _draw_curves(entry: Evaluation) -> list[tuple[str, str]]:
    """Draw how a fit or head went: title and SVG."""
    plots = draw_fit(*read_group_of(entry.run, entry.subject), entry.look().colours)
    return [(_PLOTS[plot["title"]], plot["svg"]) for plot in plots if plot["title"] in _PLOTS]


# --- scores, classes and settings ----------------------------------------------------------------


def _list_splits(opened: Sequence[Evaluation]) -> list[str]:
    """List the splits that any evaluation scored: the one that matters most first."""
    primary = [str(entry.metrics["split"]) for entry in opened]
    return list(dict.fromkeys([*primary, *(s for entry in opened for s in entry.splits)]))


def _list_blocks(opened: Sequence[Evaluation], split: str) -> list[dict[str, Any]]:
    return [entry.metrics["splits"].get(split, {}) for entry in opened]


def _tabulate_scores(opened: Sequence[Evaluation], split: str) -> Content:
    """Put the scores of a split side by side."""
    blocks = _list_blocks(opened, split)
    rows = []
    for key, title, rated in _FIGURES:
        values = [block.get(key) for block in blocks]
        there = any(values) if key == "labelled_images" else any(map(is_number, values))
        if there:
            rows.append(Row(title, values, find_best(values) if rated else ()))
    leads = [_show_lead(measure_lead(e, opened[0], split)) for e in opened[1:]]
    if any(leads):
        rows.append(Row("Mean IoU above the first, points (95 %)", ["", *leads]))
    usage = [block.get("class_usage") for block in blocks]
    even = [count_effectively(shares) if shares else None for shares in usage]
    rows.append(Row("Clusters in use, effectively", even))
    scored = {block["labelled_images"] for block in blocks if is_number(block.get("accuracy"))}
    note = ""
    if len(scored) > 1:
        note = "Every score is over the images of its own run, and these are not as many in all."
    return {"split": split, "rows": rows, "note": note}


def measure_lead(
    entry: Evaluation, other: Evaluation, split: str
) -> tuple[float, list[float]] | None:
    """Measure by how many points of mean IoU one evaluation is above another, and the interval.

    Both are drawn alike, image by image, of the images of a split that both scored; None of fewer
    than two.
    """
    tables = []
    for each in (entry, other):
        scores = each.scores.filter(pc.equal(each.scores["split"], split))
        tables.append(scores.filter(pc.greater(pc.list_value_length(scores["classes"]), 0)))
    common = pc.is_in(tables[0]["id"], value_set=tables[1]["id"].combine_chunks())
    ids = tables[0]["id"].filter(common)
    drawn = []
    for table in tables:
        rows = pc.index_in(ids, value_set=table["id"].combine_chunks())
        drawn.append(resample_table(table.take(rows), split).miou)
    if drawn[0] is None or drawn[1] is None:
        return None
    lead = drawn[0] - drawn[1]
    return 100 * float(lead[-1]), measure_interval(lead)


def _show_lead(lead: tuple[float, list[float]] | None) -> str | None:
    if lead is None:
        return None
    points, (low, high) = lead
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f})"


def find_best(values: Sequence[Any]) -> tuple[int, ...]:
    """Find which of some figures are the largest; none where fewer than two differ."""
    known = {round(value, 2) for value in values if is_number(value)}
    if len(known) < 2:
        return ()
    largest = max(known)
    return tuple(i for i, v in enumerate(values) if is_number(v) and round(v, 2) == largest)


def tabulate_classes(opened: Sequence[Evaluation]) -> list[Content]:
    """Put the IoU of every class side by side, for every split that has labels."""
    tables = []
    for split in _list_splits(opened):
        blocks = _list_blocks(opened, split)
        scored = [_read_classes(block) for block in blocks]
        colours: dict[str, Colour] = {}
        for entry, block in zip(opened, blocks, strict=True):
            palette = tabulate_colours(entry.dataset.palette)
            for index, name in enumerate(block.get("class_names", ())):
                red, green, blue = palette[min(index, 254)].tolist()
                colours.setdefault(name, (red, green, blue))
        rows = []
        for name in dict.fromkeys(name for classes in scored for name in classes):
            values = [classes.get(name) for classes in scored]
            rows.append(Row(name, values, find_best(values), colours.get(name)))
        if any(is_number(value) for row in rows for value in row.values):
            tables.append({"split": split, "rows": rows, "note": ""})
    return tables


def _read_classes(block: dict[str, Any]) -> dict[str, float | None]:
    """Read the IoU of the final labels, by class."""
    if not is_number(block.get("accuracy")):
        return {}
    key = "iou" if block.get("accuracy_crf") is None else "iou_crf"
    return {entry["name"]: entry.get(key) for entry in block["per_class"]}


def list_differences(opened: Sequence[Evaluation]) -> list[Row]:
    """List the settings in which the evaluations differ, in the order of the stages."""
    settings = [_list_settings(entry.run, _key(entry)) for entry in opened]
    return [
        Row(name, [_show(value) for value in values])
        for name, values in find_differences(settings).items()
        if name not in _NAMES
    ]


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
    told, scored = [], set[str]()
    for split in _list_splits(opened):
        scores = {}
        for name, block in zip(names, _list_blocks(opened, split), strict=True):
            final = block.get("miou") if block.get("miou_crf") is None else block["miou_crf"]
            if is_number(final):
                scores[name] = final
        scored |= scores.keys()
        if len(scores) < 2:
            continue
        first, second = sorted(scores, key=lambda name: -scores[name])[:2]
        best = scores[first]
        lead = round(best, 1) - round(scores[second], 1)
        pair = [opened[names.index(name)] for name in (first, second)]
        drawn = measure_lead(pair[0], pair[1], split)
        # of the images in common, which may be others
        sure = "" if drawn is None else f" (95 %: {drawn[1][0]:.1f} to {drawn[1][1]:.1f})"
        told.append(
            f"{split}: {first}, {best:.1f} %, {lead:.1f} points above the next{sure}"
            if lead > 0
            else f"{split}: no one alone, {best:.1f} %"
        )
    if not told and scored:
        return f"Only {', '.join(sorted(scored))} could be scored by labels: look at the images."
    if not told:
        return "There are no labels to score these by: look at the images."
    return f"Highest mean IoU of the final labels on {'; on '.join(told)}."


def tabulate_agreement(shares: Mapping[Pair, float], count: int) -> list[list[float | None]]:
    """Make a matrix of the shares; None on the diagonal, and where there is none."""
    known = {frozenset(pair): share for pair, share in shares.items() if not np.isnan(share)}
    return [[known.get(frozenset((a, b))) for b in range(count)] for a in range(count)]


# --- the images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CommonImages:
    """The ids of the images that all evaluations labelled, by split."""

    splits: dict[str, list[str]]
    others: tuple[int, ...]  # images that each has besides
    resized: int  # of another size, which are left out
    changed: int  # of the same size, but another file

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


Fault = tuple[str, str]  # a file that cannot be read, and why


def draw_gallery(
    opened: Sequence[Evaluation],
    rows: Mapping[Name, Role],
    differences: Mapping[Name, float],
    paints: Mapping[str, Sequence[Paint]],
    reference: int,
    screen: Screen,
    budget: int,
) -> tuple[list[ComparedImage], list[Fault]]:
    """Draw as many rows as there is room for, fair to all splits."""
    splits = dict.fromkeys(split for split, _ in rows)
    ordered = take_turns([name for name in rows if name[0] == split] for split in splits)
    scores = [entry.read_scores(ordered) for entry in opened]

    def draw(name: Name) -> tuple[ComparedImage, list[Fault]]:
        value = differences[name]
        faults: list[Fault] = []
        final = [found.get(name, {}) for found in scores]
        image = ComparedImage(
            id=name[1],
            split=name[0],
            role=rows[name],
            difference=None if np.isnan(value) else value,
            photograph=_draw_photograph(opened, name, faults),
            truth=_draw_truth(opened[reference], name, faults),
            labels=[
                _draw_map(entry.read_labels(entry.images[name]), paint.palette)
                for entry, paint in zip(opened, paints[name[0]], strict=True)
            ],
            accuracy=[found.get("accuracy_crf", found.get("accuracy")) for found in final],
        )
        return image, faults

    drawn: dict[Name, ComparedImage] = {}
    unreadable: list[Fault] = []
    threads = count_threads()
    with screen.count("draw", len(ordered), "images") as counter:
        found = map_ahead(draw, ordered, threads, threads)
        for image, faults in take_within(found, lambda d: sum(map(len, d[0].pictures)), budget):
            drawn[image.split, image.id] = image
            unreadable += faults
            counter.advance()
    return [drawn[name] for name in rows if name in drawn], unreadable


def _draw_photograph(opened: Sequence[Evaluation], name: Name, faults: list[Fault]) -> str | None:
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


def _draw_truth(entry: Evaluation, name: Name, faults: list[Fault]) -> str | None:
    image = entry.images[name]
    path = entry.manifest.label_path(image)
    if path is None:
        return None
    try:
        truth = read_truth(entry.dataset, path, image)
    except ImageError as error:
        faults.append((str(image.label), str(error)))
        return None
    return _draw_map(truth, tabulate_colours(entry.dataset.palette))


def _draw_map(ids: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    # ids are made small before they are coloured: a colour takes three times the memory
    small = resize_labels(ids, *_fit(ids.shape[1], ids.shape[0]))
    return make_thumbnail(colour_labels(small, palette), "map", SIDE)


def _fit(width: int, height: int) -> tuple[int, int]:
    return scale_size(width, height, min(1.0, SIDE / max(width, height)))


def _describe_images(
    names: Sequence[str], common: CommonImages, unreadable: Sequence[Fault]
) -> list[str]:
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
    if unreadable:
        path, reason = unreadable[0]
        more = len(unreadable) - 1
        others = f" ({more} more)" if more else ""
        notes.append(f"{path} could not be read and is not shown: {reason}{others}.")
    return notes
