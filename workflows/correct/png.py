"""Plain label PNGs, of numbers that the run's own label maps have, or that a file names.

The file is ``--classes``, or one of these beside the PNGs: ``classes.json`` (as `export` writes it,
or a list of names), ``classes.yaml`` (a list of names) or ``classes.txt`` (a name a line). 254 is
not said, and 255 ignored. Of the label maps of the run itself those are read that a person has
changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.definition import IGNORE
from pipeline.errors import ImageError, RunError, UsageError
from pipeline.images.decoding import read_label
from pipeline.run.by_hand import find_changed_maps
from pipeline.run.corrections import NOT_SAID, check_class, parse_classes
from pipeline.run.directory import Subject, choose_subject
from pipeline.run.evaluation import Evaluation
from pipeline.run.ledger import Ledger
from pipeline.storage.places import find_files
from workflows.correct.job import UNNAMED, Said, Source, name_file

_BESIDE = ("classes.json", "classes.yaml", "classes.txt")
# Names of numbers; None for what has none.
Names = Sequence[str | None]


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
        files = [place] if folder != place else sorted(find_files(place))
        files = [file for file in files if file.suffix.lower() == ".png"]
    beside = (folder / name for name in _BESIDE)
    listed = source.classes or (None if subject else next((f for f in beside if f.is_file()), None))
    given = None if listed is None else _read_classes(listed)

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
        try:
            said = read_label(file)
            if said.ndim != 2:
                raise ImageError("it holds colours, and not numbers of classes")
            names = name_numbers(image.split)
            used = [n for n in np.unique(said).tolist() if n not in (NOT_SAID, IGNORE)]
            unnamed = [n for n in used if not 0 <= n < len(names) or names[n] is None]
            if unnamed:
                shown = ", ".join(map(str, unnamed[:8]))
                raise ImageError(f"it holds {shown}, {explain()}; name them first")
            if said.shape != (image.height, image.width):
                size = f"{said.shape[1]} x {said.shape[0]}"
                raise ImageError(f"it is {size}, the image {image.width} x {image.height}")
            if len(used) > NOT_SAID:
                raise ImageError(f"it has more than {NOT_SAID} classes")
        except ImageError as error:
            raise ImageError(f"{file} is not taken up: {error}.") from error
        # numbers of a map of 16 bits may be larger than those that a correction holds
        table = np.full(max(256, len(names)), NOT_SAID, np.uint8)
        table[used] = np.arange(len(used))
        table[IGNORE] = IGNORE
        kept = [names[n] or "" for n in used]
        return Said(image, table[said], kept, moved=file if subject else None)

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


def _read_classes(file: Path) -> Names:
    """Read the names of the numbers from a file."""
    try:
        text = file.read_bytes()
        if file.suffix.lower() in (".yaml", ".yml"):
            return parse_classes(text, file)
        if file.suffix.lower() != ".json":
            lines = text.decode("utf-8-sig").splitlines()
            while lines and not lines[-1].strip():
                lines.pop()
            return [check_class(line, f"{file}, line {n}") for n, line in enumerate(lines, 1)]
        content: Any = json.loads(text)
        if isinstance(content, dict):
            rows = {int(each["id"]): each["name"] for each in content["classes"]}
            content = [rows.get(number) for number in range(max(rows, default=-1) + 1)]
        return [None if name is None else check_class(str(name), str(file)) for name in content]
    except OSError as error:
        raise UsageError(f"--classes {file}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{file} does not name classes ({reason}); give a list of names as JSON or YAML, one "
            "name a line, or the classes.json of an export."
        ) from error
