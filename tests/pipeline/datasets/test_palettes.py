"""Palettes: distinct, stable, and laid out with 255 as ignore."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.datasets import get_dataset
from pipeline.datasets.palettes import IGNORE_COLOUR, distinct_colours, png_palette


def test_distinct_colours_are_distinct_and_stable() -> None:
    colours = distinct_colours(255)
    assert len(set(colours)) == 255 and IGNORE_COLOUR not in colours
    assert distinct_colours(12) == colours[:12] and distinct_colours(0) == ()
    steps = [np.abs(np.subtract(a, b)).max() for a, b in pairwise(colours)]
    assert min(steps) >= 60


def test_png_palette_lays_out_256_entries() -> None:
    camvid = get_dataset("camvid").palette
    entries = np.frombuffer(png_palette(camvid), dtype=np.uint8).reshape(256, 3)
    assert tuple(map(tuple, entries[:11].tolist())) == camvid
    assert tuple(map(tuple, entries[11:255].tolist())) == distinct_colours(255)[11:]
    assert tuple(entries[255].tolist()) == IGNORE_COLOUR


def test_more_classes_than_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 255"):
        distinct_colours(256)
    with pytest.raises(ValueError, match="at most 255"):
        png_palette([(0, 0, 0)] * 256)
