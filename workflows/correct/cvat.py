"""CVAT's "Segmentation mask 1.1", as CVAT exports it: a zip file, or a folder of what is in it.

What is black is not labelled, and so not said; ``ignore`` is 255. An image in which nothing is
labelled has no mask in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import Colour, show_colour
from pipeline.datasets.labels import NO_CLASS, map_values, pack_colours
from pipeline.errors import RunError
from pipeline.images.decoding import read_label
from pipeline.run.corrections import NOT_SAID
from pipeline.run.label_maps import LABELMAP, name_file, parse_labelmap
from pipeline.storage.places import find_files
from workflows.correct.job import Said, Source
from workflows.correct.reading import Canvas, draw_images, expect, list_names, open_place

TOOL = "CVAT"
MASKS = "SegmentationClass"
Classes = Sequence[tuple[str, Colour]]


def recognise(place: Path) -> bool:
    """Whether there is a ``labelmap.txt``."""
    return any(name.split("/")[-1] == LABELMAP for name in list_names(place))


def read(source: Source) -> Iterator[Said]:
    """Read every mask below a place."""
    with open_place(source.place) as folder:
        maps = (
            [] if folder.is_file() else sorted(p for p in find_files(folder) if p.name == LABELMAP)
        )
        if not maps:
            raise RunError(
                f"{source.place} holds no {LABELMAP}; export it from CVAT as `Segmentation mask "
                "1.1`, and give the zip file."
            )
        for file in maps:
            yield from _read_masks(file.parent / MASKS, _read_labelmap(file), source)


def _read_masks(masks: Path, classes: Classes, source: Source) -> Iterator[Said]:
    def paint(canvas: Canvas, mask: Path) -> None:
        _paint(canvas, mask, classes)

    files = sorted(find_files(masks)) if masks.is_dir() else ()
    named = [(name_file(masks, file), file) for file in files if file.suffix == ".png"]
    yield from draw_images(source, TOOL, named, paint)


def _read_labelmap(file: Path) -> Classes:
    """Read the names and colours of ``labelmap.txt``, in the order of its lines."""
    with expect(LABELMAP, TOOL):
        return parse_labelmap(file.read_text(encoding="utf-8"))


def _paint(canvas: Canvas, mask: Path, classes: Classes) -> None:
    pixels = read_label(mask)
    numbers = _number(canvas, classes)
    if pixels.ndim == 2:
        # grey values are lines of labelmap.txt
        if pixels.min() < 0 or pixels.max() >= len(classes):
            raise ValueError(f"it holds {pixels.max()}, and {LABELMAP} has {len(classes)} labels")
        canvas.fill(numbers[pixels])
        return
    packed = pack_colours(pixels)
    colours = pack_colours(np.array([[colour for _, colour in classes]]))
    lines = {colour: line for line, colour in enumerate(colours[0].tolist())}
    at = map_values(packed, lines).meaning
    wrong = packed[at == NO_CLASS]
    if wrong.size:
        raise ValueError(f"{LABELMAP} has no label of the colour {show_colour(int(wrong[0]))}")
    canvas.fill(numbers[at])


def _number(canvas: Canvas, classes: Classes) -> NDArray[np.uint8]:
    """Give every line of ``labelmap.txt`` its number in a map."""
    return np.array([canvas.number(name) if name else NOT_SAID for name, _ in classes], np.uint8)
