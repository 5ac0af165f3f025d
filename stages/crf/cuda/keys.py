"""Integer names of lattice vertices: packed, compared and looked up without a hash table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEY_BITS = 63


@dataclass(frozen=True)
class KeyPlan:
    """How the coordinates of a vertex and the number of its image are packed into integers.

    Parameters
    ----------
    strides : int64 [word, axis + 1]
        What one step along each axis adds to each integer; the last column is the image's. The
        lattice's last coordinate has no place: it follows from the others, as they sum to 0.
    offset : int64 [axis]
        The coordinates that are packed as 0.
    """

    strides: NDArray[np.int64]
    offset: NDArray[np.int64]

    @property
    def steps(self) -> NDArray[np.int64]:
        """What a step to the next vertex along each axis adds, int64 [word, axis].

        It goes on by 1 along all axes, but for one along which it goes back by the others' gain.
        """
        along = self.strides[:, :-1]
        steps: NDArray[np.int64] = along.sum(axis=1, keepdims=True) - along.shape[1] * along
        return steps


def plan_keys(lowest: Sequence[float], highest: Sequence[float], images: int) -> KeyPlan:
    """Give each coordinate its bits, in as many integers as it takes.

    Parameters
    ----------
    lowest, highest : sequence of float
        Bounds of the pixels' elevated coordinates, one for every axis.
    images : int
        Number of images.

    Returns
    -------
    KeyPlan
        With room around the bounds for a pixel's vertices and for their neighbours: two
        neighbours' keys differ by a constant of the axis between them, with no carry from one
        coordinate into the next.
    """
    count = len(lowest)
    # A simplex reaches less than 3 cells beyond the pixel in it, a neighbour one more.
    margin = 4 * count
    low = np.floor(np.asarray(lowest, np.float64)).astype(np.int64) - margin
    high = np.ceil(np.asarray(highest, np.float64)).astype(np.int64) + margin
    bits = [int(span).bit_length() for span in (high - low)[:-1]]
    places: list[list[int]] = []
    used = KEY_BITS + 1
    # A single image needs no bit, and the place behind 63 of them would be no integer's.
    last = [(images - 1).bit_length()] if images > 1 else []
    for width in [*bits, *last]:
        if used + width > KEY_BITS:
            places.append([0] * (count + 1))
            used = 0
        axis = sum(1 for word in places for stride in word if stride)
        places[-1][axis if axis < count - 1 else count] = 1 << used
        used += width
    return KeyPlan(np.array(places, np.int64), low)


def fold_words(words: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Turn keys of several integers into keys of one, in the same order.

    Parameters
    ----------
    words : int64 [word, entry]
        The last word is the most significant.

    Returns
    -------
    keys : int64 [entry]
        Equal where all words are equal.
    tables : list of (int64 [value], int64 [value])
        The distinct values that were replaced by their ranks, for `look_up`; empty for one word.
    """
    keys = words[-1]
    tables = []
    for word in reversed(words[:-1].unbind()):
        high, rank = torch.unique(keys, return_inverse=True)
        low, place = torch.unique(word, return_inverse=True)
        # Ranks are below 2^31, the number of entries: their pairs fit one integer.
        keys = rank * len(low) + place
        tables.append((high, low))
    return keys, tables


def look_up(words: Tensor, tables: list[tuple[Tensor, Tensor]], keys: Tensor) -> Tensor:
    """Find keys of several integers in a sorted list of folded ones.

    Parameters
    ----------
    words : int64 [word, ...]
        What to find.
    tables
        As `fold_words` gave them.
    keys : int64 [key]
        Folded keys, ascending, distinct.

    Returns
    -------
    int32 [...]
        Places in `keys`; their number where a key is absent.
    """
    wanted = words[-1]
    known = torch.ones_like(wanted, dtype=torch.bool)
    for word, (high, low) in zip(reversed(words[:-1].unbind()), tables, strict=True):
        rank, found = _search(high, wanted)
        place, present = _search(low, word)
        known &= found & present
        wanted = rank * len(low) + place
    place, found = _search(keys, wanted)
    return torch.where(known & found, place, len(keys)).int()


def _search(table: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.searchsorted(table, values).clamp_max_(len(table) - 1)
    return places, table[places] == values
