"""COCO-Stuff, 27 coarse classes: Caesar et al., CVPR 2018; the subset and classes of IIC and STEGO.

The label maps hold 182 fine ids: things 0..90, stuff 91..181. Each belongs to one of the 27
super-categories of the dataset's label hierarchy (12 of things, 15 of stuff), which are scored.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.datasets.base import Benchmark, Sample, existing, file_names, keep_present, read_ids
from pipeline.datasets.palettes import COCOSTUFF as PALETTE

CURATED = "Coco164kFull_Stuff_Coarse_7.txt"
"""The list of the images that the published results were measured on."""

FINE_IDS: dict[str, tuple[int, ...]] = {
    "electronic": tuple(range(71, 77)),
    "appliance": tuple(range(77, 83)),
    "food": tuple(range(51, 61)),
    "furniture": tuple(range(61, 71)),
    "indoor": tuple(range(83, 91)),
    "kitchen": tuple(range(43, 51)),
    "accessory": tuple(range(25, 33)),
    "animal": tuple(range(15, 25)),
    "outdoor": tuple(range(9, 15)),
    "person": (0,),
    "sports": tuple(range(33, 43)),
    "vehicle": tuple(range(1, 9)),
    "ceiling": (101, 102),
    "floor": (100, *range(113, 118)),
    "food-stuff": (120, 121, 152, 169),
    "furniture-stuff": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
    "raw-material": (99, 131, 138, 142),
    "textile": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
    "wall": tuple(range(170, 177)),
    "window": (179, 180),
    "building": (94, 95, 127, 150, 157, 165),
    "ground": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
    "plant": (93, 96, 118, 123, 128, 133, 141, 162, 168),
    "sky": (105, 156),
    "solid": (126, 134, 149, 159, 161, 181),
    "structural": (98, 112, 137, 145, 163),
    "water": (119, 147, 154, 177, 178),
}
"""The fine ids of each coarse class, in class order."""

log = logging.getLogger(__name__)


def list_split(root: Path, split: str) -> list[Sample]:
    """List the images of a split's curated list; without the list, every image of its folder."""
    folder = f"{split}2017"
    curated = root / "curated" / folder / CURATED
    if curated.is_file():
        names = read_ids(curated)
    else:
        names = [name.removesuffix(".jpg") for name in file_names(root / "images" / folder, ".jpg")]
        if names:
            log.warning(
                "no curated list at %s: using all %d images of %s, whose scores do not compare"
                " with published ones",
                curated,
                len(names),
                root / "images" / folder,
            )
    samples = [
        Sample(
            id=name,
            split=split,
            image=f"images/{folder}/{name}.jpg",
            label=existing(root, f"annotations/{folder}/{name}.png"),
        )
        for name in names
    ]
    return keep_present(samples, root)


COCOSTUFF = Benchmark(
    name="cocostuff",
    layout=(
        "images/<split>2017/*.jpg with label maps annotations/<split>2017/*.png"
        f" and the list curated/<split>2017/{CURATED}"
    ),
    splits=("train", "val"),
    names=tuple(FINE_IDS),
    palette=PALETTE,
    classes={fine: coarse for coarse, fines in enumerate(FINE_IDS.values()) for fine in fines},
    list_split=list_split,
)
