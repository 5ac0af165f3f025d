"""Label Studio's export in JSON: tasks whose annotations are brush masks, polygons or rectangles.

What somebody has submitted counts. Predictions are the machine's, and a task that has nothing else
says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.errors import RunError, count_of
from workflows.brush import decode_brush
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
    tell_left_out,
)

TOOL = "Label Studio"
# What is put in front of a photograph that is uploaded.
_UPLOADED = re.compile(r"/data/upload/.*/[0-9a-f]{8}-(?=[^/]+$)")
Regions = list[Mapping[str, Any]]


def recognise(place: Path) -> bool:
    """Whether the first JSON file is a list of tasks."""
    head = read_head(place)
    return head.startswith("[") and '"annotations"' in head


def read(source: Source) -> Iterator[Said]:
    """Read the annotations of every task in the JSON files of a place."""
    left_out: list[str] = []
    open_tasks = 0

    def paint(canvas: Canvas, regions: Regions) -> None:
        for region in regions:
            _paint(canvas, region, left_out)

    with open_place(source.place) as folder:
        for path in list_json(folder):
            where = f"{source.place}: {path.name}"
            tasks, submitted = read_json(path, where), []
            if not isinstance(tasks, list):
                raise RunError(f"{where} is no list of tasks; export it from {TOOL} as `JSON`.")
            with expect(where, TOOL):
                for task in tasks:
                    regions = _choose(task)
                    open_tasks += regions is None
                    if regions is not None:
                        submitted.append((_find_photograph(task["data"]), regions))

            yield from draw_images(source, TOOL, submitted, paint, drop_suffix)
    if open_tasks:
        counted = count_of(open_tasks, "tasks")
        source.screen.warn(f"correct: nobody has submitted {counted} of {source.place} yet")
    tell_left_out(source.screen, source.place, left_out)


def _choose(task: Mapping[str, Any]) -> Regions | None:
    """Return the regions of the one annotation of a task; None where nobody has submitted any."""
    if "annotations" not in task:
        raise ValueError("a task has no `annotations`: take the format JSON, not JSON-MIN")
    given = [each for each in task["annotations"] if not each.get("was_cancelled")]
    if len(given) > 1:
        raise ValueError(
            f"task {task.get('id')} has {len(given)} annotations: leave the one that counts"
        )
    return list(given[0]["result"]) if given else None


def _find_photograph(data: Mapping[str, Any]) -> str:
    """Return the name of a task's photograph, without what serves it."""
    address = data.get("image") or next(
        value for value in data.values() if isinstance(value, str) and "/" in value
    )
    parts = urlsplit(address)
    served = parse_qs(parts.query).get("d")
    return served[0] if served else _UPLOADED.sub("", unquote(parts.path)).lstrip("/")


def _paint(canvas: Canvas, region: Mapping[str, Any], left_out: list[str]) -> None:
    kind, value = region["type"], region["value"]
    if kind not in ("brushlabels", "polygonlabels", "rectanglelabels"):
        left_out.append(kind)
        return
    width, height = region["original_width"], region["original_height"]
    canvas.require_size(width, height)
    if region.get("image_rotation"):
        raise ValueError("its photograph is turned around: turn it back")
    (name,) = value[kind]
    if kind == "brushlabels":
        canvas.paint(decode_brush(value["rle"], width, height), name)
    elif kind == "polygonlabels":
        points = [(x * width / 100, y * height / 100) for x, y in value["points"]]
        canvas.paint_polygons([[v for point in points for v in point]], name)
    else:
        if value.get("rotation"):
            raise ValueError("a rectangle is turned: draw a polygon")
        x, y, wide, high = (value[side] / 100 for side in ("x", "y", "width", "height"))
        canvas.paint_box(x * width, y * height, wide * width, high * height, name)
