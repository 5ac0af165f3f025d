"""Where on a map a photograph lies, and label maps that say it, too: GeoTIFF by rasterio."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, UsageError, count_of
from pipeline.images.checks import JPEG_MAGIC, PNG_MAGIC
from pipeline.images.decoding import is_upright, list_pages
from pipeline.images.formats import find_suffix
from pipeline.images.reading import Taking
from pipeline.images.stored import Stored, open_stored
from pipeline.images.tiff import MAGICS
from pipeline.storage.places import is_remote

# Photographs may lie nowhere: that is asked for here, in threads, whose filters are one.
warnings.filterwarnings("ignore", message="Dataset has no geotransform")

# GDAL would open anything by its content, also what names further files.
_DRIVERS = {JPEG_MAGIC: "JPEG", PNG_MAGIC: "PNG", b"BM": "BMP", **dict.fromkeys(MAGICS, "GTiff")}
_HEADS = tuple(_DRIVERS)
_BLOCK = 512


def require_rasterio(option: str) -> None:
    """Refuse what asks for GeoTIFFs where the package that writes them is missing."""
    if find_spec("rasterio") is None:
        raise UsageError(f"{option} needs the package rasterio: pip install 'primaps-pipe[geo]'.")


def is_placed(root: Path, path: str, digest: str) -> bool:
    """Whether a photograph, or a world file beside it, says where its upright pixels lie.

    An ImageError says that it cannot be read.
    """
    with _open_placed(root, path, digest) as stored:
        return stored is not None


@contextmanager
def _open_placed(root: Path, path: str, digest: str) -> Iterator[Stored | None]:
    """Open a photograph that is placed, as :func:`is_placed` says it; give None for any other."""
    file = root / path
    suffix = find_suffix(path)
    tiff = suffix in (".tif", ".tiff")
    worlds = [".wld", *([f".{suffix[1:2]}{suffix[-1:]}w", f"{suffix}w"] if suffix else [])]
    beside = not is_remote(root) and any(file.with_suffix(each).is_file() for each in worlds)
    if Taking.parse(digest).page > 1 or not (tiff or beside):
        yield None
        return
    with open_stored(file) as stored:
        yield stored if _says_place(stored, beside=beside) else None


def _says_place(stored: Stored, *, beside: bool) -> bool:
    """Whether pixels are upright, and a world file ``beside`` them or their tags place them."""
    if not stored.data.startswith(MAGICS):
        return beside and stored.data.startswith(_HEADS) and is_upright(stored.data)
    page = next(iter(list_pages(stored).values()))
    return page is not None and page.orientation == 1 and (beside or page.is_georeferenced)


def read_place(root: Path, path: str, digest: str) -> Mapping[str, Any]:
    """Read where a photograph lies, as rasterio writes it; nothing where nothing says it."""
    from rasterio.io import MemoryFile

    with _open_placed(root, path, digest) as stored:
        if stored is None:
            return {}
        driver = next(kind for head, kind in _DRIVERS.items() if stored.data.startswith(head))
        if not is_remote(root):
            return _read_place(str((root / path).absolute()), driver)
        with MemoryFile(stored.data) as memory:
            return _read_place(memory.name, driver)


def _read_place(name: str, driver: str) -> Mapping[str, Any]:
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(name, driver=driver) as source:
            points, system = source.gcps
            if not source.transform.is_identity:
                return {"crs": source.crs, "transform": source.transform}
            if points:
                return {"crs": system, "gcps": points}
            return {"rpcs": source.rpcs} if source.rpcs else {}
    except RasterioError as error:
        raise ImageError(f"its georeference cannot be read: {error}") from error


def encode_geotiff(labels: NDArray[np.uint8], palette: bytes, place: Mapping[str, Any]) -> bytes:
    """Encode numbers, [y, x], with a palette and a georeference; 255 is no data."""
    from rasterio.io import MemoryFile

    height, width = labels.shape
    tiles = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3).tolist()
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            dtype="uint8",
            count=1,
            height=height,
            width=width,
            nodata=255,
            compress="deflate",
            **(tiles if min(height, width) >= _BLOCK else {}),
            **place,
        ) as file:
            file.write(labels, 1)
            file.write_colormap(1, {n: (*colour, 255) for n, colour in enumerate(colours)})
        return bytes(memory.getbuffer())


def describe_unplaced(paths: Sequence[str], total: int) -> str:
    """Say which photographs have no georeference that their label maps could keep."""
    return (
        f"{len(paths)} of {count_of(total, 'photographs')} say nowhere where their upright pixels "
        f"lie, and neither do their label maps (first: {paths[0]})."
    )
