"""Polygons give back the masks that they were traced in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from PIL import Image, ImageDraw

from workflows.export.yolo_seg import describe_parts, trace_parts


def fill(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fill one polygon by the even-odd rule with its line, as OpenCV does."""
    cv2 = pytest.importorskip("cv2")
    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
    return canvas.astype(bool)


def test_a_square_has_its_four_corners() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:4, 2:6] = True
    (points,) = trace_parts(mask, 1)
    assert sorted(map(tuple, points.tolist())) == [(2, 1), (2, 3), (5, 1), (5, 3)]


def test_a_pixel_and_a_line_have_three_points() -> None:
    mask = np.zeros((5, 5), bool)
    mask[0, 0] = True
    mask[4, 1:4] = True
    pixel, line = trace_parts(mask, 1)
    assert pixel.tolist() == [[0, 0]] * 3
    assert {tuple(p) for p in line.tolist()} == {(1, 4), (3, 4)}
    assert len(line) == 3


def test_a_hole_is_cut_in_by_a_seam() -> None:
    mask = np.ones((7, 9), bool)
    mask[2:5, 3:6] = False
    (points,) = trace_parts(mask, 1)
    # an oracle that is not OpenCV: Pillow fills by the even-odd rule, too
    canvas = Image.new("L", (9, 7))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points.tolist()], fill=1, outline=1)
    np.testing.assert_array_equal(np.asarray(canvas).astype(bool), mask)


def test_small_parts_are_left_out() -> None:
    mask = np.zeros((9, 9), bool)
    mask[:3, :3] = True
    mask[8, 8] = True
    assert len(list(trace_parts(mask, 1))) == 2
    assert len(list(trace_parts(mask, 9))) == 1
    assert not list(trace_parts(np.zeros((3, 3), bool), 1))


@settings(max_examples=200, deadline=None)
@given(mask=nps.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_filled_again_they_are_the_mask(mask: np.ndarray) -> None:
    back = np.zeros(mask.shape, bool)
    for points in trace_parts(mask, 1):
        part = fill(points, mask.shape)
        assert not (back & part).any()
        back |= part
    np.testing.assert_array_equal(back, mask)


def test_lines_of_a_label_map_name_class_and_shares() -> None:
    labels = np.full((10, 20), 255, np.uint8)
    labels[2:8, 4:16] = 3
    (line,) = describe_parts(labels)
    number, *shares = line.split()
    assert number == "3"
    corners = np.array(shares, float).reshape(-1, 2) * (20, 10)
    assert set(map(tuple, np.floor(corners).astype(int).tolist())) == {
        (4, 2),
        (15, 2),
        (15, 7),
        (4, 7),
    }
