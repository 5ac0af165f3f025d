"""Frames: the pixels of the file that the manifest lists, decoded ahead of their use.

Batches: every window once an epoch, in an order with a name, in memory that does not grow.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torchvision.transforms.functional as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from pipeline.errors import ImageError, StaleError
from pipeline.images.decoding import probe_image
from pipeline.images.windows import Window, fit_size
from pipeline.run.frames import (
    BatchStream,
    cut_windows,
    map_ahead,
    read_frame,
    read_windows,
    resize_labels,
    shard_ranges,
)
from pipeline.run.manifest import Image, Manifest


def write_image(root: Path, row: int, width: int = 30, height: int = 20) -> Image:
    path = root / f"{row}.png"
    pixels = np.random.default_rng(row).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PillowImage.fromarray(pixels).save(path)
    status = path.stat()
    return Image(
        row, str(row), "all", path.name, None, width, height, status.st_size, status.st_mtime_ns, ""
    )


def pixels_of(root: Path, image: Image) -> np.ndarray:
    with PillowImage.open(root / image.path) as file:
        return np.asarray(file)


def test_a_frame_of_the_images_own_size_is_the_image(tmp_path: Path) -> None:
    image = write_image(tmp_path, 0)
    np.testing.assert_array_equal(
        read_frame(tmp_path, image, 30, 20), pixels_of(tmp_path, image), strict=True
    )


@pytest.mark.parametrize(("width", "height"), [(31, 20), (20, 33), (17, 5), (99, 98)])
@pytest.mark.parametrize("size", [7, 16, 40])
def test_a_frame_is_resized_as_torchvision_does(
    tmp_path: Path, width: int, height: int, size: int
) -> None:
    image = write_image(tmp_path, 0, width, height)
    theirs = tv.resize(PillowImage.fromarray(pixels_of(tmp_path, image)), [size])
    ours = read_frame(tmp_path, image, *fit_size(width, height, size))
    np.testing.assert_array_equal(ours, np.asarray(theirs), strict=True)


def test_a_file_that_is_gone_is_stale(tmp_path: Path) -> None:
    image = write_image(tmp_path, 0)
    (tmp_path / image.path).unlink()
    with pytest.raises(StaleError, match=r"0\.png is gone since .*; run `primaps-pipe extract`"):
        read_frame(tmp_path, image, 30, 20)


def test_a_file_that_changed_is_stale(tmp_path: Path) -> None:
    image = write_image(tmp_path, 0)
    os.utime(tmp_path / image.path, ns=(0, image.modified_ns + 1))
    with pytest.raises(StaleError, match="has changed since it was extracted"):
        read_frame(tmp_path, image, 30, 20)


def test_other_bytes_under_the_same_size_and_time_are_stale(tmp_path: Path) -> None:
    image = write_image(tmp_path, 0)
    image = replace(image, digest=probe_image(tmp_path / image.path).digest)
    assert read_frame(tmp_path, image, 30, 20).shape == (20, 30, 3)
    path = tmp_path / image.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(image.modified_ns, image.modified_ns))
    with pytest.raises(StaleError, match="holds other bytes than when it was extracted"):
        read_frame(tmp_path, image, 30, 20)


def test_a_header_that_lies_is_an_image_error(tmp_path: Path) -> None:
    image = replace(write_image(tmp_path, 0), width=31)
    with pytest.raises(ImageError, match=r"^decodes to 30 x 20, its header says 31 x 20$"):
        read_frame(tmp_path, image, 31, 20)


def test_windows_come_image_by_image(tmp_path: Path) -> None:
    images = [write_image(tmp_path, row) for row in range(3)]
    broken = tmp_path / images[1].path
    broken.write_bytes(b"\x89PNG")
    status = broken.stat()
    images[1] = replace(images[1], bytes=status.st_size, modified_ns=status.st_mtime_ns)
    windows = [
        Window(2 * row + side, row, 5 * side, 0, 20, 30, 20) for row in range(3) for side in (0, 1)
    ]
    manifest = Manifest("folder", tmp_path, None, tuple(images), tuple(windows))
    failed: list[tuple[list[int], ImageError]] = []
    first, third = read_windows(
        manifest, windows, 2, lambda group, error: failed.append(([w.index for w in group], error))
    )
    ((second, error),) = failed
    assert second == [2, 3]
    assert isinstance(error, ImageError)
    assert first[0].tolist() == [0, 1]
    assert third[0].tolist() == [4, 5]
    for rows, pixels in (first, third):
        whole = pixels_of(tmp_path, images[windows[rows[0]].image])
        np.testing.assert_array_equal(pixels, [whole[:, 0:20], whole[:, 5:25]])
    with pytest.raises(ImageError, match=r"^1.png could be read by extract and now cannot \("):
        list(read_windows(manifest, windows, ahead=2))


def test_cutting() -> None:
    frame = np.arange(24).reshape(4, 6)
    cut = cut_windows(
        frame, [Window(0, 0, 0, 0, 2, 6, 4), Window(1, 0, left=3, top=1, size=2, width=6, height=4)]
    )
    assert cut.tolist() == [[[0, 1], [6, 7]], [[9, 10], [15, 16]]]


def test_labels_are_never_mixed() -> None:
    labels = np.array([[0, 255], [7, 3]], np.uint8)
    assert resize_labels(labels, 4, 2).tolist() == [[0, 0, 255, 255], [7, 7, 3, 3]]
    assert resize_labels(resize_labels(labels, 6, 6), 2, 2).tolist() == labels.tolist()


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("ahead", [0, 1, 5, 99])
def test_results_keep_the_order(threads: int, ahead: int) -> None:
    def wait_and_square(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number**2

    assert list(map_ahead(wait_and_square, range(12), threads, ahead)) == [
        number**2 for number in range(12)
    ]


def test_no_more_than_asked_is_done_ahead() -> None:
    done: list[int] = []
    results = map_ahead(lambda n: done.append(n) or n, range(50), 2, 3)
    for taken, number in enumerate(results):
        assert number == taken
        time.sleep(0.001)
        assert len(done) <= taken + 1 + 3


def test_an_error_is_raised_where_it_is_due() -> None:
    def invert(number: int) -> float:
        return 1 / number

    results = map_ahead(invert, [1, 2, 0, 4], 2, 4)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_threads_end_with_the_results() -> None:
    before = threading.active_count()
    results = map_ahead(lambda number: number, range(100), 4, 8)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


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
