"""TIFF by tifffile: what Pillow does not read, or would read wrongly, as bands of stored values."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tifffile

from pipeline.errors import AccessError, ImageError
from pipeline.images.reading import Values

MAGICS = (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b")

_REDUCED_OR_MASK = 1 | 4
_ALPHA = (1, 2)
_WHITE_IS_0, _GREY, _RGB, _YCBCR = 0, 1, 2, 6
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
    """One image of a TIFF, whose pixels have not been decoded."""

    page: tifffile.TiffPage

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
    def _colours(self) -> int:
        by_jpeg = self.page.photometric == _YCBCR and self.page.compression == 7
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


def open_pages(data: bytes) -> dict[int, TiffPage]:
    """Give the directories that hold a full image, counted from 1: no previews and no masks."""
    with _said_as_damage():
        file = tifffile.TiffFile(io.BytesIO(data))
        pages = {n: TiffPage(page.aspage()) for n, page in enumerate(file.pages, 1)}
    full = {n: p for n, p in pages.items() if not int(p.page.subfiletype or 0) & _REDUCED_OR_MASK}
    return full or dict(list(pages.items())[:1])
