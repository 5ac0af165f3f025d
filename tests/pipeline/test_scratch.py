"""Scratch memory: aligned, the same for a thread, another for the next."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pipeline import scratch
from pipeline.scratch import LINE, allocate_aligned, take_scratch


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (5, 2, 9)])
def test_arrays_begin_at_a_line_of_the_cache(shape: tuple[int, ...], dtype: type) -> None:
    array = allocate_aligned(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.ctypes.data % LINE == 0
    assert array.flags.c_contiguous and array.flags.writeable


def test_a_name_stands_for_the_same_memory_until_more_is_asked_for() -> None:
    first = take_scratch("test", (4, 8))
    assert np.shares_memory(first, take_scratch("test", (2, 3)))
    assert not np.shares_memory(first, take_scratch("other", (4, 8)))
    assert take_scratch("test", (40, 8)).shape == (40, 8)


def test_threads_share_nothing() -> None:
    own = take_scratch("test", (64,))
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(take_scratch("test", (64,))))
    thread.start()
    thread.join()
    assert not np.shares_memory(own, found[0])


def test_large_arrays_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "LARGEST_KEPT", 100)
    assert not np.shares_memory(take_scratch("large", (26,)), take_scratch("large", (26,)))
