"""The compiled E-step against up-sampling, argmax and bincount in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import IGNORE
from stages.em.votes import vote_windows


def vote(logits: np.ndarray, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.full_like(proposals, 77)
    usage = np.zeros(logits.shape[:2], np.int64)
    agreed = np.zeros(len(logits), np.int64)
    vote_windows(np.ascontiguousarray(logits, np.float32), proposals, labels, usage, agreed)
    return labels, usage, agreed


def spread(of_pixels: list[list[list[int]]]) -> np.ndarray:
    """Give each pixel, on a grid as large as the image, the class that it is to have."""
    return np.eye(4, dtype=np.float32)[np.array(of_pixels)].transpose(0, 3, 1, 2)


def test_a_vote_by_hand() -> None:
    logits = spread([[[0, 1, 1], [2, 1, 0], [2, 2, 0]]])
    proposals = np.array([[[1, 1, 1], [2, 2, 0], [2, 2, 0]]], np.uint8)
    labels, usage, agreed = vote(logits, proposals)
    assert labels.tolist() == [[[1, 1, 1], [2, 2, IGNORE], [2, 2, IGNORE]]]
    assert usage.tolist() == [[0, 3, 4, 0]]
    assert agreed.tolist() == [2 + 3]


def test_of_equally_frequent_classes_the_smallest_wins() -> None:
    labels, *_ = vote(spread([[[3, 1, 1, 3]]]), np.ones((1, 1, 4), np.uint8))
    assert labels.tolist() == [[[1, 1, 1, 1]]]


@pytest.mark.parametrize("classes", [2, 4, 6])
def test_of_equal_logits_the_smallest_class_wins(classes: int) -> None:
    row = np.random.default_rng(classes).normal(size=(1, 1, 3, 3))
    for first in range(classes):
        logits = np.repeat(row, classes, axis=1)
        logits[:, :first] -= 1
        labels, *_ = vote(logits, np.ones((1, 20, 17), np.uint8))
        assert np.unique(labels).tolist() == [first]


def test_windows_vote_for_themselves() -> None:
    logits = spread([[[0, 0, 1]], [[1, 1, 0]], [[1, 1, 1]]])
    proposals = np.array([[[1, 1, 2]], [[1, 1, 0]], [[0, 0, 0]]], np.uint8)
    labels, usage, agreed = vote(logits, proposals)
    assert labels.tolist() == [[[0, 0, 1]], [[1, 1, IGNORE]], [[IGNORE, IGNORE, IGNORE]]]
    assert usage.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]
    assert agreed.tolist() == [3, 2, 0]


@given(
    classes=st.sampled_from([2, 4, 12, 28]),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    most=st.sampled_from([1, 3, 12, 255]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_votes_agree_with_float64(
    classes: int, grid: tuple[int, int], size: tuple[int, int], most: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(2, classes, *grid)).astype(np.float32)
    proposals = generator.integers(0, most + 1, size=(2, *size)).astype(np.uint8)
    labels, usage, agreed = vote(logits, proposals)
    large = F.interpolate(
        torch.from_numpy(logits).double(), size, mode="bilinear", align_corners=False
    ).numpy()
    ranked = np.sort(large, axis=1)
    unsure = ranked[:, -1] - ranked[:, -2] < 1e-5
    assert ((labels == IGNORE) == (proposals == 0)).all()
    for window in range(2):
        for proposal in np.unique(proposals[window][proposals[window] > 0]):
            inside = proposals[window] == proposal
            (label,) = np.unique(labels[window][inside])
            votes = np.bincount(large[window].argmax(axis=0)[inside], minlength=classes)
            assert votes[label] + 2 * unsure[window][inside].sum() >= votes.max()
            if not unsure[window][inside].any():
                assert label == votes.argmax()
        counted = [(labels[window] == label).sum() for label in range(classes)]
        assert usage[window].tolist() == counted
        right = (labels[window] == large[window].argmax(axis=0)).sum()
        assert abs(agreed[window] - right) <= 2 * unsure[window].sum()


def test_numbers_that_are_none_do_no_harm() -> None:
    logits = np.full((1, 4, 3, 3), np.nan, np.float32)
    labels, *_ = vote(logits, np.ones((1, 9, 9), np.uint8))
    assert (labels < 4).all()
