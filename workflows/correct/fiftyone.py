"""FiftyOne's ``ImageSegmentationDirectory``: label maps in ``labels``, names in a file beside it.

``open_in_fiftyone.py`` of an export writes both. 0 is what FiftyOne does not show: not said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import RunError
from pipeline.images.decoding import read_label
from pipeline.run.corrections import NOT_SAID
from pipeline.run.label_maps import name_file
from pipeline.storage.places import find_files
from workflows.correct.job import Said, Source
from workflows.correct.reading import (
    Canvas,
    draw_images,
    expect,
    list_names,
    open_place,
    read_json,
)
from workflows.export.fiftyone import TARGETS

TOOL = "FiftyOne"


def recognise(place: Path) -> bool:
    """Whether there is a file with the names of the values."""
    return TARGETS in list_names(place)


def read(source: Source) -> Iterator[Said]:
    """Read every label map below ``labels``."""
    with open_place(source.place) as folder:
        labels = folder / "labels"
        if not (folder / TARGETS).is_file() or not labels.is_dir():
            raise RunError(
                f"{source.place} holds no `labels` and {TARGETS}; write it with "
                "`python open_in_fiftyone.py save FOLDER`."
            )
        where = f"{source.place}: {TARGETS}"
        named = read_json(folder / TARGETS, where)
        with expect(where, TOOL):
            targets = {int(value): name for value, name in named.items()}

        def paint(canvas: Canvas, path: Path) -> None:
            _paint(canvas, path, targets)

        found = sorted(path for path in find_files(labels) if path.suffix == ".png")
        named = [(name_file(labels, path), path) for path in found]
        yield from draw_images(source, TOOL, named, paint)


def _paint(canvas: Canvas, path: Path, targets: dict[int, str]) -> None:
    values = read_label(path)
    if values.ndim != 2 or values.min() < 0 or values.max() > 255:
        raise ValueError("it holds colours, and not numbers from 0 to 255")
    numbers = np.full(256, NOT_SAID, np.uint8)
    for value in np.flatnonzero(np.bincount(values.ravel())).tolist():
        if value and value not in targets:
            raise ValueError(f"it holds {value}, which {TARGETS} does not name")
        if value:
            numbers[value] = canvas.number(targets[value])
    canvas.fill(numbers[values])
