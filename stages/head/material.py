"""What a head is trained on: cached features, read in steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
import zarr
from torch import Tensor

from pipeline.batches import take_items
from pipeline.frames import map_ahead
from stages.head.neighbours import find_neighbours, pool_descriptors

_BLOCK = 64


@dataclass(frozen=True)
class HeadBatch:
    """The windows of one step.

    Attributes
    ----------
    features
        float32 [window, row, column, channel].
    neighbours
        The same of one near neighbour of each; None where the method needs none.
    augmented
        The same of a photometrically augmented view of each; None likewise.
    attention
        float32 [window, row, column, 9]; None likewise.
    """

    features: Tensor
    neighbours: Tensor | None = None
    augmented: Tensor | None = None
    attention: Tensor | None = None


@dataclass(frozen=True)
class Material:
    """Cached arrays as training items: every window in every one of the arrays.

    Attributes
    ----------
    arrays
        Clean features, and crops where they are used: [window, row, column, channel].
    windows
        The windows to train on, int64 [window], ascending.
    images
        int64 [item]: the image that every item shows; items are all windows of the first array,
        then all of the second, and so on.
    batch
        Most items of a step; the steps of an epoch have one size, bar the last.
    seed
        Names every draw.
    device
        Where the tensors go.
    neighbours
        int64 [item, neighbour]: the items that are nearest to each, or None.
    augmented
        Photometrically augmented views; one is drawn for every window.
    attention
        The last block's attention, or None.
    """

    arrays: tuple[zarr.Array, ...]
    windows: np.ndarray
    images: np.ndarray
    batch: int
    seed: int
    device: torch.device
    neighbours: np.ndarray | None = None
    augmented: tuple[zarr.Array, ...] = ()
    attention: zarr.Array | None = None

    def __len__(self) -> int:
        return len(self.arrays) * len(self.windows)

    def read_steps(self, first: int) -> Iterator[HeadBatch]:
        """Read the batches of all steps from one on, without end.

        A step's batch depends on its number and the seed alone, so training goes on anywhere.
        """
        for arrays in map_ahead(self._read_step, count(first), threads=1, ahead=1):
            yield HeadBatch(**{name: self._send(array) for name, array in arrays.items()})

    def read_positions(self, total: int, *seed: int) -> Tensor:
        """Read random positions of random windows, float32 [position, channel].

        Sixteen of each of so many windows; a window counts more than once where there are not
        enough of them. Fewer than ``total`` where a grid has fewer than sixteen.
        """
        generator = np.random.default_rng((self.seed, *seed))
        each = min(16, int(np.prod(self.arrays[0].shape[1:3])))
        items = generator.integers(len(self), size=-(-total // each))
        rows = self._take(items).reshape(len(items), -1, self.arrays[0].shape[-1])
        places = generator.permuted(
            np.broadcast_to(np.arange(rows.shape[1]), rows.shape[:2]), axis=1
        )
        drawn = np.take_along_axis(rows, places[:, :each, None], axis=1)
        return self._send(drawn.reshape(-1, rows.shape[-1])[:total])

    def describe(self) -> Tensor:
        """Pool every item's features, float32 [item, channel] on the device."""
        starts = range(0, len(self), _BLOCK)
        blocks = [np.arange(low, min(low + _BLOCK, len(self))) for low in starts]
        return torch.cat([pool_descriptors(self._send(self._take(items))) for items in blocks])

    def with_neighbours(self, number: int) -> Material:
        """Return the same with the nearest items of each, of other images than its own.

        Other windows and crops of an image are nearest to it, but teach little that is not in it.
        Where there is one image alone, every item is its own neighbour.
        """
        found = find_neighbours(self.describe(), torch.from_numpy(self.images), number)
        return replace(self, neighbours=found.cpu().numpy())

    def _read_step(self, step: int) -> dict[str, np.ndarray]:
        steps = -(-len(self) // self.batch)
        size = -(-len(self) // steps)
        epoch, place = divmod(step, steps)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self))
        items = order[place * size : (place + 1) * size]
        generator = np.random.default_rng((self.seed, 1, step))
        read = {"features": self._take(items)}
        if self.neighbours is not None:
            drawn = generator.integers(self.neighbours.shape[1], size=len(items))
            read["neighbours"] = self._take(self.neighbours[items, drawn])
        if self.augmented:
            views = generator.integers(len(self.augmented), size=len(items))
            read["augmented"] = _read(self.augmented, views, self.windows[items])
        if self.attention is not None:
            read["attention"] = _read((self.attention,), None, self.windows[items])
        return read

    def _take(self, items: np.ndarray) -> np.ndarray:
        views, places = np.divmod(items, len(self.windows))
        return _read(self.arrays, views, self.windows[places])

    def _send(self, array: np.ndarray) -> Tensor:
        # half the bytes cross to the device, and are widened there
        return torch.from_numpy(array).to(self.device).float()


def _read(
    arrays: tuple[zarr.Array, ...], sources: np.ndarray | None, rows: np.ndarray
) -> np.ndarray:
    out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
    take_items(arrays, sources, rows, out)
    return out
