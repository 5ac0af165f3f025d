"""Another person's corrections: the folder of a run, or a copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import RunError
from pipeline.run.corrections import CLASSES, MAPS, POINTS, Corrections
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import parse_names, read_part_names
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import Image
from pipeline.storage.places import list_names
from stages.evaluate.names import find_owner
from workflows.correct.job import Named, Said, Source

_NAMES = "names"


def recognise(place: Path) -> bool:
    """Whether it is a run, or a folder with what only corrections hold."""
    found = {name for name, _ in list_names(place)}
    ours = POINTS in found or {CLASSES, MAPS} <= found or any(map(_is_names, found))
    return ours or {"run.yaml", "state"} <= found


def _is_names(name: str) -> bool:
    return name.endswith(".yaml") and (name.split(".")[0] + "-").startswith(f"{_NAMES}-")


def read(source: Source) -> Iterator[Said | Named]:
    """Read maps, points and names; those of another run are only names where its fit is ours."""
    place, run = source.place, source.run
    other = RunDirectory(place if (place / "run.yaml").is_file() else place.parent)
    folder = other.corrections if other.path == place else place
    if folder.absolute() == run.corrections.absolute():
        raise RunError(f"--from {place} is what {run.path} holds itself; name another's.")
    theirs = Corrections(run, folder)

    def read_one(image: Image) -> Said:
        return Said(image, theirs.read_map(image), theirs.classes(), theirs.points_of(image))

    yield from _read_names(source, other, folder)
    yield from source.map(read_one, theirs.images())
    source.strays += theirs.find_strays()


def _read_names(source: Source, other: RunDirectory, folder: Path) -> Iterator[Named]:
    run, is_run = source.run, other.settings_file.is_file() and folder == other.corrections
    for subject in source.subjects:
        title = subject.title
        if not is_run:
            file = folder / run.names_file(title).name
            given = parse_names(file.read_bytes(), file) if file.is_file() else {}
        else:
            given = read_part_names(other, title)
        if not given:
            continue
        fit = Ledger(run.state(subject.key)).recall_stage()
        ours = find_owner(run, subject) or (None if fit is None else fit.digest)
        if is_run and find_owner(other, subject) != ours:
            source.faults.append(
                f"{other.names_file(title)}: names of clusters are not taken, for they are of "
                f"another fit than {subject.key} of {run.path}."
            )
            continue
        yield Named(title, given)
