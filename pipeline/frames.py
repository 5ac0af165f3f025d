"""Frames: the pixels of an image's windows, as every stage sees them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image as PillowImage

from pipeline.errors import AccessError, ImageError, StaleError
from pipeline.image_faults import require_answer
from pipeline.images import read_rgb
from pipeline.manifest import Image, Manifest
from pipeline.places import is_remote
from pipeline.windows import Window

# Threads that wait for a store rather than decode.
FETCH_THREADS = 16

T = TypeVar("T")
R = TypeVar("R")


def read_frame(root: Path, image: Image, width: int, height: int) -> np.ndarray:
    """Read an image, resized.

    Parameters
    ----------
    root
        The dataset's root.
    image
        Row of the manifest.
    width, height
        Size to resize to (bilinear with antialiasing), pixels.

    Returns
    -------
    numpy.ndarray
        uint8 [y, x, rgb].

    Raises
    ------
    ImageError
        It cannot be read.
    StaleError
        The file is not the one that the manifest lists.
    RunError, MemoryShortError
        The machine is at fault and not the file.
    """
    path = root / image.path
    if not is_remote(root):
        _require_unchanged(path, image)
    try:
        # the bytes are in memory anyway: hashing them costs a twentieth of decoding them
        pixels = read_rgb(path, image.digest)
    except AccessError as error:
        if not is_remote(root):
            raise
        raise _gone(path, str(error)) from error
    if pixels.shape[:2] != (image.height, image.width):
        raise ImageError(
            f"decodes to {pixels.shape[1]} x {pixels.shape[0]}, "
            f"its header says {image.width} x {image.height}"
        )
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = PillowImage.fromarray(pixels).resize(
        (width, height), PillowImage.Resampling.BILINEAR, reducing_gap=None
    )
    return np.asarray(resized)


def _require_unchanged(path: Path, image: Image) -> None:
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


def _gone(path: Path, reason: str) -> StaleError:
    return StaleError(
        f"{path} is gone since it was extracted ({reason}); run `primaps-pipe extract` again."
    )


def read_windows(
    manifest: Manifest, windows: Sequence[Window], ahead: int
) -> Iterator[tuple[list[Window], np.ndarray | ImageError]]:
    """Read the pixels of some windows, image by image, decoding in threads beside the consumer.

    Parameters
    ----------
    manifest
        Lists the images and says where they lie.
    windows
        What to read; windows of one image are decoded once.
    ahead
        How many images may be decoded before they are asked for.

    Yields
    ------
    windows, pixels
        The windows of one image and their pixels uint8 [window, y, x, rgb], or why there are none.
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

    threads = count_threads()
    if is_remote(manifest.root):
        threads = max(threads, FETCH_THREADS)
    return map_ahead(read, by_image, threads, ahead)


def cut_windows(frame: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Cut the windows of one image out of its resized frame.

    Parameters
    ----------
    frame
        [y, x, ...].
    windows
        Windows of one size.

    Returns
    -------
    numpy.ndarray
        [window, y, x, ...].
    """
    return np.stack([frame[w.top : w.top + w.size, w.left : w.left + w.size] for w in windows])


def resize_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a label map to the nearest label.

    Parameters
    ----------
    labels
        uint8 [y, x].
    width, height
        New size, pixels.

    Returns
    -------
    numpy.ndarray
        uint8 [y, x].
    """
    image = PillowImage.fromarray(labels)
    return np.asarray(image.resize((width, height), PillowImage.Resampling.NEAREST))


def count_threads() -> int:
    """Return this process's share of the processor's cores.

    Local worker processes are told theirs in ``OMP_NUM_THREADS``, which numerical libraries obey.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else os.cpu_count() or 1


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int
) -> Iterator[R]:
    """Apply a function to items in threads, at most ``ahead`` of them before they are asked for.

    The threads see the caller's context variables.

    Yields
    ------
    R
        The results in the order of the items; an exception is raised where its item is due.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, threads))
    try:
        for item in items:
            # a context of its own: two threads may not enter one
            waiting.append(pool.submit(copy_context().run, function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
