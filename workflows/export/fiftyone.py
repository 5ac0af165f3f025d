"""FiftyOne's ``ImageSegmentationDirectory``: ``data``, ``labels``, and a script that opens them.

FiftyOne does not show the value 0, and takes names of the values from Python alone. So a class has
the value after its number, 0 is what is ignored, ``mask_targets.json`` has the names, and
``open_in_fiftyone.py`` gives them to FiftyOne. 255 is ``ignore``, for people to use.
"""

from __future__ import annotations

import numpy as np

from pipeline.datasets.definition import IGNORE
from pipeline.errors import UsageError
from pipeline.run.evaluation import LEFT_OUT_NAME
from workflows.export.folder import COMMON, choose_suffix
from workflows.export.job import Export, Item

NESTED = True
NOTE = "`python open_in_fiftyone.py` in this folder opens it, `... save FOLDER` writes it back"
TARGETS = "mask_targets.json"

_SCRIPT = '''\
"""Open this folder in FiftyOne; with ``save FOLDER`` write what is in it now to a new folder."""

import json
import sys
from pathlib import Path

import fiftyone as fo

here = Path(__file__).resolve().parent
targets = json.loads((here / "mask_targets.json").read_text(encoding="utf-8"))
if fo.dataset_exists(str(here)):
    dataset = fo.load_dataset(str(here))
else:
    dataset = fo.Dataset.from_dir(
        dataset_type=fo.types.ImageSegmentationDirectory,
        data_path=str(here / "data"),
        labels_path=str(here / "labels"),
        label_field="labels",
        name=str(here),
    )
    dataset.default_mask_targets = {int(value): name for value, name in targets.items()}
    dataset.persistent = True
if sys.argv[1:2] == ["save"]:
    out = Path(sys.argv[2])
    dataset.export(
        export_dir=str(out),
        dataset_type=fo.types.ImageSegmentationDirectory,
        label_field="labels",
        export_media=False,
        rel_dir=str(here / "data"),
    )
    targets = {str(value): name for value, name in dataset.default_mask_targets.items()}
    (out / "mask_targets.json").write_text(json.dumps(targets), encoding="utf-8")
else:
    fo.launch_app(dataset).wait()
'''


def write(export: Export) -> list[tuple[str, str]]:
    """Write images, label maps, the names of their values, and the script."""
    source, folder = export.source, export.folder
    if len(source.classes) >= IGNORE:
        raise UsageError(
            f"--format fiftyone: it holds {IGNORE - 1} classes at most, and these are "
            f"{len(source.classes)}; take another format."
        )

    def place(item: Item) -> tuple[str, str]:
        name = f"{item.split}/{item.name}"
        return f"data/{name}{choose_suffix(item.image.path, COMMON)}", f"labels/{name}.png"

    # 255, which is ignored, becomes 0
    values = np.roll(np.arange(256, dtype=np.uint8), -1)
    places = export.write_pairs(
        place, lambda label, labels: folder.write_labels(label, values[labels], None)
    )
    names = {str(number): name for number, name in enumerate(source.names, start=1)}
    folder.write_json(TARGETS, {**names, str(IGNORE): LEFT_OUT_NAME})
    folder.write("open_in_fiftyone.py", _SCRIPT.encode())
    return places
