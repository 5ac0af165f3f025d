"""Batches of cached windows, streamed in a seeded order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
import zarr

from pipeline.frames import map_ahead
from pipeline.store import take_rows

Choices = Mapping[str, np.ndarray]
Choose = Callable[[np.random.Generator, int], Choices]
# The windows of a batch, int64 [window], and what was drawn for each.
Part = tuple[np.ndarray, Choices]


@dataclass(frozen=True)
class Batch:
    """Some windows and their rows of every array.

    Attributes
    ----------
    windows
        Window indices, int64 [window].
    arrays
        Array name to its rows [window, ...]; they hold until the next batch is asked for.
    choices
        What was drawn for every window, by name, int64 [window].
    """

    windows: np.ndarray
    arrays: dict[str, np.ndarray]
    choices: Choices = field(default_factory=dict)


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
        Name to zarr array, or to several of one shape, one of which is drawn for every window; all
        have the windows as first axis.
    windows
        Indices of the windows to read, int64 [window], ascending.
    batch
        Most windows of a batch.
    """

    arrays: Mapping[str, zarr.Array | tuple[zarr.Array, ...]]
    windows: np.ndarray
    batch: int

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch)

    @property
    def even_batch(self) -> int:
        """Windows per batch."""
        return -(-len(self.windows) // len(self)) if len(self) else self.batch

    def read_epoch(self, *seed: int, choose: Choose | None = None) -> Iterator[Batch]:
        """Read every window once.

        Parameters
        ----------
        *seed
            Numbers that name the order, for instance a seed and an epoch; none for the stored
            order.
        choose
            Draws for so many windows which of several arrays each is read from, by the arrays'
            name; other names may be among them. The first of several where it is not given.

        Yields
        ------
        Batch
            Reproducible: the order depends on the seed only. Each overwrites the one before.
        """
        parts = self.plan_epoch(*seed, choose=choose)
        # An epoch uses two buffers over and over: fresh ones, made in one thread and freed in
        # another, would fray the allocator's memory, and more of it the longer an epoch is.
        buffers = cycle([self._allocate(self.even_batch) for _ in parts[:2]])
        tasks = zip(parts, buffers, strict=False)
        yield from map_ahead(self._read_batch, tasks, threads=1, ahead=1)

    def plan_epoch(self, *seed: int, choose: Choose | None = None) -> list[Part]:
        """List the batches of :meth:`read_epoch`, and read none."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(self.windows) if seed else self.windows
        drawn = choose(generator, len(order)) if choose else {}
        size = self.even_batch
        return [
            (order[low : low + size], {name: d[low : low + size] for name, d in drawn.items()})
            for low in range(0, len(order), size)
        ]

    def read_part(self, part: Part) -> Batch:
        """Read one of the planned batches, or some windows of one, into memory of its own."""
        return self._read_batch((part, self._allocate(len(part[0]))))

    def _allocate(self, size: int) -> dict[str, np.ndarray]:
        firsts = {name: _list_arrays(source)[0] for name, source in self.arrays.items()}
        return {
            name: np.empty((size, *array.shape[1:]), array.dtype) for name, array in firsts.items()
        }

    def _read_batch(self, task: tuple[Part, dict[str, np.ndarray]]) -> Batch:
        (windows, drawn), buffers = task
        rows = {name: buffer[: len(windows)] for name, buffer in buffers.items()}
        for name, source in self.arrays.items():
            take_items(_list_arrays(source), drawn.get(name), windows, rows[name])
        return Batch(windows, rows, drawn)


def _list_arrays(source: zarr.Array | tuple[zarr.Array, ...]) -> tuple[zarr.Array, ...]:
    return source if isinstance(source, tuple) else (source,)


def take_items(
    arrays: Sequence[zarr.Array], sources: np.ndarray | None, rows: np.ndarray, out: np.ndarray
) -> None:
    """Read rows from anywhere in several arrays of one shape.

    Parameters
    ----------
    arrays
        The arrays.
    sources
        Which of the arrays each row is read from, int64 [row]; None for the first.
    rows
        Row numbers, int64 [row].
    out
        Where they go: contiguous, of their shape and type.
    """
    if sources is None or len(arrays) == 1:
        take_rows(arrays[0], rows, out)
        return
    for source in np.unique(sources):
        places = np.flatnonzero(sources == source)
        part = np.empty((len(places), *out.shape[1:]), out.dtype)
        take_rows(arrays[source], rows[places], part)
        out[places] = part


def shard_ranges(length: int, shard: int) -> Sequence[range]:
    """Return the rows of every shard of an array."""
    return [range(start, min(start + shard, length)) for start in range(0, length, shard)]
