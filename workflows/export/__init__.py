"""Exports: the label maps of a run in the layouts that other tools read.

``source`` opens what is exported, ``names`` names the files, ``folder`` writes them,
``photographs`` brings the images along; every format is a module with one function ``write``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.progress import Screen
    from pipeline.run.directory import RunDirectory

Ids = Literal["auto", "classes", "clusters"]
Images = Literal["copy", "link", "none"]

FORMATS: dict[str, str] = {
    "mmseg": "img_dir/ann_dir of MMSegmentation, with a config of classes and palette",
    "coco-stuff": "images/train2017 and pixel maps in annotations/train2017, with labels.txt",
    "cityscapes": "leftImg8bit and gtFine (labelIds, labelTrainIds, color), with labels.json",
    "coco-panoptic": "panoptic_train2017.json and RGB-encoded PNGs, a stuff segment per class",
    "huggingface": "parquet files that datasets.load_dataset opens",
    "yolo-seg": "polygons per image and data.yaml, as Ultralytics trains on",
    "prototypes": "one safetensors file with which `predict` labels new images",
}


def export_run(
    run: RunDirectory,
    format: str,
    out: Path,
    *,
    em: str | None = None,
    head: str | None = None,
    splits: tuple[str, ...] = (),
    ids: Ids = "auto",
    images: Images = "copy",
    screen: Screen,
) -> list[str]:
    """Write the label maps of a fit or head, or its prototypes, for other tools.

    Parameters
    ----------
    run
        The run.
    format
        One of ``FORMATS``.
    out
        Local folder; new, empty, or one that holds the same export or a part of it. For
        ``prototypes`` a folder, or a file whose name ends in ``.safetensors``.
    em, head
        Name of the fit or of the head; the run's only one, or ``default``, when neither is given.
    splits
        Splits to export; all that were evaluated when empty.
    ids
        What the numbers in the label maps stand for: the dataset's ``classes``, ``clusters``, or
        ``auto``: classes where clusters are matched to classes.
    images
        Whether to ``copy`` the photographs, ``link`` to them, or leave them out (``none``).
    screen
        Where progress is shown.

    Returns
    -------
    list of str
        What was written, a sentence each.

    Raises
    ------
    UsageError
        A name or an option that does not exist, or does not fit the run.
    RunError
        The fit or head was not evaluated, or its labels are stale; or the folder is not ours.
    """
    # reading a run takes torch and the array store; the names of the formats do not
    from workflows.export.job import write_export

    return write_export(
        run, format, out, em=em, head=head, splits=splits, ids=ids, images=images, screen=screen
    )
