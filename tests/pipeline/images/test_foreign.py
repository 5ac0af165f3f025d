"""A file that is no image of a format that is read is named by what it is."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images.decoding import probe_image


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x14ftypqt  ", "not an image, but a film"),
        (b"version https://git-lfs.github.com", "not an image, but a git-LFS pointer"),
        (b"/annex/objects/SHA256E-s9--0.jpg", "not an image, but a git-annex pointer"),
        (b"<!DOCTYPE html><html>Not found", "not an image, but a web page (HTML)"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "not an image, but an XML page"),
        (b"<?xml version='1.0'?><!-- a drawing -->", "not an image"),
        (b"%PDF-1.7", "not an image, but a PDF document"),
        (b"\x1f\x8b\x08\0", "not an image, but an archive"),
        (b"no photograph", "not an image"),
    ],
)
def test_magic(tmp_path: Path, head: bytes, words: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(head + bytes(99))
    with pytest.raises(ImageError) as caught:
        probe_image(path)
    assert words in str(caught.value)


def test_jpeg_2000_under_a_photographs_name(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG2000")
    path = tmp_path / "a.jpg"
    path.write_bytes(stream.getvalue())
    with pytest.raises(ImageError, match=r"^a JPEG 2000 image.*save it as PNG or JPEG$"):
        probe_image(path)


def test_pillow_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.zeros((4, 5, 8), "u2"), photometric="minisblack", planarconfig="contig"
    )
    assert logging.getLogger("PIL").handlers, "without one, warnings go to the screen"
    with pytest.raises(ImageError, match="8 bands"):
        probe_image(path)
    assert capfd.readouterr() == ("", "")
