"""Faults of the machine are told from those of an image: the one stops, the other rejects."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFile

from pipeline.errors import AccessError, ImageError, MemoryShortError, PipelineError, RunError
from pipeline.images import faults
from pipeline.images.decoding import probe_image, read_label, read_rgb
from pipeline.run.frames import read_frame
from pipeline.run.manifest import Image

READERS: tuple[Callable[[Path], Any], ...] = (probe_image, read_rgb, read_label)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    PillowImage.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(path)
    return path


def fail_reads(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(os, "fdopen", fail)


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EMFILE"])
def test_a_drive_that_does_not_answer_stops_the_work(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    number = getattr(errno, code)
    fail_reads(monkeypatch, OSError(number, os.strerror(number)))
    for read in READERS:
        with pytest.raises(PipelineError) as caught:
            read(path)
        assert type(caught.value) is RunError
        assert str(caught.value).startswith(f"cannot read {path}: {os.strerror(number)}; see to")


@pytest.mark.parametrize("code", ["EACCES", "EPERM", "ELOOP"])
def test_what_may_not_be_read_is_rejected(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    number = getattr(errno, code)
    fail_reads(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(AccessError, match=r"^cannot be opened: "):
        read_rgb(path)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory")])
def test_no_memory_for_the_bytes(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_reads(monkeypatch, error)
    for read in READERS:
        with pytest.raises(MemoryShortError, match=r"a\.png cannot be read: memory is short; free"):
            read(path)


def test_a_drive_that_fails_under_a_frame_is_not_a_file_that_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image(0, "a", "all", path.name, None, 4, 3, 0, 0, "")

    def fail(self: Path, **_: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(PipelineError) as caught:
        read_frame(path.parent, replace(image), 4, 3)
    assert type(caught.value) is RunError


def test_no_memory_for_the_pixels_stops_the_work(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for read in READERS[1:]:
        with pytest.raises(MemoryShortError, match=r"a\.png cannot be read: memory is short; free"):
            read(path)
    # a claim that Pillow itself warns of is the image's own
    monkeypatch.setattr(faults, "MAX_CERTAIN_PIXELS", 11)
    for read in READERS[1:]:
        with pytest.raises(AccessError, match=r"^claims more pixels than memory holds$"):
            read(path)


def test_a_codec_without_memory_is_told_from_one_with_nonsense_sizes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise OSError("out of memory when reading image file")

    def refuse(size: int) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"^damaged: out of memory"):
        read_rgb(path)
    monkeypatch.setattr(faults, "bytearray", refuse, raising=False)
    with pytest.raises(MemoryShortError):
        read_rgb(path)
    assert builtins.bytearray is not refuse


def test_a_real_limit_on_memory(tmp_path: Path) -> None:
    """A photograph of 40 million pixels does not fit beside 50 MB; a small one does."""
    PillowImage.new("RGB", (8000, 5000)).save(tmp_path / "large.png")
    PillowImage.new("RGB", (80, 50)).save(tmp_path / "small.png")
    code = f"""
import resource
from pathlib import Path
from pipeline.errors import MemoryShortError
from pipeline.images.decoding import read_rgb
folder = Path({str(tmp_path)!r})
read_rgb(folder / "small.png")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 50 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
read_rgb(folder / "small.png")
try:
    read_rgb(folder / "large.png")
except MemoryShortError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "large.png cannot be read: memory is short" in done.stdout


def test_a_palette_image_without_its_palette_is_damaged(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PillowImage.new("P", (9, 8)).save(buffer, "PNG")
    path = tmp_path / "a.png"
    # the palette under a name that no reader knows, its checksum made right
    content = buffer.getvalue()
    start = content.index(b"PLTE")
    length = int.from_bytes(content[start - 4 : start], "big")
    chunk = b"pLTe" + content[start + 4 : start + 4 + length]
    checksum = zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:start] + chunk + checksum + content[start + 8 + length :])
    with pytest.raises(ImageError, match="damaged"):
        read_rgb(path)


def test_a_reason_is_one_line_whatever_a_chunk_is_called(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PillowImage.new("L", (9, 8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IDAT", b"I\nAT", 1))
    with pytest.raises(ImageError) as caught:
        read_rgb(path)
    assert "\n" not in str(caught.value)
