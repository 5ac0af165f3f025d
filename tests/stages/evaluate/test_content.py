"""What the report shows: names and colours of clusters, the gallery, the sample of images."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stages.evaluate.content import (
    Exhibit,
    build_gallery,
    choose_look,
    describe_facts,
    make_curve,
    sample_evenly,
)
from stages.evaluate.gallery import IGNORED_COLOUR, RIGHT_COLOUR, WRONG_COLOUR

NAMES = ("sky", "road")
COLOURS = ((1, 2, 3), (4, 5, 6))
HOSTILE = '<script>alert("x")</script>/../&amp; ünï {{ 7 * 7 }}'


def make_exhibit(**changes: Any) -> Exhibit:
    """Make an image of 8 x 12 pixels in two windows; the left half is cluster 0."""
    generator = np.random.default_rng(0)
    plain = np.zeros((8, 12), np.uint8)
    plain[:, 6:] = 1
    truth = 1 - plain
    truth[0] = 255
    proposals = np.zeros((2, 8, 8), np.uint8)
    proposals[:, :, 2:] = 1
    exhibit = Exhibit(
        id="a/b",
        split="val",
        frame=generator.integers(0, 256, size=(8, 12, 3)).astype(np.uint8),
        boxes=((0, 0, 8, 8), (4, 0, 12, 8)),
        features=generator.normal(size=(2, 2, 2, 5)).astype(np.float32),
        proposals=proposals,
        plain=plain,
        refined=None,
        truth=truth,
    )
    return replace(exhibit, **changes)


def read_picture(uri: str) -> NDArray[np.uint8]:
    content = base64.b64decode(uri.split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_matched_clusters_look_like_their_classes() -> None:
    look = choose_look(3, [1, None, 0], NAMES, COLOURS)
    assert look.names == ("road", "cluster 1 (no class)", "sky")
    assert look.index[:3].tolist() == [1, 2, 0]
    assert look.colours[0] == COLOURS[1]
    assert look.colours[2] == COLOURS[0]
    assert look.colours[1] not in COLOURS
    assert look.matched


def test_unmatched_clusters_are_told_apart() -> None:
    look = choose_look(20, [0, 1, *[None] * 18], NAMES, COLOURS)
    assert len(set(look.colours)) == 20
    assert set(look.index[2:20].tolist()).isdisjoint({0, 1, 255})


def test_there_are_indices_for_as_many_clusters_as_there_may_be() -> None:
    look = choose_look(255, [None] * 255, NAMES, COLOURS)
    assert look.index[:255].max() == 254
    assert look.index[255] == 255


def test_without_labels_clusters_are_numbered() -> None:
    look = choose_look(3, None, NAMES, COLOURS)
    assert look.names == ("cluster 0", "cluster 1", "cluster 2")
    assert len(set(look.colours)) == 3
    assert not look.matched


def test_more_names_than_colours_are_no_obstacle() -> None:
    look = choose_look(3, [2, 0, 1], ("a", "b", "c"), COLOURS)
    assert look.names == ("c", "a", "b")
    assert len(set(look.colours)) == 3


def test_no_exhibit_no_gallery() -> None:
    look = choose_look(2, [1, 0], NAMES, COLOURS)
    assert build_gallery([], look, look) == ()


def test_the_pictures_of_an_image() -> None:
    look = choose_look(2, [1, 0], NAMES, COLOURS)
    exhibit = make_exhibit()
    (item,) = build_gallery([exhibit], look, look)
    pictures = {caption: read_picture(uri) for caption, uri in item.pictures}
    assert list(pictures) == [
        "image",
        "features (PCA)",
        "proposals",
        "label",
        "ground truth",
        "errors",
    ]
    assert {picture.shape for picture in pictures.values()} == {(8, 12, 3)}
    colours = np.array(COLOURS)
    np.testing.assert_array_equal(pictures["label"], colours[1 - exhibit.plain])
    np.testing.assert_array_equal(pictures["ground truth"][1:], pictures["label"][1:])
    assert (pictures["errors"][0] == IGNORED_COLOUR).all()
    assert (pictures["errors"][1:] == RIGHT_COLOUR).all()
    # the windows overlap, and the later one is on top: its first two columns have no proposal
    assert (pictures["proposals"][0, 4:6] == pictures["proposals"][0, 0]).all()
    assert (pictures["proposals"][0, 6:] == pictures["proposals"][0, 2]).all()
    assert item.note == "accuracy 100.0 %"


def test_the_features_cells_become_blocks() -> None:
    look = choose_look(2, [1, 0], NAMES, COLOURS)
    (item,) = build_gallery([make_exhibit()], look, look)
    blocks = read_picture(dict(item.pictures)["features (PCA)"]).reshape(2, 4, 3, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(blocks[:, 0, :, 0].reshape(-1, 3), axis=0)) > 3


def test_errors_and_accuracy_are_those_of_the_final_labels() -> None:
    exhibit = make_exhibit()
    turned = replace(exhibit, refined=(1 - exhibit.plain).astype(np.uint8))
    look = choose_look(2, [1, 0], NAMES, COLOURS)
    (item,) = build_gallery([turned], look, look)
    pictures = dict(item.pictures)
    assert (read_picture(pictures["errors"])[1:] == WRONG_COLOUR).all()
    assert item.note == "accuracy 0.0 %"
    # each of the two has a matching of its own
    (item,) = build_gallery([turned], look, choose_look(2, [0, 1], NAMES, COLOURS))
    pictures = dict(item.pictures)
    np.testing.assert_array_equal(
        read_picture(pictures["label"]), read_picture(pictures["label + CRF"])
    )
    assert item.note == "accuracy 100.0 %"


def test_what_is_not_there_is_not_shown() -> None:
    look = choose_look(2, None, (), ())
    (item,) = build_gallery([make_exhibit(proposals=None, truth=None)], look, look)
    assert [caption for caption, _ in item.pictures] == ["image", "features (PCA)", "label"]
    assert item.note == ""


def test_clusters_that_are_not_matched_are_not_judged() -> None:
    look = choose_look(2, None, NAMES, COLOURS)
    (item,) = build_gallery([make_exhibit()], look, look)
    captions = [caption for caption, _ in item.pictures]
    assert "ground truth" in captions
    assert "errors" not in captions
    assert item.note == ""


def test_a_label_map_that_says_nothing_gives_no_accuracy() -> None:
    look = choose_look(2, [0, 1], NAMES, COLOURS)
    exhibit = make_exhibit(truth=np.full((8, 12), 255, np.uint8))
    assert build_gallery([exhibit], look, look)[0].note == ""


@pytest.mark.parametrize("name", [HOSTILE, "", "a" * 5000, "\u202eevil\n"])
def test_hostile_names_pass_through_untouched(name: str) -> None:
    look = choose_look(2, [1, 0], (name, "road"), COLOURS)
    (item,) = build_gallery([make_exhibit(id=name, split=name)], look, look)
    assert (item.id, item.split) == (name, name)
    assert look.names == ("road", name)
    assert all(uri.startswith("data:image/") for _, uri in item.pictures)


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


def test_facts_say_what_ran_on_what() -> None:
    facts = {"backbone": "vit", "weights_source": HOSTILE, "size": 320, "grid": [40, 40]}
    splits = {"train": {"images": 3}, "val": {"images": 2}}
    metrics = {"splits": splits, "classes": 27, "crf": "numba", "em": "k27", "head": None}
    described = dict(describe_facts(facts, metrics, "folder", "/data"))
    assert described["images"] == "train: 3, val: 2"
    assert described["weights"] == HOSTILE
    assert described["window"] == "320 px, 40 x 40 positions"
    assert (described["clusters"], described["CRF"]) == ("27", "numba")
    assert described["made by"] == "fit k27"
    described = dict(describe_facts(facts, metrics | {"head": "hp"}, "folder", "/data"))
    assert described["made by"] == "cluster probe of the head hp"


def test_a_fit_tells_how_it_went() -> None:
    arrays = {
        "loss": np.array([2.0, 1.0], np.float32),
        "class_usage": np.array([[0.5, 0.5], [0.25, 0.75]], np.float32),
        "prototypes": np.zeros((2, 3)),
    }
    curve = make_curve(arrays, {"classes": 2, "classes_curve": [[2, 0.5], [3, 0.25]]})
    assert curve.loss == (2.0, 1.0)
    assert curve.usage == ((0.5, 0.5), (0.25, 0.75))
    assert curve.classes == ((2, 0.5), (3, 0.25))
    assert curve.chosen == 2
    bare = make_curve({}, {})
    assert (bare.loss, bare.usage, bare.classes, bare.chosen) == ((), (), (), None)
    named = make_curve({}, {"classes_curve": [[2, 1]], "classes_label": "stability"})
    assert named.classes_label == "stability"
