"""Windows cover the image; the centred one is torchvision's."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torchvision.transforms.functional as tv
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from pipeline.errors import ImageError
from pipeline.images.windows import (
    MAX_WINDOWS_PER_IMAGE,
    Cover,
    Window,
    fit_size,
    place_windows,
)

SIZES = st.integers(1, 700)
LONG = st.integers(1, 5000)
OVERLAPS = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75]) | st.floats(0, 0.9)


@given(LONG, LONG, SIZES)
def test_the_shorter_side_becomes_the_size(width: int, height: int, size: int) -> None:
    new_width, new_height = fit_size(width, height, size)
    assert min(new_width, new_height) == size
    assert (new_width >= new_height) == (width >= height) or new_width == new_height
    exact = size * max(width, height) / min(width, height)
    assert exact - 1 < max(new_width, new_height) <= exact


@pytest.mark.parametrize(
    ("width", "height", "size", "expected"),
    [
        (100, 100, 320, (320, 320)),
        (2048, 1024, 320, (640, 320)),
        (333, 500, 320, (320, 480)),
        (640, 427, 320, (479, 320)),
        (1, 3, 2, (2, 6)),
    ],
)
def test_fitted_sizes(width: int, height: int, size: int, expected: tuple[int, int]) -> None:
    assert fit_size(width, height, size) == expected


@pytest.mark.parametrize("size", [7, 8, 13])
@pytest.mark.parametrize(
    ("width", "height"), [(31, 20), (20, 31), (17, 17), (99, 40), (41, 100), (10, 9), (64, 5)]
)
def test_the_centred_window_is_that_of_torchvision(width: int, height: int, size: int) -> None:
    generator = np.random.default_rng(width * height)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = PillowImage.fromarray(pixels)
    theirs = tv.center_crop(tv.resize(image, [size]), [size, size])

    new = fit_size(width, height, size)
    ((left, top),) = place_windows(*new, size, "centre", 0.0)
    resized = image.resize(new, PillowImage.Resampling.BILINEAR)
    ours = resized.crop((left, top, left + size, top + size))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@given(st.integers(1, 60), st.integers(1, 8), OVERLAPS, st.booleans(), st.integers(0, 60))
def test_whole_windows_cover_the_image_evenly(
    size: int, factor: int, overlap: float, tall: bool, more: int
) -> None:
    length = size * factor + more % size
    width, height = (size, length) if tall else (length, size)
    try:
        corners = place_windows(width, height, size, "whole", overlap)
    except ImageError:
        assert (length / size - overlap) / (1 - overlap) > MAX_WINDOWS_PER_IMAGE
        return
    assert {corner[0 if tall else 1] for corner in corners} == {0}
    starts = [corner[1 if tall else 0] for corner in corners]
    assert starts[0] == 0
    assert starts[-1] == length - size
    covered = np.zeros(length, bool)
    for start in starts:
        assert 0 <= start <= length - size
        covered[start : start + size] = True
    assert covered.all()
    steps = [second - first for first, second in pairwise(starts)]
    if steps:
        assert max(steps) - min(steps) <= 1
        assert size - max(steps) >= math.floor(overlap * size + 1e-9)


@given(st.integers(2, 60), st.integers(2, 8), OVERLAPS)
def test_no_window_more_than_needed(size: int, factor: int, overlap: float) -> None:
    # more windows than an image may have are refused, see above
    assume((factor - overlap) / (1 - overlap) <= MAX_WINDOWS_PER_IMAGE)
    starts = place_windows(size * factor, size, size, "whole", overlap)
    fewer = len(starts) - 2
    if fewer:
        # one window less would leave a gap or overlap too little
        assert size * (factor - 1) / fewer > size * (1 - overlap) * (1 - 1e-9)


def test_windows_go_row_by_row() -> None:
    assert place_windows(6, 4, 4, "whole", 0.0) == [(0, 0), (2, 0)]
    assert place_windows(4, 4, 4, "whole", 0.5) == [(0, 0)]
    assert place_windows(6, 7, 4, "whole", 0.0) == [(0, 0), (2, 0), (0, 3), (2, 3)]
    assert place_windows(8, 4, 4, "whole", 0.5) == [(0, 0), (2, 0), (4, 0)]


def test_an_image_too_long_is_refused() -> None:
    limit = MAX_WINDOWS_PER_IMAGE
    assert len(place_windows(8 * limit, 8, 8, "whole", 0.0)) == limit
    with pytest.raises(ImageError, match=rf"^too long: .* needs {limit + 1} windows"):
        place_windows(8 * limit + 1, 8, 8, "whole", 0.0)
    assert place_windows(8 * limit, 8, 8, "centre", 0.0) == [(4 * limit - 4, 0)]
    with pytest.raises(ImageError, match=r"^too long: "):
        place_windows(8 * limit + 1, 8, 8, "centre", 0.0)


def test_boxes() -> None:
    first = Window(0, 0, left=5, top=0, size=10, width=30, height=12)
    second = Window(1, 0, left=18, top=2, size=10, width=30, height=12)
    assert second.box == (18, 2, 28, 12)
    assert Cover((first,)).box == (5, 0, 15, 10)
    cover = Cover((first, second))
    assert cover.box == Cover((second, first)).box == (5, 0, 28, 12)
    assert cover.area == (slice(0, 12), slice(5, 28))
    assert cover.boxes == ((0, 0, 10, 10), (13, 2, 23, 12))
    assert (cover.resized, cover.rows) == ((30, 12), slice(0, 2))
