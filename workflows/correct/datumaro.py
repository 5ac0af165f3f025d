"""Datumaro's own format: JSON files of items whose annotations are masks, polygons or boxes.

Shapes of a higher ``z_order`` lie above. Images without annotations say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from workflows.correct.job import Said, Source
from workflows.correct.reading import (
    Canvas,
    draw_images,
    expect,
    list_json,
    open_place,
    read_head,
    read_json,
    tell_left_out,
)

TOOL = "Datumaro"


def recognise(place: Path) -> bool:
    """Whether the first JSON file begins as Datumaro's."""
    return '"dm_format_version"' in read_head(place)


def read(source: Source) -> Iterator[Said]:
    """Read the annotations of every item in the JSON files of a place."""
    left_out: list[str] = []
    with open_place(source.place) as folder:
        known = False
        for path in list_json(folder):
            content = read_json(path, f"{source.place}: {path.name}")
            if isinstance(content, dict) and isinstance(content.get("items"), list):
                known = True
                yield from _read_file(content, path, source, left_out)
        if not known:
            raise RunError(
                f"{source.place} holds no JSON with `items` and `categories`; export it as "
                "`datumaro`."
            )
    tell_left_out(source.screen, source.place, left_out)


def _read_file(content: Any, path: Path, source: Source, left_out: list[str]) -> Iterator[Said]:
    with expect(f"{source.place}: {path.name}", TOOL):
        names = [each["name"] for each in content["categories"]["label"]["labels"]]
        items = [(str(item["id"]), item) for item in content["items"] if item["annotations"]]

    def paint(canvas: Canvas, item: Mapping[str, Any]) -> None:
        _paint(canvas, item, names, left_out)

    yield from draw_images(source, TOOL, items, paint, lambda id_: f"{path.stem}/{id_}")


def _paint(
    canvas: Canvas, item: Mapping[str, Any], names: Sequence[str], left_out: list[str]
) -> None:
    if size := (item.get("image") or {}).get("size"):
        canvas.require_size(size[1], size[0])
    for shape in sorted(item["annotations"], key=lambda each: each.get("z_order") or 0):
        kind = shape["type"]
        if kind not in ("mask", "polygon", "bbox"):
            left_out.append(kind)
            continue
        name = names[shape["label_id"]]
        if kind == "mask":
            canvas.paint_runs(shape["rle"], name)
        elif kind == "polygon":
            canvas.paint_polygons([shape["points"]], name)
        else:
            x, y, width, height = shape["bbox"]
            canvas.paint_box(x, y, width, height, name)
