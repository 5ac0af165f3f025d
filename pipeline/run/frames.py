"""The pixels of an image's windows as every stage sees them, and cached windows in batches."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image as PillowImage

from pipeline.datasets.base import Dataset
from pipeline.datasets.labels import LabelMap
from pipeline.errors import AccessError, ImageError, StaleError
from pipeline.images.checks import MAX_CERTAIN_PIXELS
from pipeline.images.decoding import join_parts, read_nodata, read_strips
from pipeline.images.reading import Taking
from pipeline.images.stored import require_answer
from pipeline.images.windows import Window
from pipeline.run.manifest import Image, Manifest
from pipeline.storage.places import count_requests, is_remote

if TYPE_CHECKING:
    import zarr

T = TypeVar("T")
R = TypeVar("R")


def read_frame(root: Path, image: Image, width: int, height: int) -> np.ndarray:
    """Read an image, resized."""
    with _open_same(root, image) as path:
        return _read_resized(read_strips(path, image.digest), image, width, height)


def read_gaps(root: Path, image: Image) -> np.ndarray | None:
    """Read which pixels of an image hold no data, bool [y, x]; None where all of them do."""
    if not Taking.parse(image.digest).nodata:
        return None
    with _open_same(root, image) as path:
        gaps = np.zeros((image.height, image.width), bool)
        top = 0
        for part in read_nodata(path, image.digest):
            gaps[top : top + len(part)] = part
            top += len(part)
        return gaps


def read_resized_gaps(root: Path, image: Image, width: int, height: int) -> np.ndarray | None:
    """Read which pixels of the resized image are for the most part of such that hold no data."""
    if not Taking.parse(image.digest).nodata:
        return None
    with _open_same(root, image) as path:
        parts = (part.astype(np.uint8) * np.uint8(255) for part in read_nodata(path, image.digest))
        return _read_resized(parts, image, width, height) > 127


_LARGE = threading.Lock()


@contextmanager
def _open_same(root: Path, image: Image) -> Iterator[Path]:
    """Give the file of an image, which must be as it was; a gone one is said to be."""
    path = root / image.path
    if not is_remote(root):
        # not asked of an object store, where it would be a second request: the digest tells
        try:
            status = path.stat()
        except OSError as error:
            require_answer(path, error)
            raise _gone(path, error.strerror or str(error)) from error
        if (status.st_size, status.st_mtime_ns) != (image.bytes, image.modified_ns):
            raise StaleError(
                f"{path} has changed since it was extracted; run `primaps-pipe extract` again."
            )
    try:
        # one at a time: a scan of a gigapixel may take gigabytes until it is resized
        with _LARGE if _is_large(image) else nullcontext():
            yield path
    except AccessError as error:
        if not is_remote(root):
            raise
        raise _gone(path, str(error)) from error


def _read_resized(
    strips: Iterable[np.ndarray], image: Image, width: int, height: int
) -> np.ndarray:
    """Resize an image that comes in strips, bilinearly.

    Of a large one the rows are resized as they come, and the columns then: the bytes that Pillow
    gives where it resizes the rows of the whole first, as it does but for some long formats.
    """
    if not _is_large(image):
        pixels = join_parts(list(strips))
        _require_size(image, pixels.shape[1], len(pixels))
        return _resize(pixels, width, height)
    narrow, rows, columns = [], 0, image.width
    for strip in strips:
        narrow.append(_resize(strip, width, len(strip)))
        rows += len(strip)
        columns = strip.shape[1]
    _require_size(image, columns, rows)
    return _resize(join_parts(narrow), width, height)


def _is_large(image: Image) -> bool:
    return image.width * image.height > MAX_CERTAIN_PIXELS


def _require_size(image: Image, width: int, height: int) -> None:
    if (width, height) != (image.width, image.height):
        raise ImageError(
            f"decodes to {width} x {height}, its header says {image.width} x {image.height}"
        )


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    picture = PillowImage.fromarray(pixels)
    bilinear = PillowImage.Resampling.BILINEAR
    return np.asarray(picture.resize((width, height), bilinear, reducing_gap=None))


def read_truth(dataset: Dataset, path: Path, image: Image) -> np.ndarray:
    """Read the label map that a dataset has of an image, uint8 [y, x]."""
    return open_truth(dataset, path, image).classes


def open_truth(dataset: Dataset, path: Path, image: Image) -> LabelMap:
    """Read the label map that a dataset has of an image, with the values that it is stored in."""
    truth = dataset.open_label(path)
    height, width = truth.raw.shape
    if (height, width) != (image.height, image.width):
        raise ImageError(f"it is {width} x {height}, the image {image.width} x {image.height}")
    return truth


def _gone(path: Path, reason: str) -> StaleError:
    return StaleError(
        f"{path} is gone since it was extracted ({reason}); run `primaps-pipe extract` again."
    )


def read_windows(
    manifest: Manifest,
    windows: Sequence[Window],
    ahead: int,
    failed: Callable[[list[Window], ImageError], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read the row numbers and pixels of some windows, image by image, decoding in threads ahead.

    The windows of an image that cannot be read are given to ``failed``; without it they are an
    error, for ``extract`` could read them.
    """
    by_image: dict[int, list[Window]] = {}
    for window in windows:
        by_image.setdefault(window.image, []).append(window)

    def read(row: int) -> tuple[list[Window], np.ndarray | ImageError]:
        group = by_image[row]
        try:
            frame = read_frame(manifest.root, manifest.images[row], group[0].width, group[0].height)
        except ImageError as error:
            return group, error
        return group, cut_windows(frame, group)

    threads = count_requests(manifest.root, count_threads())
    for group, pixels in map_ahead(read, by_image, threads, ahead):
        if not isinstance(pixels, ImageError):
            yield np.array([window.index for window in group]), pixels
        elif failed is not None:
            failed(group, pixels)
        else:
            raise ImageError(
                f"{manifest.images[group[0].image].path} could be read by extract and now cannot "
                f"({pixels}); run `primaps-pipe extract` again."
            )


def cut_windows(frame: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Cut the windows of one image out of its resized frame."""
    return np.stack([frame[window.area] for window in windows])


def resize_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a label map to the nearest label."""
    image = PillowImage.fromarray(labels)
    return np.asarray(image.resize((width, height), PillowImage.Resampling.NEAREST))


def count_threads() -> int:
    """Return this process's share of the cores: workers are told theirs in ``OMP_NUM_THREADS``."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else os.cpu_count() or 1


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int
) -> Iterator[R]:
    """Apply a function to items in threads, at most ``ahead`` of them before they are asked for."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, threads))
    try:
        for item in items:
            # the caller's context variables, a copy for each: two threads may not enter one
            waiting.append(pool.submit(copy_context().run, function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cut_groups(items: Iterable[T], measure: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Cut items into groups that measure no more together, but for an item that does alone."""
    group: list[T] = []
    held = 0
    for item in items:
        size = measure(item)
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(item)
        held += size
    if group:
        yield group


Choices = Mapping[str, np.ndarray]
Choose = Callable[[np.random.Generator, int], Choices]
# The windows of a batch, int64 [window], and what was drawn for each.
Part = tuple[np.ndarray, Choices]


@dataclass(frozen=True)
class Batch:
    """Some windows and their rows of every array."""

    windows: np.ndarray
    arrays: dict[str, np.ndarray]
    choices: Choices = field(default_factory=dict)


@dataclass(frozen=True)
class BatchStream:
    """Reads cached arrays in batches with memory that does not grow with their length.

    The windows of an epoch are shuffled all together, as the method has it. One batch is in use
    while a thread reads the next. All are of one size, bar the last, which may be up to
    ``len(stream) - 1`` windows smaller: a step of two windows would count as much as one of 32.
    """

    arrays: Mapping[str, zarr.Array | tuple[zarr.Array, ...]]
    windows: np.ndarray
    batch: int

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch)

    def read_epoch(self, *seed: int, choose: Choose | None = None) -> Iterator[Batch]:
        """Read every window once."""
        parts = self.plan_epoch(*seed, choose=choose)
        # An epoch uses two buffers over and over: fresh ones, made in one thread and freed in
        # another, would fray the allocator's memory, and more of it the longer an epoch is.
        buffers = cycle([self._allocate(len(parts[0][0])) for _ in parts[:2]])
        tasks = zip(parts, buffers, strict=False)
        yield from map_ahead(self._read_batch, tasks, threads=1, ahead=1)

    def plan_epoch(self, *seed: int, choose: Choose | None = None) -> list[Part]:
        """List the batches of :meth:`read_epoch`, and read none."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(self.windows) if seed else self.windows
        drawn = choose(generator, len(order)) if choose else {}
        size = -(-len(self.windows) // max(len(self), 1)) or self.batch
        return [
            (order[low : low + size], {name: d[low : low + size] for name, d in drawn.items()})
            for low in range(0, len(order), size)
        ]

    def read_part(self, part: Part) -> Batch:
        """Read one of the planned batches, or some windows of one, into memory of its own."""
        return self._read_batch((part, self._allocate(len(part[0]))))

    def _allocate(self, size: int) -> dict[str, np.ndarray]:
        firsts = {name: _list_arrays(source)[0] for name, source in self.arrays.items()}
        return {
            name: np.empty((size, *array.shape[1:]), array.dtype) for name, array in firsts.items()
        }

    def _read_batch(self, task: tuple[Part, dict[str, np.ndarray]]) -> Batch:
        (windows, drawn), buffers = task
        rows = {name: buffer[: len(windows)] for name, buffer in buffers.items()}
        for name, source in self.arrays.items():
            take_items(_list_arrays(source), drawn.get(name), windows, rows[name])
        return Batch(windows, rows, drawn)


def _list_arrays(source: zarr.Array | tuple[zarr.Array, ...]) -> tuple[zarr.Array, ...]:
    return source if isinstance(source, tuple) else (source,)


def take_items(
    arrays: Sequence[zarr.Array], sources: np.ndarray | None, rows: np.ndarray, out: np.ndarray
) -> None:
    """Read rows from anywhere in several arrays of one shape."""
    # whoever reads photographs alone, such as an export, does without zarr
    from pipeline.storage.arrays import take_rows

    if sources is None or len(arrays) == 1:
        take_rows(arrays[0], rows, out)
        return
    for source in np.unique(sources):
        places = np.flatnonzero(sources == source)
        part = np.empty((len(places), *out.shape[1:]), out.dtype)
        take_rows(arrays[source], rows[places], part)
        out[places] = part


def shard_ranges(length: int, shard: int) -> Sequence[range]:
    """Return the rows of every shard of an array."""
    return [range(start, min(start + shard, length)) for start in range(0, length, shard)]
