"""Cards of clusters: what each says, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.run.subject import choose_look
from stages.report.cards import find_nearest, make_cards
from stages.report.page import Cutout

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
