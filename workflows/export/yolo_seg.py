"""The layout of Ultralytics' segmentation datasets: ``images``, ``labels`` and ``data.yaml``.

A line of a label file is one connected part of a class: its number, and a polygon in shares of the
image's width and height (see :mod:`workflows.export.polygons`). Parts of fewer than ``LEAST``
pixels are left out: no instance is that small. Ignored pixels are in no polygon, which is
background to YOLO: the format cannot say that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from pipeline.progress import Screen
from workflows.export.folder import Folder
from workflows.export.photographs import COMMON, choose_suffix, export_photograph
from workflows.export.polygons import trace_parts
from workflows.export.source import Item, Source, map_items

NESTED = False
NOTE = (
    "ignored pixels are background to YOLO, and connected parts of fewer than 9 pixels are left out"
)
LEAST = 9


def write(
    source: Source, items: list[Item], folder: Folder, images: str, screen: Screen
) -> list[tuple[str, str]]:
    """Write images, polygons and ``data.yaml``."""

    def export(item: Item) -> tuple[str, str]:
        suffix = choose_suffix(item.image.path, COMMON)
        image = f"images/{item.split}/{item.name}{suffix}"
        label = f"labels/{item.split}/{item.name}.txt"
        export_photograph(source.manifest.root, item.image, folder, image, images)
        if not folder.has(label):
            lines = describe_parts(source.read_labels(item.image))
            folder.write(label, "".join(f"{line}\n" for line in lines).encode())
        return image, label

    places = list(map_items(source, items, export, screen))
    folder.write("data.yaml", _write_data(source).encode())
    return places


def describe_parts(labels: NDArray[np.uint8]) -> Iterator[str]:
    """Describe the connected parts of every class in a label map, uint8 [y, x], a line each."""
    size = np.array([labels.shape[1], labels.shape[0]])
    for number in np.unique(labels).tolist():
        if number == IGNORE:
            continue
        for points in trace_parts(labels == number, LEAST):
            # the centre of a pixel, so that rounding down gives the pixel
            shares = (points + 0.5) / size
            yield f"{number} " + " ".join(f"{share:.5f}" for share in shares.ravel())


def _write_data(source: Source) -> str:
    """Write what Ultralytics asks of a dataset: a train and a val split, and names."""
    splits = list(source.splits.values())
    train = "train" if "train" in splits else splits[0]
    val = next((split for split in ("val", "test") if split in splits), train)
    content = {
        # no path: it is the folder of this file
        "train": f"images/{train}",
        "val": f"images/{val}",
        **{s: f"images/{s}" for s in splits if s not in (train, val)},
        "names": dict(enumerate(source.names)),
        "colours": [list(colour) for colour in source.colours],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
