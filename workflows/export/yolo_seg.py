"""The layout of Ultralytics' segmentation datasets: ``images``, ``labels`` and ``data.yaml``.

A line of a label file is one connected part of a class: its number, and a polygon in shares of the
image's width and height. Parts of fewer than ``LEAST`` pixels are left out: no instance is that
small. Ignored pixels are in no polygon, which is background to YOLO: the format cannot say that it
does not know.

A polygon runs through the centres of a part's outermost pixels. A hole is joined to the line around
it by a seam of no width, there and back, so that one list of points says it all: filled by the
even-odd rule, its line included, the polygon gives back the part pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import yaml
from numpy.typing import NDArray
from skimage.measure import find_contours, label, regionprops

from pipeline.datasets.definition import IGNORE
from workflows.export.folder import COMMON, choose_suffix
from workflows.export.job import Export, Item, Source

NESTED = False
NOTE = (
    "ignored pixels are background to YOLO, and connected parts of fewer than 9 pixels are left out"
)
LEAST = 9
Points = NDArray[np.int64]
# As near to 1 as keeps interpolated positions apart from the pixels' centres by a hair only.
_LEVEL = 0.999


def write(export: Export) -> list[tuple[str, str]]:
    """Write images, polygons and ``data.yaml``."""

    def place(item: Item) -> tuple[str, str]:
        image = f"images/{item.split}/{item.name}{choose_suffix(item.image.path, COMMON)}"
        return image, f"labels/{item.split}/{item.name}.txt"

    places = export.write_pairs(
        place, lambda label, labels: export.write_list(label, describe_parts(labels))
    )
    export.folder.write("data.yaml", _write_data(export.source).encode())
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


def trace_parts(mask: NDArray[np.bool_], least: int) -> Iterator[Points]:
    """Trace the connected parts of a mask."""
    for part in regionprops(label(mask, connectivity=2)):
        if part.area < least:
            continue
        inside = np.pad(part.image, 1)
        contours = find_contours(inside.astype(float), _LEVEL, fully_connected="high")
        # the first point is the last again
        lines = [_drop_repeated(np.rint(contour).astype(np.int64)[:-1]) for contour in contours]
        corner = np.array(part.bbox[:2]) - 1
        yield (_pad(_drop_straight(_join_lines(lines, inside))) + corner)[:, ::-1]


def _join_lines(lines: list[Points], inside: NDArray[np.bool_]) -> Points:
    """Join the line around a part with those around its holes, [point, yx].

    From the leftmost point of a hole a seam goes left to the first line that it meets: that of the
    outside, or of a hole that reaches further left and is joined already.
    """
    # the outer line alone reaches the leftmost column of the part
    joined, *holes = sorted(lines, key=lambda line: int(line[:, 1].min()))
    for hole in holes:
        start = int(hole[:, 1].argmin())
        row, column = hole[start]
        # the last pixel outside the part to the left, and one further
        end = int(np.flatnonzero(~inside[row, :column])[-1]) + 1
        at = int(np.flatnonzero((joined == (row, end)).all(axis=1))[0])
        around = np.roll(hole, -start, axis=0)
        joined = np.concatenate([joined[: at + 1], around, around[:1], joined[at:]])
    return joined


def _drop_repeated(points: Points) -> Points:
    """Drop points that are like the one before."""
    kept = (points != np.roll(points, 1, axis=0)).any(axis=1)
    return points[kept] if kept.any() else points[:1]


def _drop_straight(points: Points) -> Points:
    """Drop points at which the line goes straight on."""
    if len(points) < 3:
        return points
    steps = np.sign(np.roll(points, -1, axis=0) - points)
    return points[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]


def _pad(points: Points) -> Points:
    """Repeat the last point of what is a point or a line, which no reader takes for a polygon."""
    missing = max(0, 3 - len(points))
    return np.concatenate([points, np.repeat(points[-1:], missing, axis=0)])
