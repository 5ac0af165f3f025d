"""Cityscapes, 27 classes: Cordts et al., CVPR 2016; the classes as STEGO and PriMaPs score them."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.base import Benchmark, Sample, existing, file_names, folder_names
from pipeline.datasets.palettes import CITYSCAPES as PALETTE

NAMES = (
    "road",
    "sidewalk",
    "parking",
    "rail track",
    "building",
    "wall",
    "fence",
    "guard rail",
    "bridge",
    "tunnel",
    "pole",
    "polegroup",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "motorcycle",
    "bicycle",
)
FIRST_LABEL = 7
"""Label ids below it are void; from it on they are the classes in order."""

_IMAGE = "_leftImg8bit.png"
_LABEL = "_gtFine_labelIds.png"
_CLASSES = {FIRST_LABEL + index: index for index in range(len(NAMES))}


def list_split(root: Path, split: str) -> list[Sample]:
    """List the frames of a split's cities as '<city>/<frame>', each with its label map if any."""
    samples = []
    for city in folder_names(root / "leftImg8bit" / split):
        for name in file_names(root / "leftImg8bit" / split / city, _IMAGE):
            frame = name.removesuffix(_IMAGE)
            samples.append(
                Sample(
                    id=f"{city}/{frame}",
                    split=split,
                    image=f"leftImg8bit/{split}/{city}/{name}",
                    label=existing(root, f"gtFine/{split}/{city}/{frame}{_LABEL}"),
                )
            )
    return samples


CITYSCAPES = Benchmark(
    name="cityscapes",
    layout=f"leftImg8bit/<split>/<city>/*{_IMAGE} with label maps gtFine/<split>/<city>/*{_LABEL}",
    splits=("train", "val", "test"),
    names=NAMES,
    palette=PALETTE,
    classes=_CLASSES,
    ignored=[index for index in range(256) if index not in _CLASSES],
    list_split=list_split,
)
