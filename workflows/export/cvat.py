"""CVAT's "Segmentation mask 1.1", which is Pascal VOC's: a zip of every split, to be uploaded.

``SegmentationClass`` has the colour of every pixel's class, ``labelmap.txt`` says which is whose:
CVAT refuses a colour that is not there. Black is ``background``, what nobody has labelled: ignored
pixels. CVAT makes a mask of whatever has a number in ``SegmentationObject``, so they have none
there. ``ignore`` is declared as a label that people may paint with.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE, Colour
from pipeline.errors import UsageError
from pipeline.images.decoding import encode_png
from pipeline.run.evaluation import LEFT_OUT_NAME
from pipeline.run.label_maps import BACKGROUND, BACKGROUND_CLASS, SPELLINGS
from workflows.export.coco_panoptic import part_colours
from workflows.export.folder import COMMON, choose_suffix, load_photograph
from workflows.export.job import Export, Item

NESTED = False
NOTE = "ignored pixels are not labelled in CVAT; its label `ignore` says so of what you paint"

_IGNORE_COLOUR: Colour = (224, 224, 192)


def write(export: Export) -> list[tuple[str, str]]:
    """Write ``<split>.zip`` of photographs and masks, and ``labels.json`` of names and colours."""
    if export.images == "link":
        raise UsageError(
            "--images link: the zip files hold the photographs themselves; take copy or none."
        )
    source, folder = export.source, export.folder
    names = [spell_name(name) for name in source.names]
    left_out = [] if LEFT_OUT_NAME in names else [LEFT_OUT_NAME]
    colours = part_colours([*source.colours, *[_IGNORE_COLOUR for _ in left_out]])
    labels = list(zip([*names, *left_out], colours, strict=True))
    folder.write_json(
        "labels.json",
        [{"name": n, "color": f"#{bytes(c).hex()}", "attributes": []} for n, c in labels],
    )
    places = []
    for split, part in export.parts():
        # CVAT takes a list whose name has an underscore for one of a class
        subset = split.replace("_", "-")
        name = f"{subset}.zip"
        if not folder.has(name):
            _write_zip(part, name, subset, labels)
        places += [(name, name)] * len(part.items)
    return places


def spell_name(name: str) -> str:
    """Spell the name of a class so that ``labelmap.txt`` can hold it, and means it."""
    return BACKGROUND_CLASS if name == BACKGROUND else name.translate(SPELLINGS)


def list_voc_colours() -> NDArray[np.uint8]:
    """List Pascal VOC's colours of the numbers 0 to 255, uint8 [number, rgb]: its bits by turns."""
    bits = (np.arange(256)[:, None] >> np.arange(9)) & 1
    return (bits.reshape(256, 3, 3) << (7 - np.arange(3))[:, None]).sum(axis=1).astype(np.uint8)


def _write_zip(
    export: Export, name: str, subset: str, labels: Sequence[tuple[str, Colour]]
) -> None:
    source, photographs = export.source, export.images == "copy"
    classes = np.zeros((256, 3), np.uint8)
    classes[: len(source.names)] = [colour for _, colour in labels[: len(source.names)]]
    objects = np.roll(list_voc_colours(), -1, axis=0)
    objects[IGNORE] = 0

    def draw(item: Item) -> tuple[Item, dict[str, bytes]]:
        numbers = source.read_labels(item.image)
        files = {}
        if photographs:
            suffix = choose_suffix(item.image.path, COMMON)
            content = load_photograph(source.manifest.root, item.image, suffix)
            files[f"JPEGImages/{item.split}/{item.name}{suffix}"] = content
        for part, colours in (("SegmentationClass", classes), ("SegmentationObject", objects)):
            files[f"{part}/{item.split}/{item.name}.png"] = encode_png(colours[numbers])
        return item, files

    lines = ["# label:color_rgb:parts:actions", f"{BACKGROUND}:0,0,0::"]
    lines += [f"{label}:{','.join(map(str, colour))}::" for label, colour in labels]
    listed = io.StringIO()
    with export.folder.stream(name) as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(_entry("labelmap.txt"), "".join(f"{line}\n" for line in lines))
        for item, files in export.map(draw):
            listed.write(f"{item.split}/{item.name}\n")
            for place, content in files.items():
                archive.writestr(_entry(place), content)
        archive.writestr(_entry(f"ImageSets/Segmentation/{subset}.txt"), listed.getvalue())


def _entry(name: str) -> zipfile.ZipInfo:
    """Name an entry that has no time: the same export has the same bytes."""
    return zipfile.ZipInfo(name)
