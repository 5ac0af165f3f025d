"""What a head is trained on: cached features, read in steps, and the nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import zarr
from torch import Tensor

from pipeline.run.frames import map_ahead, take_items

# Steps in a unit of a descriptor's component: products of unit vectors then stay below 2 ** 53,
# under which float64 adds whole numbers without rounding.
_STEPS = 2**26


def pool_descriptors(features: Tensor) -> Tensor:
    """Describe windows by the directions of their mean features."""
    return F.normalize(features.mean(dim=(1, 2), dtype=torch.float32), dim=1)


def find_neighbours(
    descriptors: Tensor, groups: Tensor, count: int, *, queries: int = 1024, keys: int = 8192
) -> Tensor:
    """Find the windows most similar to every window, those of its own group excepted.

    Nothing depends on the size of the blocks, the number of threads or the device: components are
    rounded to whole multiples of 2^-26, so that the products are exact in whatever order they are
    summed, and cosines to 2^(bits - 52), where windows < 2^bits.

    Beside the descriptors and the result, memory holds one block and its rows and columns: 0.1 GB
    at 384 channels, however many windows there are. Of 10^6 windows, descriptors and 7 neighbours
    take 1.6 GB; time grows with the square of their number.
    """
    windows = len(descriptors)
    if windows == 0 or count < 1:
        raise ValueError(f"cannot find {count} neighbours among {windows} windows")
    if float(torch.linalg.vector_norm(descriptors, dim=1).max()) > 1 + 1e-3:
        raise ValueError("descriptors must have a length of 1")
    if groups.shape != (windows,):
        raise ValueError(f"groups are {tuple(groups.shape)} for {windows} windows")
    groups = groups.to(descriptors.device)
    count = min(count, windows - int(groups.unique(return_counts=True)[1].max()))
    if count == 0:
        return torch.arange(windows, device=descriptors.device)[:, None]
    found = [
        _search(descriptors, groups, slice(start, start + queries), count, keys)
        for start in range(0, windows, queries)
    ]
    return torch.cat(found)


def _search(descriptors: Tensor, groups: Tensor, rows: slice, count: int, keys: int) -> Tensor:
    windows, device = len(descriptors), descriptors.device
    span = 2 ** windows.bit_length()
    wanted, own = _quantise(descriptors[rows]), groups[rows]
    best = torch.empty(len(own), 0, dtype=torch.float64, device=device)
    index = torch.empty(len(own), 0, dtype=torch.int64, device=device)
    for start in range(0, windows, keys):
        block = torch.arange(start, min(start + keys, windows), device=device)
        ranks = wanted @ _quantise(descriptors[start : start + keys]).T
        # cosine and index in one number, which therefore occurs once in a row: no choice is left to
        # the order in which top-k visits equal cosines
        ranks.div_(span).round_().mul_(span).sub_(block)
        ranks.masked_fill_(groups[block] == own[:, None], -torch.inf)
        ranks, place = ranks.topk(min(count, len(block)))
        best, index = torch.cat([best, ranks], dim=1), torch.cat([index, block[place]], dim=1)
        best, place = best.topk(min(count, best.shape[1]))
        index = index.gather(1, place)
    return index


def _quantise(descriptors: Tensor) -> Tensor:
    return (descriptors.double() * _STEPS).round_()


_BLOCK = 64


@dataclass(frozen=True)
class HeadBatch:
    """The windows of one step."""

    features: Tensor
    neighbours: Tensor | None = None
    augmented: Tensor | None = None
    mixing: Tensor | None = None


@dataclass(frozen=True)
class Material:
    """Cached arrays as training items: every window in every one of the arrays."""

    arrays: tuple[zarr.Array, ...]
    windows: np.ndarray
    images: np.ndarray
    batch: int
    seed: int
    device: torch.device
    neighbours: np.ndarray | None = None
    augmented: tuple[zarr.Array, ...] = ()
    mixing: zarr.Array | None = None

    def __len__(self) -> int:
        return len(self.arrays) * len(self.windows)

    def read_steps(self, first: int) -> Iterator[HeadBatch]:
        """Read the batches of all steps from one on, without end.

        A step's batch depends on its number and the seed alone, so training goes on anywhere.
        """
        for arrays in map_ahead(self._read_step, count(first), threads=1, ahead=1):
            yield HeadBatch(**{name: self._send(array) for name, array in arrays.items()})

    def read_positions(self, total: int, *seed: int, each: int = 16) -> Tensor:
        """Read random positions of random windows, float32 [position, channel].

        So many of ``each`` of them; a window counts more than once where there are not enough.
        Fewer than ``total`` where a grid has fewer than ``each``.
        """
        generator = np.random.default_rng((self.seed, *seed))
        grid, channels = int(np.prod(self.arrays[0].shape[1:3])), self.arrays[0].shape[-1]
        each = min(each, grid)
        items = generator.integers(len(self), size=-(-total // each))
        places = generator.permuted(np.broadcast_to(np.arange(grid), (len(items), grid)), axis=1)
        distinct, owners = np.unique(items, return_inverse=True)
        drawn = np.empty((len(items), each, channels), self.arrays[0].dtype)
        # of a window a position may be all that is wanted: few are in memory together
        for start in range(0, len(distinct), _BLOCK):
            rows = self._take(distinct[start : start + _BLOCK]).reshape(-1, grid, channels)
            here = np.flatnonzero((owners >= start) & (owners < start + len(rows)))
            drawn[here] = rows[owners[here, None] - start, places[here, :each]]
        return self._send(drawn.reshape(-1, channels)[:total])

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
        if self.mixing is not None:
            read["mixing"] = _read((self.mixing,), None, self.windows[items])
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
