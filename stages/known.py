"""What is known of an image, in pixels: painted maps, clicks on proposals, boxes.

At the scale of the windows it is uint8 [y, x] over what they cover: numbers of names, 255 for what
is to be ignored, 254 where nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.images.windows import Box, Cover
from pipeline.run.corrections import NOT_SAID, Corrections, Point, is_ignored
from pipeline.run.frames import resize_labels
from pipeline.run.manifest import Image, Manifest
from pipeline.storage.arrays import read_rows
from stages.labelling import scale_box


class Saying(NamedTuple):
    """What is said of an image: by clicks and boxes, and in paint, which lies over them.

    ``clicked`` is uint8 [y, x] at the windows' scale, over the ``cover``; ``painted`` is uint8 [y,
    x] of the photograph's own size; each None where there is none.
    """

    clicked: NDArray[np.uint8] | None
    painted: NDArray[np.uint8] | None
    cover: Cover

    @property
    def at_windows(self) -> NDArray[np.uint8]:
        """All of it at the windows' scale, uint8 [y, x] over the cover."""
        painted = self.painted
        if painted is not None:
            painted = resize_labels(painted, *self.cover.resized)[self.cover.area]
        return _lay(painted, self.clicked)

    def draw(self, width: int, height: int) -> NDArray[np.uint8]:
        """Draw all of it at a size, uint8 [y, x]; paint keeps the photograph's sharpness."""
        drawn = np.full((height, width), NOT_SAID, np.uint8)
        if self.clicked is not None:
            cover = self.cover
            left, top, right, bottom = scale_box(cover.box, cover.resized, (width, height))
            area = drawn[top:bottom, left:right]
            area[...] = resize_labels(self.clicked, right - left, bottom - top)
        painted = self.painted
        return drawn if painted is None else _lay(resize_labels(painted, width, height), drawn)


def _lay(upper: NDArray[np.uint8] | None, lower: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Lay one over the other, at least one of which there is."""
    if upper is None or lower is None:
        only = lower if upper is None else upper
        assert only is not None
        return only
    return np.where(upper == NOT_SAID, lower, upper)


def read_said(
    corrections: Corrections,
    image: Image,
    cover: Cover,
    masks: zarr.Array | None,
    grid: tuple[int, int],
    names: Sequence[str],
) -> Saying | None:
    """Read what is said of an image; None where nothing is.

    ``masks`` has the proposals [window, y, x], which clicks are meant for; where there is none, the
    position of the ``grid`` is. ``names`` are those of the numbers that are given.
    """
    points, painted = corrections.points_of(image), read_painted(corrections, image, names)
    if not points:
        return None if painted is None else Saying(None, painted, cover)
    left, top, right, bottom = cover.box
    clicked = np.full((bottom - top, right - left), NOT_SAID, np.uint8)
    proposals = None if masks is None else read_rows(masks, cover.rows.start, cover.rows.stop)
    spread_points(clicked, points, proposals, cover, (image.width, image.height), grid, names)
    return Saying(clicked, painted, cover)


def read_painted(
    corrections: Corrections, image: Image, names: Sequence[str]
) -> NDArray[np.uint8] | None:
    """Read what is painted on an image, uint8 [y, x] of its own size, in numbers of ``names``."""
    said = corrections.read_map(image)
    if said is None:
        return None
    table = np.arange(256, dtype=np.uint8)
    for number, name in enumerate(corrections.classes()):
        table[number] = number_name(name, names)
    return table[said]


def number_name(name: str, names: Sequence[str]) -> int:
    """Return the number of a name; that of nothing said for a name that is none of them."""
    if is_ignored(name):
        return IGNORE
    return names.index(name) if name in names else NOT_SAID


def spread_points(
    said: NDArray[np.uint8],
    points: Sequence[Point],
    proposals: NDArray[np.uint8] | None,
    cover: Cover,
    original: tuple[int, int],
    grid: tuple[int, int],
    names: Sequence[str],
) -> None:
    """Write boxes and clicks into ``said``, uint8 [y, x] over the cover, the later over the former.

    A click is on the proposal under it, uint8 [window, y, x], of the window whose centre is the
    nearest; or on the position of the grid where there is none.
    """
    left, top = cover.box[:2]
    scale_x, scale_y = cover.resized[0] / original[0], cover.resized[1] / original[1]
    for point in points:
        number = number_name(point.name, names)
        if point.x1 is not None and point.y1 is not None:
            # both corners are in the box
            ends = (
                (point.y * scale_y - top, (point.y1 + 1) * scale_y - top),
                (point.x * scale_x - left, (point.x1 + 1) * scale_x - left),
            )
            rows, columns = (slice(max(0, round(a)), max(0, round(b))) for a, b in ends)
            said[rows, columns] = number
        elif (found := locate(point, cover, original)) is not None:
            window, place = found
            x0, y0, x1, y1 = cover.boxes[window]
            ids: NDArray[np.integer] = number_positions((y1 - y0, x1 - x0), grid)
            if proposals is not None and proposals[window][place]:
                ids = proposals[window]
            part = said[y0:y1, x0:x1]
            part[ids == ids[place]] = number


def locate(
    point: Point, cover: Cover, original: tuple[int, int]
) -> tuple[int, tuple[int, int]] | None:
    """Find the window whose centre is nearest to a click on it, and where it is there: (y, x)."""
    # the middle of the pixel that is meant
    x = (point.x + 0.5) * cover.resized[0] / original[0] - cover.box[0]
    y = (point.y + 0.5) * cover.resized[1] / original[1] - cover.box[1]
    boxes = cover.boxes
    holding = [n for n, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x < x1 and y0 <= y < y1]

    def measure(n: int) -> float:
        x0, y0, x1, y1 = boxes[n]
        return (x - (x0 + x1) / 2) ** 2 + (y - (y0 + y1) / 2) ** 2

    window = min(holding, key=measure, default=None)
    if window is None:
        return None
    left, top = boxes[window][:2]
    return window, (int(y) - top, int(x) - left)


def find_clicked(
    corrections: Corrections, manifest: Manifest, masks: zarr.Array
) -> dict[tuple[int, int], str]:
    """Find the proposals that were clicked: row of the window and number -> the name given."""
    clicked = {}
    for image in corrections.images():
        points = [point for point in corrections.points_of(image) if point.x1 is None]
        if not points or not image.ok:
            continue
        cover = Cover(tuple(manifest.windows_of(image)))
        proposals = read_rows(masks, cover.rows.start, cover.rows.stop)
        for point in points:
            found = locate(point, cover, (image.width, image.height))
            if found is not None and (number := int(proposals[found[0]][found[1]])):
                clicked[cover.rows.start + found[0], number] = point.name
    return clicked


def number_positions(shape: tuple[int, ...], grid: tuple[int, int]) -> NDArray[np.int64]:
    """Return which position of a grid, row by row, every pixel is in: int64 [y, x]."""
    rows, columns = (
        np.arange(side) * cells // side for side, cells in zip(shape, grid, strict=True)
    )
    return rows[:, None] * grid[1] + columns


def label_grid(
    said: NDArray[np.uint8], boxes: Sequence[Box], grid: tuple[int, int]
) -> NDArray[np.uint8]:
    """Give every position of the windows the class of most of its pixels.

    Takes uint8 [y, x] over the cover; gives uint8 [window, row, column], 255 where no class has
    more than half of the pixels.
    """
    labels = np.full((len(boxes), *grid), IGNORE, np.uint8)
    for window, (x0, y0, x1, y1) in enumerate(boxes):
        part = said[y0:y1, x0:x1]
        cell = number_positions(part.shape, grid)
        labels[window] = _label_parts(part, cell, grid[0] * grid[1]).reshape(grid)
    return labels


def label_proposals(
    said: NDArray[np.uint8], boxes: Sequence[Box], proposals: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Give every proposal the class of most of its pixels, as :func:`label_grid` does.

    Gives uint8 [window, 256], by the number of the proposal: 255 also where there is none.
    """
    labels = np.full((len(boxes), 256), IGNORE, np.uint8)
    if proposals is not None:
        for window, (x0, y0, x1, y1) in enumerate(boxes):
            ids = proposals[window].astype(np.int64)
            labels[window, 1:] = _label_parts(said[y0:y1, x0:x1], ids, 256)[1:]
    return labels


def _label_parts(
    said: NDArray[np.uint8], ids: NDArray[np.int64], parts: int
) -> NDArray[np.integer]:
    """Find the class of more than half of the pixels of every part, [part]; 255 where none is."""
    count = np.bincount((ids * 256 + said).ravel(), minlength=parts * 256).reshape(-1, 256)
    most = count[:, :NOT_SAID].argmax(axis=1)
    known = 2 * count[np.arange(parts), most] > count.sum(axis=1)
    return np.where(known, most, IGNORE)
