"""TIFF by tifffile: what Pillow does not read, or would read wrongly, as bands of stored values."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import tifffile

from pipeline.errors import AccessError, ImageError
from pipeline.images.reading import Values

MAGICS = (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b")

_MASK = 4
_REDUCED_OR_MASK = 1 | _MASK
_ALPHA = (1, 2)
_WHITE_IS_0, _GREY, _RGB, _YCBCR = 0, 1, 2, 6
_JPEG = 7
# Tags of GeoTIFF that say where the pixels lie, and that of GDAL that says which hold no data.
_PLACING = (33550, 33922, 34264, 50844)
_NO_DATA = 42113
# Values that are decoded at a time.
_STRIP = 2**24
# What stands in the place of row 0 and column 0, by TIFF 6.0.
_TURNS = {
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.transpose(1, 0, 2),
    6: lambda v: v.transpose(1, 0, 2)[:, ::-1],
    7: lambda v: v.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda v: v.transpose(1, 0, 2)[::-1],
}

# it remarks on tags that nobody reads, and names no file
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def turn(values: Values, orientation: int) -> Values:
    """Turn stored values upright."""
    return _TURNS[orientation](values) if orientation in _TURNS else values


@contextmanager
def _said_as_damage() -> Iterator[None]:
    """Let what tifffile and its codecs raise look like any damage."""
    try:
        yield
    except (AttributeError, RuntimeError) as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class TiffPage:
    """One image of a TIFF, whose pixels have not been decoded, and its mask where it has one."""

    page: tifffile.TiffPage
    mask: TiffPage | None = None

    @property
    def bands(self) -> int:
        """How many values a pixel has."""
        return int(self.page.samplesperpixel)

    @property
    def bits(self) -> int:
        """How many bits a value has."""
        return int(self.page.bitspersample)

    @property
    def orientation(self) -> int:
        """How the image is to be turned, 1..8."""
        return int(self.page.tags.valueof(274, 1) or 1)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = int(self.page.imagewidth), int(self.page.imagelength)
        return (height, width) if self.orientation >= 5 else (width, height)

    @property
    def alpha(self) -> int:
        """The band, from 1, that is tagged as alpha; 0 for none."""
        extras = self.page.extrasamples
        found = next((n for n, kind in enumerate(extras) if kind in _ALPHA), None)
        if found is None and not extras and self._colours == 3 and self.bands == 4:
            return 4
        return 0 if found is None else self.bands - len(extras) + 1 + found

    @property
    def premultiplied(self) -> bool:
        """Whether colours are multiplied by alpha."""
        return 1 in self.page.extrasamples

    @property
    def is_georeferenced(self) -> bool:
        """Whether its tags say where on a map it lies."""
        return any(tag in self.page.tags for tag in _PLACING)

    @property
    def nodata(self) -> str:
        """The value that stands for no data, as GDAL notes it; nothing where no pixel can have it.

        It is written so that equal values are equal texts.
        """
        text, dtype = str(self.page.tags.valueof(_NO_DATA, "")).strip(" \0"), self.page.dtype
        with suppress(ValueError, OverflowError):
            value = float(text)
            if dtype is not None and dtype.kind == "f":
                return repr(float(dtype.type(value)))
            if dtype is not None and dtype.kind in "ui" and value == int(value):
                limits = np.iinfo(dtype)
                return str(int(value)) if limits.min <= value <= limits.max else ""
        return ""

    @property
    def _colours(self) -> int:
        by_jpeg = self.page.photometric == _YCBCR and self.page.compression == _JPEG
        if self.page.photometric == _RGB or by_jpeg:
            return 3
        return 1 if self.page.photometric == _GREY and self.bands - bool(self._tagged) == 1 else 0

    @property
    def _tagged(self) -> int:
        return sum(kind in _ALPHA for kind in self.page.extrasamples)

    def __str__(self) -> str:
        kind = {"u": "integers", "i": "signed integers", "f": "floats"}
        dtype = self.page.dtype
        values = f"{self.bits}-bit {kind.get(dtype.kind, 'values') if dtype else 'values'}"
        return f"a TIFF of {self.bands} band{'s' * (self.bands > 1)} of {values}"

    def choose(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """Choose red, green, blue, or grey: the bands that are given, or those the tags name."""
        photometric = self.page.photometric
        if self.bands > 1 and 258 not in self.page.tags:
            raise ImageError("damaged: a TIFF that does not say how many bits its bands have")
        if photometric == _WHITE_IS_0:
            raise ImageError(f"{self} in which 0 is white: save it with 0 as black")
        if self.page.dtype is None or self.page.dtype.kind not in "uif" or self.bits < 8:
            raise ImageError(f"{self} that nobody has agreed colours for: save it as RGB")
        if given:
            return given
        if photometric not in (_GREY, _RGB) and not self._colours:
            name = getattr(photometric, "name", photometric)
            raise ImageError(f"{self} as {name} in a form that is not read: save it as RGB")
        if not self._colours:
            raise ImageError(
                f"{self} that are not said to be red, green and blue: name three of them with "
                "--bands, such as --bands 1,2,3, or one"
            )
        if self.bands < self._colours:
            raise ImageError(f"{self}, which is said to be in colour: its tags contradict it")
        return tuple(range(1, self._colours + 1))

    def read(self) -> Values:
        """Decode all bands, upright, [y, x, band]."""
        with _said_as_damage():
            try:
                values = self.page.asarray(squeeze=False, maxworkers=1)
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                name = getattr(self.page.compression, "name", self.page.compression)
                raise AccessError(
                    f"{self}, compressed by {name}, which the package imagecodecs reads: "
                    "pip install 'primaps-pipe[codecs]'"
                ) from error
        if values.shape[1] != 1:
            raise ImageError(f"{self} and {values.shape[1]} layers in depth: save each as an image")
        flat = values[:, 0].transpose(1, 2, 0, 3)
        native = flat.reshape(*flat.shape[:2], -1)
        return turn(native.astype(native.dtype.newbyteorder("="), copy=False), self.orientation)

    @property
    def is_cut(self) -> bool:
        """Whether :meth:`read_rows` can decode it."""
        page = self.page
        known = page.compression in tifffile.TIFF.DECOMPRESSORS
        plain = page.predictor == 1 or page.predictor in tifffile.TIFF.UNPREDICTORS
        values = page.dtype is not None and page.dtype.kind in "uif" and self.bits >= 8
        upright = self.orientation == 1 and page.imagedepth == 1 and page.jpegheader is None
        return (
            (page.is_final or (known and plain and len(page.dataoffsets) > 0))
            and values
            and upright
            and (page.photometric in (_GREY, _RGB) or bool(self._colours))
        )

    def read_rows(self) -> Iterator[Values]:
        """Decode all bands some rows at a time, from the top; each part is [y, x, band]."""
        with _said_as_damage():
            yield from self._read_plain() if self.page.is_final else self._read_chunks()

    def _read_plain(self) -> Iterator[Values]:
        page, file = self.page, self.page.parent.filehandle
        planes, _, height, width, samples = page.shaped
        assert page.dtype is not None
        stored = np.dtype(page.parent.byteorder + page.dtype.char)
        rows = max(1, _STRIP // (planes * width * samples))
        for top in range(0, height, rows):
            count = min(rows, height - top) * width * samples
            part = []
            for plane in range(planes):
                before = (plane * height + top) * width * samples
                file.seek(page.dataoffsets[0] + before * stored.itemsize)
                values = file.read_array(stored, count)
                part.append(values.reshape(-1, width, samples))
            joined = part[0] if planes == 1 else np.concatenate(part, axis=2)
            yield joined.astype(page.dtype, copy=False)

    def _read_chunks(self) -> Iterator[Values]:
        page, file = self.page, self.page.parent.filehandle
        planes, _, height, width, samples = page.shaped
        deep = page.tilelength if page.is_tiled else page.rowsperstrip
        across = math.ceil(width / page.tilewidth) if page.is_tiled else 1
        down = math.ceil(height / deep)
        options = {"jpegtables": page.jpegtables} if page.compression == _JPEG else {}
        for row in range(down):
            rows = min(deep, height - row * deep)
            # of what is left out, as tifffile fills it
            band = np.full((rows, width, planes * samples), page.nodata, page.dtype)
            for plane in range(planes):
                for column in range(across):
                    number = (plane * down + row) * across + column
                    file.seek(page.dataoffsets[number])
                    data = file.read(page.databytecounts[number]) or None
                    chunk, (_, _, _, left, _), (_, high, wide, _) = page.decode(
                        data, number, **options
                    )
                    if chunk is not None:
                        bands = slice(plane * samples, (plane + 1) * samples)
                        place = band[:high, left : left + wide, bands]
                        place[...] = chunk[0, : len(place), : place.shape[1]]
            yield band


def open_pages(file: BinaryIO) -> dict[int, TiffPage]:
    """Give the directories that hold a full image, counted from 1: no previews and no masks.

    A mask of the size of an image, behind it, is a part of it.
    """
    with _said_as_damage():
        pages = [page.aspage() for page in tifffile.TiffFile(file).pages]
    full: dict[int, TiffPage] = {}
    last = 0
    for number, page in enumerate(pages, 1):
        kind = int(page.subfiletype or 0)
        if not kind & _REDUCED_OR_MASK:
            last, full[number] = number, TiffPage(page)
        elif last and kind == _MASK and _is_mask(page, full[last].page):
            full[last] = replace(full[last], mask=TiffPage(page))
    return full or dict(enumerate(map(TiffPage, pages[:1]), 1))


def _is_mask(mask: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    same = (mask.imagewidth, mask.imagelength) == (page.imagewidth, page.imagelength)
    return same and mask.photometric == _MASK and mask.samplesperpixel == 1
