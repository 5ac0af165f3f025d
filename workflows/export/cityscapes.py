"""The layout of Cityscapes: ``leftImg8bit`` and ``gtFine``, split by split and city by city.

Names are the dataset's own for its images. Any other image gets a city, after the first folder of
its id, and a number: ``<city>_000012_000000_leftImg8bit.png``; ``index.csv`` says which it is.
``labelIds`` count from 7, below which the dataset has only void (0 = unlabeled); the classes of
Cityscapes keep their ids. ``labelTrainIds`` are the official 19 for the classes of Cityscapes, and
the classes themselves otherwise; 255 = ignore. Photographs are PNG files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.datasets.definition import IGNORE, IGNORE_COLOUR
from pipeline.errors import UsageError
from workflows.export.job import Export, Item, Source, make_safe

NESTED = True
NOTE = "photographs are PNG files; index.csv says which name stands for which image"
OWN = "cityscapes"
FIRST_ID = 7
UNLABELED = 0
_OWN_NAME = re.compile(r"([^/_]+)/\1_\d{6}_\d{6}")
# Train ids 0..18 are these label ids, in order; the other classes are not trained on.
_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_MOST = IGNORE - FIRST_ID
# Kind of label maps -> what they hold of a label.
_FIELDS = {"labelIds": "id", "labelTrainIds": "trainId", "color": "color"}


def write(export: Export) -> list[tuple[str, str]]:
    """Write photographs, three label maps of each, and ``labels.json``."""
    source, folder, count = export.source, export.folder, len(export.source.classes)
    if count > _MOST:
        raise UsageError(
            f"--format cityscapes: {count} classes are more than the {_MOST} that "
            "label ids from 7 to 254 can number; take another format."
        )
    void, *labels = list_labels(source)
    tables = {}
    for kind, field in _FIELDS.items():
        table = np.empty((256, *np.shape(void[field])), np.uint8)
        table[:] = void[field]
        table[:count] = [label[field] for label in labels]
        tables[kind] = table
    frames = name_frames(export.items)

    def write_item(item: Item) -> tuple[str, str]:
        frame = frames[item.split, item.name]
        image = f"leftImg8bit/{item.split}/{frame}_leftImg8bit.png"
        export.write_photograph(item, image)
        start = f"gtFine/{item.split}/{frame}_gtFine"
        missing = [kind for kind in tables if not folder.has(f"{start}_{kind}.png")]
        if missing:
            values = source.read_labels(item.image)
            for kind in missing:
                folder.write_labels(f"{start}_{kind}.png", tables[kind][values], None)
        return image, f"{start}_labelIds.png"

    places = list(export.map(write_item))
    folder.write_json("labels.json", [void, *labels])
    return places


def name_frames(items: Sequence[Item]) -> dict[tuple[str, str], str]:
    """Name the frames, ``<city>/<city>_<sequence>_<frame>``, by split and name."""
    counts: Counter[tuple[str, str]] = Counter()
    frames = {}
    if all(_OWN_NAME.fullmatch(item.name) for item in items):
        return {(item.split, item.name): item.name for item in items}
    for item in items:
        first, slash, _ = item.name.partition("/")
        city = make_safe(first).replace("_", "-").strip("-") if slash else ""
        city = city or item.split.replace("_", "-")
        number = counts[item.split, city]
        counts[item.split, city] += 1
        frames[item.split, item.name] = f"{city}/{city}_{number:06d}_000000"
    return frames


def list_labels(source: Source) -> list[dict[str, Any]]:
    """List what ``labels.json`` says of void, and of every class."""
    rows = [("unlabeled", UNLABELED, IGNORE, IGNORE_COLOUR)]
    trained = {id_: number for number, id_ in enumerate(_TRAINED)}
    own = source.manifest.dataset == OWN and source.ids != "clusters"
    for number, (name, colour) in enumerate(source.classes):
        id_ = FIRST_ID + number
        rows.append((name, id_, trained.get(id_, IGNORE) if own else number, colour))
    return [
        {
            "name": name,
            "id": id_,
            "trainId": train_id,
            "ignoreInEval": train_id == IGNORE,
            "color": list(colour),
        }
        for name, id_, train_id, colour in rows
    ]
