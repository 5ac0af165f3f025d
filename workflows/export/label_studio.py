"""Label Studio: tasks whose predictions are brush masks, and the configuration of the labelling.

Photographs are named as Label Studio serves files of its own machine: the folder of the export has
to be its ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``. A class of an image is one region. Ignored
pixels are in none, and ``ignore`` is a label that people may paint with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipeline.datasets.definition import Colour
from pipeline.run.evaluation import LEFT_OUT_NAME
from workflows.brush import encode_brush
from workflows.export.datumaro import list_masks
from workflows.export.folder import COMMON, choose_suffix, write_rows
from workflows.export.job import Export, Item, Source

NESTED = False
NOTE = (
    "Label Studio shows the photographs if this folder is its "
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"
)
SERVED = "/data/local-files/?d="
# Label Studio takes files of 250 MB at most; a task is some 100 kB.
TASKS = 500
_IGNORE_COLOUR: Colour = (128, 128, 128)


def write(export: Export) -> list[tuple[str, str]]:
    """Write images, ``labeling.xml``, and ``tasks/<split>-00000.json`` of 500 tasks each."""
    source, folder = export.source, export.folder
    classes = list(source.classes)
    if LEFT_OUT_NAME not in source.names:
        classes.append((LEFT_OUT_NAME, _IGNORE_COLOUR))
    folder.write("labeling.xml", write_config(classes).encode())
    places = []
    for split, part in export.parts():
        for start in range(0, len(part.items), TASKS):
            few = replace(part, items=part.items[start : start + TASKS])
            places += _write_tasks(few, f"tasks/{split}-{start // TASKS:05d}.json")
    return places


def write_config(classes: Sequence[tuple[str, Colour]]) -> str:
    """Write the configuration of the labelling: a brush that has the names and colours."""
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>\n'
        for name, colour in classes
    )
    return (
        "<View>\n"
        '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n'
        "</View>\n"
    )


def _write_tasks(export: Export, file: str) -> list[tuple[str, str]]:
    def place(item: Item) -> str:
        return f"images/{item.split}/{item.name}{choose_suffix(item.image.path, COMMON)}"

    def make_task(item: Item) -> dict[str, Any]:
        export.write_photograph(item, place(item))
        return _describe(export.source, item, place(item))

    if export.folder.has(file):
        export.write_photographs(place)
    else:
        with export.folder.stream(file) as stream:
            write_rows(stream, None, export.map(make_task))
    return [(place(item), file) for item in export.items]


def _describe(source: Source, item: Item, place: str) -> dict[str, Any]:
    regions = [
        {
            "id": f"class-{number}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": item.image.width,
            "original_height": item.image.height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(mask),
                "brushlabels": [source.names[number]],
            },
        }
        for number, mask in list_masks(source.read_labels(item.image))
    ]
    version = f"primaps-pipe {source.evaluation.subject.key}"
    return {
        "data": {"image": SERVED + quote(place)},
        "predictions": [{"model_version": version, "result": regions}],
    }
