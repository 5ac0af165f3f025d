"""Nearest neighbours: against a sort in float64, ties, blocks of any size, few windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.head.neighbours import find_neighbours, pool_descriptors


def draw_descriptors(windows: int, channels: int, seed: int) -> Tensor:
    drawn = torch.randn(windows, channels, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def draw_alike(windows: int, seed: int) -> Tensor:
    """Draw from five directions only, so that most cosines are equal."""
    five = draw_descriptors(5, 384, 0)
    return five[torch.randint(5, (windows,), generator=torch.Generator().manual_seed(seed))]


def find_alone(descriptors: Tensor, count: int, **blocks: int) -> Tensor:
    """Find neighbours of windows that are a group each."""
    return find_neighbours(descriptors, torch.arange(len(descriptors)), count, **blocks)


def sort_by_hand(descriptors: Tensor, count: int, groups: Tensor | None = None) -> np.ndarray:
    points = descriptors.double().numpy()
    own = np.arange(len(points)) if groups is None else groups.numpy()
    # rounded, or equal rows could differ in their last digit
    cosines = np.round(points @ points.T, 9)
    cosines[own[:, None] == own] = -np.inf
    others = len(points) - np.unique(own, return_counts=True)[1].max()
    return np.argsort(-cosines, axis=1, kind="stable")[:, : min(count, others)]


def test_descriptors_by_hand() -> None:
    features = torch.tensor([[[[6.0, 0.0], [0.0, 8.0]]], [[[1.0, 1.0], [-1.0, -1.0]]]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    torch.testing.assert_close(pool_descriptors(features), expected)
    torch.testing.assert_close(pool_descriptors(features.half()), expected)
    torch.testing.assert_close(pool_descriptors(features.flip(2)), expected)


def test_neighbours_by_hand() -> None:
    angles = torch.tensor([0.0, 10.0, 25.0, 180.0]).deg2rad()
    descriptors = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert find_alone(descriptors, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


@pytest.mark.parametrize("make", [lambda: draw_descriptors(60, 7, 1), lambda: draw_alike(60, 1)])
def test_agrees_with_a_sort(make) -> None:  # type: ignore[no-untyped-def]
    descriptors = make()
    np.testing.assert_array_equal(find_alone(descriptors, 9), sort_by_hand(descriptors, 9))


@given(
    windows=st.integers(2, 40),
    count=st.integers(1, 12),
    queries=st.integers(1, 45),
    keys=st.integers(1, 45),
    images=st.integers(2, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_blocks_do_not_matter(
    windows: int, count: int, queries: int, keys: int, images: int, seed: int
) -> None:
    descriptors, groups = draw_alike(windows, seed), torch.arange(windows) % images
    found = find_neighbours(descriptors, groups, count, queries=queries, keys=keys)
    np.testing.assert_array_equal(found, sort_by_hand(descriptors, count, groups))


def test_nobody_is_his_own_neighbour_even_among_equals() -> None:
    found = find_alone(draw_descriptors(1, 5, 0).expand(6, -1), 3)
    assert found.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


def test_a_black_window_is_near_to_none() -> None:
    descriptors = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.8, 0.6]])
    assert find_alone(descriptors, 1).tolist() == [[2], [0], [0]]


def test_few_windows() -> None:
    assert find_alone(draw_descriptors(1, 4, 0), 7).tolist() == [[0]]
    assert find_alone(draw_descriptors(2, 4, 0), 7).tolist() == [[1], [0]]


def test_windows_of_the_same_group_are_left_out() -> None:
    angles = torch.tensor([0.0, 1.0, 20.0, 30.0, 31.0]).deg2rad()
    descriptors = torch.stack([angles.cos(), angles.sin()], dim=1)
    groups = torch.tensor([7, 7, 3, -1, -1])
    found = find_neighbours(descriptors, groups, 2)
    assert found.tolist() == [[2, 3], [2, 3], [3, 4], [2, 1], [2, 1]]


def test_the_largest_group_says_how_many_neighbours_there_are() -> None:
    descriptors, groups = draw_descriptors(6, 4, 0), torch.tensor([0, 0, 1, 0, 0, 2])
    found = find_neighbours(descriptors, groups, 7)
    assert found.shape == (6, 2)
    assert not (groups[found] == groups[:, None]).any()


def test_of_one_group_alone_every_window_is_its_own_neighbour() -> None:
    found = find_neighbours(draw_descriptors(3, 4, 0), torch.zeros(3, dtype=torch.int64), 2)
    assert found.tolist() == [[0], [1], [2]]


def test_every_window_needs_a_group() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) for 3 windows"):
        find_neighbours(torch.eye(3), torch.arange(2), 1)


def test_half_precision_is_taken() -> None:
    descriptors = draw_descriptors(30, 16, 2).half()
    np.testing.assert_array_equal(find_alone(descriptors, 4), sort_by_hand(descriptors, 4))


@pytest.mark.parametrize(
    ("descriptors", "count", "message"),
    [
        (torch.zeros(0, 3), 2, "0 windows"),
        (torch.eye(3), 0, "0 neighbours"),
        (2 * torch.eye(3), 1, "length of 1"),
    ],
)
def test_impossible_questions_are_refused(descriptors: Tensor, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_alone(descriptors, count)
