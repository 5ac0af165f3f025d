"""What is known of an image: clicks, boxes and paint, by hand."""

from __future__ import annotations

import numpy as np

from pipeline.images.windows import Cover, Window
from pipeline.run.corrections import NOT_SAID, Point
from stages.known import Saying, label_grid, label_proposals, number_name, spread_points

NAMES = ["road", "sky"]
SIZE = 8


def make_cover(count: int = 1) -> Cover:
    """Return the cover of half an image, by windows that lie half over one another."""
    windows = [
        Window(n, 0, n * SIZE // 2, 0, SIZE, SIZE * (count + 1) // 2, SIZE) for n in range(count)
    ]
    return Cover(tuple(windows))


def spread(points: list[Point], proposals: np.ndarray | None, count: int = 1) -> np.ndarray:
    cover = make_cover(count)
    width, height = cover.resized
    said = np.full((height, width), NOT_SAID, np.uint8)
    spread_points(said, points, proposals, cover, (2 * width, 2 * height), (4, 4), NAMES)
    return said


def test_a_click_says_the_proposal_under_it() -> None:
    proposals = np.zeros((1, SIZE, SIZE), np.uint8)
    proposals[0, 2:5, 1:7] = 3
    said = spread([Point(6, 8, None, None, "sky")], proposals)
    np.testing.assert_array_equal(said == 1, proposals[0] == 3)
    assert set(np.unique(said)) == {1, NOT_SAID}


def test_a_click_beside_all_proposals_says_a_position() -> None:
    said = spread([Point(15, 0, None, None, "road")], np.zeros((1, SIZE, SIZE), np.uint8))
    expected = np.full((SIZE, SIZE), NOT_SAID, np.uint8)
    expected[0:2, 6:8] = 0
    np.testing.assert_array_equal(said, expected)
    np.testing.assert_array_equal(spread([Point(15, 0, None, None, "road")], None), expected)


def test_a_proposal_has_the_class_of_more_than_half_of_its_pixels() -> None:
    proposals = np.zeros((1, SIZE, SIZE), np.uint8)
    proposals[0, :2], proposals[0, 2:4], proposals[0, 4:] = 1, 2, 7
    said = np.full((SIZE, SIZE), NOT_SAID, np.uint8)
    said[:1], said[1, 0], said[2], said[4:] = 1, 1, 0, 255
    labels = label_proposals(said, make_cover().boxes, proposals)
    # half is no majority, nor is what is to be ignored a class, nor what is no proposal
    assert labels[0, 1] == 1
    assert (np.delete(labels[0], 1) == 255).all()
    assert (label_proposals(said, make_cover().boxes, None) == 255).all()


def test_of_windows_that_overlap_the_nearer_is_meant() -> None:
    proposals = np.ones((2, SIZE, SIZE), np.uint8)
    # x = 4 of the cover lies in both; the centres are at 4 and at 8
    said = spread([Point(9, 8, None, None, "sky")], proposals, 2)
    np.testing.assert_array_equal(np.flatnonzero((said == 1).any(axis=0)), np.arange(8))
    said = spread([Point(13, 8, None, None, "sky")], proposals, 2)
    np.testing.assert_array_equal(np.flatnonzero((said == 1).any(axis=0)), np.arange(4, 12))


def test_a_box_has_both_of_its_corners_and_the_later_lies_over_the_former() -> None:
    said = spread([Point(0, 0, 15, 3, "road"), Point(4, 2, 7, 5, "ignore")], None)
    expected = np.full((SIZE, SIZE), NOT_SAID, np.uint8)
    expected[0:2] = 0
    expected[1:3, 2:4] = 255
    np.testing.assert_array_equal(said, expected)


def test_names_that_are_none_are_not_said() -> None:
    assert [number_name(n, NAMES) for n in ("road", "sky", "Ignore", "car")] == [0, 1, 255, 254]


def test_positions_have_the_class_of_most_of_their_pixels() -> None:
    said = np.full((SIZE, SIZE), NOT_SAID, np.uint8)
    said[0:2, 0:2] = [[1, 1], [1, NOT_SAID]]
    # half of a position is not most of it
    said[0:2, 2:4] = [[0, 0], [NOT_SAID, NOT_SAID]]
    said[2:4, 0:2] = 255
    found = label_grid(said, make_cover().boxes, (4, 4))
    assert found.shape == (1, 4, 4)
    assert found[0, 0, 0] == 1
    assert (np.delete(found.ravel(), 0) == 255).all()


def test_paint_says_no_pixel_beside_it() -> None:
    cover = make_cover()
    painted = np.full((3 * SIZE, 3 * SIZE), NOT_SAID, np.uint8)
    painted[4, 5] = 1
    said = Saying(None, painted, cover)
    np.testing.assert_array_equal(said.draw(3 * SIZE, 3 * SIZE), painted)
    # the middle of the window's pixel in the second row and column
    assert np.argwhere(said.at_windows == 1).tolist() == []
    painted[4, 4] = 0
    assert said.at_windows[1, 1] == 0


def test_paint_lies_over_clicks() -> None:
    cover = make_cover()
    clicked = np.full((SIZE, SIZE), NOT_SAID, np.uint8)
    clicked[0:2, 0:2] = 0
    painted = np.full((2 * SIZE, 2 * SIZE), NOT_SAID, np.uint8)
    painted[0:2, 0:2] = 1
    drawn = Saying(clicked, painted, cover).draw(2 * SIZE, 2 * SIZE)
    expected = painted.copy()
    expected[0:4, 0:4] = np.where(painted[0:4, 0:4] == NOT_SAID, 0, painted[0:4, 0:4])
    np.testing.assert_array_equal(drawn, expected)
