"""Batches of cached windows, streamed shard by shard in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zarr

from pipeline.frames import map_ahead
from pipeline.store import read_rows


@dataclass(frozen=True)
class Batch:
    """Some windows and their rows of every array.

    Attributes
    ----------
    windows
        Window indices, int64 [window].
    arrays
        Array name to its rows [window, ...].
    """

    windows: np.ndarray
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchStream:
    """Reads cached arrays in batches with memory that does not grow with their length.

    A few shards are read together (in one thread, beside the consumer), their windows are shuffled
    together, and what does not fill a batch goes on to the next few. The batches of an epoch are
    of one size, bar the last, which may be up to ``len(stream) - 1`` windows smaller: a remainder
    of two windows would otherwise be a step as long as one of 32.

    Attributes
    ----------
    arrays
        Array name to zarr array; all have the windows as first axis.
    windows
        Indices of the windows to read, int64 [window], ascending.
    shard
        Windows per shard.
    batch
        Most windows of a batch.
    shards_together
        How many shards are shuffled together.
    """

    arrays: Mapping[str, zarr.Array]
    windows: np.ndarray
    shard: int
    batch: int
    shards_together: int = 4

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch)

    @property
    def even_batch(self) -> int:
        """Windows per batch."""
        return -(-len(self.windows) // len(self)) if len(self) else self.batch

    def read_epoch(self, *seed: int) -> Iterator[Batch]:
        """Read every window once.

        Parameters
        ----------
        *seed
            Numbers that name the order, for instance a seed and an epoch; none for the stored
            order.

        Yields
        ------
        Batch
            Reproducible: the order depends on the seed and the shard size only.
        """
        generator = np.random.default_rng(seed) if seed else None
        numbers = self.windows // self.shard
        shards = np.unique(numbers)
        if generator is not None:
            generator.shuffle(shards)
        groups = [
            shards[i : i + self.shards_together]
            for i in range(0, len(shards), self.shards_together)
        ]
        size = self.even_batch
        left: Batch | None = None
        for group in map_ahead(self._read_group, groups, threads=1, ahead=1):
            count = len(group.windows)
            order = np.arange(count) if generator is None else generator.permutation(count)
            # rows are gathered batch by batch: a shuffled copy of the group would double its memory
            start = 0
            while (held := 0 if left is None else len(left.windows)) + count - start >= size:
                batch = _join(left, _take(group, order[start : start + size - held]))
                start, left = start + size - held, None
                yield batch
            if start < count:
                left = _join(left, _take(group, order[start:]))
            del group
        if left is not None:
            yield left

    def _read_group(self, shards: np.ndarray) -> Batch:
        windows = np.concatenate([self._windows_in(int(number)) for number in shards])
        arrays = {
            name: np.empty((len(windows), *array.shape[1:]), array.dtype)
            for name, array in self.arrays.items()
        }
        start = 0
        for number in shards:
            stop = start + len(self._windows_in(int(number)))
            for name, block in self._read_shard(int(number)).items():
                arrays[name][start:stop] = block
            start = stop
        return Batch(windows, arrays)

    def _windows_in(self, shard: int) -> np.ndarray:
        first, last = np.searchsorted(self.windows, (shard * self.shard, (shard + 1) * self.shard))
        return self.windows[first:last]

    def _read_shard(self, shard: int) -> dict[str, np.ndarray]:
        windows = self._windows_in(shard)
        low, high = int(windows[0]), int(windows[-1]) + 1
        blocks = {name: read_rows(array, low, high) for name, array in self.arrays.items()}
        if len(windows) < high - low:
            blocks = {name: block[windows - low] for name, block in blocks.items()}
        return blocks


def _take(batch: Batch, rows: np.ndarray) -> Batch:
    return Batch(batch.windows[rows], {name: a[rows] for name, a in batch.arrays.items()})


def _join(first: Batch | None, second: Batch) -> Batch:
    if first is None:
        return second
    return Batch(
        np.concatenate([first.windows, second.windows]),
        {name: np.concatenate([first.arrays[name], a]) for name, a in second.arrays.items()},
    )


def shard_ranges(length: int, shard: int) -> Sequence[range]:
    """Return the rows of every shard of an array."""
    return [range(start, min(start + shard, length)) for start in range(0, length, shard)]
