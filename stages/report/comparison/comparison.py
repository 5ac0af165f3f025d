"""Several evaluations side by side on one page: scores, settings, agreement, images in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.datasets.base import Colour
from pipeline.errors import UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.subject import Evaluation, open_evaluation
from pipeline.storage.files import write_text
from pipeline.storage.places import is_remote
from stages import SETTINGS, VERSIONS
from stages.outside import find_upstream_changes
from stages.report.comparison.colours import Paint, choose_reference, list_legend, paint_looks
from stages.report.comparison.common_images import (
    CommonImages,
    choose_rows,
    find_common,
    sample_common,
)
from stages.report.comparison.evaluated import name_columns
from stages.report.comparison.gallery import Gallery, draw_gallery
from stages.report.comparison.page import WRITER, Column, ComparisonContent, render_comparison
from stages.report.comparison.pairwise import Pairwise, compare_labels
from stages.report.comparison.tables import (
    describe_verdict,
    draw_curves,
    list_differences,
    tabulate_classes,
    tabulate_scores,
)
from stages.report.exhibition import find_version
from stages.report.reproduction import list_commands

MOST_SUBJECTS = 12
COMPARED = 200  # images of each split whose label maps are compared pixel by pixel


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
    _check_file(out)
    opened = [open_evaluation(run, em, head, VERSIONS) for run, em, head in subjects]
    _check_subjects(opened)
    for entry in opened:
        _warn_of_changes(entry, screen)
    write_text(out, render_comparison(build_comparison(opened, images, screen)))
    return out


def _warn_of_changes(entry: Evaluation, screen: Screen) -> None:
    if changed := find_upstream_changes(entry.run, f"evaluate/{entry.subject.title}"):
        screen.warn(
            f"compare: {entry.subject.key} of {entry.run.path}: {changed.rstrip('.')}; what is "
            "shown was evaluated before. "
            f"`primaps-pipe status {entry.run.quoted}` says what to run."
        )


def _check_file(out: Path) -> None:
    """Refuse to write over anything but an earlier comparison, such as a report."""
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: give the name of a file that ends in .html.")
    if out.exists() and WRITER.encode() not in out.read_bytes():
        raise UsageError(
            f"--out {out} is there already and was not written by compare; give another name."
        )


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
    return run.path if is_remote(run.path) else run.path.resolve()


def build_comparison(
    opened: Sequence[Evaluation], images: int, screen: Screen
) -> ComparisonContent:
    """Gather what the page says; parameters and errors as in :func:`compare_runs`."""
    names = name_columns([(_locate(e.run), _name_subject(e)) for e in opened])
    common = find_common([entry.images for entry in opened])
    chosen = sample_common(common, max(COMPARED, images))
    pairs = compare_labels(opened, chosen, screen)
    rows = choose_rows(pairs.differences, images)
    reference, paints = _choose_paints(opened, pairs, list(common.splits))
    gallery = draw_gallery(opened, rows, pairs.differences, paints, reference, screen)
    main = next(iter(common.splits))
    block = opened[reference].metrics["splits"][main]
    legend = list_legend(opened[reference].look(main), block["class_names"])
    return ComparisonContent(
        title=f"Comparison of {_join(names)}",
        verdict=describe_verdict(names, opened, list(pairs.shares.values())),
        columns=tuple(map(_describe_column, names, opened)),
        notes=_describe_images(names, common, gallery),
        scores=tabulate_scores(opened),
        classes=tabulate_classes(opened),
        settings=list_differences(opened),
        agreement=pairs.table,
        agreement_note=_count_compared(len(chosen), common),
        gallery=gallery.images,
        gallery_note=_describe_gallery(names, gallery, paints[main], reference),
        legend=tuple(legend),
        other_colours=_has_others(opened, paints, legend),
        curves=tuple(map(draw_curves, names, opened)),
        commands=_list_commands(opened),
        version=find_version(),
    )


def _choose_paints(
    opened: Sequence[Evaluation], pairs: Pairwise, splits: Sequence[str]
) -> tuple[int, dict[str, list[Paint]]]:
    """Choose whose colours the others take, and the colours of every split."""
    looks = {split: [entry.look(split) for entry in opened] for split in splits}
    reference = choose_reference(looks[splits[0]])
    matchings = [pairs.find_matching(entry, reference) for entry in range(len(opened))]
    names = {split: [e.metrics["splits"][split]["class_names"] for e in opened] for split in splits}
    return reference, {
        split: paint_looks(looks[split], names[split], matchings, reference) for split in splits
    }


def _name_subject(entry: Evaluation) -> str:
    subject = entry.subject
    return subject.name if subject.kind == "em" else f"head {subject.name}"


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


def _list_commands(opened: Sequence[Evaluation]) -> tuple[str, ...]:
    """List the commands that made all of them, those of a run that they share once."""
    found = [
        command
        for entry in opened
        for command in list_commands(entry.run, f"evaluate/{entry.subject.title}", SETTINGS)
    ]
    return tuple(dict.fromkeys(found))


def _join(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


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
