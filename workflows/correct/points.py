"""A table of clicks and boxes, as ``corrections/points.csv`` is one, from anywhere.

Rows of images that the run does not have are counted; any other row that says nothing is refused,
with its number, before anything is taken up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.run.corrections import find_images, parse_points
from workflows.correct.job import Said, Source


def recognise(place: Path) -> bool:
    """Whether it is a CSV file."""
    return place.suffix.lower() == ".csv"


def read(source: Source) -> Iterator[Said]:
    """Read the points, image by image."""
    place = source.place
    try:
        text = place.read_bytes()
    except OSError as error:
        raise UsageError(f"--from {place} cannot be read: {error.strerror or error}.") from error
    points = parse_points(text, place, source.manifest, source.strays)
    for image in find_images(source.manifest, {"/".join(key) for key in points}):
        yield Said(image, points=points[image.split, image.id])
