"""What is typical of every cluster: parts of windows, rated, chosen, and cut out of photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import zarr
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import binary_dilation, uniform_filter
from skimage.measure import label
from torch import Tensor

from pipeline.images.windows import Window
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.manifest import Image
from pipeline.storage.arrays import open_arrays, read_rows
from stages.artefacts import Artefacts
from stages.labelling import MAIN, classify
from stages.report.pictures import enlarge, make_thumbnail, sample_evenly, scale_size, take_within

WINDOWS = 512
MOST = 10
CUTOUT_BYTES = 8_000_000  # of the page
_PER_IMAGE = 2
_SIDE = 128
# positions of the grid: a region of less is a speck, a proposal of less has no feature of its own
_SMALLEST_PARTS = (4.0, 1.0)
# what is not part of a cut-out: its grey, dimmed, and lifted, so that dark photographs show it too
_DIM, _LIFT = 0.5, 40
_MARGIN = 1.15  # side of a cut-out over that of the part
_SMALLEST = 0.2  # side of a cut-out over that of the window: less says nothing of the place
_OUTLINE = (255, 255, 255)
# A part of a window: of which image, its number in the map, the cluster that it belongs to and how
# near it is, and whether it is a proposal or a region of the labels.
PART = np.dtype(
    [
        ("window", np.int64),
        ("image", np.int64),
        ("number", np.int64),
        ("cluster", np.int64),
        ("similarity", np.float64),
        ("proposal", np.bool_),
    ]
)


@dataclass(frozen=True)
class Cutout:
    """A proposal that is typical of a cluster, cut out of its photograph."""

    source: str
    image_id: str
    split: str
    similarity: float


def find_regions(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Find the connected regions of equal labels, numbered from 1."""
    regions: NDArray[np.int64] = label(labels, background=-1, connectivity=1)
    return regions


def rate_parts(
    ids: NDArray[np.integer],
    features: Tensor,
    logits: Tensor,
    prototypes: Tensor,
    smallest: float,
) -> NDArray[Any]:
    """Say of every part of a window which cluster it belongs to, and how near it is.

    ``ids`` is int [y, x], 0 for no part; features and logits are [row, column, channel] and
    [cluster, row, column]. Given are entries of ``PART`` whose window and image are not set.
    """
    rows, columns = features.shape[:2]
    height, width = ids.shape
    cell = enlarge(np.arange(rows * columns).reshape(rows, columns), height, width)
    count = int(ids.max()) + 1
    pixels = np.bincount(
        (ids.astype(np.int64) * (rows * columns) + cell).ravel(), minlength=count * rows * columns
    ).reshape(count, -1)
    total = pixels.sum(axis=1)
    kept = np.flatnonzero(total >= smallest * height * width / (rows * columns))
    numbers = kept[(kept > 0) & (total[kept] > 0)]
    share = torch.from_numpy((pixels[numbers] / total[numbers, None]).astype(np.float32))
    clusters = (share @ logits.flatten(1).T).argmax(dim=1)
    unit = F.normalize(features.flatten(0, 1), dim=-1)
    pooled = F.normalize(share @ unit, dim=-1)
    nearest = F.normalize(prototypes, dim=-1)[clusters]
    parts = np.zeros(len(numbers), PART)
    parts["number"], parts["cluster"] = numbers, clusters.numpy()
    parts["similarity"] = (pooled * nearest).sum(dim=-1).double().numpy()
    return parts


def choose_typical(parts: NDArray[Any], most: int, per_image: int) -> NDArray[Any]:
    """Choose the parts that are nearest to the prototype of their cluster."""
    chosen = []
    taken: Counter[tuple[int, ...]] = Counter()
    pairs = list(zip(parts["cluster"].tolist(), parts["image"].tolist(), strict=True))
    for position in np.lexsort((-parts["similarity"], parts["cluster"])).tolist():
        cluster, image = pairs[position]
        if taken[(cluster,)] < most and taken[cluster, image] < per_image:
            taken.update([(cluster,), (cluster, image)])
            chosen.append(position)
    return parts[chosen]


def draw_cutout(
    frame: NDArray[np.uint8], mask: NDArray[np.bool_], side: int = 128
) -> NDArray[np.uint8]:
    """Cut a part out of its window: a square around it, all else in dim grey, an outline."""
    mask = enlarge(mask, *frame.shape[:2])
    area = _frame_part(mask)
    picture = PillowImage.fromarray(np.ascontiguousarray(frame[area]))
    cover = PillowImage.fromarray(mask[area].astype(np.uint8) * 255)
    size = scale_size(*picture.size, side / max(picture.size))
    pixels = np.asarray(picture.resize(size, PillowImage.Resampling.LANCZOS)).astype(np.float64)
    share = np.asarray(cover.resize(size, PillowImage.Resampling.BILINEAR))[..., None] / 255
    grey = pixels.mean(axis=-1, keepdims=True)
    drawn = share * pixels + (1 - share) * (_DIM * grey + _LIFT)
    # smoothed, so that specks have no outline
    inside = uniform_filter(share[..., 0], 3) >= 0.5
    drawn[binary_dilation(inside) & ~inside] = _OUTLINE
    return np.rint(drawn).clip(0, 255).astype(np.uint8)


def _frame_part(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the square around a part, as far as the window reaches."""
    # a few specks far away would make all else small
    ends = [_find_ends(mask.sum(axis=axis)) for axis in (1, 0)]
    longest = max(int(last - first) + 1 for first, last in ends)
    side = round(max(_MARGIN * longest, _SMALLEST * max(mask.shape)))
    slices = []
    for (first, last), length in zip(ends, mask.shape, strict=True):
        inside = min(side, length)
        start = min(max(0, round((first + last + 1 - inside) / 2)), length - inside)
        slices.append(slice(start, start + inside))
    return slices[0], slices[1]


def _find_ends(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return the first and the last position, but for the outermost hundredth at both ends."""
    below = np.cumsum(counts)
    spare = counts.sum() / 100
    first, last = np.searchsorted(below, (spare, below[-1] - spare), "right")
    return int(first), min(int(last), int(np.flatnonzero(counts)[-1]))


def gather_typical(
    artefacts: Artefacts, splits: Sequence[str]
) -> tuple[dict[int, list[Cutout]], str]:
    """Cut the most typical proposals of every cluster out of the photographs; say how.

    Where there are no proposals at all, or none of the sample belongs to a cluster, connected
    regions of the labels stand in for them.
    """
    windows = artefacts.manifest.usable_windows(splits=splits)
    sample = [windows[i] for i in sample_evenly(len(windows), WINDOWS)]
    masks = None
    if artefacts.has_proposals:
        masks = open_arrays(artefacts.run.masks, ["proposals"])["proposals"]
    clean = open_arrays(artefacts.features, ["clean"])["clean"]
    reader = _Reader(artefacts, clean, masks)
    threads = count_threads()
    rated = np.concatenate([np.zeros(0, PART), *map_ahead(reader.rate, sample, threads, threads)])
    proposals = choose_typical(rated[rated["proposal"]], MOST, _PER_IMAGE)
    lacking = ~rated["proposal"] & ~np.isin(rated["cluster"], proposals["cluster"])
    regions = choose_typical(rated[lacking], MOST, _PER_IMAGE)
    cutouts = reader.cut(np.concatenate([proposals, regions]))
    stand_ins = np.unique(regions["cluster"]).tolist()
    note = _describe(len(sample), len(windows), artefacts.has_proposals, stand_ins)
    return trim_cutouts(cutouts), note


@dataclass(frozen=True)
class _Reader:
    """The arrays that parts are read from; ``proposals`` is None where there are none."""

    artefacts: Artefacts
    features: zarr.Array
    proposals: zarr.Array | None

    def rate(self, window: Window) -> NDArray[Any]:
        """Rate the regions of the labels of a window, and its proposals."""
        features, logits, maps = self._map(window.index)
        prototypes = self.artefacts.classifiers[MAIN].prototypes.float()
        found = []
        for proposal, ids in enumerate(maps):
            parts = rate_parts(ids, features, logits, prototypes, _SMALLEST_PARTS[proposal])
            parts["window"], parts["image"] = window.index, window.image
            parts["proposal"] = proposal
            found.append(parts)
        return np.concatenate(found)

    def cut(self, parts: NDArray[Any]) -> dict[int, list[Cutout]]:
        """Cut parts out of their photographs, each of which is read once; by cluster, in order."""

        def draw(row: int) -> dict[int, Cutout]:
            image = self.artefacts.manifest.images[row]
            pixels = self.artefacts.read_pixels(image)
            places = np.flatnonzero(parts["image"] == row).tolist()
            return {place: self._draw(image, pixels, parts[place]) for place in places}

        drawn: dict[int, Cutout] = {}
        threads = count_threads()
        for of_image in map_ahead(draw, np.unique(parts["image"]).tolist(), threads, threads):
            drawn |= of_image
        cutouts: dict[int, list[Cutout]] = {}
        for place, cluster in enumerate(parts["cluster"].tolist()):
            cutouts.setdefault(cluster, []).append(drawn[place])
        return cutouts

    def _map(self, window: int) -> tuple[Tensor, Tensor, list[NDArray[np.integer]]]:
        """Return features [row, column, channel] and logits [cluster, row, column] of a window.

        With them go the maps of its parts: the regions of the labels, and its proposals if any.
        """
        features = torch.from_numpy(read_rows(self.features, window, window + 1)).float()
        logits = classify(features, self.artefacts.classifiers[MAIN])[0]
        maps: list[NDArray[np.integer]] = [find_regions(logits.argmax(dim=0).numpy())]
        if self.proposals is not None:
            maps.append(read_rows(self.proposals, window, window + 1)[0])
        return features[0], logits, maps

    def _draw(self, image: Image, pixels: NDArray[np.uint8], part: np.void) -> Cutout:
        window = int(part["window"])
        cover = self.artefacts.cover(image)
        left, top, right, bottom = cover.boxes[window - cover.rows.start]
        # mapped again as they were rated: kept, the maps of all windows would take too much
        ids = self._map(window)[2][int(part["proposal"])]
        cutout = draw_cutout(pixels[top:bottom, left:right], ids == part["number"], _SIDE)
        return Cutout(
            source=make_thumbnail(cutout, "photograph", _SIDE),
            image_id=image.id,
            split=image.split,
            similarity=float(part["similarity"]),
        )


def _describe(sample: int, windows: int, has_proposals: bool, lacking: Sequence[int]) -> str:
    """Say what the cut-outs are."""
    source = f"all {windows} windows"
    if sample < windows:
        source = f"{sample} of {windows} windows, evenly spaced"
    if not has_proposals:
        return (
            f"Cut-outs: there are no proposals of these features, so that the connected regions of "
            f"the labels that are nearest to the cluster's prototype are shown, of {source}."
        )
    note = (
        f"Cut-outs: the proposals of the cluster that are nearest to its prototype, of {source}, "
        f"at most {_PER_IMAGE} of one image."
    )
    if lacking:
        listed = ", ".join(map(str, lacking[:20])) + (", …" if len(lacking) > 20 else "")
        note += f" No proposal belongs to cluster {listed}: regions of the labels stand in."
    return note


def trim_cutouts(
    cutouts: Mapping[int, Sequence[Cutout]], most: int = CUTOUT_BYTES
) -> dict[int, list[Cutout]]:
    """Leave the least typical cut-outs out where all would not fit, of every cluster alike."""
    turns = zip_longest(*cutouts.values())
    fitting = take_within(turns, lambda turn: sum(len(c.source) for c in turn if c), most)
    count = sum(1 for _ in fitting)
    return {cluster: list(own[:count]) for cluster, own in cutouts.items()}
