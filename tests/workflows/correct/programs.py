"""What annotation tools do with files of ours, by their own code: `python programs.py TOOL IN OUT`.

Each reads what `export` has written with the library's own importer, checks that it is what the
tool takes, and writes with its own exporter what the tool would give back. It is run by a Python
that has the tools (tests/workflows/correct/conftest.py), and imports nothing of ours.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any


def cvat(given: Path, out: Path) -> None:
    """Do as CVAT's importer and exporter of `Segmentation mask 1.1` do, through Datumaro."""
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    colours = {
        each["name"]: tuple(bytes.fromhex(each["color"][1:]))
        for each in json.loads((given / "labels.json").read_text())
    }
    for file in given.glob("*.zip"):
        folder = out / file.stem
        zipfile.ZipFile(file).extractall(folder)
        dataset = Dataset.import_from(str(folder), "voc_segmentation")
        labels = dataset.categories()[AnnotationType.label]
        for item in dataset:
            assert item.media is not None, item.id
            for mask in item.annotations:
                # CVAT looks every label up among those of the project
                assert labels[mask.label].name in colours
        again = out / f"{file.stem}-exported"
        # CVAT's own has background and the labels of the project, with their colours
        label_map = str(folder / "labelmap.txt")
        dataset.export(str(again), "voc_segmentation", apply_colormap=True, label_map=label_map)
        shutil.make_archive(str(out / f"{file.stem}"), "zip", again)
        shutil.rmtree(folder)
        shutil.rmtree(again)


def coco(given: Path, out: Path) -> None:
    """Write Datumaro's own format as CVAT's `COCO 1.0`."""
    _convert(given, out, "coco_instances")


def datumaro(given: Path, out: Path) -> None:
    """Read and write Datumaro's own format."""
    _convert(given, out, "datumaro")


def _convert(given: Path, out: Path, kind: str) -> None:
    from datumaro.components.dataset import Dataset

    dataset = Dataset.import_from(str(given), "datumaro")
    for item in dataset:
        assert item.media.data.shape[:2] == item.media.size, item.id
    dataset.export(str(out), kind, save_media=False)


def label_studio(given: Path, out: Path) -> None:
    """Take tasks as Label Studio does, decode their masks, and encode them as annotations."""
    import numpy as np
    from label_studio_sdk.converter import brush
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((given / "labeling.xml").read_text())
    exported: list[dict[str, Any]] = []
    for file in sorted((given / "tasks").glob("*.json")):
        for number, task in enumerate(json.loads(file.read_text()), start=1):
            (prediction,) = task["predictions"]
            assert interface.validate_task({"data": task["data"]}), task["data"]
            assert interface.validate_prediction(prediction), prediction
            assert task["data"]["image"].startswith("/data/local-files/?d=images/")
            for region in prediction["result"]:
                values = brush.decode_rle(region["value"]["rle"])
                shape = region["original_height"], region["original_width"], 4
                mask = np.reshape(values, shape)[:, :, 3]
                region["value"]["rle"] = brush.mask2rle(mask)
            annotation = {"id": number, "was_cancelled": False, "result": prediction["result"]}
            exported.append({"id": number, **task, "annotations": [annotation]})
    (out / "project-1.json").write_text(json.dumps(exported))


def labelme(given: Path, out: Path) -> None:
    """Load and save what LabelMe loads and saves, and draw it as it does."""
    import numpy as np
    from labelme import utils
    from labelme._label_file import LabelFile

    names = (given / "labels.txt").read_text(encoding="utf-8").splitlines()
    maps = {}
    for file in sorted(given.glob("*/**/*.json")):
        loaded = LabelFile(str(file))
        size = utils.img_data_to_arr(loaded.image_data).shape[:2]
        values = {name: number for number, name in enumerate(names)}
        name = file.relative_to(given).as_posix()
        maps[name] = utils.shapes_to_label(size, loaded.shapes, values)[0]
        shapes = [
            {
                **{k: v for k, v in shape.items() if k != "other_data"},
                "mask": None
                if shape["mask"] is None
                else utils.img_arr_to_b64(shape["mask"].astype(np.uint8)),
            }
            for shape in loaded.shapes
        ]
        again = out / name
        again.parent.mkdir(parents=True, exist_ok=True)
        LabelFile().save(str(again), shapes, loaded.image_path, *size)
    np.savez(out / "maps.npz", names=names, **maps)


def fiftyone(given: Path, out: Path) -> None:
    """Read and write a folder by FiftyOne's importer and exporter, which need no database."""
    import fiftyone.types as fot
    from fiftyone.utils.data import ImageSegmentationDirectoryExporter as Exporter
    from fiftyone.utils.data import ImageSegmentationDirectoryImporter as Importer

    assert fot.ImageSegmentationDirectory
    importer = Importer(data_path=str(given / "data"), labels_path=str(given / "labels"))
    exporter = Exporter(export_dir=str(out), export_media=False, rel_dir=str(given / "data"))
    with importer, exporter:
        for image, _, label in importer:
            label.import_mask()
            exporter.export_sample(image, label)
    shutil.copy(given / "mask_targets.json", out)


def shapes(given: Path, out: Path) -> None:
    """Draw LabelMe's shapes as LabelMe does."""
    import numpy as np
    from labelme.utils import shapes_to_label

    content = json.loads(given.read_text())
    for shape in content["shapes"]:
        if shape.get("mask"):
            from PIL import Image

            data = io.BytesIO(base64.b64decode(shape["mask"]))
            shape["mask"] = np.asarray(Image.open(data)).astype(bool)
    names = sorted({shape["label"] for shape in content["shapes"]})
    values = {name: number for number, name in enumerate(names, start=1)}
    size = content["imageHeight"], content["imageWidth"]
    np.save(out, shapes_to_label(size, content["shapes"], values)[0])


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
