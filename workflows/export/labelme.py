"""LabelMe: a JSON beside every photograph, whose shapes are masks, pixel by pixel.

A connected part of a class is one shape, so that people can give it another class or delete it;
parts that are too small to click on are one shape together. Ignored pixels are in none.
``labels.txt`` begins with what LabelMe calls ignored and unlabelled.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.images.decoding import encode_png
from workflows.export.datumaro import list_masks
from workflows.export.folder import COMMON, choose_suffix
from workflows.export.job import Export, Item, Source

NESTED = False
NOTE = "open the folder of a split with `labelme FOLDER --labels labels.txt --no-sort-labels`"
# The first version that reads masks.
VERSION = "5.3.0"
IGNORED, UNLABELLED = "__ignore__", "_background_"
SMALL = 64
"""Parts of fewer pixels are one shape together."""


def write(export: Export) -> list[tuple[str, str]]:
    """Write a photograph and a JSON of every image, and ``labels.txt``."""
    source, folder = export.source, export.folder

    def write_item(item: Item) -> tuple[str, str]:
        suffix = choose_suffix(item.image.path, COMMON)
        image, label = f"{item.split}/{item.name}{suffix}", f"{item.split}/{item.name}.json"
        export.write_photograph(item, image)
        if not folder.has(label):
            content = _describe(source, item, f"{item.name}{suffix}")
            folder.write(label, json.dumps(content, ensure_ascii=False, indent=1).encode())
        return image, label

    places = list(export.map(write_item))
    export.write_list("labels.txt", [IGNORED, UNLABELLED, *source.names])
    return places


def cut_parts(mask: NDArray[np.bool_]) -> Iterator[tuple[slice, slice, NDArray[np.bool_]]]:
    """Cut a mask, bool [y, x], into its connected parts; the small ones are together.

    Each is given as rows, columns, and what of that rectangle is inside.
    """
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    small = np.bincount(parts.ravel(), minlength=count + 1) < SMALL
    small[0] = False
    # the small ones have one number, the last
    numbers = np.where(small, count + 1, np.arange(count + 1))
    parts = numbers[parts]
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        if box is not None:
            yield *box, parts[box] == number


def _describe(source: Source, item: Item, photograph: str) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = [
        {
            "label": source.names[number],
            "points": [
                [float(columns.start), float(rows.start)],
                [float(columns.stop - 1), float(rows.stop - 1)],
            ],
            "group_id": None,
            "description": "",
            "shape_type": "mask",
            "flags": {},
            "mask": base64.b64encode(encode_png(inside.astype(np.uint8))).decode(),
        }
        for number, mask in list_masks(source.read_labels(item.image))
        for rows, columns, inside in cut_parts(mask)
    ]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": photograph,
        "imageData": None,
        "imageHeight": item.image.height,
        "imageWidth": item.image.width,
    }
