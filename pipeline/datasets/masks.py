"""Label maps among photographs: found by their names and their few values, and left out."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.datasets.labels import pack_colours
from pipeline.errors import ImageError
from pipeline.images.decoding import read_label
from pipeline.images.formats import find_suffix

MOST_VALUES = 64
"""A picture of more values is no label map."""

_LOSSLESS = {".png", ".tif", ".tiff", ".bmp", ".gif"}
_ENDING = re.compile(r"[-_. ](mask|label|gt|seg|segmentation|annotation)s?$", re.IGNORECASE)
_LOOKED = 4
# Folders are looked at one by one up to this number, and all together beyond.
_MOST_GROUPS = 32

log = logging.getLogger(__name__)


def find_masks(root: Path, paths: Sequence[str], *, used: bool = False) -> dict[str, str]:
    """Find the label maps among the images below a root, and say how to use them, or that they are.

    They have the stem of a photograph, in another folder or with another suffix, and few values. A
    few of each folder are read. Each is given with its photograph, or with nothing where it has
    none or shares it with others.
    """
    partners = _pair(paths)
    folders: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in paths:
        if find_suffix(path) in _LOSSLESS and partners:
            folders[PurePosixPath(path).parent.name, PurePosixPath(path).suffix].append(path)
    groups = list(folders.values())
    if len(groups) > _MOST_GROUPS:
        groups = [[path for group in groups for path in group]]
    masks: set[str] = set()
    first: tuple[str, str] | None = None
    for group in groups:
        paired = [path for path in group if path in partners]
        looked = _choose(paired)
        if not looked or not all(_is_mask(root / path) for path in looked):
            continue
        if any(_is_mask(root / partners[path]) for path in looked):
            continue  # drawings, or pages in black and white
        others = [path for path in group if path not in partners]
        all_masks = all(_is_mask(root / path) for path in _choose(others))
        masks.update(group if all_masks else paired)
        first = first or (looked[0], partners[looked[0]])
    photographs = {path: partners[path] for path in masks if path in partners}
    claims = Counter(photographs.values())
    alone = {p for p in masks if claims[photographs.get(p, "")] != 1 or photographs[p] in masks}
    found = {path: "" if path in alone else photographs[path] for path in masks}
    if first is not None and used:
        text = "%d label maps lie among the photographs, and are used as such (%s, of %s)"
        log.warning(text, len(masks) - len(alone), *first)
        if alone:
            text = "%d label maps are of no photograph, or of one that has several (first: %s)"
            log.warning(text, len(alone), min(alone))
    elif first is not None:
        log.warning(
            "%d label maps are left out of the photographs: few values, and the names of images "
            "(%s, of %s); %s scores with them, and --include takes what it names as photographs",
            len(masks),
            *first,
            _teach(root, *first),
        )
    return found


def _pair(paths: Collection[str]) -> dict[str, str]:
    """Pair what may be a label map with another image of its stem."""
    named: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        same = named[PurePosixPath(path).stem]
        lossy = find_suffix(path) not in _LOSSLESS
        # two are enough to find another, and a photograph's own format comes first
        if lossy or len(same) < 2:
            same.insert(0 if lossy else len(same), path)
            del same[2:]
    pairs = {}
    for path in paths:
        if find_suffix(path) in _LOSSLESS:
            stem = PurePosixPath(path).stem
            same = named.get(stem, []) + named.get(_ENDING.sub("", stem), [])
            other = next((each for each in same if each != path), None)
            if other is not None:
                pairs[path] = other
    return pairs


def _choose(paths: Sequence[str]) -> list[str]:
    places = np.unique(np.linspace(0, len(paths) - 1, _LOOKED).astype(int)) if paths else ()
    return [paths[place] for place in places]


def _is_mask(path: Path) -> bool:
    try:
        raw = read_label(path)
    except ImageError:
        return False
    if raw.ndim == 2:
        return len(np.unique(raw)) <= MOST_VALUES
    # one colour all over says nothing
    return 1 < len(np.unique(pack_colours(raw))) <= MOST_VALUES


def _teach(root: Path, mask: str, photograph: str) -> str:
    one, two = PurePosixPath(photograph), PurePosixPath(mask)
    images, labels = list(one.parent.parts), list(two.parent.parts)
    while images and labels and images[-1] == labels[-1] and images != labels:
        images.pop()
        labels.pop()
    if one.stem == two.stem and images != labels and images and labels:
        return f"--root {root.joinpath(*images)} --labels {root.joinpath(*labels)}"
    return f"--labels {root}"
