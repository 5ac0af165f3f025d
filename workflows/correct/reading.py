"""What annotation tools write, as maps of the run's images: what their readers share.

Where shapes overlap, the later one lies above. What is in none is not said; a shape called
``ignore`` is 255.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import ImageError, RunError, count_of
from pipeline.progress import Screen
from pipeline.run.corrections import NOT_SAID, is_ignored
from pipeline.run.manifest import Image
from pipeline.storage.places import find_files, is_remote, require_local
from workflows.correct.job import UNNAMED, Said, Source
from workflows.export.labelme import IGNORED, UNLABELLED

_HEAD = 100_000
# JSON files that exports have beside what a tool reads.
_OURS = ("classes.json", "export.json", "labels.json")
T = TypeVar("T")


class Canvas:
    """What is said of one image, shape by shape; labels that name nothing are gathered."""

    def __init__(self, image: Image, source: Source) -> None:
        self.image = image
        self.names: list[str] = []
        self._unnamed = source.unnamed
        self._map = np.full((image.height, image.width), NOT_SAID, np.uint8)

    @property
    def said(self) -> Said:
        """The map, and the names of the numbers in it."""
        return Said(self.image, self._map, self.names)

    def require_size(self, width: object, height: object) -> None:
        """Refuse annotations of a photograph of another size."""
        if (width, height) != (self.image.width, self.image.height):
            size = f"{self.image.width} x {self.image.height}"
            raise ValueError(f"it is {width} x {height}, the image {size}")

    def number(self, name: object) -> int:
        """Return the number that a class has in this map."""
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is no name of a class")
        if is_ignored(name) or name == IGNORED:
            return IGNORE
        if UNNAMED.fullmatch(name):
            self._unnamed.add(name)
        if name == UNLABELLED or name in self._unnamed:
            return NOT_SAID
        if name not in self.names:
            if len(self.names) == NOT_SAID:
                raise ValueError(f"it has more than {NOT_SAID} classes")
            self.names.append(name)
        return self.names.index(name)

    def paint(self, mask: NDArray[np.bool_], name: object) -> None:
        """Give the pixels of a mask, bool [y, x], to a class."""
        self.require_size(*reversed(mask.shape))
        self._map[mask] = self.number(name)

    def fill(self, numbers: NDArray[np.uint8]) -> None:
        """Take a whole map of this canvas's numbers, uint8 [y, x]."""
        self.require_size(*reversed(numbers.shape))
        self._map = numbers

    def paint_polygons(self, polygons: Sequence[Sequence[float]], name: object) -> None:
        """Give what lies in polygons, [x, y, x, y, ...], to a class, as COCO draws them."""
        from pycocotools import mask as coco

        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise ValueError("a polygon has fewer than three points")
        size = self.image.height, self.image.width
        drawn = coco.frPyObjects([[float(v) for v in polygon] for polygon in polygons], *size)
        self.paint(coco.decode(coco.merge(drawn)).astype(bool), name)

    def paint_runs(self, runs: Mapping[str, Any], name: object) -> None:
        """Give the pixels in COCO's run lengths, compressed or not, to a class."""
        from pycocotools import mask as coco

        height, width = runs["size"]
        self.require_size(width, height)
        counts = runs["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError("its run lengths are not those of the image")
            runs = coco.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
        elif not isinstance(counts, str):
            raise TypeError("its run lengths are no text and no list")
        self.paint(coco.decode(runs).astype(bool), name)

    def paint_box(self, x: float, y: float, width: float, height: float, name: object) -> None:
        """Give the pixels whose centres lie in a box to a class."""
        x0, y0, x1, y1 = (max(0, round(v)) for v in (x, y, x + width, y + height))
        mask = np.zeros(self._map.shape, bool)
        mask[y0:y1, x0:x1] = True
        self.paint(mask, name)


def draw_images(
    source: Source,
    tool: str,
    items: Iterable[tuple[str, T]],
    paint: Callable[[Canvas, T], None],
    name_image: Callable[[str], str] = str,
) -> Iterator[Said]:
    """Draw what a tool says, image by image.

    Parameters
    ----------
    source
        What is read.
    tool
        Its name.
    items
        What the tool calls each image, and what it says of it.
    paint
        Paints that.
    name_image
        Makes what :meth:`Source.find` takes of what the tool calls an image.
    """

    def read_one(item: tuple[str, T]) -> Said | None:
        name, content = item
        image = source.find(name_image(name))
        if image is None:
            return None
        canvas = Canvas(image, source)
        with expect_image(f"{source.place}: {name}", tool):
            paint(canvas, content)
        return canvas.said

    yield from source.map(read_one, items)


@contextmanager
def open_place(place: Path) -> Iterator[Path]:
    """Give the file or folder at a place; of a zip file a folder of what is in it, for a while."""
    require_local(place, f"--from {place}: this format needs a local place; copy it here first.")
    if place.is_dir() or not zipfile.is_zipfile(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="primaps-correct-") as folder:
        with _expect_whole(place), zipfile.ZipFile(place) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > shutil.disk_usage(folder).free:
                raise RunError(
                    f"{place} holds {size / 1e9:.1f} GB, for which {folder} has no space; "
                    "unpack it elsewhere, and give the folder."
                )
            archive.extractall(folder)
        yield Path(folder)


@contextmanager
def _expect_whole(place: Path) -> Iterator[None]:
    """Say in one sentence that a zip file is damaged or encrypted."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise RunError(f"{place} cannot be unpacked ({error}); download it again.") from error


def list_names(place: Path) -> Iterator[str]:
    """List the files of a folder, or of a zip file, relative to it; a file alone has its name."""
    if is_remote(place):
        return
    if place.is_dir():
        yield from (path.relative_to(place).as_posix() for path in find_files(place))
    elif zipfile.is_zipfile(place):
        try:
            with zipfile.ZipFile(place) as archive:
                yield from archive.namelist()
        except zipfile.BadZipFile:
            # what reads it says so
            return
    else:
        yield place.name


def read_head(place: Path) -> str:
    """Read how the first JSON file of a place begins; nothing where there is none."""
    names = (n for n in list_names(place) if n.endswith(".json") and n.split("/")[-1] not in _OURS)
    name = next(names, None)
    if name is None:
        return ""
    if not place.is_dir() and zipfile.is_zipfile(place):
        with _expect_whole(place), zipfile.ZipFile(place) as archive, archive.open(name) as member:
            head = member.read(_HEAD)
    else:
        with (place / name if place.is_dir() else place).open("rb") as file:
            head = file.read(_HEAD)
    return head.decode(errors="replace").lstrip("\ufeff \t\r\n")


def drop_suffix(name: str) -> str:
    """Return the name of a photograph without its suffix, and with ``/``."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.with_suffix("").as_posix() if path.name else name


def list_json(place: Path) -> list[Path]:
    """List the JSON files of a place, but for those that every export has."""
    if place.is_file():
        return [place]
    return [p for p in sorted(find_files(place)) if p.suffix == ".json" and p.name not in _OURS]


def read_json(path: Path, where: object) -> Any:
    """Read a JSON file that somebody else wrote; ``where`` is what a sentence calls it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{where} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not JSON ({error}); export it again.") from error


@contextmanager
def expect(where: object, tool: str) -> Iterator[None]:
    """Say in one sentence that a file is not what a tool writes, whatever is wrong with it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        raise RunError(
            f"{where} is not what {tool} writes of this run ({reason}); correct it there, and "
            "export it again."
        ) from error


@contextmanager
def expect_image(where: object, tool: str) -> Iterator[None]:
    """Say so of one image, which keeps nobody from taking the others."""
    try:
        with expect(where, tool):
            yield
    except RunError as error:
        raise ImageError(str(error)) from error
    except ImageError as error:
        raise ImageError(f"{where} cannot be read: {error}.") from error


def tell_left_out(screen: Screen, place: Path, kinds: Sequence[str]) -> None:
    """Say how many shapes are no areas, and are left out."""
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()))
        screen.warn(
            f"correct: {count_of(len(kinds), 'shapes')} in {place} are no areas, and are left "
            f"out: {listed}"
        )
