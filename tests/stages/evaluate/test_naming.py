"""Named classes: what the numbers in the label maps are, by hand, and how names are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.evaluate.naming import (
    _name_clicked,
    _sort_names,
    extend_classifier,
    match_names,
)
from stages.labelling import Classifier, classify
from stages.scores import UNMATCHED, match_clusters


def test_names_come_in_the_order_of_the_classes_and_each_once() -> None:
    names = ["car", "ignore", "road", "moss", "car", "sky"]
    assert _sort_names(names, ["sky", "road", "car"]) == ["sky", "road", "car", "moss", "ignore"]


def test_a_click_names_the_proposal_or_the_group_that_it_is_in() -> None:
    named, proposals = (
        ["sky", "road"],
        np.array([256 * 2 + 1, 256 * 2 + 3, 256 * 5 + 1, 256 * 9 + 2]),
    )
    # one that is no unit's, one whose name nothing has, then two of one group
    clicked = {(2, 2): "sky", (9, 3): "sky", (5, 1): "moss", (2, 1): "road", (9, 2): "sky"}
    arrays = {"moments_proposal": proposals}
    assert _name_clicked(arrays, clicked, named) == {0: 1, 3: 0}
    arrays["moments_unit"] = np.array([1, 0, 0, 1], np.int32)
    # of as many each the last that was said
    assert _name_clicked(arrays, clicked, named) == {1: 0}
    assert _name_clicked(arrays, clicked | {(2, 3): "road", (5, 1): "road"}, named) == {0: 1, 1: 0}


@pytest.mark.parametrize("logits", ["inner product", "cosine"])
def test_further_classes_never_win_and_change_no_other(logits: str) -> None:
    generator = torch.Generator().manual_seed(0)
    classifier = Classifier(torch.randn(3, 4, generator=generator), logits=logits)
    features = torch.randn(1, 2, 2, 4, generator=generator)
    more = classify(features, extend_classifier(classifier, 2))
    assert more.shape[1] == 5
    torch.testing.assert_close(more[:, :3], classify(features, classifier))
    assert (more.argmax(dim=1) < 3).all()


def test_a_name_that_is_a_class_is_this_class() -> None:
    names = [None, "road", "moss", "ignore", "sky"]
    assert match_names(names[:4], ["sky", "road"]) == ({1: 1, 3: UNMATCHED}, {})
    found, said = match_names(names, ["sky", "road"], 1)
    assert found == {1: 1, 3: UNMATCHED, 4: UNMATCHED}
    assert said == {4: 0}


def test_what_is_named_is_not_matched() -> None:
    # one to one, 0 would be class 0, and 1 class 1
    confusion = np.array([[9, 1, 0], [5, 6, 0], [0, 0, 3]])
    np.testing.assert_array_equal(match_clusters(confusion), [0, 1, 2])
    np.testing.assert_array_equal(match_clusters(confusion, {1: 0}), [1, 0, 2])
    np.testing.assert_array_equal(match_clusters(confusion, {0: UNMATCHED}), [UNMATCHED, 1, 2])
