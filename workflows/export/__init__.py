"""Exports: the label maps of a run in the layouts that other tools read.

``job`` chooses what and opens the folder, ``source`` reads what is exported and names the files,
``folder`` writes them, ``photographs`` brings the images along. Every format is a module with a
function ``write`` (:class:`workflows.export.job.Format`), also one of another package.
"""

from __future__ import annotations

from pipeline.registry import Registry

PNG, GEOTIFF, PROTOTYPES = "png", "geotiff", "prototypes"
LINES = {
    "mmseg": "img_dir/ann_dir of MMSegmentation, with a config of classes and palette",
    "coco-stuff": "images/train2017 and pixel maps in annotations/train2017, with labels.txt",
    "cityscapes": "leftImg8bit and gtFine (labelIds, labelTrainIds, color), with labels.json",
    "coco-panoptic": "panoptic_train2017.json and RGB-encoded PNGs, a stuff segment per class",
    "huggingface": "parquet files that datasets.load_dataset opens",
    "yolo-seg": "polygons per image and data.yaml, as Ultralytics trains on",
    GEOTIFF: "label maps that lie where their photographs lie, for GIS programs",
    "cvat": "a zip of masks and photographs per split, which CVAT imports",
    "label-studio": "tasks with brush masks as predictions, and the labelling's configuration",
    "labelme": "a JSON of masks beside every photograph, for LabelMe",
    "fiftyone": "photographs, masks and a script that opens them in FiftyOne",
    "datumaro": "Datumaro's own JSON of masks, from which it writes its other formats",
    PROTOTYPES: "one safetensors file with which `predict` labels new images",
}
FORMATS: Registry[object] = Registry(
    "format",
    "primaps_pipe.formats",
    {name: f"workflows.export.{name.replace('-', '_')}" for name in LINES},
)


def describe_formats() -> dict[str, str]:
    """Return a line on every format; those of other packages are imported when they are asked for.

    Nothing here takes torch or the array store, which reading a run does.
    """
    return {name: LINES.get(name, "brought by another package") for name in FORMATS}
