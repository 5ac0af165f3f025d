"""What a head is trained on: items, neighbours, and steps that can be read from anywhere.

Nearest neighbours: against a sort in float64, ties, blocks of any size, few windows.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.head.material import HeadBatch, Material, find_neighbours, pool_descriptors
from tests.fakes import SliceArray

CPU = torch.device("cpu")


class FakeArray(SliceArray):
    """Row i holds i plus an offset everywhere."""

    def __init__(self, windows: int, offset: int = 0, channels: int = 4) -> None:
        self.shape = (windows, 3, 2, channels)
        self.dtype = np.dtype(np.float16)
        self.offset = offset

    def __getitem__(self, rows: slice) -> np.ndarray:
        numbers = np.arange(rows.start, rows.stop)[:, None, None, None] + self.offset
        return np.broadcast_to(numbers, (len(numbers), *self.shape[1:])).astype(self.dtype)


def make(windows: int = 10, views: int = 1, **changes: Any) -> Material:
    arrays: Any = tuple(FakeArray(windows + 5, 100 * view) for view in range(views))
    chosen: dict[str, Any] = {"arrays": arrays, "windows": np.arange(5, windows + 5), "batch": 4}
    chosen["images"] = np.tile(np.arange(windows), views)
    return Material(**chosen | {"seed": 1, "device": CPU} | changes)


def read(material: Material, first: int, steps: int) -> list[HeadBatch]:
    return list(islice(material.read_steps(first), steps))


def items_of(batch: HeadBatch) -> list[int]:
    return [int(value) for value in batch.features[:, 0, 0, 0]]


def test_an_epoch_has_every_item_once() -> None:
    material = make(windows=10, views=2)
    steps = read(material, 0, 5)
    seen = sorted(item for batch in steps for item in items_of(batch))
    assert seen == sorted([*range(5, 15), *range(105, 115)])
    assert steps[0].features.dtype == torch.float32
    assert (steps[0].neighbours, steps[0].augmented, steps[0].mixing) == (None, None, None)


def test_steps_are_the_same_wherever_reading_begins() -> None:
    material = make(neighbours=np.arange(30).reshape(10, 3) % 10)
    whole, tail = read(material, 0, 9), read(material, 4, 5)
    for one, other in zip(whole[4:], tail, strict=True):
        assert items_of(one) == items_of(other)
        assert one.neighbours is not None and other.neighbours is not None
        assert torch.equal(one.neighbours, other.neighbours)
    assert items_of(whole[0]) != items_of(read(make(seed=2), 0, 1)[0])


def test_neighbours_are_those_of_the_item() -> None:
    table = (np.arange(10)[:, None] + np.array([1, 3])) % 10
    drawn = set()
    for batch in read(make(neighbours=table), 0, 12):
        assert batch.neighbours is not None
        for item, other in zip(items_of(batch), batch.neighbours[:, 0, 0, 0].int(), strict=True):
            assert int(other) - 5 in table[item - 5]
            drawn.add((int(other) - item) % 10)
    assert drawn == {1, 3}


def test_augmented_views_and_mixing_are_of_the_same_windows() -> None:
    views: Any = (FakeArray(15, 200), FakeArray(15, 300))
    mixing: Any = FakeArray(15, 0, channels=9)
    seen = set()
    for batch in read(make(augmented=views, mixing=mixing), 0, 6):
        assert batch.augmented is not None and batch.mixing is not None
        assert batch.mixing[:, 0, 0, 0].int().tolist() == items_of(batch)
        offset = batch.augmented[:, 0, 0, 0].int() - torch.tensor(items_of(batch))
        seen |= set(offset.tolist())
    assert seen == {200, 300}


def test_random_positions_come_from_many_windows() -> None:
    positions = make(windows=40).read_positions(30, 7)
    assert positions.shape == (30, 4)
    assert len(positions[:, 0].unique()) >= 4
    assert torch.equal(positions, make(windows=40).read_positions(30, 7))
    assert not torch.equal(positions, make(windows=40).read_positions(30, 8))
    # one of each: of as many windows, more often the same one, or none, as chance has it
    alone = make(windows=200).read_positions(300, 7, each=1)
    assert alone.shape == (300, 4)
    assert 130 < len(alone[:, 0].unique()) < 180


def test_random_positions_are_drawn_uniformly_of_a_window() -> None:
    values = np.arange(6, dtype=np.float16).reshape(1, 3, 2, 1).repeat(9, axis=0)
    material = make(windows=4, arrays=(Stored(values),))
    drawn = material.read_positions(1200, 1, each=1)[:, 0].int()
    assert (drawn.bincount(minlength=6) / 1200 - 1 / 6).abs().max() < 0.04
    assert sorted(material.read_positions(6, 1)[:, 0].tolist()) == list(range(6))


class Stored(FakeArray):
    """An array of given values."""

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self.dtype, self.values = values.shape, values.dtype, values

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.values[rows]


def test_descriptors_are_those_of_the_items_in_order() -> None:
    values = np.random.default_rng(0).normal(size=(70, 2, 2, 5)).astype(np.float16)
    arrays: Any = (Stored(values),)
    material = Material(arrays, np.arange(70), np.arange(70), 8, 0, CPU)
    means = values.astype(np.float32).mean(axis=(1, 2))
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    found = material.with_neighbours(3).neighbours
    assert found is not None
    cosines = unit @ unit.T - 2 * np.eye(70)
    np.testing.assert_array_equal(np.sort(found), np.sort(np.argsort(-cosines)[:, :3]))


def test_windows_and_crops_of_an_image_are_not_near_to_each_other() -> None:
    # two windows of each of four images, and a crop of each: those of an image look alike
    generator = np.random.default_rng(0)
    looks = generator.normal(size=(4, 1, 1, 5)).repeat(2, axis=0)
    views = [looks + 0.01 * generator.normal(size=(8, 2, 2, 5)) for _ in "ab"]
    arrays: Any = tuple(Stored(view.astype(np.float16)) for view in views)
    images = np.tile(np.arange(4).repeat(2), 2)
    near = Material(arrays, np.arange(8), images, 8, 0, CPU).with_neighbours(7).neighbours
    assert near is not None
    assert near.shape == (16, 7)
    assert (images[near] != images[:, None]).all()
    # all items of the image that looks most alike come before those of the next
    assert (images[near[:, :4]] == images[near[:, :1]]).all()


def test_items_of_one_image_are_their_own_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 2, 5)).astype(np.float16)
    arrays: Any = (Stored(values),)
    material = Material(arrays, np.arange(3), np.zeros(3, np.int64), 8, 0, CPU)
    near = material.with_neighbours(7).neighbours
    assert near is not None
    assert near.tolist() == [[0], [1], [2]]


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
