"""What a fit reads from the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stages.em.settings import EmSettings
from stages.em.stage import Cache


class FakeArray:
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
    for features, proposals in cache.read_epoch(0):
        steps += 1
        assert proposals is not None
        assert (features.dtype, proposals.dtype) == (torch.float32, torch.uint8)
        assert features[:, 0, 0, 0].tolist() == proposals[:, 0, 0].tolist()
        read += proposals[:, 0, 0].tolist()
    assert sorted(read) == list(range(23))
    assert steps == cache.steps == 5


def test_the_initialisation_reads_no_proposals() -> None:
    cache = make_cache(23)
    assert all(proposals is None for _, proposals in cache.read_epoch(-1))
    assert sum(len(features) for features in cache.read_sample()) == 23
    array: Any = cache.arrays["proposals"]
    assert array.rows_read == 0


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    def order(epoch: int, seed: int) -> tuple[int, ...]:
        batches = make_cache(40, seed=seed).read_epoch(epoch)
        return tuple(int(row) for features, _ in batches for row in features[:, 0, 0, 0])

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
