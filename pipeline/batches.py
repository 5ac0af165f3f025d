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
        left = Batch(np.empty(0, np.int64), {})
        for group in map_ahead(self._read_group, groups, threads=1, ahead=1):
            if generator is not None:
                group = _take(group, generator.permutation(len(group.windows)))
            whole = _join(left, group)
            del group
            full = len(whole.windows) // size * size
            for start in range(0, full, size):
                yield _take(whole, slice(start, start + size))
            # by numbers, not a slice: a view would keep the whole group in memory
            left = _take(whole, np.arange(full, len(whole.windows)))
            del whole
        if len(left.windows):
            yield left

    def _read_group(self, shards: np.ndarray) -> Batch:
        parts = [self._read_shard(int(number)) for number in shards]
        return Batch(
            np.concatenate([part.windows for part in parts]),
            {name: np.concatenate([part.arrays[name] for part in parts]) for name in self.arrays},
        )

    def _read_shard(self, number: int) -> Batch:
        start, stop = number * self.shard, (number + 1) * self.shard
        first, last = np.searchsorted(self.windows, (start, stop))
        windows = self.windows[first:last]
        low, high = int(windows[0]), int(windows[-1]) + 1
        rows = windows - low
        blocks = {name: read_rows(array, low, high) for name, array in self.arrays.items()}
        if len(rows) < high - low:
            blocks = {name: block[rows] for name, block in blocks.items()}
        return Batch(windows, blocks)


def _take(batch: Batch, rows: np.ndarray | slice) -> Batch:
    return Batch(batch.windows[rows], {name: a[rows] for name, a in batch.arrays.items()})


def _join(first: Batch, second: Batch) -> Batch:
    if not len(first.windows):
        return second
    return Batch(
        np.concatenate([first.windows, second.windows]),
        {name: np.concatenate([first.arrays[name], a]) for name, a in second.arrays.items()},
    )


def shard_ranges(length: int, shard: int) -> Sequence[range]:
    """Return the rows of every shard of an array."""
    return [range(start, min(start + shard, length)) for start in range(0, length, shard)]
