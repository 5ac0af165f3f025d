"""Classifiers: by hand in double precision, and what must not change them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.evaluate.classifier import Classifier, classify
from stages.evaluate.labelling import average_views


def make_features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_logits_are_inner_products_or_cosines() -> None:
    features = torch.tensor([[3.0, 4.0]]).reshape(1, 1, 1, 2)
    prototypes = torch.tensor([[2.0, 0.0], [0.0, -5.0]])
    inner = classify(features, Classifier(prototypes, logits="inner product", gain=7))
    assert inner.flatten().tolist() == [6, -20]
    cosine = classify(features, Classifier(prototypes, logits="cosine", gain=2))
    torch.testing.assert_close(cosine.flatten(), torch.tensor([1.2, -1.6]))


def test_without_bias_it_is_the_product_to_the_bit() -> None:
    features, prototypes = make_features(3, 5, 4, 32).float(), make_features(7, 32).float()
    expected = torch.einsum("nhwd,kd->nkhw", features, prototypes)
    assert torch.equal(classify(features, Classifier(prototypes)), expected)


def test_bias_by_hand() -> None:
    features = torch.tensor([3.0, 4.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    classifier = Classifier(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        bias=torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64),
    )
    found = classify(features, classifier)
    assert classifier.classes == 3
    assert found.shape == (1, 3, 1, 1)
    assert found.flatten().tolist() == [3.5, 3.0, 7.25]


def test_cosines_are_scaled_before_the_bias() -> None:
    features = torch.tensor([0.0, 9.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    classifier = Classifier(
        torch.tensor([[0.0, 3.0], [3.0, 4.0], [1.0, 0.0]], dtype=torch.float64),
        bias=torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64),
        logits="cosine",
        gain=10,
    )
    found = classify(features, classifier).flatten().tolist()
    assert found == pytest.approx([9.0, 8.0, 2.0], rel=1e-14)


@pytest.mark.parametrize("logits", ["inner product", "cosine"])
def test_a_mirrored_image_has_mirrored_logits(logits: str) -> None:
    clean, mirror = make_features(2, 3, 4, 8), make_features(2, 3, 4, 8, seed=1)
    classifier = Classifier(
        make_features(4, 8, seed=2),
        bias=make_features(4, seed=3),
        logits=logits,
    )
    # the clean view of the mirrored image is the mirrored view of the image, and the other way
    one = classify(average_views(clean, mirror), classifier)
    other = classify(average_views(mirror, clean), classifier)
    torch.testing.assert_close(other, one.flip(3), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits": "euclidean"}, "euclidean"),
        ({"bias": torch.zeros(2)}, "bias"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(torch.zeros(3, 4), **options)
