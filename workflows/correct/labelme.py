"""LabelMe's JSON files, beside the photographs or elsewhere: polygons, masks, rectangles, circles.

They are drawn as LabelMe's own ``shapes_to_label`` draws them, the later above the earlier.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, UnidentifiedImageError

from pipeline.errors import RunError
from pipeline.run.label_maps import name_file
from pipeline.run.manifest import Image
from workflows.correct.job import Said, Source
from workflows.correct.reading import (
    Canvas,
    expect_image,
    list_json,
    open_place,
    read_head,
    read_json,
    tell_left_out,
)

TOOL = "LabelMe"
_DRAWN = ("polygon", "rectangle", "oriented_rectangle", "circle")


def recognise(place: Path) -> bool:
    """Whether the first JSON file has shapes."""
    head = read_head(place)
    return head.startswith("{") and '"shapes"' in head


def read(source: Source) -> Iterator[Said]:
    """Read every JSON file of shapes below a place."""
    left_out: list[str] = []
    with open_place(source.place) as folder:
        known = False

        def read_one(path: Path) -> Said | None:
            nonlocal known
            name = name_file(folder, path)
            where = source.place if folder == path else f"{source.place}: {name}.json"
            with expect_image(where, TOOL):
                content = read_json(path, where)
                if not isinstance(content, dict) or "shapes" not in content:
                    return None
                known = True
                image = source.find(name) if content["shapes"] else None
                if image is None:
                    return None
                return _draw(Canvas(image, source), content, left_out).said

        yield from source.map(read_one, list_json(folder))
        if not known and not source.faults:
            raise RunError(f"{source.place} holds no JSON with `shapes`; give what {TOOL} saved.")
    tell_left_out(source.screen, source.place, left_out)


def _draw(canvas: Canvas, content: Mapping[str, Any], left_out: list[str]) -> Canvas:
    image = canvas.image
    if content.get("imageWidth") and content.get("imageHeight"):
        canvas.require_size(content["imageWidth"], content["imageHeight"])
    for shape in content["shapes"]:
        kind = shape.get("shape_type") or "polygon"
        if kind == "mask":
            canvas.paint(_place_mask(shape, image), shape["label"])
        elif kind in _DRAWN:
            canvas.paint(_draw_shape(kind, shape["points"], image), shape["label"])
        else:
            left_out.append(kind)
    return canvas


def _place_mask(shape: Mapping[str, Any], image: Image) -> NDArray[np.bool_]:
    """Return a shape that is a PNG of the rectangle between two points, both of them in it."""
    (left, top), (right, bottom) = (map(int, point) for point in shape["points"])
    try:
        with PillowImage.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as png:
            if png.size != (right - left + 1, bottom - top + 1):
                raise ValueError("a mask is not of the size of its rectangle")
            inside = np.asarray(png) > 0
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"a mask cannot be read: {error}") from error
    mask = np.zeros((image.height, image.width), bool)
    if left < 0 or top < 0 or right >= image.width or bottom >= image.height:
        raise ValueError("a mask goes beyond the image")
    mask[top : bottom + 1, left : right + 1] = inside
    return mask


def _draw_shape(kind: str, points: Sequence[Sequence[float]], image: Image) -> NDArray[np.bool_]:
    picture = PillowImage.new("L", (image.width, image.height))
    draw = ImageDraw.Draw(picture)
    corners = [(float(x), float(y)) for x, y in points]
    if kind == "circle":
        (x, y), rim = corners
        radius = math.dist((x, y), rim)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = corners
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1, outline=1)
    elif len(corners) < 3:
        raise ValueError(f"a {kind} has {len(corners)} points")
    else:
        draw.polygon(corners, fill=1, outline=1)
    return np.asarray(picture, dtype=bool)
