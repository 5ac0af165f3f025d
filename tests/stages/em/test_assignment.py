"""The E-step: classes of pixels, votes of proposals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import IGNORE
from stages.em.assignment import assign_proposals, predict_pixels, vote_proposals
from stages.em.interpolation import upsample
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


def make_case(windows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(windows, classes, 5, 4, generator=generator)
    proposals = torch.randint(0, 7, (windows, 5, 4), generator=generator, dtype=torch.uint8)
    return logits, proposals.repeat_interleave(9, dim=1).repeat_interleave(11, dim=2)


@pytest.mark.parametrize("classes", [2, 3, 27, 255])
def test_both_ways_assign_the_same(classes: int) -> None:
    # float32 goes through the compiled loops; float64 through torch, which CUDA does too
    logits, proposals = make_case(4, classes, seed=classes)
    found, other = (assign_proposals(kind, proposals) for kind in (logits, logits.double()))
    assert found.labels.dtype == other.labels.dtype == torch.uint8
    assert torch.equal(found.labels, other.labels)
    assert torch.equal(found.usage, other.usage)
    assert int(found.agreed) == int(other.agreed) > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_usage_counts_the_labelled_pixels(kind: torch.dtype) -> None:
    logits, proposals = make_case(3, 4, seed=1)
    assignment = assign_proposals(logits.to(kind), proposals)
    assert assignment.usage.tolist() == [int((assignment.labels == k).sum()) for k in range(4)]
    assert int(assignment.usage.sum()) == int((proposals > 0).sum())


def test_any_number_of_threads_assigns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, proposals = make_case(7, 5, seed=2)
    results = []
    for threads in "125":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(assign_proposals(logits, proposals))
    for other in results[1:]:
        assert torch.equal(other.labels, results[0].labels)
        assert torch.equal(other.usage, results[0].usage)
        assert torch.equal(other.agreed, results[0].agreed)
