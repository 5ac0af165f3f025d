"""Batches: every window once an epoch, in an order with a name, in memory that does not grow."""

from __future__ import annotations

from time import sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batches import BatchStream, shard_ranges


class Rows:
    """Rows from anywhere in an array, by runs of neighbours."""

    def __init__(self, array: FakeArray) -> None:
        self.array = array

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        return np.concatenate([self.array[slice(run[0], run[-1] + 1)] for run in runs])


class FakeArray:
    """Row i is [i, -i]; counts what was read."""

    def __init__(self, length: int, width: int = 2) -> None:
        self.shape = (length, width)
        self.dtype = np.dtype(np.int64)
        self.rows_read = 0
        self.reads: list[tuple[int, int]] = []

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert 0 <= rows.start < rows.stop <= self.shape[0]
        self.reads.append((rows.start, rows.stop))
        self.rows_read += rows.stop - rows.start
        block = np.empty((rows.stop - rows.start, self.shape[1]), np.int64)
        block[:] = np.arange(rows.start, rows.stop)[:, None]
        block[:, 1::2] *= -1
        return block

    @property
    def oindex(self) -> Rows:
        return Rows(self)


def make(windows: Any, batch: int = 3) -> BatchStream:
    numbers = np.asarray(windows, np.int64)
    arrays: Any = {"a": FakeArray(int(numbers.max(initial=0)) + 1)}
    return BatchStream(arrays, numbers, batch)


def order(stream: BatchStream, *seed: int) -> list[int]:
    return [int(w) for batch in stream.read_epoch(*seed) for w in batch.windows]


@given(
    windows=st.sets(st.integers(0, 60)),
    batch=st.integers(1, 20),
    seed=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_every_window_once_with_its_own_rows(
    windows: set[int], batch: int, seed: tuple[int, int] | None
) -> None:
    stream = make(sorted(windows), batch)
    sizes: list[int] = []
    read: list[int] = []
    for b in stream.read_epoch(*(seed or ())):
        np.testing.assert_array_equal(b.arrays["a"], np.stack([b.windows, -b.windows], axis=1))
        sizes.append(len(b.windows))
        read.extend(b.windows.tolist())
    assert len(sizes) == len(stream)
    assert max(sizes, default=0) <= batch
    assert len({*sizes[:-1]}) <= 1
    assert not sizes or sizes[0] - sizes[-1] < len(sizes)
    assert sorted(read) == sorted(windows)
    if seed is None:
        assert read == sorted(windows)


def test_an_order_has_a_name() -> None:
    stream = make(range(200))
    assert order(stream, 3, 0) == order(stream, 3, 0)
    orders = {tuple(order(stream, *seed)) for seed in [(3, 0), (3, 1), (4, 0), (0, 3)]}
    assert len(orders) == 4
    assert list(range(200)) not in map(list, orders)


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    assert order(make(range(50), batch=3), 7) == order(make(range(50), batch=32), 7)


def test_a_batch_comes_from_everywhere() -> None:
    windows = next(make(range(4000), batch=32).read_epoch(1)).windows
    assert len(np.unique(windows // 500)) == 8


def test_all_arrays_keep_step() -> None:
    arrays: Any = {"a": FakeArray(30), "b": FakeArray(30, width=3)}
    stream = BatchStream(arrays, np.arange(1, 30, 2), 4)
    for batch in stream.read_epoch(5):
        np.testing.assert_array_equal(batch.arrays["a"], batch.arrays["b"][:, :2])


def test_neighbours_are_read_together_and_nothing_else() -> None:
    stream = make([5, 6, 17, 18, 19], batch=5)
    array: Any = stream.arrays["a"]
    assert order(stream) == [5, 6, 17, 18, 19]
    assert array.reads == [(5, 7), (17, 20)]


@pytest.mark.parametrize("seed", [(), (1,)])
def test_one_batch_is_read_ahead(seed: tuple[int, ...]) -> None:
    stream = make(range(400), batch=4)
    array: Any = stream.arrays["a"]
    used = 0
    for batch in stream.read_epoch(*seed):
        assert array.rows_read - used <= 2 * 4
        used += len(batch.windows)
    assert array.rows_read == 400


def test_two_buffers_serve_an_epoch() -> None:
    # counted, not traced: tracemalloc's peaks vary threefold with what other threads do meanwhile
    bases = {id(batch.arrays["a"].base) for batch in make(range(400), batch=4).read_epoch(1)}
    assert len(bases) == 2


def test_a_batch_holds_until_the_next_is_asked_for() -> None:
    for batch in make(range(90), batch=3).read_epoch(2):
        before = batch.arrays["a"].copy()
        sleep(0.001)  # long enough for the thread to read the next one
        np.testing.assert_array_equal(batch.arrays["a"], before)


def test_an_epoch_may_be_left_early() -> None:
    epoch = make(range(100)).read_epoch(1)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]


def test_an_error_in_reading_is_raised() -> None:
    stream = make(range(40))
    array: Any = stream.arrays["a"]
    array.shape = (20, 2)
    epoch = stream.read_epoch()
    assert next(epoch).windows.tolist() == [0, 1, 2]
    with pytest.raises(AssertionError):
        list(epoch)


def test_shard_ranges() -> None:
    assert shard_ranges(7, 3) == [range(3), range(3, 6), range(6, 7)]
    assert shard_ranges(6, 3) == [range(3), range(3, 6)]
    assert shard_ranges(0, 3) == []


def test_each_window_is_read_from_the_array_that_is_drawn_for_it() -> None:
    first, second = FakeArray(40), FakeArray(40)

    def choose(generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        return {"a": generator.integers(2, size=count), "coin": generator.integers(9, size=count)}

    class Shifted(FakeArray):
        def __getitem__(self, rows: slice) -> np.ndarray:
            return super().__getitem__(rows) + 100

    arrays: Any = {"a": (first, Shifted(40)), "b": second}
    stream = BatchStream(arrays, np.arange(40), 7)
    drawn = []
    for batch in stream.read_epoch(3, 1, choose=choose):
        expected = batch.windows + 100 * batch.choices["a"]
        np.testing.assert_array_equal(batch.arrays["a"][:, 0], expected)
        np.testing.assert_array_equal(batch.arrays["b"][:, 0], batch.windows)
        drawn += batch.choices["coin"].tolist()
    assert len(set(drawn)) > 1 and len(drawn) == 40
    again = [c for b in stream.read_epoch(3, 1, choose=choose) for c in b.choices["coin"].tolist()]
    assert again == drawn
    # the draw leaves the order alone
    assert order(stream, 3, 1) == [
        int(w) for b in stream.read_epoch(3, 1, choose=choose) for w in b.windows
    ]
