"""The job behind `export`: choose what, open the folder, hand both to the format."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from pipeline.errors import UsageError
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory, choose_subject
from pipeline.run.status import find_upstream_changes
from pipeline.wording import count_of, did_you_mean
from workflows.export import FORMATS, PROTOTYPES
from workflows.export.folder import Folder, check_linkable, open_folder
from workflows.export.source import Export, Item, Source, describe_ids, open_source

VERSION = 1
Ids = Literal["auto", "classes", "clusters"]
Images = Literal["copy", "link", "none"]


class Format(Protocol):
    """A module that writes one format: ours, or one of the entry points ``primaps_pipe.formats``.

    Attributes
    ----------
    NESTED
        Whether names of files may hold folders.
    NOTE
        What is special to the format, in a few words for the screen, or nothing.
    """

    NESTED: bool
    NOTE: str

    def write(self, export: Export) -> list[tuple[str, str]]:
        """Write all but the index and the classes; return the files of every image, in order.

        They are those of the photograph and of the label map, relative to the folder.
        """


def export_run(
    run: RunDirectory,
    format: str,
    out: Path,
    *,
    em: str | None = None,
    head: str | None = None,
    splits: tuple[str, ...] = (),
    ids: Ids = "auto",
    images: Images = "copy",
    screen: Screen,
) -> list[str]:
    """Write the label maps of a fit or head, or its prototypes, for other tools.

    Parameters
    ----------
    run
        The run.
    format
        One of ``FORMATS``.
    out
        Local folder; new, empty, or one that holds the same export or a part of it. For
        ``prototypes`` a folder, or a file whose name ends in ``.safetensors``.
    em, head
        Name of the fit or of the head; the run's only one, or ``default``, when neither is given.
    splits
        Splits to export; all that were evaluated when empty.
    ids
        What the numbers in the label maps stand for: the dataset's ``classes``, ``clusters``, or
        ``auto``: classes where clusters are matched to classes.
    images
        Whether to ``copy`` the photographs, ``link`` to them, or leave them out (``none``).
    screen
        Where progress is shown.

    Returns
    -------
    list of str
        What was written, a sentence each.

    Raises
    ------
    UsageError
        A name or an option that does not exist, or does not fit the run.
    RunError
        The fit or head was not evaluated, or its labels are stale; or the folder is not ours.
    """
    _require_choice("--format", format, tuple(FORMATS))
    _require_choice("--ids", ids, get_args(Ids))
    _require_choice("--images", images, get_args(Images))
    _refuse_run(run, out)
    _warn_of_changes(run, em, head, screen)
    if format == PROTOTYPES:
        from workflows.export.prototypes import export_prototypes

        return export_prototypes(run, out, em=em, head=head)
    source = open_source(run, em=em, head=head, splits=splits, ids=ids)
    if images == "link":
        check_linkable(source.manifest.root)
    writer = cast(Format, FORMATS[format])
    items = source.list_items(nested=writer.NESTED)
    record = {"format": format, "version": VERSION, "photographs": images, **source.describe()}
    with open_folder(out, record) as folder:
        places = writer.write(Export(source, items, folder, images, screen))
        _write_classes(source, folder)
        folder.write("index.csv", _make_index(items, places))
    counts = Counter(item.split for item in items).items()
    written = ", ".join(f"{count_of(count, 'images')} of {split}" for split, count in counts)
    return [
        describe_ids(source),
        f"export: {written} as {format} in {out}",
        *([f"export: {writer.NOTE}"] if writer.NOTE else []),
    ]


def _require_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError(
            f"{option} {given!r}: no such{did_you_mean(given, known)}; there are "
            f"{', '.join(known)}."
        )


def _refuse_run(run: RunDirectory, out: Path) -> None:
    """Keep exports out of runs: what lies in a run is the run's."""
    for folder in (out, *out.absolute().parents):
        if (folder / "run.yaml").is_file() and (folder / "state").is_dir():
            raise UsageError(f"--out {out} lies in the run {folder}; give a folder outside of it.")


def _warn_of_changes(run: RunDirectory, em: str | None, head: str | None, screen: Screen) -> None:
    """Say that images, label maps, weights or a dataset have changed since the evaluation."""
    subject = choose_subject(run.require(), em, head)
    if changed := find_upstream_changes(run, f"evaluate/{subject.title}"):
        screen.warn(
            f"export: {changed.rstrip('.')}; what is written is what was evaluated before. "
            f"`primaps-pipe status {run.quoted}` says what to run."
        )


def _write_classes(source: Source, folder: Folder) -> None:
    """Write the classes, which no format says completely, the same way for all."""
    classes = [
        {"id": number, "name": each.name, "colour": list(each.colour)}
        for number, each in enumerate(source.classes)
    ]
    folder.write_json("classes.json", {"ids": source.ids, "ignore": 255, "classes": classes})


def _make_index(items: Iterable[Item], places: Iterable[tuple[str, str]]) -> bytes:
    """Make the table from images of the run to files of the export."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "split", "image", "label"))
    for item, (image, label) in zip(items, places, strict=True):
        writer.writerow((item.image.id, item.split, image, label))
    return text.getvalue().encode()
