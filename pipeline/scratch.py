"""Memory for compiled loops: aligned, and used again by the thread that took it."""

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

    To have the system map and zero new pages costs a tenth of a CRF's whole inference. What a
    thread keeps goes with the thread.

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
        return allocate_aligned(shape, dtype)
    kept: dict[str, NDArray[Any]] = _kept.__dict__
    if name not in kept or len(kept[name]) < size:
        kept[name] = allocate_aligned((size,), dtype)
    return kept[name][:size].reshape(shape)


def allocate_aligned(shape: tuple[int, ...], dtype: type = np.float32) -> NDArray[Any]:
    """Allocate an array of any content that begins at a line of the cache.

    Rows that lie astride of two lines take up to twice as long to read and write.
    """
    size = prod(shape)
    bytes_ = np.empty(size * np.dtype(dtype).itemsize + LINE, np.uint8)
    first = -bytes_.ctypes.data % LINE
    return bytes_[first : len(bytes_) - LINE + first].view(dtype).reshape(shape)
