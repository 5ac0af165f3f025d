"""What a fit reads: batches, views and mirror images, each window once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stages.em.cache import Cache
from stages.em.settings import EmSettings
from tests.fakes import SliceArray


class FakeArray(SliceArray):
    """Row i holds i everywhere; counts what was read."""

    def __init__(self, *shape: int, dtype: Any) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.rows_read = 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.rows_read += rows.stop - rows.start
        numbers = np.arange(rows.start, rows.stop).reshape(-1, *[1] * (len(self.shape) - 1))
        return np.broadcast_to(numbers, (len(numbers), *self.shape[1:])).astype(self.dtype)


def make_cache(windows: int, **settings: Any) -> Cache:
    arrays: Any = {
        "clean": FakeArray(windows, 2, 3, 4, dtype=np.float16),
        "proposals": FakeArray(windows, 8, 12, dtype=np.uint8),
    }
    chosen = EmSettings(classes=2, batch_size=5, **settings)
    return Cache(arrays, np.arange(windows), chosen, torch.device("cpu"))


def test_an_epoch_has_every_window_once_with_its_proposals() -> None:
    cache = make_cache(23)
    read, steps = [], 0
    for (batch,) in cache.read_epoch(0):
        features, proposals = batch.features, batch.proposals
        steps += 1
        assert proposals is not None
        assert (features.dtype, proposals.dtype) == (torch.float32, torch.uint8)
        assert features[:, 0, 0, 0].tolist() == proposals[:, 0, 0].tolist()
        read += proposals[:, 0, 0].tolist()
    assert sorted(read) == list(range(23))
    assert steps == cache.steps == 5


def test_the_initialisation_reads_no_proposals() -> None:
    cache = make_cache(23)
    assert all(batch.proposals is None for (batch,) in cache.read_epoch(-1))
    assert sum(len(features) for features in cache.read_sample()) == 23
    array: Any = cache.arrays["proposals"]
    assert array.rows_read == 0


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    def order(epoch: int, seed: int) -> tuple[int, ...]:
        batches = make_cache(40, seed=seed).read_epoch(epoch)
        return tuple(int(row) for (batch,) in batches for row in batch.features[:, 0, 0, 0])

    assert order(3, 0) == order(3, 0)
    names = [(0, 0), (1, 0), (-1, 0), (-2, 0), (0, 1), (1, 1)]
    assert len({order(*name) for name in names}) == len(names)


def test_a_sample_is_as_large_as_it_is_told_and_always_the_same() -> None:
    samples = []
    for _ in range(2):
        blocks = make_cache(50, sample=12).read_sample()
        samples.append([int(row) for block in blocks for row in block[:, 0, 0, 0]])
    assert len(set(samples[0])) == 12
    assert samples[0] == samples[1]


class View(FakeArray):
    """Row i holds i, plus a number that tells one view from another."""

    def __init__(self, windows: int, offset: int) -> None:
        super().__init__(windows, 2, 3, 4, dtype=np.float16)
        self.offset = offset

    def __getitem__(self, rows: slice) -> np.ndarray:
        return super().__getitem__(rows) + np.float16(self.offset)


class Ramp(FakeArray):
    """Row i holds i, plus the number of the column, so that left and right differ."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        ramp: np.ndarray = super().__getitem__(rows) + np.arange(self.shape[2], dtype=np.uint8)
        return ramp


def test_mirrored_windows_come_with_mirrored_proposals_and_students() -> None:
    windows = 40
    arrays: Any = {
        "clean": (View(windows, 0), View(windows, 100)),
        "proposals": Ramp(windows, 8, 12, dtype=np.uint8),
        "student": tuple(View(windows, 200 + 100 * number) for number in range(4)),
    }
    settings = EmSettings(classes=2, batch_size=7)
    cache = Cache(arrays, np.arange(windows), settings, torch.device("cpu"))
    seen = set()
    for (batch,) in cache.read_epoch(2):
        assert batch.proposals is not None and batch.student is not None
        teacher, student = batch.features[:, 0, 0, 0], batch.student[:, 0, 0, 0]
        first, last = batch.proposals[:, 0, 0].int(), batch.proposals[:, 0, -1].int()
        mirrored = teacher >= 100
        window = teacher - 100 * mirrored
        torch.testing.assert_close(torch.minimum(first, last).float(), window)
        assert torch.equal(first > last, mirrored)
        # views 1 and 2, each clean and mirrored: 200, 300, 400, 500
        view = (student - window).div(100).round().int()
        assert torch.equal(view % 2 == 1, mirrored)
        seen |= set(view.tolist())
    assert seen == {2, 3, 4, 5}


def test_averaged_features_are_those_of_window_and_mirror_image() -> None:
    arrays: Any = {
        "clean": View(9, 0),
        "mirror": View(9, 4),
        "proposals": FakeArray(9, 8, 12, dtype=np.uint8),
    }
    settings = EmSettings(classes=2, method="robust", batch_size=4, sample=6)
    cache = Cache(arrays, np.arange(9), settings, torch.device("cpu"))
    for _ in range(2):
        batches = list(cache.read_averaged())
        numbers = [int(row) for batch in batches for row in batch.features[:, 0, 0, 0] - 2]
        assert numbers == cache.sample.tolist() == sorted(numbers)
        assert len(numbers) == 6
