"""Datumaro's own format: ``annotations/<split>.json``, and the photographs in ``images/<split>``.

A class of an image is one mask, in COCO's run lengths. Ignored pixels are in none. The label
``ignore`` is declared for people to use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.run.evaluation import LEFT_OUT_NAME
from workflows.export.folder import COMMON, choose_suffix, write_rows
from workflows.export.job import Export, Item, Source

NESTED = False
NOTE = "a class of an image is one mask; ignored pixels are in none"


def write(export: Export) -> list[tuple[str, str]]:
    """Write images, and a JSON of masks for every split."""
    places = []
    for split, part in export.parts():
        places += _write_split(part, split)
    return places


def list_masks(labels: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """List the classes that occur in a label map, uint8 [y, x], each with its mask."""
    for number in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[:IGNORE]).tolist():
        yield number, labels == number


def _write_split(export: Export, split: str) -> list[tuple[str, str]]:
    from pycocotools import mask as coco

    source, folder = export.source, export.folder
    file = f"annotations/{split}.json"

    def place(item: Item) -> str:
        return f"images/{split}/{item.name}{choose_suffix(item.image.path, COMMON)}"

    def describe(item: Item) -> dict[str, Any]:
        export.write_photograph(item, place(item))
        annotations: list[dict[str, Any]] = []
        for number, mask in list_masks(source.read_labels(item.image)):
            encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations),
                    "type": "mask",
                    "attributes": {},
                    "group": 0,
                    "label_id": number,
                    "rle": {"counts": encoded["counts"].decode(), "size": encoded["size"]},
                    "z_order": 0,
                }
            )
        _, name = place(item).rsplit("/", 1)
        size = [item.image.height, item.image.width]
        image = {"path": name, "size": size}
        return {"id": item.name, "annotations": annotations, "image": image}

    if folder.has(file):
        export.write_photographs(place)
    else:
        with folder.stream(file) as stream:
            head = {
                "dm_format_version": "1.0",
                # an image
                "media_type": 2,
                "infos": {},
                "categories": _describe_classes(source),
            }
            stream.write(f"{json.dumps(head, ensure_ascii=False)[:-1]},\n".encode())
            write_rows(stream, "items", export.map(describe))
            stream.write(b"}\n")
    return [(place(item), file) for item in export.items]


def _describe_classes(source: Source) -> dict[str, Any]:
    names = source.names if LEFT_OUT_NAME in source.names else [*source.names, LEFT_OUT_NAME]
    colours = [
        {"label_id": number, "r": red, "g": green, "b": blue}
        for number, (red, green, blue) in enumerate(source.colours)
    ]
    return {
        "label": {
            "labels": [{"name": name, "parent": "", "attributes": []} for name in names],
            "label_groups": [],
            "attributes": [],
        },
        "mask": {"colormap": colours},
    }
