"""The E-step: classes of pixels, votes of proposals."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.em.assignment import IGNORE, predict_pixels, upsample, vote_proposals
from stages.em.prototypes import compute_logits


def test_a_vote_by_hand() -> None:
    predictions = torch.tensor([[[0, 1, 1], [2, 1, 0], [2, 2, 0]]])
    proposals = torch.tensor([[[1, 1, 1], [2, 2, 0], [2, 2, 0]]], dtype=torch.uint8)
    expected = torch.tensor([[[1, 1, 1], [2, 2, IGNORE], [2, 2, IGNORE]]])
    assert torch.equal(vote_proposals(predictions, proposals, 3), expected)


def test_of_equally_frequent_classes_the_smallest_wins() -> None:
    predictions = torch.tensor([[[3, 1, 1, 3]]])
    voted = vote_proposals(predictions, torch.ones(1, 1, 4, dtype=torch.uint8), 4)
    assert voted.tolist() == [[[1, 1, 1, 1]]]


def test_windows_vote_for_themselves() -> None:
    # the same proposal numbers, and not the same number of proposals
    proposals = torch.tensor([[[1, 1, 2]], [[1, 1, 0]], [[0, 0, 0]]], dtype=torch.uint8)
    predictions = torch.tensor([[[0, 0, 1]], [[1, 1, 0]], [[1, 1, 1]]])
    assert vote_proposals(predictions, proposals, 2).tolist() == [
        [[0, 0, 1]],
        [[1, 1, IGNORE]],
        [[IGNORE, IGNORE, IGNORE]],
    ]


@given(
    windows=st.integers(1, 4),
    side=st.integers(1, 7),
    most=st.integers(0, 254),
    classes=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_votes_agree_with_a_loop(
    windows: int, side: int, most: int, classes: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (windows, side, side)
    predictions = generator.integers(0, classes, size=shape)
    proposals = generator.choice([0, 1, 2, most], size=shape).astype(np.uint8)
    expected = np.full(shape, IGNORE)
    for window in range(windows):
        for proposal in set(proposals[window].ravel().tolist()) - {0}:
            inside = proposals[window] == proposal
            expected[window][inside] = np.bincount(predictions[window][inside]).argmax()
    voted = vote_proposals(torch.from_numpy(predictions), torch.from_numpy(proposals), classes)
    np.testing.assert_array_equal(voted, expected)


def test_upsampled_logits_are_the_logits_of_upsampled_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 5, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    size = (24, 35)
    large = upsample(features.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    logits = compute_logits(features, weight)
    torch.testing.assert_close(upsample(logits, size), compute_logits(large, weight))
    normalised = torch.nn.functional.normalize(large, dim=-1)
    expected = compute_logits(normalised, weight).argmax(dim=1)
    assert torch.equal(predict_pixels(logits, size), expected)
