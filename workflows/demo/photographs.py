"""The demo's photographs and their label maps.

The photographs are those inside the wheels of scikit-image and scikit-learn: nothing is downloaded,
and none is kept in this repository. Their label maps are drawn from ``polygons.json``, polygons
traced by hand on each photograph and painted in order, later ones over earlier ones; what is
neither clear nor of one of the classes (lattice masts, water, a helmet) stays unlabelled. The
points of ``motorcycle_right`` were started from those of ``motorcycle_left``, shifted by the
pair's disparity, and corrected by hand. The file also names the source of every photograph.

A dozen photographs is little to learn classes from, so fixed crops of the larger ones are images
of their own, their labels cut from the same drawing. The scores of the demo therefore show that
the stages work together; they measure nothing about segmentation in general.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageDraw

from pipeline.datasets import IGNORE
from pipeline.errors import DatasetError
from pipeline.storage.files import write_bytes

UNLABELLED = "ignore"
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

Box = tuple[int, int, int, int]
Point = tuple[int, int]


@dataclass(frozen=True)
class PhotographSet:
    """Where the photographs and their label maps lie, and what the labels' ids mean."""

    images: Path
    labels: Path
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class LabelClass:
    """A class of the label maps: its name, and its RGB colour in their palette."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """A polygon [x, y] in pixels of the original, and the class id it paints (255 = no label)."""

    class_id: int
    polygon: tuple[Point, ...]


@dataclass(frozen=True)
class Photograph:
    """A photograph in an installed package, and the drawing of its labels."""

    name: str
    package: str
    file: str
    source: str
    size: tuple[int, int]
    crops: tuple[tuple[str, Box], ...]
    regions: tuple[Region, ...]


def write_photographs(folder: Path) -> PhotographSet:
    """Write the demo's photographs and label maps below a folder, leaving equal files untouched.

    A file is written whole or not at all, and one that already has the right content keeps its
    modification time, so that a run on an existing folder finds its images unchanged.
    """
    classes, photographs = read_drawings()
    images, labels = folder / "images", folder / "labels"
    palette = _palette(classes)
    for photograph in photographs:
        for name, image, label in _pictures(photograph):
            _write_changed(images / name, image)
            label.putpalette(palette)
            _write_changed(labels / f"{PurePosixPath(name).stem}.png", _png(label))
    names = tuple(each.name for each in classes)
    _write_changed(labels / "classes.txt", "".join(f"{name}\n" for name in names).encode())
    return PhotographSet(images, labels, names)


def read_drawings() -> tuple[tuple[LabelClass, ...], tuple[Photograph, ...]]:
    """Read ``polygons.json``: the classes in the order of their ids, and the photographs."""
    text = resources.files("workflows.demo").joinpath("polygons.json").read_text(encoding="utf-8")
    content = json.loads(text)
    classes = tuple(LabelClass(each["name"], tuple(each["colour"])) for each in content["classes"])
    ids = {each.name: index for index, each in enumerate(classes)} | {UNLABELLED: IGNORE}
    return classes, tuple(_photograph(entry, ids) for entry in content["photographs"])


def draw_labels(photograph: Photograph) -> Image.Image:
    """Paint the polygons of a photograph: mode P, its size, class ids, 255 = no label."""
    label = Image.new("P", photograph.size, IGNORE)
    canvas = ImageDraw.Draw(label)
    for region in photograph.regions:
        canvas.polygon(region.polygon, fill=region.class_id)
    return label


def find_photograph(photograph: Photograph) -> Path:
    """Locate a photograph in its installed package, without importing the package."""
    distribution = DISTRIBUTIONS[photograph.package]
    # importing either package takes seconds, and only its folder is wanted
    spec = find_spec(photograph.package)
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            f"the demo's photograph {photograph.name} comes with {distribution}, which is not"
            f" installed: run `pip install {distribution}`."
        )
    path = Path(next(iter(spec.submodule_search_locations)), photograph.file)
    if not path.is_file():
        raise DatasetError(
            f"the demo's photograph {photograph.name} is not in the installed {distribution}"
            f" ({path}): run `pip install --force-reinstall {distribution}`."
        )
    return path


def _pictures(photograph: Photograph) -> Iterator[tuple[str, bytes, Image.Image]]:
    """Yield file name, file content and labels of a whole photograph, then of its crops."""
    path = find_photograph(photograph)
    label = draw_labels(photograph)
    content, image = _read(photograph, path)
    yield f"{photograph.name}{path.suffix}", content, label.copy()
    for name, box in photograph.crops:
        yield f"{photograph.name}_{name}.png", _png(image.crop(box)), label.crop(box)


def _read(photograph: Photograph, path: Path) -> tuple[bytes, Image.Image]:
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as opened:
            opened.load()
            image = opened.copy()
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise DatasetError(
            f"the demo's photograph {path} cannot be read ({error}): run"
            f" `pip install --force-reinstall {DISTRIBUTIONS[photograph.package]}`."
        ) from error
    if image.size != photograph.size:
        raise DatasetError(
            f"the demo's photograph {path} has {image.width} x {image.height} pixels and its labels"
            f" were drawn on {photograph.size[0]} x {photograph.size[1]}: install another version"
            f" of {DISTRIBUTIONS[photograph.package]}."
        )
    return content, image


def _photograph(entry: dict[str, Any], ids: dict[str, int]) -> Photograph:
    return Photograph(
        name=entry["name"],
        package=entry["package"],
        file=entry["file"],
        source=entry["source"],
        size=tuple(entry["size"]),
        crops=tuple((crop["name"], tuple(crop["box"])) for crop in entry["crops"]),
        regions=tuple(
            Region(ids[region["class"]], tuple((x, y) for x, y in region["polygon"]))
            for region in entry["regions"]
        ),
    )


def _palette(classes: tuple[LabelClass, ...]) -> bytes:
    """Return 256 RGB triples: the classes' colours, black for every other index."""
    colours = b"".join(bytes(each.colour) for each in classes)
    return colours.ljust(3 * 256, b"\0")


def _png(image: Image.Image) -> bytes:
    # what the original carried (resolution, profile, comments) would make the bytes depend on it
    image.info.clear()
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _write_changed(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)
