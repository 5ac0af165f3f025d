"""The layout of COCO's panoptic task: one JSON for every split, and PNGs whose colours are ids.

A class of an image is one segment, as COCO has it for stuff: pseudo-labels know no instances. The
id of a segment is that of its class's colour (R + 256 G + 65536 B; two classes of one colour are
told apart by a shade), so the PNGs look like the palette; 0 is void. Categories count from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.datasets.definition import IGNORE, Colour
from workflows.export.folder import COMMON, choose_suffix, write_rows
from workflows.export.job import Export, Item

NESTED = False
NOTE = "each class of an image is one stuff segment"


def write(export: Export) -> list[tuple[str, str]]:
    """Write images, segment PNGs, and ``panoptic_<split>2017.json``."""
    places = []
    for split, part in export.parts():
        places += _write_split(part, split)
    return places


def _write_split(export: Export, split: str) -> list[tuple[str, str]]:
    source, folder = export.source, export.folder
    colours = part_colours(source.colours)
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    file = f"annotations/panoptic_{split}2017.json"

    def place(item: Item) -> tuple[str, str]:
        name = item.name + choose_suffix(item.image.path, COMMON)
        return f"{split}2017/{name}", f"annotations/panoptic_{split}2017/{item.name}.png"

    def draw(label: str, labels: NDArray[np.uint8]) -> None:
        folder.write_labels(label, table[labels], None)

    def write_item(item: Item) -> list[dict[str, Any]]:
        image, label = place(item)
        export.write_photograph(item, image)
        labels = source.read_labels(item.image)
        draw(label, labels)
        return describe_segments(labels, colours)

    if folder.has(file):
        return export.write_pairs(place, draw)
    places = [place(item) for item in export.items]
    with folder.stream(file) as stream:
        _write_json(stream, export, colours, places, export.map(write_item))
    return places


def part_colours(colours: list[Colour]) -> list[Colour]:
    """Make colours different from one another and from black, the nearest shade of each first."""
    taken = {(0, 0, 0)}
    parted: list[Colour] = []
    for red, green, blue in colours:
        shades = ((red, green, (blue + step) % 256) for step in range(256))
        colour = next(shade for shade in shades if shade not in taken)
        taken.add(colour)
        parted.append(colour)
    return parted


def describe_segments(labels: NDArray[np.uint8], colours: list[Colour]) -> list[dict[str, Any]]:
    """Describe the segments of one image."""
    areas = np.bincount(labels.ravel(), minlength=256)
    # 0 is no object to scipy, and 255 + 1 is beyond the classes
    boxes = ndimage.find_objects(labels.astype(np.int32) + 1, max_label=IGNORE)
    segments = []
    for number in np.flatnonzero(areas[:IGNORE]).tolist():
        rows, columns = boxes[number]
        left, top = columns.start, rows.start
        red, green, blue = colours[number]
        segments.append(
            {
                "id": red + 256 * green + 65536 * blue,
                "category_id": number + 1,
                "area": int(areas[number]),
                "bbox": [left, top, columns.stop - left, rows.stop - top],
                "iscrowd": 0,
            }
        )
    return segments


def _write_json(
    stream: IO[bytes],
    export: Export,
    colours: list[Colour],
    places: list[tuple[str, str]],
    segments: Iterator[list[dict[str, Any]]],
) -> None:
    """Write the JSON row by row: it may be larger than memory."""
    source = export.source
    description = f"pseudo-labels of {source.evaluation.subject.key}, made by primaps-pipe"
    categories = [
        {"id": n, "name": name, "supercategory": name, "isthing": 0, "color": list(colour)}
        for n, (name, colour) in enumerate(zip(source.names, colours, strict=True), start=1)
    ]
    files = [(image.rpartition("/")[2], label.rpartition("/")[2]) for image, label in places]
    images = (
        {"id": n, "file_name": image, "width": item.image.width, "height": item.image.height}
        for n, (item, (image, _)) in enumerate(zip(export.items, files, strict=True), start=1)
    )
    annotations = (
        {"image_id": n, "file_name": label, "segments_info": found}
        for n, ((_, label), found) in enumerate(zip(files, segments, strict=True), start=1)
    )
    stream.write(b"{\n")
    stream.write(f'"info": {json.dumps({"description": description})},\n'.encode())
    stream.write(b'"licenses": [],\n')
    stream.write(f'"categories": {json.dumps(categories, ensure_ascii=False)},\n'.encode())
    write_rows(stream, "images", images)
    stream.write(b",\n")
    write_rows(stream, "annotations", annotations)
    stream.write(b"\n}\n")
