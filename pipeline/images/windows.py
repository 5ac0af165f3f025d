"""Windows: the squares of resized images that every array is indexed by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import ImageError

MAX_WINDOWS_PER_IMAGE = 64

# Left, top, right, bottom, pixels; right and bottom are outside.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Window:
    """One square window."""

    index: int
    image: int
    left: int
    top: int
    size: int
    width: int
    height: int

    @property
    def box(self) -> Box:
        """Left, top, right and bottom in the resized image (right and bottom are outside)."""
        return self.left, self.top, self.left + self.size, self.top + self.size

    @property
    def area(self) -> tuple[slice, slice]:
        """The box as an index into [y, x, ...] of the resized image."""
        return slice(self.top, self.top + self.size), slice(self.left, self.left + self.size)


def fit_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the width and height of an image whose shorter side becomes ``size``.

    The longer side is rounded down, as torchvision's ``Resize`` does, so that windows match those
    of the published protocols.
    """
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def place_windows(
    width: int, height: int, size: int, frame: str, overlap: float
) -> list[tuple[int, int]]:
    """Place the windows of one resized image."""
    if frame == "centre":
        # one window, but the whole image is resized before it is cut
        if max(width, height) > MAX_WINDOWS_PER_IMAGE * size:
            raise ImageError(
                f"too long: {width} x {height} after resizing is more than "
                f"{MAX_WINDOWS_PER_IMAGE} times as long as wide"
            )
        # torchvision's CenterCrop rounds half to even
        return [(round((width - size) / 2), round((height - size) / 2))]
    columns, rows = (_spread(length, size, overlap) for length in (width, height))
    if len(columns) * len(rows) > MAX_WINDOWS_PER_IMAGE:
        raise ImageError(
            f"too long: {width} x {height} after resizing needs {len(columns) * len(rows)} windows "
            f"(more than {MAX_WINDOWS_PER_IMAGE})"
        )
    return [(left, top) for top in rows for left in columns]


def _spread(length: int, size: int, overlap: float) -> list[int]:
    if length <= size:
        return [0]
    count = max(2, math.ceil((length / size - overlap) / (1 - overlap)))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Cover:
    """The part of a resized image that its windows cover: the smallest box that holds them all."""

    windows: tuple[Window, ...]

    @property
    def box(self) -> Box:
        """Left, top, right, bottom in the resized image."""
        lefts, tops, rights, bottoms = zip(*(window.box for window in self.windows), strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height of the resized image."""
        return self.windows[0].width, self.windows[0].height

    @property
    def area(self) -> tuple[slice, slice]:
        """The box as an index into [y, x, ...]."""
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The windows' boxes, counted from the corner of ``box``."""
        left, top = self.box[:2]
        return tuple(
            (x0 - left, y0 - top, x1 - left, y1 - top)
            for x0, y0, x1, y1 in (window.box for window in self.windows)
        )

    @property
    def rows(self) -> slice:
        """The windows' rows in the arrays."""
        return slice(self.windows[0].index, self.windows[-1].index + 1)
