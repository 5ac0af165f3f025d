"""Batches of cached windows, streamed block by block in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

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

    A few blocks are read together (in one thread, beside the consumer), their windows are shuffled
    together, and what does not fill a batch goes on to the next few. Two such groups are held at
    most: one in use and one that is being read. The batches of an epoch are of one size, bar the
    last, which may be up to ``len(stream) - 1`` windows smaller: a remainder of two windows would
    otherwise be a step as long as one of 32.

    Attributes
    ----------
    arrays
        Array name to zarr array; all have the windows as first axis.
    windows
        Indices of the windows to read, int64 [window], ascending.
    batch
        Most windows of a batch.
    block
        Neighbours that are read at once. The smaller, the more places are mixed in the same memory.
    blocks_together
        How many blocks are shuffled together.
    """

    arrays: Mapping[str, zarr.Array]
    windows: np.ndarray
    batch: int
    block: int = 8
    blocks_together: int = 8

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
            Reproducible: the order depends on the seed and the size of blocks and groups only.
        """
        generator = np.random.default_rng(seed) if seed else None
        blocks = np.unique(self.windows // self.block)
        if generator is not None:
            generator.shuffle(blocks)
        together = self.blocks_together
        groups = [blocks[low : low + together] for low in range(0, len(blocks), together)]
        # Every epoch uses two buffers over and over: fresh ones, made in one thread and freed in
        # another, would fray the allocator's memory, and more of it the longer an epoch is.
        buffers = cycle(self._allocate(groups) for _ in groups[:2])
        size = self.even_batch
        left: Batch | None = None
        tasks = zip(groups, buffers, strict=False)
        for group in map_ahead(self._read_group, tasks, threads=1, ahead=1):
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

    def _allocate(self, groups: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        most = max(sum(len(self._windows_in(int(block))) for block in group) for group in groups)
        return {
            name: np.empty((most, *array.shape[1:]), array.dtype)
            for name, array in self.arrays.items()
        }

    def _read_group(self, task: tuple[np.ndarray, dict[str, np.ndarray]]) -> Batch:
        blocks, buffers = task
        windows = np.concatenate([self._windows_in(int(number)) for number in blocks])
        start = 0
        for number in blocks:
            stop = start + len(self._windows_in(int(number)))
            rows = {name: buffer[start:stop] for name, buffer in buffers.items()}
            self._read_block(int(number), rows)
            start = stop
        return Batch(windows, {name: buffer[:start] for name, buffer in buffers.items()})

    def _windows_in(self, block: int) -> np.ndarray:
        first, last = np.searchsorted(self.windows, (block * self.block, (block + 1) * self.block))
        return self.windows[first:last]

    def _read_block(self, block: int, rows: dict[str, np.ndarray]) -> None:
        windows = self._windows_in(block)
        low, high = int(windows[0]), int(windows[-1]) + 1
        for name, array in self.arrays.items():
            if len(windows) == high - low:
                read_rows(array, low, high, rows[name])
            else:
                rows[name][:] = read_rows(array, low, high)[windows - low]


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
