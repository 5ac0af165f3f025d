"""Pictures of the report: which are shown, fairly, and in which colours."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from stages.report.pictures import (
    IGNORED_COLOUR,
    NO_PROPOSAL_COLOUR,
    RIGHT_COLOUR,
    WRONG_COLOUR,
    choose_images,
    colour_errors,
    colour_features,
    colour_labels,
    colour_proposals,
    fit_feature_colours,
    join_pictures,
    join_proposals,
    make_thumbnail,
    rank_choices,
    sample_evenly,
)


def read_back(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_labels_take_the_palette_by_id():
    palette = np.zeros((256, 3), np.uint8)
    palette[1], palette[255] = (10, 20, 30), (1, 2, 3)
    coloured = colour_labels(np.array([[1, 255], [0, 1]], np.uint8), palette)
    assert coloured.dtype == np.uint8
    assert coloured.tolist() == [[[10, 20, 30], [1, 2, 3]], [[0, 0, 0], [10, 20, 30]]]


def test_proposals_have_distinct_colours_and_none_is_dark_grey():
    coloured = colour_proposals(np.arange(256, dtype=np.uint8)[None])[0]
    assert tuple(coloured[0]) == NO_PROPOSAL_COLOUR
    assert len(np.unique(coloured, axis=0)) == 256
    few = coloured[:9].astype(int)
    apart = np.abs(few[:, None] - few[None]).sum(axis=-1)[~np.eye(9, dtype=bool)]
    assert apart.min() > 60


def test_errors_by_hand():
    prediction = np.array([[0, 1, 2], [255, 3, 255]], np.uint8)
    truth = np.array([[0, 2, 255], [1, 3, 255]], np.uint8)
    right, wrong, ignored = map(list, (RIGHT_COLOUR, WRONG_COLOUR, IGNORED_COLOUR))
    assert colour_errors(prediction, truth).tolist() == [
        [right, wrong, ignored],
        [wrong, right, ignored],
    ]


def test_feature_colours_follow_the_largest_variance():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 10, 12, 6)) * np.array([0.1, 9.0, 0.2, 4.0, 2.0, 0.1])
    colours = fit_feature_colours(features)
    assert colours.basis.shape == (6, 3)
    assert np.abs(colours.basis).argmax(axis=0).tolist() == [1, 3, 4]
    np.testing.assert_allclose(colours.basis.T @ colours.basis, np.eye(3), atol=1e-12)

    projected = (features - colours.mean) @ colours.basis
    share_below = (projected < colours.low).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(share_below, 0.01, atol=0.005)
    coloured = colour_features(features, colours)
    assert coloured.shape == (4, 10, 12, 3) and coloured.dtype == np.uint8
    assert coloured.min() == 0 and coloured.max() == 255


def test_feature_colours_do_not_depend_on_the_sign_of_a_direction():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(500, 5)) * np.arange(1, 6)
    one, other = fit_feature_colours(features), fit_feature_colours(features[::-1])
    np.testing.assert_allclose(one.basis, other.basis, atol=1e-10)
    largest = np.abs(one.basis).argmax(axis=0)
    assert (one.basis[largest, range(3)] > 0).all()


@given(
    channels=st.integers(1, 5),
    offset=st.floats(-100, 100),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_feature_colours_take_any_features(channels: int, offset: float, dtype: type):
    features = np.full((2, 3, 4, channels), offset, dtype)
    features[0, 0, 0, 0] += dtype(1)
    colours = fit_feature_colours(features)
    coloured = colour_features(features, colours)
    assert np.isfinite(colours.basis).all()
    assert (coloured[1] == coloured[1, 0, 0]).all()


def test_constant_features_are_middle_grey():
    features = np.ones((1, 2, 2, 4), np.float32)
    colours = fit_feature_colours(features)
    coloured = colour_features(features, colours)
    assert (coloured == 128).all()


def test_photograph_is_shrunk_to_a_jpeg():
    uri = make_thumbnail(data.coffee(), "photograph")
    assert uri.startswith("data:image/jpeg;base64,")
    image = read_back(uri)
    assert image.format == "JPEG" and image.size == (320, 213)
    assert len(uri) < 30_000


@pytest.mark.parametrize("shape", [(400, 1000), (1000, 400), (5, 2000)])
def test_thumbnail_keeps_the_aspect(shape: tuple[int, int]):
    size = read_back(make_thumbnail(np.zeros((*shape, 3), np.uint8), "map", side=100)).size
    assert max(size) == 100 and min(size) == max(1, round(100 * min(shape) / max(shape)))


def test_map_keeps_its_colours_exactly():
    rng = np.random.default_rng(2)
    palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    pixels = palette[rng.integers(0, 27, (60, 80))]
    image = read_back(make_thumbnail(pixels, "map"))
    assert image.format == "PNG" and image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels)


def test_shrunk_map_has_no_colour_of_its_own():
    pixels = np.zeros((900, 900, 3), np.uint8)
    pixels[:, 450:] = (250, 100, 0)
    image = np.asarray(read_back(make_thumbnail(pixels, "map")).convert("RGB"))
    assert {tuple(colour) for colour in image.reshape(-1, 3).tolist()} == {
        (0, 0, 0),
        (250, 100, 0),
    }


def test_map_of_many_colours_is_quantised():
    pixels = data.astronaut()[:200, :200]
    image = read_back(make_thumbnail(pixels, "map"))
    assert image.mode == "P"
    error = np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels)
    assert error.mean() < 8


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="photograph or a map"):
        make_thumbnail(np.zeros((2, 2, 3), np.uint8), "painting")  # type: ignore[arg-type]


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


@given(count=st.integers(0, 500), wanted=st.integers(0, 60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_samples_are_even(count: int, wanted: int) -> None:
    chosen = sample_evenly(count, wanted)
    assert len(chosen) == min(count, wanted)
    assert chosen == sorted(set(chosen))
    assert all(0 <= position < count for position in chosen)
    steps = np.diff([*chosen]) if len(chosen) > 1 else np.array([1])
    assert steps.max() - steps.min() <= 1
    if chosen:
        assert abs(chosen[0] - (count - 1 - chosen[-1])) <= 1, "no end is favoured"


def test_the_worst_the_best_and_others() -> None:
    ids = list("abcdefghij")
    scores = np.array([5, 1, 9, 1, 9, 4, 3, np.nan, 6, 7.0])
    assert choose_images(ids, scores, 6) == [
        (1, "worst"),
        (3, "worst"),
        (2, "best"),
        (4, "best"),
        (5, "sample"),
        (8, "sample"),
    ]
    roles = [role for _, role in choose_images(ids, scores, 1)]
    assert roles == ["sample"]
    assert [role for _, role in choose_images(ids, scores, 2)] == ["worst", "sample"]
    assert choose_images(ids, scores, 0) == []
    assert choose_images([], np.array([]), 3) == []


def test_ties_go_by_name_whatever_the_order() -> None:
    names = ["d", "c", "a", "b"]
    chosen = choose_images(names, np.zeros(4), 3)
    assert [(names[i], role) for i, role in chosen] == [
        ("a", "worst"),
        ("b", "best"),
        ("d", "sample"),
    ]


@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), max_size=40),
    wanted=st.integers(0, 45),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_nobody_is_shown_twice_and_nobody_unrated_is_judged(
    scores: list[float], wanted: int
) -> None:
    ids = [f"{i:02d}" for i in range(len(scores))]
    chosen = choose_images(ids, np.array(scores), wanted)
    positions = [position for position, _ in chosen]
    assert len(set(positions)) == len(positions) == min(wanted, len(scores))
    by_role = {role: [scores[p] for p, r in chosen if r == role] for _, role in chosen}
    assert not np.isnan([*by_role.get("worst", []), *by_role.get("best", [])]).any()
    if by_role.get("worst") and by_role.get("best"):
        assert max(by_role["worst"]) <= min(by_role["best"])


def test_room_is_given_to_splits_and_roles_in_turn() -> None:
    first = [(4, "worst"), (5, "worst"), (7, "best"), (1, "sample")]
    second = [(0, "sample"), (9, "sample")]
    order = rank_choices([first, second])  # type: ignore[list-item]
    assert order == [(0, 0), (0, 2), (0, 3), (1, 0), (0, 1), (1, 1)]
    assert rank_choices([]) == []
