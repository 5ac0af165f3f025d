"""Reading photographs and label maps: each file gives a plain array, or one short reason why not.

An image is rejected for what its bytes are. A drive that does not answer and memory that is short
say nothing of it: they stop the work, which goes on where it was, and no image is lost silently.

The rules that decide what a pixel is:

- EXIF (or XMP) orientation is applied, so an array is upright as a viewer shows it. Metadata that
  cannot be parsed counts as absent, as it does in a viewer.
- Transparency is composited over white, which is what a page or a viewer shows; the colours hidden
  under transparent pixels are arbitrary and never reach the features. The fourth band of a TIFF is
  transparency where its tag and its values say so (`is_alpha`), and left out otherwise.
- Values beyond 8 bit are scaled by the rule of `scale`: from all that their type holds, from a
  range that is given, or from one that was measured.
- The bands of a TIFF are those that its tags name as red, green and blue, or grey, or those that
  are given. Where neither says which they are, it is refused.
- CMYK is converted without its colour profile, LAB through the sRGB profile, as Pillow does.
- Of an animation or a multi-page file the first frame is read, or each; previews and masks beside
  the image of a TIFF are no pages, and neither are the further pictures of a JPEG.
- A ``.mat`` file (the Potsdam benchmark) holds ``img`` (height x width x 3 or more channels; the
  first three are red, green, blue) or ``gt`` (height x width class ids).

Only the formats of `pipeline.images.formats` are tried, whatever the file is called: none starts
another program. Pillow reads them; what it reads wrongly or not at all of a TIFF is read by
tifffile. What a decoder would believe is asked first, in `checks`.
"""

from __future__ import annotations

import io
import logging
import math
import shlex
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import AccessError, ImageError, MemoryShortError, StaleError, count_of
from pipeline.images.checks import (
    JPEG_MAGIC,
    MAX_CERTAIN_PIXELS,
    PNG_MAGIC,
    check_claim,
    check_image,
    claimed_size,
    count_inflated,
    png_bytes,
    png_chunks,
)
from pipeline.images.foreign import name_content
from pipeline.images.formats import FORMATS, HINT, load_extra, name_extra
from pipeline.images.mat import one_line, read_array, read_shape
from pipeline.images.reading import (
    ALPHA,
    FULL,
    MASK,
    MAX_PIXELS,
    Reading,
    Taking,
    Values,
    find_step,
    find_top,
    is_alpha,
    is_empty,
    scale,
    take_bands,
)
from pipeline.images.stored import Stored, is_mat, memory_short, open_stored
from pipeline.images.tiff import MAGICS, TiffPage, open_pages, turn
from pipeline.storage.files import remove_file, require_inside
from pipeline.storage.places import is_remote

# Pillow's own limit is for all programs alike: ours is asked of every image that is opened.
Image.MAX_IMAGE_PIXELS = None

# What Pillow's parsers are known to raise on damaged bytes.
_DAMAGE = (
    AssertionError,
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    EOFError,
    LookupError,
    TypeError,
    # of a JPEG XL
    RuntimeError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# What Pillow's codecs say where they find no memory, or sizes that they cannot multiply.
_CODEC_SHORT = "out of memory"
# The most that a decoded pixel takes, and its conversion beside it.
_PIXEL_BYTES = 8


@contextmanager
def _damage_as_reason(path: Path, stored: Stored, variable: str) -> Iterator[None]:
    """Turn what a decoder raises on damaged bytes into one short reason."""
    try:
        yield
    except ImageError:
        raise
    except _BOMB as error:
        raise ImageError(f"decompression bomb: {one_line(str(error)).split(', ')[0]}") from error
    except MemoryError as error:
        if _count_claim(path, stored, variable) <= MAX_CERTAIN_PIXELS:
            raise memory_short(path) from error
        raise AccessError("claims more pixels than memory holds") from error
    except _DAMAGE as error:
        message = one_line(str(error)) or type(error).__name__
        if isinstance(error, AssertionError):
            message = "its parts do not fit together"
        if message.startswith(_CODEC_SHORT) and _is_short(_count_claim(path, stored, variable)):
            raise memory_short(path) from error
        if "truncated" in message.lower() or isinstance(error, EOFError):
            raise ImageError("truncated: the file ends early") from error
        if isinstance(error, struct.error):
            message = "the header ends early"
        raise ImageError(f"damaged: {message}") from error


def _count_claim(path: Path, stored: Stored, variable: str) -> int:
    with suppress(ImageError, MemoryError, *_BOMB, *_DAMAGE):
        if is_mat(path):
            return math.prod(read_shape(stored.data, variable))
        with _open_image(stored) as image:
            return image.width * image.height
    return 0


def _is_short(pixels: int) -> bool:
    """Whether memory is short for an image of a usual size, and not its sizes nonsense."""
    try:
        bytearray(_PIXEL_BYTES * pixels)
    except MemoryError:
        return pixels <= MAX_CERTAIN_PIXELS
    return False


Ids = NDArray[np.integer[Any]]
_STRIP_PIXELS = 2**22


def to_rgb(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """Convert a decoded image of 8 bits to red, green and blue, some rows at a time."""
    width, height = image.size
    # each step is a copy, and a large photograph has no room for five of them
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        yield np.array(_opaque(strip))


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colours)
    return image if image.mode == "RGB" else image.convert("RGB")


def find_raw_mode(image: Image.Image) -> str:
    """Give Pillow's name of how the pixels are stored, before they are decoded; '' if unknown."""
    arguments = next((tile[3] for tile in getattr(image, "tile", ())), "")
    name = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return name if isinstance(name, str) else ""


def find_label_spread(image: Image.Image) -> Callable[[Ids], Ids] | None:
    """Give what undoes the scaling to 0..255 or 0..65535 that Pillow applies to grey values.

    2 and 4-bit values are spread over 0..255, and those of a PGM from 0..its own maximum.
    """
    raw, _, suffix = find_raw_mode(image).partition(";")
    if "I" in suffix:
        raise ImageError("a label map in which 0 is stored as white: save its ids as a PNG")
    if image.mode == "L" and raw == "L" and suffix[:1] in ("2", "4"):
        step = 85 if suffix.startswith("2") else 17
        return lambda ids: ids // step
    if image.format == "PPM" and image.mode in ("L", "I"):
        tile = image.tile[0]  # type: ignore[attr-defined]
        top = 255 if image.mode == "L" else 65535
        highest = tile[3][1] if tile[0] in ("ppm", "ppm_plain") else top
        return lambda ids: ((ids.astype(np.int64) * highest + top // 2) // top).astype(ids.dtype)
    return None


# Remarks on metadata that nobody reads, or on a file without its name, would stand between the
# lines of the progress.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Formats in which a colour of a label map comes out as it was painted.
_EXACT = ("PNG", "TIFF", "BMP", "PPM")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = frozenset((5, 6, 7, 8))


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image without decoding its pixels; the digest is of bytes and reading."""

    width: int
    height: int
    bytes: int
    modified_ns: int
    digest: str
    changed_ns: int = 0


def read_rgb(path: Path, digest: str = "") -> NDArray[np.uint8]:
    """Read a photograph upright, as 8-bit red, green, blue, by the rules of this module."""
    return join_parts(list(read_strips(path, digest)))


def join_parts(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put the parts of an image, [y, ...], below each other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_strips(path: Path, digest: str = "") -> Iterator[NDArray[np.uint8]]:
    """Read a photograph as :func:`read_rgb` does, some rows at a time from the top."""
    with open_stored(path) as stored:
        if digest:
            _require_same(path, stored, digest)
        with _damage_as_reason(path, stored, "img"):
            if is_mat(path):
                yield _mat_rgb(stored.data)
                return
            # what was listed under this digest was within the limit then
            taking = Taking.parse(digest) if digest else _take(stored, Reading())[0][0]
            yield from _open_taken(stored, taking).read_strips(taking)


def _require_same(path: Path, stored: Stored, digest: str) -> None:
    if stored.digest == digest.partition(":")[0]:
        return
    if is_remote(path):
        raise StaleError(
            f"{path} has changed since it was extracted; run `primaps-pipe extract` again."
        )
    raise StaleError(
        f"{path} holds other bytes than when it was extracted, under the same size and time; "
        "run `primaps-pipe extract` again, after "
        f"`touch {shlex.quote(str(path))}` if that finds nothing to do."
    )


def read_sample(path: Path, digest: str) -> tuple[Values, int]:
    """Read some values beyond 8 bit as they are stored, evenly, and what becomes white of them."""
    taking, sample, top, before = Taking.parse(digest), [], 0, 0
    with open_stored(path) as stored, _damage_as_reason(path, stored, "img"):
        source = _open_taken(stored, taking)
        bands = len(taking.bands)
        for part in source.read_parts(taking.nodata):
            values = take_bands(part.values, taking.bands) if bands else part.values
            step = find_step(math.prod(source.size) * values.shape[2])
            if part.nodata is not None:
                values = values[~_find_empty(values, part, taking)]
            if not values.size:
                continue
            sample.append(values.reshape(-1)[-before % step :: step])
            top, before = max(top, find_top(values, part.bits)), before + values.size
    if not sample:
        raise ImageError("no pixel holds data")
    return np.concatenate(sample), top


def read_nodata(path: Path, digest: str) -> Iterator[NDArray[np.bool_]]:
    """Read which pixels of a photograph hold no data, some rows at a time from the top."""
    taking = Taking.parse(digest)
    with open_stored(path) as stored:
        _require_same(path, stored, digest)
        with _damage_as_reason(path, stored, "img"):
            yield from _open_taken(stored, taking).read_nodata(taking.nodata)


def probe_image(path: Path) -> ImageHeader:
    """Read a photograph's bytes once, hash them, and parse the header alone.

    A file cut short after its header passes here and fails in `read_rgb`, which decodes it.
    """
    return probe_pages(path, Reading())[0]


def probe_pages(path: Path, reading: Reading) -> list[ImageHeader]:
    """Probe the pages of a file that are to be read, and choose what is taken of each.

    Whether the fourth band of a TIFF is transparency is told by its pixels.
    """
    with open_stored(path) as stored, _damage_as_reason(path, stored, "img"):
        if is_mat(path):
            height, width = read_shape(stored.data, "img")[:2]
            found = [(Taking(), (width, height))]
        else:
            found = _take(stored, reading)
        hashed, stamp = stored.digest, (stored.length, stored.modified_ns)
        return [
            ImageHeader(*size, *stamp, f"{hashed}{taking}", stored.changed_ns)
            for taking, size in found
        ]


def read_label(path: Path) -> NDArray[np.integer[Any]]:
    """Read a label map's raw ids, [y, x]: palette indices and grey values as stored.

    One of colours gives them as they are: uint8 [y, x, rgb].
    """
    with open_stored(path) as stored, _damage_as_reason(path, stored, "gt"):
        if is_mat(path):
            return _mat_label(stored.data)
        with _open_image(stored) as image:
            if image.format in ("JPEG", "MPO"):
                raise ImageError("a label map in JPEG, which blurs class ids: save it as PNG")
            if not _is_plain(image):
                raise ImageError("a label map in a rare form of TIFF: save its ids as a PNG")
            coloured = image.mode in ("RGB", "RGBA") and image.format in _EXACT
            if not (coloured or image.mode in ("1", "L", "P", "I") or image.mode[:4] == "I;16"):
                raise ImageError(
                    f"a label map of mode {image.mode}, not of class ids:"
                    " save one channel of ids as a greyscale or palette PNG"
                )
            if coloured and find_raw_mode(image).partition(";")[2].startswith("16"):
                raise ImageError("a label map of 16-bit colours: save it with 8 bits")
            spread = None if coloured else find_label_spread(image)
            ids = np.array(_decode(image, stored.data))
    if coloured:
        if (ids[..., 3:] != 255).any():
            raise ImageError("a label map of colours with transparent pixels: save it without")
        return ids[..., :3]
    if ids.dtype == np.bool_:
        return ids.astype(np.uint8)
    ids = ids.astype(ids.dtype.newbyteorder("="))
    return ids if spread is None else spread(ids)


def read_label_nodata(path: Path) -> str:
    """Read which id of a label map stands for no data, as GDAL notes it in a TIFF; or nothing."""
    with open_stored(path) as stored:
        page = list_pages(stored).get(1) if stored.data.startswith(MAGICS) else None
    return "" if page is None else page.nodata


def _open_image(stored: Stored, most: int = MAX_PIXELS) -> Image.Image:
    data = stored.data
    extra = name_extra(data)
    if extra and not load_extra(extra):
        raise ImageError(f"an image in {extra}: {HINT}")
    try:
        image = Image.open(stored.open(), formats=(extra,) if extra else FORMATS)
    except UnidentifiedImageError as error:
        claim = claimed_size(data)
        if claim is not None and 0 in claim:
            raise ImageError(f"claims {claim[0]} x {claim[1]} pixels") from error
        if extra or data.startswith((JPEG_MAGIC, PNG_MAGIC)):
            raise ImageError("damaged: the header cannot be read") from error
        kind, is_picture = name_content(data)
        if is_picture:
            raise ImageError(f"{kind}, under another name: save it as PNG or JPEG") from error
        if kind:
            raise ImageError(f"not an image, but {kind}") from error
        raise ImageError("not an image") from error
    check_claim(image.width, image.height, stored.length, most)
    return image


def is_upright(data: bytes) -> bool:
    """Whether a photograph is stored as it is shown."""
    with _open_image(Stored.of(data)) as image:
        return _orientation(image, data) == 1


def _orientation(image: Image.Image, data: bytes) -> int:
    """Give the EXIF orientation (1..8) still to be applied, without decoding a pixel."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself, and gives the turned size on opening.
    if image.format == "PNG" and "exif" not in image.info:
        # wherever it stands: some writers put it behind the pixels
        for kind, start, stop in png_chunks(data):
            if kind == b"eXIf":
                image.info["exif"] = data[start:stop]
                break
    try:
        # The base class's method: that of PNG decodes the whole image to find late metadata.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, LookupError, OSError, TypeError, struct.error):
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _decode(image: Image.Image, data: bytes) -> Image.Image:
    """Decode an opened image, upright, or say why it would come out wrong."""
    orientation = _orientation(image, data)
    check_image(image, data)
    image.load()
    # Pillow leaves the pixels of a PNG that ends early 0 without a word, and so are many whole
    # images: only counting tells
    last = (0, image.height - 1, *image.size)
    blank = image.format == "PNG" and not np.asarray(image.crop(last)).any()
    if blank and count_inflated(data) < png_bytes(data):
        raise ImageError("truncated: the pixels end early")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


_WEBP_IN_TIFF = 50001


def _is_plain(image: Image.Image) -> bool:
    """Whether Pillow, which has opened an image, also decodes it rightly."""
    if image.format != "TIFF":
        return True
    tags = image.tag_v2  # type: ignore[attr-defined]
    in_planes = tags.get(284, 1) == 2 and tags.get(277, 1) > 1
    # libtiff has turned the bytes around, and Pillow does so again
    twice = tags.prefix == b"MM" and tags.get(259, 1) != 1 and image.mode in ("I", "F")
    # what Pillow's own libtiff is built without
    return not (in_planes or twice or tags.get(259, 1) == _WEBP_IN_TIFF)


def _find_empty(values: Values, part: Part, taking: Taking) -> NDArray[np.bool_]:
    """Find what no scale is for: of a value that stands for no data, also that of single bands."""
    assert part.nodata is not None
    if taking.nodata in (MASK, ALPHA):
        return np.broadcast_to(part.nodata[:, :, None], values.shape)
    return is_empty(values, taking.nodata)


class Part(NamedTuple):
    """Some rows of an image: all its bands, [y, x, band], and where they hold no data, [y, x].

    ``bits`` are those of a value, ``alpha`` the band that is transparency, from 1, or 0.
    """

    values: Values
    bits: int
    alpha: int
    nodata: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Source:
    """One page of a file, opened by Pillow where that decodes it rightly; a TIFF by tifffile."""

    data: bytes
    image: Image.Image | None
    tiff: TiffPage | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        if self.image is None:
            assert self.tiff is not None
            return self.tiff.size
        width, height = self.image.size
        turned = _orientation(self.image, self.data) in _TURNED
        return (height, width) if turned else (width, height)

    @property
    def _is_deep(self) -> bool:
        if self.image is None:
            assert self.tiff is not None
            return self.tiff.bits > 8
        deep = self.image.mode[0] in "IF" or ";16" in find_raw_mode(self.image)
        # what a PPM holds is scaled by what its header says
        return deep and self.image.format != "PPM"

    @property
    def _is_cut(self) -> bool:
        """Whether it is decoded by parts, and not at once."""
        image, tiff = self.image, self.tiff
        if tiff is None or not tiff.is_cut or math.prod(tiff.size) <= MAX_CERTAIN_PIXELS:
            return False
        # Pillow's own rounding of what is not premultiplied any more
        same = image is None or (image.mode in _PLAIN_MODES and not tiff.premultiplied)
        return same and (image is None or image.mode != "1")

    def take(self, taking: Taking, reading: Reading) -> Taking:
        """Choose the bands and the range of a page."""
        taking = replace(taking, range=reading.range if self._is_deep else "")
        count, natural = self._list_colours(reading)
        bands = reading.bands or natural
        if max(bands) > count:
            raise ImageError(f"it has {count_of(count, 'bands')}, and no band {max(bands)}")
        has_alpha = self._has_alpha()
        taking = replace(taking, nodata=self._find_nodata(bands, has_alpha=has_alpha))
        transparent = has_alpha and not reading.bands
        if bands == natural and count in (len(bands), len(bands) + transparent):
            return taking
        return replace(taking, bands=bands, of=count)

    def _find_nodata(self, bands: Sequence[int], *, has_alpha: bool) -> str:
        """Find what says which pixels hold no data, as GDAL does; of transparency only on a map."""
        if self.tiff is None or (self.image is not None and self.image.mode not in _PLAIN_MODES):
            return ""
        if self.tiff.mask is not None:
            return MASK
        if self.tiff.nodata:
            return self.tiff.nodata
        clear = has_alpha and self.tiff.is_georeferenced and self.tiff.alpha not in (0, *bands)
        return ALPHA if clear else ""

    def _list_colours(self, reading: Reading) -> tuple[int, tuple[int, ...]]:
        """Count the bands, and say which are red, green, blue, or grey."""
        if self.tiff is not None and (self.image is None or reading.bands):
            return self.tiff.bands, self.tiff.choose(reading.bands)
        assert self.image is not None
        count = len(self.image.getbands())
        if self.image.mode not in _PLAIN_MODES:
            count = 3 + self.image.has_transparency_data
        elif self.tiff is not None:
            count = self.tiff.bands
        return count, (1, 2, 3) if count > 2 else (1,)

    def _has_alpha(self) -> bool:
        if self.tiff is None or (self.image is not None and self.image.mode not in _PLAIN_MODES):
            return True
        if not self.tiff.alpha:
            return False
        if self.image is None or self._is_cut:
            band, top = self.tiff.alpha - 1, 2**self.tiff.bits - 1
            return is_alpha((part[:, :, band] for part in self._read_tiff()), top)
        decoded = _decode(self.image, self.data)
        straight = decoded.convert("LA") if decoded.mode == "La" else decoded
        if "A" not in straight.getbands():
            return False
        return is_alpha([np.asarray(straight.getchannel("A"))], 255)

    def read_strips(self, taking: Taking) -> Iterator[NDArray[np.uint8]]:
        """Decode to red, green and blue, some rows at a time from the top."""
        image = self.image
        plain = not (self._is_cut or (taking.nodata and self._is_deep))
        if image is not None and plain and taking.range in ("", FULL) and image.mode[0] not in "IF":
            if not taking.bands:
                yield from to_rgb(_decode(image, self.data))
                return
            if taking.bands in ((1,), (1, 2, 3)) and "a" not in find_raw_mode(image):
                mode = {("RGBA", 3): "RGB", ("RGB", 3): "RGB", ("LA", 1): "L", ("L", 1): "L"}
                if found := mode.get((image.mode, len(taking.bands))):
                    yield from to_rgb(_decode(image, self.data).convert(found))
                    return
        highest = self._find_highest(taking)
        for part in self.read_parts(taking.nodata):
            yield self._finish(part, taking, highest)

    def _find_highest(self, taking: Taking) -> float | None:
        """Find the highest of the floats that are decoded by parts: their scale goes by it."""
        if not self._is_cut or taking.range != FULL:
            return None
        found = []
        for part in self.read_parts(taking.nodata):
            if part.values.dtype.kind != "f":
                return None
            colours = part.alpha - 1 if part.alpha and not taking.bands else 3
            found.append(float(self._choose(part, taking)[:, :, :colours].max()))
        return max(found)

    def _choose(self, part: Part, taking: Taking) -> Values:
        """Choose the bands; where there is no data, a value that any scale has."""
        values = part.values
        if taking.bands:
            values = take_bands(values, taking.bands)
        if part.nodata is not None and values.dtype != np.uint8:
            values = np.where(_find_empty(values, part, taking), values.dtype.type(0), values)
        return values

    def _finish(self, part: Part, taking: Taking, highest: float | None) -> NDArray[np.uint8]:
        values = self._choose(part, taking)
        if part.alpha and not taking.bands:
            return self._composite(part._replace(values=values), taking.range, highest)
        pixels = scale(values, taking.range, part.bits, highest)
        if part.nodata is not None and values.dtype != np.uint8:
            pixels[part.nodata] = 0
        return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))

    def _composite(self, part: Part, range: str, highest: float | None) -> NDArray[np.uint8]:
        values, bits, alpha, _ = part
        colours = scale(values[:, :, : min(3, alpha - 1)], range, bits, highest)
        # as colours are scaled, and not as grey
        opacity = scale(values[:, :, [alpha - 1] * 3], FULL, bits)[:, :, :1]
        colours = np.broadcast_to(colours, (*colours.shape[:2], 3))
        mode = "RGBa" if self.tiff is not None and self.tiff.premultiplied else "RGBA"
        stacked = np.concatenate([colours, opacity], axis=2)
        size = stacked.shape[1], stacked.shape[0]
        image = Image.frombytes(mode, size, stacked.tobytes()).convert("RGBA")
        return join_parts(list(to_rgb(image)))

    def read_nodata(self, nodata: str) -> Iterator[NDArray[np.bool_]]:
        """Decode which pixels hold no data, [y, x], some rows at a time where that can be."""
        if nodata == MASK:
            # the pixels beside it say nothing
            yield self._read_mask()
            return
        for part in self.read_parts(nodata):
            yield np.zeros(part.values.shape[:2], bool) if part.nodata is None else part.nodata

    def _read_mask(self) -> NDArray[np.bool_]:
        assert self.tiff is not None and self.tiff.mask is not None
        return self.tiff.mask.read()[:, :, 0] == 0

    def read_parts(self, nodata: str = "") -> Iterator[Part]:
        """Decode all bands, some rows at a time where that can be, or at once."""
        mask, top = self._read_mask() if nodata == MASK else None, 0
        for part in self._decode_parts(by_pillow=bool(nodata)):
            rows = slice(top, top + len(part.values))
            if mask is not None:
                part = part._replace(nodata=mask[rows])
            elif nodata == ALPHA:
                part = part._replace(nodata=part.values[:, :, part.alpha - 1] == 0)
            elif nodata:
                part = part._replace(nodata=np.all(is_empty(part.values, nodata), axis=2))
            yield part
            top = rows.stop

    def _decode_parts(self, *, by_pillow: bool) -> Iterator[Part]:
        image, tiff = self.image, self.tiff
        if image is not None and tiff is not None:
            # Pillow, where it has all bands, needs no further package for their compression
            whole = not self._is_deep and len(image.getbands()) == tiff.bands
            by_pillow = image.mode[0] in "IF" or (by_pillow and whole)
        if tiff is not None and (image is None or self._is_cut or not by_pillow):
            yield from (Part(values, tiff.bits, tiff.alpha) for values in self._read_tiff())
            return
        assert image is not None
        orientation, raw = _orientation(image, self.data), find_raw_mode(image)
        if ";16" in raw and image.mode in ("LA", "RGB", "RGBA") and image.format == "PNG":
            check_image(image, self.data)
            values, bits = turn(_read_deep_png(self.data), orientation), 16
        else:
            decoded = _decode(image, self.data)
            if decoded.mode not in _PLAIN_MODES or decoded.info.get("transparency") is not None:
                decoded = decoded.convert("RGBA" if decoded.has_transparency_data else "RGB")
            values = np.atleast_3d(np.asarray(decoded))
            bits = 12 if raw == "I;12" else 8 * values.dtype.itemsize
        values = values * np.uint8(255) if values.dtype == np.bool_ else values
        yield Part(values, bits, values.shape[2] if values.shape[2] in (2, 4) else 0)

    def _read_tiff(self) -> Iterator[Values]:
        """Decode all bands by tifffile, some rows at a time or at once."""
        assert self.tiff is not None
        if self._is_cut:
            yield from self.tiff.read_rows()
        else:
            yield self.tiff.read()


_PLAIN_MODES = ("1", "L", "LA", "La", "RGB", "RGBA", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes whose bands are those that the file holds."""


def _read_deep_png(data: bytes) -> Values:
    try:
        import imagecodecs
    except ImportError as error:
        raise AccessError(
            "a PNG of 16-bit colour, of which the package imagecodecs reads more than 8: "
            "pip install 'primaps-pipe[codecs]'"
        ) from error
    try:
        return imagecodecs.png_decode(data)
    except RuntimeError as error:
        raise ImageError(f"damaged: {one_line(str(error))}") from error


def _open_page(stored: Stored, page: int, tiff: TiffPage | None, most: int) -> Source:
    """Open a page, counted from 1."""
    if tiff is not None:
        check_claim(*tiff.size, stored.length, most)
    try:
        image = _open_image(stored, most)
        if page > 1:
            image.seek(page - 1)
    except ImageError:
        if tiff is None:
            raise
        return Source(stored.data, None, tiff)
    if _is_plain(image):
        return Source(stored.data, image, tiff)
    if tiff is None:
        raise ImageError("damaged: a TIFF whose parts do not fit together")
    return Source(stored.data, None, tiff)


def _open_taken(stored: Stored, taking: Taking) -> Source:
    tiff = list_pages(stored).get(taking.page) if stored.data.startswith(MAGICS) else None
    return _open_page(stored, taking.page, tiff, sys.maxsize)


def list_pages(stored: Stored) -> dict[int, TiffPage | None]:
    """List the pages of a file, counted from 1: full images, and not what lies beside them."""
    if stored.data.startswith(MAGICS):
        # what tifffile cannot parse Pillow may read
        with suppress(ImageError, *_DAMAGE):
            if pages := open_pages(stored.open()):
                return dict(pages)
    elif not stored.data.startswith(JPEG_MAGIC):
        with suppress(ImageError, *_DAMAGE), _open_image(stored, sys.maxsize) as image:
            return dict.fromkeys(range(1, getattr(image, "n_frames", 1) + 1))
    return {1: None}


def _take(stored: Stored, reading: Reading) -> list[tuple[Taking, tuple[int, int]]]:
    """Choose what is taken of the first page of a file, or of each; with the upright size."""
    pages = list_pages(stored)
    found = []
    for page in pages if reading.all_pages else list(pages)[:1]:
        source = _open_page(stored, page, pages[page], reading.max_pixels)
        taking = source.take(Taking(page, len(pages)), reading)
        found.append((taking, source.size))
    return found


def _mat_rgb(data: bytes) -> NDArray[np.uint8]:
    values = read_array(data, "img")
    if values.ndim != 3 or values.shape[2] < 3 or values.dtype != np.uint8:
        shape = " x ".join(map(str, values.shape))
        raise ImageError(f"'img' is {shape} of {values.dtype}, not height x width x 4 of uint8")
    return np.ascontiguousarray(values[:, :, :3])


def _mat_label(data: bytes) -> NDArray[np.integer[Any]]:
    values = read_array(data, "gt")
    whole = values.dtype.kind in "iu" or (
        # beyond 2**31 no id lies, and infinity is equal to itself rounded
        values.dtype.kind == "f"
        and bool(np.all((values == np.rint(values)) & (abs(values) < 2**31)))
    )
    if values.ndim != 2 or not whole:
        shape = " x ".join(map(str, values.shape))
        raise ImageError(f"'gt' is {shape} of {values.dtype}, not height x width of class ids")
    return values.astype(np.int64) if values.dtype.kind == "f" else values


def encode_png(pixels: NDArray[np.uint8], palette: bytes | None = None) -> bytes:
    """Encode numbers, [y, x], with a palette or as grey values, or colours, [y, x, rgb]."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def repaint_png(content: bytes, palette: bytes) -> bytes:
    """Give an indexed PNG of :func:`encode_png` another palette; its pixels stay as they are."""
    start = content.find(b"PLTE", 0, 64)
    end = start + 4 + len(palette)
    if start < 0 or int.from_bytes(content[start - 4 : start]) != len(palette):
        raise ImageError(f"no indexed PNG with a palette of {len(palette)} bytes")
    chunk = b"PLTE" + palette
    return content[:start] + chunk + zlib.crc32(chunk).to_bytes(4) + content[end + 4 :]


def is_whole_image(data: bytes) -> bool:
    """Whether some bytes are an image to their end, as no fault of a disk leaves one."""
    try:
        stored = Stored.of(data)
        with _damage_as_reason(Path(), stored, ""), _open_image(stored) as image:
            _decode(image, data)
    except (ImageError, MemoryShortError):
        return False
    ends = (kind == b"IEND" and stop + 4 <= len(data) for kind, _, stop in png_chunks(data))
    return not data.startswith(PNG_MAGIC) or any(ends)


def remove_files(folder: Path, files: Iterable[Path]) -> None:
    """Remove files below a folder, and the folders there that are empty then."""
    require_inside(folder)
    for path in files:
        remove_file(path)
    if is_remote(folder):
        return
    folders = (p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink())
    for path in sorted(folders, reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
