"""Frames: the pixels of the file that the manifest lists, decoded ahead of their use."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.functional as tv
from PIL import Image as PillowImage

from pipeline.errors import ImageError, StaleError
from pipeline.frames import cut_windows, map_ahead, read_frame, read_windows, resize_labels
from pipeline.images import probe_image
from pipeline.manifest import Image, Manifest
from pipeline.windows import Window, fit_size


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
    first, second, third = read_windows(manifest, windows, ahead=2)
    assert [w.index for w in first[0]] == [0, 1]
    assert [w.index for w in second[0]] == [2, 3]
    assert isinstance(second[1], ImageError)
    assert [w.index for w in third[0]] == [4, 5]
    for group, pixels in (first, third):
        whole = pixels_of(tmp_path, images[group[0].image])
        assert isinstance(pixels, np.ndarray)
        np.testing.assert_array_equal(pixels, [whole[:, 0:20], whole[:, 5:25]])


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
