"""Memory that a thread uses again for its next image."""

from __future__ import annotations

import threading
from math import prod

import numpy as np
from numpy.typing import NDArray

# A larger array is given back at once: to have it zeroed by the system costs little of its time.
LARGEST_KEPT = 2**26

_kept = threading.local()


def take_scratch(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Take an array with any content, the same memory whenever a thread asks by the same name.

    To have the system map and zero new pages costs a tenth of a whole inference. What a thread
    keeps goes with the thread.

    Parameters
    ----------
    name : str
        Whoever asks again by this name has no use for the earlier array any more.
    shape : tuple of int
        The array's shape.

    Returns
    -------
    float32 of the given shape
    """
    size = prod(shape)
    if 4 * size > LARGEST_KEPT:
        return np.empty(shape, np.float32)
    kept: dict[str, NDArray[np.float32]] = _kept.__dict__
    if name not in kept or len(kept[name]) < size:
        kept[name] = np.empty(size, np.float32)
    return kept[name][:size].reshape(shape)
