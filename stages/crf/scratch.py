"""Memory that a thread uses again for its next image."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A larger array is given back at once.
LARGEST_KEPT = 2**26
# Bytes of a line of the cache.
LINE = 64

_kept = threading.local()


def take_scratch(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> NDArray[Any]:
    """Take an array with any content, the same memory whenever a thread asks by the same name.

    To have the system map and zero new pages costs a tenth of a whole inference. What a thread
    keeps goes with the thread.

    Parameters
    ----------
    name : str
        Whoever asks again by this name has no use for the earlier array any more.
    shape : tuple of int
        The array's shape.
    dtype : type
        Its type, the same whenever the name is.
    """
    size = prod(shape)
    if size * np.dtype(dtype).itemsize > LARGEST_KEPT:
        return _allocate(size, dtype).reshape(shape)
    kept: dict[str, NDArray[Any]] = _kept.__dict__
    if name not in kept or len(kept[name]) < size:
        kept[name] = _allocate(size, dtype)
    return kept[name][:size].reshape(shape)


def _allocate(size: int, dtype: type) -> NDArray[Any]:
    """Allocate numbers from a line of the cache on: rows that lie astride touch a line more."""
    bytes_ = np.empty(size * np.dtype(dtype).itemsize + LINE, np.uint8)
    first = -bytes_.ctypes.data % LINE
    return bytes_[first : len(bytes_) - LINE + first].view(dtype)
