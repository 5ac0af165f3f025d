"""The layout of COCO-Stuff 164k: ``images/train2017`` and pixel maps in ``annotations/train2017``.

Pixel maps are greyscale PNGs, 255 = unlabelled, as the dataset's stuff-thing maps are.
``labels.txt`` counts as the dataset's does: 0 is unlabelled, and the name of a pixel value stands
behind the number that is one more.
Labels of the dataset itself keep its ids (of a merged class the first), so that its readers read
them; any other classes are numbered from 0. Images are JPEG files, for the layout has no others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE, Benchmark
from pipeline.progress import Screen
from workflows.export.folder import Folder
from workflows.export.photographs import JPEG, choose_suffix, export_photograph
from workflows.export.source import Item, Source, map_items

NESTED = False
NOTE = "photographs that are no JPEG files are written as JPEG, quality 95"
OWN = ("cocostuff", "coco-stuff-171")
CURATED = "Coco164kFull_Stuff_Coarse_7.txt"


def write(
    source: Source, items: list[Item], folder: Folder, images: str, screen: Screen
) -> list[tuple[str, str]]:
    """Write images, pixel maps, ``labels.txt`` and the lists of images."""
    ids = number_classes(source)
    table = spread(ids)

    def export(item: Item) -> tuple[str, str]:
        suffix = choose_suffix(item.image.path, JPEG)
        image = f"images/{item.split}2017/{item.name}{suffix}"
        label = f"annotations/{item.split}2017/{item.name}.png"
        export_photograph(source.manifest.root, item.image, folder, image, images)
        if not folder.has(label):
            folder.write_labels(label, table[source.read_labels(item.image)], None)
        return image, label

    places = list(map_items(source, items, export, screen))
    for split in source.splits.values():
        names = [item.name for item in items if item.split == split]
        folder.write(f"curated/{split}2017/{CURATED}", "".join(f"{n}\n" for n in names).encode())
    lines = ["0: unlabeled"]
    lines += [f"{value + 1}: {name}" for value, name in sorted(zip(ids, source.names, strict=True))]
    folder.write("labels.txt", "".join(f"{line}\n" for line in lines).encode())
    colours = {str(v): list(colour) for v, colour in zip(ids, source.colours, strict=True)}
    folder.write_json("palette.json", colours)
    return places


def number_classes(source: Source) -> list[int]:
    """Give the pixel value of every class."""
    raw = read_raw_ids(source) if source.manifest.dataset in OWN else None
    return raw or list(range(len(source.classes)))


def read_raw_ids(source: Source) -> list[int] | None:
    """Give the id that the dataset's own label maps have for every class, the first of several.

    None where the label maps hold clusters, or the dataset numbers its classes as we do.
    """
    if source.ids != "classes" or not isinstance(source.dataset, Benchmark):
        return None
    mapping = source.dataset.definition.class_of
    first: dict[int, int] = {}
    for raw in sorted(mapping):
        first.setdefault(mapping[raw], raw)
    return [first[number] for number in range(len(source.classes))]


def spread(values: list[int]) -> NDArray[np.uint8]:
    """Tabulate values by class, uint8 [256]; 255 beyond them."""
    table = np.full(256, IGNORE, np.uint8)
    table[: len(values)] = values
    return table
