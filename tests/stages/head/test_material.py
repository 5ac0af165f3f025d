"""What a head is trained on: items, neighbours, and steps that can be read from anywhere."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import torch

from stages.head.material import HeadBatch, Material
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
    assert (steps[0].neighbours, steps[0].augmented, steps[0].attention) == (None, None, None)


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


def test_augmented_views_and_attention_are_of_the_same_windows() -> None:
    views: Any = (FakeArray(15, 200), FakeArray(15, 300))
    attention: Any = FakeArray(15, 0, channels=9)
    seen = set()
    for batch in read(make(augmented=views, attention=attention), 0, 6):
        assert batch.augmented is not None and batch.attention is not None
        assert batch.attention[:, 0, 0, 0].int().tolist() == items_of(batch)
        offset = batch.augmented[:, 0, 0, 0].int() - torch.tensor(items_of(batch))
        seen |= set(offset.tolist())
    assert seen == {200, 300}


def test_random_positions_come_from_many_windows() -> None:
    positions = make(windows=40).read_positions(30, 7)
    assert positions.shape == (30, 4)
    assert len(positions[:, 0].unique()) >= 4
    assert torch.equal(positions, make(windows=40).read_positions(30, 7))
    assert not torch.equal(positions, make(windows=40).read_positions(30, 8))


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
