"""The demo: all stages on photographs that come with the install.

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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw
from pydantic import TypeAdapter

from pipeline.compute.scheduler import Execution
from pipeline.datasets.definition import IGNORE, Colour
from pipeline.errors import DatasetError, WeightsError
from pipeline.images.decoding import encode_png
from pipeline.progress import Screen
from pipeline.run.directory import DEFAULT_NAME, RunDirectory
from pipeline.storage.files import write_changed
from workflows.recipes import Recipe, read_recipe, resolve_recipe, run_recipe

UNLABELLED = "ignore"
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class LabelClass:
    """A class of the label maps: its name, and its RGB colour in their palette."""

    name: str
    colour: Colour


@dataclass(frozen=True)
class Region:
    """The name of a class, or ``ignore``, and a polygon [x, y] of it in pixels of the original."""

    label: str
    polygon: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Photograph:
    """A photograph in an installed package, and the drawing of its labels."""

    name: str
    package: str
    file: str
    source: str
    size: tuple[int, int]
    crops: dict[str, tuple[int, int, int, int]]
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Drawings:
    """What ``polygons.json`` holds: the classes in the order of their ids, and the photographs."""

    classes: tuple[LabelClass, ...]
    photographs: tuple[Photograph, ...]


@dataclass(frozen=True)
class PhotographSet:
    """Where the photographs and their label maps lie, and what the labels' ids mean."""

    images: Path
    labels: Path
    class_names: tuple[str, ...]


def run_demo(run: RunDirectory, execution: Execution, screen: Screen) -> Path:
    """Run all four stages on the photographs in scikit-image's and scikit-learn's wheels.

    Where no source of pretrained weights answers, it goes on with hand-crafted features, and says
    so on the screen and in the report's first line.
    """
    folder = run.path / "photographs"
    if execution.dry_run and not folder.is_dir():
        screen.note(f"dry run: the photographs would be written to {folder}, and all stages run")
        return run.report(DEFAULT_NAME) / "index.html"
    run.create()
    photographs = write_photographs(folder)
    recipe = read_recipe("demo")
    places: Recipe = {"extract": {"root": photographs.images, "labels": photographs.labels}}
    try:
        return run_recipe(run, resolve_recipe(recipe, places), execution, screen)
    except WeightsError as error:
        screen.warn(str(error))
        screen.warn("going on with hand-crafted features: expect far weaker classes.")
    places["extract"]["backbone"] = "handcrafted"
    return run_recipe(run, resolve_recipe(recipe, places), execution, screen)


def write_photographs(folder: Path) -> PhotographSet:
    """Write the demo's photographs and label maps below a folder, leaving equal files untouched.

    A file is written whole or not at all, and one that already has the right content keeps its
    modification time, so that a run on an existing folder finds its images unchanged.
    """
    drawings = read_drawings()
    images, labels = folder / "images", folder / "labels"
    # black for every index but the classes'
    palette = b"".join(bytes(each.colour) for each in drawings.classes).ljust(3 * 256, b"\0")
    for photograph in drawings.photographs:
        for name, content, label in _pictures(photograph, drawings.classes):
            write_changed(images / name, content)
            file = labels / f"{PurePosixPath(name).stem}.png"
            write_changed(file, encode_png(np.asarray(label), palette))
    names = tuple(each.name for each in drawings.classes)
    write_changed(labels / "classes.txt", "".join(f"{name}\n" for name in names).encode())
    return PhotographSet(images, labels, names)


def read_drawings() -> Drawings:
    """Read ``polygons.json``."""
    text = resources.files("workflows").joinpath("polygons.json").read_text(encoding="utf-8")
    return TypeAdapter(Drawings).validate_json(text)


def draw_labels(photograph: Photograph, classes: Sequence[LabelClass]) -> Image.Image:
    """Paint the polygons of a photograph: mode P, its size, class ids, 255 = no label."""
    ids = {each.name: index for index, each in enumerate(classes)} | {UNLABELLED: IGNORE}
    label = Image.new("P", photograph.size, IGNORE)
    canvas = ImageDraw.Draw(label)
    for region in photograph.regions:
        canvas.polygon(region.polygon, fill=ids[region.label])
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


def _pictures(
    photograph: Photograph, classes: Sequence[LabelClass]
) -> Iterator[tuple[str, bytes, Image.Image]]:
    """Yield file name, file content and labels of a whole photograph, then of its crops."""
    path = find_photograph(photograph)
    label = draw_labels(photograph, classes)
    content, image = _read(photograph, path)
    yield f"{photograph.name}{path.suffix}", content, label
    for name, box in photograph.crops.items():
        yield (
            f"{photograph.name}_{name}.png",
            encode_png(np.asarray(image.crop(box))),
            label.crop(box),
        )


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
