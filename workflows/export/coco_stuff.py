"""The layout of COCO-Stuff 164k: ``images/train2017`` and pixel maps in ``annotations/train2017``.

Pixel maps are greyscale PNGs, 255 = unlabelled, as the dataset's stuff-thing maps are.
``labels.txt`` counts as the dataset's does: 0 is unlabelled, and the name of a pixel value stands
behind the number that is one more.
Labels of the dataset itself keep its ids (of a merged class the first), so that its readers read
them; any other classes are numbered from 0. Images are JPEG files, for the layout has no others.
"""

from __future__ import annotations

import numpy as np

from pipeline.datasets.base import Benchmark
from pipeline.datasets.definition import IGNORE
from workflows.export.folder import JPEG, choose_suffix
from workflows.export.job import Export, Item, Source

NESTED = False
NOTE = "photographs that are no JPEG files are written as JPEG, quality 95"
OWN = ("cocostuff", "coco-stuff-171")
CURATED = "Coco164kFull_Stuff_Coarse_7.txt"


def write(export: Export) -> list[tuple[str, str]]:
    """Write images, pixel maps, ``labels.txt`` and the lists of images."""
    source, folder = export.source, export.folder
    ids = number_classes(source)
    table = np.full(256, IGNORE, np.uint8)
    table[: len(ids)] = ids

    def place(item: Item) -> tuple[str, str]:
        image = f"images/{item.split}2017/{item.name}{choose_suffix(item.image.path, JPEG)}"
        return image, f"annotations/{item.split}2017/{item.name}.png"

    places = export.write_pairs(
        place, lambda label, labels: folder.write_labels(label, table[labels], None)
    )
    for split, part in export.parts():
        names = [item.name for item in part.items]
        export.write_list(f"curated/{split}2017/{CURATED}", names)
    lines = ["0: unlabeled"]
    lines += [f"{value + 1}: {name}" for value, name in sorted(zip(ids, source.names, strict=True))]
    export.write_list("labels.txt", lines)
    colours = {str(v): list(colour) for v, colour in zip(ids, source.colours, strict=True)}
    folder.write_json("palette.json", colours)
    return places


def number_classes(source: Source) -> list[int]:
    """Give the pixel value of every class: of the dataset's own its id, the first of several."""
    own = source.manifest.dataset in OWN and source.ids != "clusters"
    if not own or not isinstance(source.dataset, Benchmark):
        return list(range(len(source.classes)))
    mapping = source.dataset.definition.class_of
    first: dict[int, int] = {}
    for raw in sorted(mapping):
        first.setdefault(mapping[raw], raw)
    return [first[number] for number in range(len(source.classes))]
