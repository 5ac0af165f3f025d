"""Windows: the squares of resized images that every array is indexed by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import ImageError

MAX_WINDOWS_PER_IMAGE = 64


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
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the resized image (right and bottom are outside)."""
        return self.left, self.top, self.left + self.size, self.top + self.size


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


def bounding_box(windows: list[Window]) -> tuple[int, int, int, int]:
    """Return the smallest box (left, top, right, bottom) that holds all windows of one image."""
    boxes = [window.box for window in windows]
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )
