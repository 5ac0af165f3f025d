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
from pipeline.storage.places import find_files
from workflows.correct.job import Said, Source, name_file
from workflows.correct.reading import Canvas, draw_images, expect, list_names, open_place
from workflows.export.cvat import BACKGROUND, BACKGROUND_CLASS, SPELLINGS

TOOL = "CVAT"
MAP, MASKS = "labelmap.txt", "SegmentationClass"
_PLAIN = {ord(wide): chr(plain) for plain, wide in SPELLINGS.items()}
Classes = Sequence[tuple[str, Colour]]


def recognise(place: Path) -> bool:
    """Whether there is a ``labelmap.txt``."""
    return any(name.split("/")[-1] == MAP for name in list_names(place))


def read(source: Source) -> Iterator[Said]:
    """Read every mask below a place."""
    with open_place(source.place) as folder:
        maps = [] if folder.is_file() else sorted(p for p in find_files(folder) if p.name == MAP)
        if not maps:
            raise RunError(
                f"{source.place} holds no {MAP}; export it from CVAT as `Segmentation mask 1.1`, "
                "and give the zip file."
            )
        for file in maps:
            yield from _read_masks(file.parent / MASKS, parse_labelmap(file), source)


def _read_masks(masks: Path, classes: Classes, source: Source) -> Iterator[Said]:
    def paint(canvas: Canvas, mask: Path) -> None:
        _paint(canvas, mask, classes)

    files = sorted(find_files(masks)) if masks.is_dir() else ()
    named = [(name_file(masks, file), file) for file in files if file.suffix == ".png"]
    yield from draw_images(source, TOOL, named, paint)


def parse_labelmap(file: Path) -> Classes:
    """Read the names and colours of ``labelmap.txt``, in the order of its lines."""
    classes = []
    with expect(MAP, TOOL):
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            name, colour, *_ = line.strip().split(":")
            red, green, blue = (int(value) for value in colour.split(","))
            classes.append((name, (red, green, blue)))
        if len({colour for _, colour in classes}) < len(classes):
            raise ValueError("two labels have one colour")
    return classes


def _paint(canvas: Canvas, mask: Path, classes: Classes) -> None:
    pixels = read_label(mask)
    numbers = _number(canvas, classes)
    if pixels.ndim == 2:
        # grey values are lines of labelmap.txt
        if pixels.min() < 0 or pixels.max() >= len(classes):
            raise ValueError(f"it holds {pixels.max()}, and {MAP} has {len(classes)} labels")
        canvas.fill(numbers[pixels])
        return
    packed = pack_colours(pixels)
    colours = pack_colours(np.array([[colour for _, colour in classes]]))
    lines = {colour: line for line, colour in enumerate(colours[0].tolist())}
    at = map_values(packed, lines).meaning
    wrong = packed[at == NO_CLASS]
    if wrong.size:
        raise ValueError(f"{MAP} has no label of the colour {show_colour(int(wrong[0]))}")
    canvas.fill(numbers[at])


def _number(canvas: Canvas, classes: Classes) -> NDArray[np.uint8]:
    """Give every line of ``labelmap.txt`` its number in a map."""
    numbers = []
    for name, colour in classes:
        if name == BACKGROUND or not any(colour):
            numbers.append(NOT_SAID)
        else:
            plain = BACKGROUND if name == BACKGROUND_CLASS else name.translate(_PLAIN)
            numbers.append(canvas.number(plain))
    return np.array(numbers, np.uint8)
