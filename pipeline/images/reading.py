"""How an image is read that can be read in more than one way: its page, its bands, its range.

What the user chooses is a `Reading`. What is taken of one file is a `Taking`, which stands behind
the hash of the file's bytes in the manifest wherever there was a choice: whoever reads the image
later reads the same, and whatever was made of it in another reading is stale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError

FULL, PERCENTILES = "full", "percentiles"

MAX_PIXELS = 10**9
"""An image that claims more is refused."""

PERCENTS = (1, 99)
"""The percentiles that become 0 and 255."""

SAMPLE = 16
"""So many images, evenly over the folder, are looked at for percentiles and for the warning."""

LEAST_SHARE = 0.25
"""Where the percentiles take less of what the type holds, a warning is due."""

MASK, ALPHA = "mask", "alpha"
"""What says which pixels hold no data, where it is no value: a mask beside, or transparency."""

VERSION = 2
"""Of the rules that say what is taken of a file: TIFFs are looked at anew where it has risen."""

_BANDS = re.compile(r"[1-9][0-9]{0,3}(,[1-9][0-9]{0,3},[1-9][0-9]{0,3})?")
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")

Values = NDArray[Any]
"""Stored values, [y, x, band]."""


def check_bands(value: Any) -> str:
    """Give bands as ``3`` or ``3,2,1``; a ValueError for anything else."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if not _BANDS.fullmatch(text := text.replace(" ", "")):
        raise ValueError("give the number of one band, or of three for red, green, blue: 3,2,1")
    return text


def check_range(value: Any) -> str:
    """Give a range as ``full``, ``percentiles`` or ``LOW..HIGH``; a ValueError for others."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if text not in (FULL, PERCENTILES) and (match is None or float(match[1]) >= float(match[2])):
        raise ValueError(f"give {FULL}, {PERCENTILES}, or the values for black and white: 0..2047")
    return text.replace(" ", "")


@dataclass(frozen=True)
class Reading:
    """What the user chooses for all images: bands from 1, a range, all pages or the first."""

    bands: tuple[int, ...] = ()
    range: str = FULL
    all_pages: bool = False
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Reading:
        """Give the reading of the settings of extract, or of those of a version before this."""
        bands = settings.get("bands")
        return cls(
            tuple(map(int, bands.split(","))) if bands else (),
            settings.get("range") or FULL,
            settings.get("pages") == "all",
            settings.get("max_pixels", MAX_PIXELS),
        )


@dataclass(frozen=True)
class Taking:
    """What is taken of one file.

    Attributes
    ----------
    page, pages
        Which directory or frame of the file, from 1, and how many full images it holds.
    bands, of
        The bands that are taken, from 1, and how many there are; none where all colours are.
    range
        Of values beyond 8 bit: ``full``, ``LOW..HIGH``, or ``percentiles`` until they are measured.
    nodata
        What says which pixels hold no data: the value that all their bands have, ``mask``, a mask
        beside the image, or ``alpha``, their transparency; nothing where all hold some.
    """

    page: int = 1
    pages: int = 1
    bands: tuple[int, ...] = ()
    of: int = 0
    range: str = ""
    nodata: str = ""

    def __str__(self) -> str:
        parts = [f":page={self.page}/{self.pages}"] if (self.page, self.pages) != (1, 1) else []
        if self.bands:
            parts.append(f":bands={','.join(map(str, self.bands))}/{self.of}")
        parts += [f":range={self.range}"] if self.range else []
        return "".join([*parts, f":nodata={self.nodata}" if self.nodata else ""])

    @classmethod
    def parse(cls, digest: str) -> Taking:
        """Read what stands behind the hash in a digest."""
        said = dict(part.split("=") for part in digest.split(":")[1:])
        page, _, pages = said.get("page", "1/1").partition("/")
        bands, _, of = said.get("bands", "").partition("/")
        numbers = tuple(map(int, bands.split(","))) if bands else ()
        named = {name: said.get(name, "") for name in ("range", "nodata")}
        return cls(int(page), int(pages), numbers, int(of or 0), **named)


def take_bands(values: Values, bands: Sequence[int]) -> Values:
    """Take some bands, counted from 1, of [y, x, band]."""
    return values[:, :, [band - 1 for band in bands]]


def is_alpha(parts: Iterable[Values], top: int) -> bool:
    """Whether a band that is tagged as alpha is: most of what is not transparent is opaque."""
    balance = 0
    for values in parts:
        balance += int(2 * np.count_nonzero(values == top) - np.count_nonzero(values))
    return balance >= 0


def is_empty(values: Values, nodata: str) -> NDArray[np.bool_]:
    """Whether values are the one that stands for no data; all bands of a pixel that holds none."""
    if values.dtype.kind != "f":
        return values == int(nodata)
    number = float(nodata)
    return np.isnan(values) if math.isnan(number) else values == number


def scale(values: Values, range: str, bits: int, highest: float | None = None) -> NDArray[np.uint8]:
    """Bring values, [y, x, band], to 0..255: from a given range, or from all that the type holds.

    ``full``: 16-bit greyscale is divided by 257 and rounded, colour keeps its high byte; 12 bit are
    widened to 16 first. Integers of 32 bit must hold 16-bit values. Floats are 0..1 where nothing
    exceeds 1, and 0..255 otherwise. Where the values are a part of an image, ``highest`` is its
    highest.
    """
    if values.dtype == np.uint8:
        return values
    if range == PERCENTILES:
        raise ImageError("none of the folder's values beyond 8 bit could be measured")
    if (match := _RANGE.fullmatch(range)) is not None:
        low, high = float(match[1]), float(match[2])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ImageError("float pixels that are not finite: no colour stands for them")
        share = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        return np.rint(255 * share.clip(0, 1)).astype(np.uint8)
    if values.dtype.kind == "f":
        return _scale_floats(values, highest)
    return _scale_integers(values, bits)


_HINT = "give the values for black and white with --range LOW..HIGH, or --range percentiles"


def _scale_integers(values: Values, bits: int) -> NDArray[np.uint8]:
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ImageError(
            f"integer pixels {lowest}..{highest} are not 16-bit: no scale to 0..255; {_HINT}"
        )
    wide = values.astype(np.uint32)
    if bits == 12:
        wide = (wide * 65535 + 2047) // 4095
    return ((wide + 128) // 257 if values.shape[2] == 1 else wide >> 8).astype(np.uint8)


def _scale_floats(values: Values, highest: float | None) -> NDArray[np.uint8]:
    lowest, highest = float(values.min()), float(values.max()) if highest is None else highest
    if not (np.isfinite((lowest, highest)).all() and lowest >= 0 and highest <= 255):
        raise ImageError(f"float pixels {lowest:g}..{highest:g} are not 0..1 or 0..255; {_HINT}")
    factor = 255.0 if highest <= 1 else 1.0
    return np.rint(values.astype(np.float64) * factor).astype(np.uint8)


def find_top(values: Values, bits: int) -> int:
    """Give what becomes white in the range ``full``."""
    if values.dtype.kind == "f":
        return 1 if values.max() <= 1 else 255
    return 4095 if bits == 12 else 65535


_MOST_SAMPLED = 2**16


def find_step(size: int) -> int:
    """Say how far apart the values of an image are that are looked at: of every image as many."""
    return max(1, size // _MOST_SAMPLED)


def thin(values: Values) -> Values:
    """Take some of the values of an image, evenly, that are numbers."""
    thinned = values.reshape(-1)[:: find_step(values.size)]
    return thinned[np.isfinite(thinned)]


def measure(samples: Sequence[Values]) -> tuple[float, float]:
    """Give the percentiles of the values of some images together."""
    low, high = np.percentile(np.concatenate([*map(thin, samples)]), PERCENTS)
    return float(low), float(high)


def spread(low: float, high: float) -> str:
    """Write a measured range as one that can be given; never an empty one."""
    return f"{low:.6g}..{high if high > low else low + 1:.6g}"
