"""Colours and thumbnails of the report."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from stages.report.gallery import (
    IGNORED_COLOUR,
    NO_PROPOSAL_COLOUR,
    RIGHT_COLOUR,
    WRONG_COLOUR,
    colour_errors,
    colour_features,
    colour_labels,
    colour_proposals,
    fit_feature_colours,
    make_thumbnail,
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
    coloured = colour_features(features, colours.basis, colours.mean, colours.low, colours.high)
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
    coloured = colour_features(features, colours.basis, colours.mean, colours.low, colours.high)
    assert np.isfinite(colours.basis).all()
    assert (coloured[1] == coloured[1, 0, 0]).all()


def test_constant_features_are_middle_grey():
    features = np.ones((1, 2, 2, 4), np.float32)
    colours = fit_feature_colours(features)
    coloured = colour_features(features, colours.basis, colours.mean, colours.low, colours.high)
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
