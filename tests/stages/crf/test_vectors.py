"""Vectors against numpy, lane by lane and bit for bit.

Scratch memory: aligned, the same for a thread, another for the next.

Kernels compile wherever the package lies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from stages.crf import vectors
from stages.crf.vectors import (
    LINE,
    add_scaled,
    allocate_aligned,
    compile_kernel,
    count_lanes,
    largest,
    less,
    load,
    maximum,
    minimum,
    power_of_two,
    prefetch,
    spread,
    store,
    take_scratch,
    total,
    zero_below,
    zeros,
)

Floats = NDArray[np.float32]
LANES = (1, 8, 24, 48)
numbers = st.floats(-1e6, 1e6, width=32)


def combine(operation: Callable, lanes: int) -> Callable[[Floats, Floats], Floats]:
    """Compile an operation on two vectors to one on arrays of so many numbers."""

    def kernel(first: Floats, second: Floats, result: Floats) -> None:
        like = zeros(lanes)
        store(result, 0, operation(load(first, 0, like), load(second, 0, like)))

    compiled = compile_kernel(kernel)

    def call(first: Floats, second: Floats) -> Floats:
        result = np.empty(lanes, np.float32)
        compiled(first, second, result)
        return result

    return call


@compile_kernel
def add(first, second):
    return first + second


@compile_kernel
def subtract_twice(first, second):
    return np.float32(2.0) * first - second


@compile_kernel
def take_maximum(first, second):
    return maximum(first, second)


@compile_kernel
def take_minimum(first, second):
    return minimum(first, second)


@compile_kernel
def compare(first, second):
    return less(first, second) - less(np.float32(1.0), second)


@compile_kernel
def drop(first, second):
    return zero_below(first, second, np.float32(0.5))


EXPECTED = {
    add: lambda a, b: a + b,
    subtract_twice: lambda a, b: np.float32(2) * a - b,
    take_maximum: np.maximum,
    take_minimum: np.minimum,
    compare: lambda a, b: (a < b).astype(np.float32) - (b > 1),
    drop: lambda a, b: np.where(b > 0.5, a, np.float32(0)),
}
KERNELS = {(f, n): combine(f, n) for f in EXPECTED for n in LANES}


@pytest.mark.parametrize("operation", list(EXPECTED), ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("lanes", LANES)
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_every_lane_is_computed_alone(operation: Callable, lanes: int, data: st.DataObject) -> None:
    first, second = (data.draw(arrays(np.float32, lanes, elements=numbers)) for _ in range(2))
    found = KERNELS[operation, lanes](first, second)
    assert found.tolist() == EXPECTED[operation](first, second).tolist()


def test_a_multiply_add_is_rounded_once() -> None:
    @compile_kernel
    def kernel(values: Floats, factor: np.float32, result: Floats) -> None:
        like = zeros(8)
        both = add_scaled(load(values, 0, like), load(values, 8, like), factor)
        store(result, 0, both)

    values = np.random.default_rng(0).normal(size=16).astype(np.float32)
    result = np.empty(8, np.float32)
    factor = np.float32(1.1)
    kernel(values, factor, result)
    wide = values.astype(np.float64)
    # The product of two float32 is exact in float64, and so is nearly every sum.
    expected = (wide[:8] + np.float64(factor) * wide[8:]).astype(np.float32)
    assert result.tolist() == expected.tolist()


@pytest.mark.parametrize("lanes", [1, 8, 24, 48, 96])
def test_folds_see_every_lane_once(lanes: int) -> None:
    def kernel(values: Floats) -> tuple[np.float32, np.float32]:
        vector = load(values, 1, zeros(lanes))
        return largest(vector), total(vector)

    compiled = compile_kernel(kernel)
    for lane in range(lanes):
        values = np.full(lanes + 2, 9.0, np.float32)
        values[1:-1] = 0.0
        values[1 + lane] = 3.0
        assert compiled(values) == (3.0, 3.0)


def test_a_total_is_taken_half_by_half() -> None:
    @compile_kernel
    def kernel(values: Floats) -> np.float32:
        return total(load(values, 0, zeros(8)))

    values = np.array([1e8, 1, 1, 1, -1e8, 1, 1, 1], np.float32)
    assert kernel(values) == 6.0


def test_powers_of_two_are_exact() -> None:
    @compile_kernel
    def kernel(values: Floats) -> None:
        store(values, 0, power_of_two(load(values, 0, zeros(8))))

    exponents = np.array([-126, -57, -1, 0, 1, 2, 63, 127], np.float32)
    values = exponents.copy()
    kernel(values)
    assert values.tolist() == np.exp2(exponents.astype(np.float64)).tolist()


def test_places_are_flat_indices() -> None:
    @compile_kernel
    def kernel(values: Floats, picked: NDArray[np.int32]) -> int:
        prefetch(values, 5)
        vector = spread(values[0, 5], zeros(8))
        store(values, 8, vector)
        return picked[1, 1] + count_lanes(vector)

    values = np.arange(24, dtype=np.float32).reshape(2, 12)
    assert kernel(values, np.array([[1, 2], [3, 40]], np.int32)) == 48
    assert values.ravel()[7:17].tolist() == [7.0, *[5.0] * 8, 16.0]


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
    monkeypatch.setattr(vectors, "LARGEST_KEPT", 100)
    assert not np.shares_memory(take_scratch("large", (26,)), take_scratch("large", (26,)))


def test_a_place_that_cannot_be_written_compiles_without_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def refuse_cache(*, nogil: bool, error_model: str, cache: bool = False) -> Callable[..., Any]:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(nogil=nogil, error_model=error_model)  # type: ignore[no-any-return]

    monkeypatch.setattr(vectors, "njit", refuse_cache)

    @vectors.compile_kernel
    def double(values: np.ndarray) -> np.ndarray:
        return 2 * values

    assert asked == [True, False]
    assert double(np.array([1.5])).tolist() == [3.0]
