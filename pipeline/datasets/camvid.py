"""CamVid, 11 classes: Brostow et al., Pattern Recognition Letters 2009, in the layout of SegNet."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.base import Benchmark, Sample, existing, file_names
from pipeline.datasets.palettes import CAMVID as PALETTE

NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
VOID = 11


def list_split(root: Path, split: str) -> list[Sample]:
    """List the frames of a split, each with its label map where there is one."""
    return [
        Sample(
            id=name.removesuffix(".png"),
            split=split,
            image=f"{split}/{name}",
            label=existing(root, f"{split}annot/{name}"),
        )
        for name in file_names(root / split, ".png")
    ]


CAMVID = Benchmark(
    name="camvid",
    layout="<split>/*.png with label maps <split>annot/*.png (splits train, val, test)",
    splits=("train", "val", "test"),
    names=NAMES,
    palette=PALETTE,
    classes={index: index for index in range(len(NAMES))},
    ignored=(VOID,),
    list_split=list_split,
)
