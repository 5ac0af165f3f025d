"""Corrections that were made elsewhere: what other tools write of a run's images is taken up.

``job`` finds the images, reads with a format, and lays what is said beside what is in
``RUN/corrections`` already. Every format is a module with ``recognise`` and ``read``
(:class:`workflows.correct.job.Format`), also one of another package::

    def recognise(place: Path) -> bool:
        '''Whether a file or folder is of this format: a look, in which nothing heavy is loaded.'''

    def read(source: Source) -> Iterator[Said]:
        '''Read what is said, image by image.'''
        for said in source.map(read_one, files):  # in threads; what raises an ImageError is told
            yield said

``source.find(name)`` is the image that a file is named after, and counts those that there are not.
A :class:`Said` has uint8 [y, x] of the photograph's size: numbers of ``names``, 255 = ignore, 254 =
not said; or clicks and boxes (:class:`pipeline.run.corrections.Point`).
"""

from __future__ import annotations

from typing import Any

from pipeline.registry import Registry

LINES = {
    "corrections": "the corrections folder of another person, or another run",
    "points": "a CSV of clicks and boxes: split,image,x,y,x1,y1,class",
    "cvat": "what CVAT exports as `Segmentation mask 1.1`",
    "fiftyone": "what `open_in_fiftyone.py save` of an export writes",
    "label-studio": "what Label Studio exports as `JSON`: brush masks, polygons, rectangles",
    "labelme": "JSON files of LabelMe: polygons, masks, rectangles, circles",
    "datumaro": "Datumaro's own JSON files: masks, polygons, boxes",
    "coco": "COCO's instances, CVAT's `COCO 1.0`: run lengths, polygons, boxes",
    "png": "label PNGs, named as the photographs are, in a folder or one alone",
}
# In the order in which they are asked whether a place is theirs: the plainest last.
FORMATS: Registry[Any] = Registry(
    "format",
    "primaps_pipe.correction_formats",
    {name: f"workflows.correct.{name.replace('-', '_')}" for name in LINES},
)


def describe_formats() -> dict[str, str]:
    """Return a line on every format; those of other packages are imported when asked for."""
    return {name: LINES.get(name, "brought by another package") for name in FORMATS}
