"""Batches of cached windows, streamed in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import zarr

from pipeline.frames import map_ahead
from pipeline.store import take_rows


@dataclass(frozen=True)
class Batch:
    """Some windows and their rows of every array.

    Attributes
    ----------
    windows
        Window indices, int64 [window].
    arrays
        Array name to its rows [window, ...]; they hold until the next batch is asked for.
    """

    windows: np.ndarray
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchStream:
    """Reads cached arrays in batches with memory that does not grow with their length.

    The windows of an epoch are shuffled all together, as the method has it, and read one by one:
    a window is a chunk. One batch is in use while a thread reads the next. The batches are of one
    size, bar the last, which may be up to ``len(stream) - 1`` windows smaller: a remainder of two
    windows would otherwise be a step as long as one of 32.

    Attributes
    ----------
    arrays
        Array name to zarr array; all have the windows as first axis.
    windows
        Indices of the windows to read, int64 [window], ascending.
    batch
        Most windows of a batch.
    """

    arrays: Mapping[str, zarr.Array]
    windows: np.ndarray
    batch: int

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
            Reproducible: the order depends on the seed only. Each overwrites the one before.
        """
        order = np.random.default_rng(seed).permutation(self.windows) if seed else self.windows
        size = self.even_batch
        parts = [order[low : low + size] for low in range(0, len(order), size)]
        # An epoch uses two buffers over and over: fresh ones, made in one thread and freed in
        # another, would fray the allocator's memory, and more of it the longer an epoch is.
        buffers = cycle([self._allocate(size) for _ in parts[:2]])
        tasks = zip(parts, buffers, strict=False)
        yield from map_ahead(self._read_batch, tasks, threads=1, ahead=1)

    def _allocate(self, size: int) -> dict[str, np.ndarray]:
        return {
            name: np.empty((size, *array.shape[1:]), array.dtype)
            for name, array in self.arrays.items()
        }

    def _read_batch(self, task: tuple[np.ndarray, dict[str, np.ndarray]]) -> Batch:
        windows, buffers = task
        rows = {name: buffer[: len(windows)] for name, buffer in buffers.items()}
        for name, array in self.arrays.items():
            take_rows(array, windows, rows[name])
        return Batch(windows, rows)


def shard_ranges(length: int, shard: int) -> Sequence[range]:
    """Return the rows of every shard of an array."""
    return [range(start, min(start + shard, length)) for start in range(0, length, shard)]
