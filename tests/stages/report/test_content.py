"""What the report shows of single images, of the clusters, and of the fit."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.run.evaluation import ClusterLook, choose_look
from pipeline.run.manifest import Image as Row
from stages.report.content import (
    GalleryItem,
    build_item,
    draw_fit,
    find_nearest,
    list_scores,
    make_cards,
)
from stages.report.pictures import (
    IGNORED_COLOUR,
    RIGHT_COLOUR,
    WRONG_COLOUR,
    Exhibit,
    Labels,
    fit_feature_colours,
)
from stages.report.plots import draw_scores, draw_series, draw_usage
from stages.report.typical import Cutout
from stages.report.words import describe_facts
from stages.scores import Part

NAMES = ("sky", "road")
COLOURS = ((1, 2, 3), (4, 5, 6))
HOSTILE = '<script>alert("x")</script>/../&amp; ünï {{ 7 * 7 }}'


PLAIN = np.zeros((8, 12), np.uint8)
PLAIN[:, 6:] = 1
ROW = Row(0, "a/b", "val", "a/b.png", None, 24, 16, 1, 0, "")


def make_exhibit(**changes: Any) -> Exhibit:
    """Make an image of 8 x 12 pixels in two windows; the left half is cluster 0."""
    generator = np.random.default_rng(0)
    truth = 1 - PLAIN
    truth[0] = 255
    proposals = np.zeros((2, 8, 8), np.uint8)
    proposals[:, :, 2:] = 1
    exhibit = Exhibit(
        frame=generator.integers(0, 256, size=(8, 12, 3)).astype(np.uint8),
        boxes=((0, 0, 8, 8), (4, 0, 12, 8)),
        features=generator.normal(size=(2, 2, 2, 5)).astype(np.float32),
        proposals=proposals,
        truth=truth,
        palette=np.zeros((256, 3), np.uint8),
        labels=None,
    )
    exhibit.palette[:2] = COLOURS
    return replace(exhibit, **changes)


def read_picture(uri: str) -> NDArray[np.uint8]:
    content = base64.b64decode(uri.split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def build(
    exhibit: Exhibit,
    plain: ClusterLook,
    final: ClusterLook | None = None,
    *,
    refined: NDArray[np.uint8] | None = None,
    row: Row = ROW,
    **scores: float,
) -> GalleryItem:
    colours = fit_feature_colours(exhibit.features)
    labelled = replace(exhibit, labels=Labels(PLAIN, refined, plain, final or plain))
    return build_item(row, labelled, "sample", colours, scores)


def read_pictures(item: GalleryItem) -> dict[str, NDArray[np.uint8]]:
    return {key: read_picture(source) for key, source in item.pictures.items()}


def test_the_pictures_of_an_image() -> None:
    look = choose_look(2, [1, 0], NAMES, COLOURS)
    exhibit = make_exhibit()
    item = build(exhibit, look)
    keys = ["image", "features", "proposals", "label", "truth", "errors"]
    assert list(item.pictures) == keys
    pictures = read_pictures(item)
    assert {picture.shape for picture in pictures.values()} == {(8, 12, 3)}
    colours = np.array(COLOURS)
    np.testing.assert_array_equal(pictures["label"], colours[1 - PLAIN])
    np.testing.assert_array_equal(pictures["truth"][1:], pictures["label"][1:])
    assert (pictures["errors"][0] == IGNORED_COLOUR).all()
    assert (pictures["errors"][1:] == RIGHT_COLOUR).all()
    # the first two columns of neither window have a proposal
    assert (pictures["proposals"][0, :2] == pictures["proposals"][0, 0]).all()
    assert (pictures["proposals"][0, 2:] == pictures["proposals"][0, 2]).all()
    assert (pictures["proposals"][0, 2] != pictures["proposals"][0, 0]).any()


def test_the_numbers_of_an_image() -> None:
    look = choose_look(2, [1, 0], NAMES, COLOURS)
    scores = {"accuracy": 70.0, "accuracy_crf": 81.25, "miou": 60.5, "confidence": 90.0}
    item = build(make_exhibit(), look, **scores)
    assert (item.role, item.accuracy, item.confidence) == ("sample", 81.25, 90.0)
    assert item.figures == [
        ("accuracy with CRF", "81.2 %"),
        ("accuracy without CRF", "70.0 %"),
        ("mIoU without CRF", "60.5 %"),
        ("confidence", "90.0 %"),
        ("photograph", "24 x 16 px"),
        ("windows", "2"),
        ("proposals", "2"),
    ]
    # one row is ignored, and all else is right
    assert item.parts == [
        Part(0, 50.0, 100.0),
        Part(1, 50.0, 100.0),
    ]
    assert (item.names, item.colours) == (("road", "sky"), (COLOURS[1], COLOURS[0]))
    assert (build(make_exhibit(), look).accuracy, build(make_exhibit(), look).confidence) == (
        None,
        None,
    )


def test_errors_are_those_of_the_final_labels() -> None:
    exhibit = make_exhibit()
    turned = (1 - PLAIN).astype(np.uint8)
    look = choose_look(2, [1, 0], NAMES, COLOURS)
    item = build(exhibit, look, refined=turned)
    assert (read_pictures(item)["errors"][1:] == WRONG_COLOUR).all()
    assert [part.iou for part in item.parts] == [0.0, 0.0]
    # each of the two has a matching of its own
    item = build(exhibit, look, choose_look(2, [0, 1], NAMES, COLOURS), refined=turned)
    pictures = read_pictures(item)
    np.testing.assert_array_equal(pictures["label"], pictures["label_crf"])
    assert [part.iou for part in item.parts] == [100.0, 100.0]


def test_what_is_not_there_is_not_shown() -> None:
    look = choose_look(2, None, (), ())
    item = build(make_exhibit(proposals=None, truth=None), look)
    assert list(item.pictures) == ["image", "features", "label"]
    assert [part.iou for part in item.parts] == [None, None]


def test_clusters_that_are_not_matched_are_not_judged() -> None:
    item = build(make_exhibit(), choose_look(2, None, NAMES, COLOURS))
    assert "truth" in item.pictures and "errors" not in item.pictures


@pytest.mark.parametrize("name", [HOSTILE, "", "a" * 5000, "\u202eevil\n"])
def test_hostile_names_pass_through_untouched(name: str) -> None:
    look = choose_look(2, [1, 0], (name, "road"), COLOURS)
    item = build(make_exhibit(), look, row=replace(ROW, id=name, split=name))
    assert (item.id, item.split) == (name, name)
    assert look.names == ("road", name)
    assert all(source.startswith("data:image/") for source in item.pictures.values())


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
    tried = {"classes": 2, "classes_curve": [[2, 0.5], [3, 0.25]]}
    plots = {plot["title"]: plot["svg"] for plot in draw_fit(arrays, tried, COLOURS)}
    shares = np.array([[0.5, 0.5], [0.25, 0.75]])
    effective = np.exp(-(shares * np.log(shares)).sum(axis=1))
    assert plots == {
        "Number of classes": draw_scores([(2, 0.5), (3, 0.25)], 2),
        "Loss": draw_series("Loss", (2.0, 1.0), margin=0.08),
        "Class usage": draw_usage(shares, COLOURS),
        "Effective classes": draw_series("effective classes", effective),
    }
    assert draw_fit({}, {}, COLOURS) == []
    attributes = {"classes_curve": [[2, 1]], "classes_label": "stability"}
    (named,) = draw_fit({}, attributes, COLOURS)
    assert "without labels: stability. The dot" in named["detail"]
    assert named["svg"] == draw_scores([(2, 1.0)], None)


def test_scores_without_labels_are_whatever_the_fit_has() -> None:
    arrays = {
        "class_usage": np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32),
        "score_turn_back": np.array([1.0, 0.5, np.nan]),
        "score_agreement": np.array([70.0, 80.0, 90.0]),
        "score_of_nothing": np.array(1.0),
    }
    found = list(list_scores(arrays, {"score_units": {"agreement": "%"}}))
    agreement, turn, effective = found
    assert agreement == ("agreement", "%", [70.0, 80.0, 90.0])
    assert (turn[0], turn[1], turn[2][:2]) == ("turn back", "", [1.0, 0.5])
    assert effective[0] == "effective classes"
    np.testing.assert_allclose(effective[2], [2, 1, np.nan])
    assert list(list_scores({}, {})) == []


BLOCK: dict[str, Any] = {
    "class_names": ["sky", "road"],
    "class_usage": [50.0, 30.0, 20.0],
    "per_class": [
        {"name": "sky", "iou": 10.0, "iou_crf": 11.0},
        {"name": "road", "iou": 20.0, "iou_crf": 21.0},
    ],
    "assignment": [0, 1, None],
    "assignment_crf": [1, None, 0],
}
PROTOTYPES = np.array([[1, 0], [0, 2], [3, 3.1]], np.float32)


def test_the_nearest_cluster() -> None:
    found = find_nearest(PROTOTYPES)
    assert found is not None
    assert found[0].tolist() == [2, 2, 1]
    np.testing.assert_allclose(found[1], [3, 3.1, 3.1] / np.hypot(3, 3.1), rtol=1e-6)
    assert find_nearest(PROTOTYPES[:1]) is None
    zeros = find_nearest(np.zeros((3, 2), np.float32))
    assert zeros is not None and zeros[0].tolist() == [1, 0, 0] and not zeros[1].any()


def test_a_card_has_the_figures_of_its_own_cluster() -> None:
    look = choose_look(3, BLOCK["assignment_crf"], BLOCK["class_names"], (), {1: "mine"})
    cutout = Cutout("data:image/jpeg;base64,", "a", "val", 0.5)
    cards = make_cards(BLOCK, look, PROTOTYPES, {2: [cutout]})
    assert [card.cluster for card in cards] == [0, 1, 2]
    assert [card.name for card in cards] == ["road", "mine", "sky"]
    assert [card.class_name for card in cards] == ["road", None, "sky"]
    assert [card.iou for card in cards] == [21.0, None, 11.0]
    # the two matchings differ: without CRF, cluster 0 is sky
    assert [card.iou_plain for card in cards] == [10.0, 20.0, None]
    assert [card.share for card in cards] == [50.0, 30.0, 20.0]
    assert [card.nearest for card in cards] == [2, 2, 1]
    assert [len(card.cutouts) for card in cards] == [0, 0, 1]
    assert len({card.colour for card in cards}) == 3
    assert not any(card.comes_and_goes for card in cards)
    cards = make_cards(BLOCK, look, PROTOTYPES, {}, [0.75, 0.49, 0.5])
    assert [(c.stability, c.comes_and_goes) for c in cards] == [
        (75, False),
        (49, True),
        (50, False),
    ]


def test_without_crf_there_is_one_iou() -> None:
    block = BLOCK | {"assignment_crf": None}
    look = choose_look(3, block["assignment"], block["class_names"], ())
    cards = make_cards(block, look, PROTOTYPES, {})
    assert [(card.iou, card.iou_plain) for card in cards] == [
        (10.0, None),
        (20.0, None),
        (None, None),
    ]


def test_without_labels_there_is_none() -> None:
    block = BLOCK | {"assignment_crf": None, "assignment": None}
    cards = make_cards(block, choose_look(3, None, (), ()), PROTOTYPES[:3], {})
    assert {(card.iou, card.iou_plain, card.class_name) for card in cards} == {(None, None, None)}
    single = make_cards(block, choose_look(1, None, (), ()), PROTOTYPES[:1], {})
    assert (single[0].nearest, single[0].similarity) == (None, None)
