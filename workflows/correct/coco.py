"""COCO's instances, as CVAT ("COCO 1.0") and many other tools export them.

Masks are run lengths or polygons; an annotation that has a box alone is the whole box. Images
without annotations say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from workflows.correct.job import Said, Source
from workflows.correct.reading import (
    Canvas,
    draw_images,
    drop_suffix,
    expect,
    list_json,
    open_place,
    read_head,
    read_json,
)

TOOL = "COCO"
_PARTS = ("images", "annotations", "categories")


def recognise(place: Path) -> bool:
    """Whether the first JSON file begins as COCO's: lists of categories or images."""
    head = read_head(place)
    lists = '"categories": [', '"categories":[', '"images": [', '"images":['
    return head.startswith("{") and any(each in head for each in lists)


def read(source: Source) -> Iterator[Said]:
    """Read the annotations of every image in the JSON files of a place."""
    with open_place(source.place) as folder:
        known = False
        for path in list_json(folder):
            content = read_json(path, f"{source.place}: {path.name}")
            if isinstance(content, dict) and all(isinstance(content.get(p), list) for p in _PARTS):
                known = True
                yield from _read_file(content, path, source)
        if not known:
            raise RunError(
                f"{source.place} holds no JSON with `images`, `annotations` and `categories`; "
                "export it as COCO instances (`COCO 1.0` in CVAT)."
            )


def _read_file(content: Any, path: Path, source: Source) -> Iterator[Said]:
    shapes: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    with expect(f"{source.place}: {path.name}", TOOL):
        names = {each["id"]: each["name"] for each in content["categories"]}
        for annotation in content["annotations"]:
            shapes[annotation["image_id"]].append(annotation)
        images = [(str(each["file_name"]), each) for each in content["images"]]
        images = [(name, each) for name, each in images if each["id"] in shapes]
    # CVAT and Datumaro name a file after its split
    split = path.stem.removeprefix("instances_")

    def paint(canvas: Canvas, image: Mapping[str, Any]) -> None:
        canvas.require_size(image["width"], image["height"])
        for shape in shapes[image["id"]]:
            _paint(canvas, shape, names[shape["category_id"]])

    yield from draw_images(source, TOOL, images, paint, lambda name: f"{split}/{drop_suffix(name)}")


def _paint(canvas: Canvas, shape: Mapping[str, Any], name: str) -> None:
    segmentation = shape.get("segmentation")
    if isinstance(segmentation, dict):
        canvas.paint_runs(segmentation, name)
    elif segmentation:
        canvas.paint_polygons(segmentation, name)
    else:
        x, y, width, height = shape["bbox"]
        canvas.paint_box(x, y, width, height, name)
