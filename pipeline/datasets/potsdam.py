"""Potsdam, 3 classes: ISPRS 2D Semantic Labelling, in the tiles of Ji et al. (IIC), ICCV 2019."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.datasets.base import Benchmark, Sample, existing, keep_present, read_ids
from pipeline.datasets.palettes import POTSDAM as PALETTE
from pipeline.errors import DatasetError

NAMES = ("roads and cars", "buildings and clutter", "vegetation")

LISTS = {
    "train": ("unlabelled_train.txt", "labelled_train.txt"),
    "val": ("labelled_test.txt",),
}
"""The lists of tiles whose union is a split."""

# Raw ids: 0 road, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter.
_CLASSES = {0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2}

log = logging.getLogger(__name__)


def list_split(root: Path, split: str) -> list[Sample]:
    """List the tiles of a split's lists, each once, with their label maps where there are any."""
    lists = [root / name for name in LISTS[split]]
    present = [path for path in lists if path.is_file()]
    if not present:
        raise DatasetError(
            f"no list of tiles at {' or '.join(map(str, lists))}: potsdam wants {LAYOUT}"
        )
    for path in set(lists) - set(present):
        log.warning("the list %s is missing: the split '%s' does without it", path, split)
    tiles = sorted({tile for path in present for tile in read_ids(path)})
    samples = [
        Sample(
            id=tile,
            split=split,
            image=f"imgs/{tile}.mat",
            label=existing(root, f"gt/{tile}.mat"),
        )
        for tile in tiles
    ]
    return keep_present(samples, root)


LAYOUT = (
    "imgs/<tile>.mat, gt/<tile>.mat, and the lists unlabelled_train.txt, labelled_train.txt,"
    " labelled_test.txt"
)

POTSDAM = Benchmark(
    name="potsdam",
    layout=LAYOUT,
    splits=tuple(LISTS),
    names=NAMES,
    palette=PALETTE,
    classes=_CLASSES,
    list_split=list_split,
)
