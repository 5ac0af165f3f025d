"""Plain label PNGs, of numbers that the run's own label maps have, or that a file names.

The file is ``--classes``, or one beside the PNGs (:mod:`pipeline.run.label_maps`). Of the label
maps of the run itself those are read that a person has changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.run.by_hand import find_changed_maps
from pipeline.run.directory import Subject, choose_subject
from pipeline.run.evaluation import Evaluation
from pipeline.run.label_maps import (
    Names,
    find_classes,
    list_pngs,
    name_file,
    read_classes,
    read_map,
)
from pipeline.run.ledger import Ledger
from pipeline.storage.places import find_files
from workflows.correct.job import UNNAMED, Said, Source


def recognise(place: Path) -> bool:
    """Whether it is a PNG, or a folder with one at any depth."""
    if place.suffix.lower() == ".png":
        return True
    return any(file.suffix.lower() == ".png" for file in find_files(place))


def read(source: Source) -> Iterator[Said]:
    """Read the maps, image by image."""
    place, run = source.place, source.run
    folder = place.parent if place.suffix.lower() == ".png" else place
    subject = _find_subject(source)
    if subject is not None:
        files = _list_changed(source, subject)
    else:
        files = [place] if folder != place else list_pngs(place)
    listed = source.classes or (None if subject else find_classes(folder))
    given = None if listed is None else read_classes(listed)

    @cache
    def name_numbers(split: str) -> Names:
        return given if given is not None else _name_numbers(source, subject, split)

    @cache
    def explain() -> str:
        if listed is not None:
            return f"which {listed} does not name"
        chosen = subject or choose_subject(run, source.em, source.head)
        return f"which have no name in {run.names_file(chosen.title)}"

    def read_one(file: Path) -> Said | None:
        below = run.labels(subject.title) if subject else place
        image = source.find(name_file(below, file))
        if image is None:
            return None
        said, kept = read_map(file, image, name_numbers(image.split), explain())
        return Said(image, said, kept, moved=file if subject else None)

    yield from source.map(read_one, files)


def _find_subject(source: Source) -> Subject | None:
    """Find the fit or head among whose label maps a place lies."""
    place = source.place.absolute()
    for subject in source.subjects:
        if source.run.labels(subject.title).absolute() in (place, *place.parents):
            return subject
    return None


def _list_changed(source: Source, subject: Subject) -> list[Path]:
    """List the label maps of the run that a person has changed; no other one says anything."""
    run, place = source.run, source.place.absolute()
    key = f"evaluate/{subject.title}"
    changed = find_changed_maps(run, key, run.labels(subject.title))
    files = [run.path / name for name in changed]
    return [file for file in files if place in (file.absolute(), *file.absolute().parents)]


def _name_numbers(source: Source, subject: Subject | None, split: str) -> Names:
    """Name what the numbers of the run's own label maps stand for in a split."""
    run = source.run
    if subject is None and source.subjects:
        subject = choose_subject(run, source.em, source.head)
    title = subject.title if subject else ""
    record = Ledger(run.state(f"evaluate/{title}")).recall_stage() if title else None
    if subject is None or record is None:
        raise UsageError(
            f"{run.path} has no label maps that would say what the numbers in {source.place} stand "
            "for; name them with --classes FILE."
        )
    evaluation = Evaluation(run, subject, record)
    names = evaluation.look(split if split in evaluation.splits else None).names
    return [None if UNNAMED.fullmatch(name) else name for name in names]
