"""From masks to polygons: every connected part one closed line, holes cut in by seams.

A polygon runs through the centres of a part's outermost pixels. A hole is joined to the line around
it by a seam of no width, there and back, so that one list of points says it all: filled by the
even-odd rule, its line included, the polygon gives back the part pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours, label

Points = NDArray[np.int64]
# As near to 1 as keeps interpolated positions apart from the pixels' centres by a hair only.
_LEVEL = 0.999


def trace_parts(mask: NDArray[np.bool_], least: int) -> Iterator[Points]:
    """Trace the connected parts of a mask.

    Parameters
    ----------
    mask
        bool [y, x].
    least
        Parts of fewer pixels are left out.

    Yields
    ------
    Points
        int64 [point, xy], pixels; three at least, the last unlike the first where there are more
        than one. Parts hang together over corners, too; they come row by row.
    """
    if not mask.any():
        return
    corner, padded = _crop(mask)
    parts, count = label(padded, connectivity=2, return_num=True)
    kept = np.bincount(parts.ravel(), minlength=count + 1) >= least
    kept[0] = False
    lines: dict[int, list[Points]] = {}
    for contour in find_contours(kept[parts].astype(float), _LEVEL, fully_connected="high"):
        # the first point is the last again
        line = _drop_repeated(np.rint(contour).astype(np.int64)[:-1])
        lines.setdefault(int(parts[tuple(line[0])]), []).append(line)
    for part in np.flatnonzero(kept).tolist():
        joined = _join_lines(lines[part], parts, part)
        yield (_pad(_drop_straight(joined)) + corner)[:, ::-1]


def _crop(mask: NDArray[np.bool_]) -> tuple[Points, NDArray[np.bool_]]:
    """Crop a mask to what is true in it, with a border of one pixel; return the corner, too."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.array([rows[0] - 1, columns[0] - 1]), np.pad(part, 1)


def _join_lines(lines: list[Points], parts: NDArray[np.int64], part: int) -> Points:
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
        end = int(np.flatnonzero(parts[row, :column] != part)[-1]) + 1
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
