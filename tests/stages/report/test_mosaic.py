"""Pictures and proposals of overlapping windows in one picture."""

from __future__ import annotations

import numpy as np

from stages.report.mosaic import join_pictures, join_proposals

BOXES = ((0, 0, 8, 8), (4, 0, 12, 8))


def test_one_window_is_itself_in_blocks():
    window = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3)
    joined = join_pictures(window, ((0, 0, 8, 8),), (8, 8))
    np.testing.assert_array_equal(joined, window[0].repeat(4, 0).repeat(4, 1))


def test_one_picture_fades_into_the_other():
    windows = np.zeros((2, 1, 1, 3), np.uint8)
    windows[1] = 200
    row = join_pictures(windows, BOXES, (8, 12))[4, :, 0].astype(int)
    assert (row[:4] == 0).all() and (row[8:] == 200).all()
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() < 100
    assert row[4:8].tolist() == [25, 75, 125, 175]


def test_what_no_window_covers_is_black():
    joined = join_pictures(np.full((1, 1, 1, 3), 9, np.uint8), ((2, 2, 4, 4),), (6, 6))
    assert joined.sum() == 4 * 3 * 9
    assert (joined[2:4, 2:4] == 9).all()


def test_a_proposal_that_goes_on_in_the_next_window_keeps_its_id():
    windows = np.zeros((2, 8, 8), np.uint8)
    windows[0, :4] = 1
    windows[0, 4:] = 2
    windows[1, :4] = 7
    windows[1, 4:] = 3
    joined = join_proposals(windows, BOXES, (8, 12))
    assert (joined[:4] == joined[0, 0]).all() and (joined[4:] == joined[7, 0]).all()
    assert joined[0, 0] != joined[7, 0]


def test_a_proposal_of_its_own_gets_an_id_of_its_own():
    windows = np.zeros((2, 8, 8), np.uint8)
    windows[0] = 1
    windows[1, :, 5:] = 1  # its first columns lie outside the first window
    joined = join_proposals(windows, BOXES, (8, 12))
    assert set(joined[:, :8].ravel()) == {1}
    assert set(joined[:, 9:].ravel()) == {2}
    assert (joined[:, 8] == 0).all()


def test_where_a_window_has_none_the_next_one_fills_in():
    windows = np.zeros((2, 8, 8), np.uint8)
    windows[1] = 4
    joined = join_proposals(windows, BOXES, (8, 12))
    assert (joined[:, :4] == 0).all() and (joined[:, 4:] == 1).all()


def test_half_is_no_agreement():
    windows = np.zeros((2, 8, 8), np.uint8)
    windows[0, :4] = 1
    windows[0, 4:] = 2
    windows[1] = 1  # shares as much with one as with the other
    joined = join_proposals(windows, BOXES, (8, 12))
    assert (joined[:, 8:] == 3).all()


def test_more_proposals_than_a_byte_counts():
    windows = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 2)
    joined = join_proposals(windows, ((0, 0, 16, 16), (16, 0, 32, 16)), (16, 32))
    assert joined[0, 0] == 0 and joined[0, 16] == 0
    assert (np.delete(joined.ravel(), [0, 16]) > 0).all()
