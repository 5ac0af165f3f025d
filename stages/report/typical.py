"""What is typical of every cluster: parts of windows, rated, chosen, and cut out of photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

from pipeline.images.windows import Box, Window
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.manifest import Image
from pipeline.storage.arrays import open_arrays, read_rows
from stages.artefacts import Artefacts
from stages.labelling import MAIN, classify
from stages.report.pictures import enlarge, make_thumbnail, sample_evenly, scale_size, take_within

WINDOWS = 512
MOST = 10
CUTOUT_BYTES = 8_000_000  # of the page
PER_IMAGE = 2
SIDE = 128
# positions of the grid: a region of less is a speck, a proposal of less has no feature of its own
_SMALLEST_PARTS = (4.0, 1.0)
# what is not part of a cut-out: its grey, dimmed, and lifted, so that dark photographs show it too
_DIM, _LIFT = 0.5, 40
_MARGIN = 1.15  # side of a cut-out over that of the part
_SMALLEST = 0.2  # side of a cut-out over that of the window: less says nothing of the place
_OUTLINE = (255, 255, 255)
# A part of a window: of which image, its number in the map, the cluster that it belongs to and how
# near it is, and whether it is a proposal or a region of the labels; the cluster that is second,
# its probability, and by how much the first one's is larger.
PART = np.dtype(
    [
        ("window", np.int64),
        ("image", np.int64),
        ("number", np.int64),
        ("cluster", np.int64),
        ("similarity", np.float64),
        ("proposal", np.bool_),
        ("second", np.int64),
        ("second_probability", np.float64),
        ("margin", np.float64),
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
    pooled_logits = share @ logits.flatten(1).T
    clusters, probabilities = pooled_logits.argmax(dim=1), pooled_logits.softmax(dim=1)
    own = probabilities.gather(1, clusters[:, None])[:, 0]
    second = probabilities.scatter(1, clusters[:, None], -1.0).max(dim=1)
    unit = F.normalize(features.flatten(0, 1), dim=-1)
    pooled = F.normalize(share @ unit, dim=-1)
    nearest = F.normalize(prototypes, dim=-1)[clusters]
    parts = np.zeros(len(numbers), PART)
    parts["number"], parts["cluster"] = numbers, clusters.numpy()
    parts["similarity"] = (pooled * nearest).sum(dim=-1).double().numpy()
    parts["second"] = second.indices.numpy()
    parts["second_probability"] = second.values.double().numpy()
    parts["margin"] = (own - second.values).double().numpy()
    return parts


def choose_typical(parts: NDArray[Any], most: int, per_image: int) -> NDArray[Any]:
    """Choose the parts that are nearest to the prototype of their cluster."""
    return _choose_first(parts, -parts["similarity"], most, per_image)


def choose_doubtful(
    parts: NDArray[Any], typical: NDArray[Any], most: int, per_image: int
) -> NDArray[Any]:
    """Choose the parts that another cluster would nearly have got, none of which is typical."""
    key = ["window", "number", "proposal"]
    others = parts[~np.isin(parts[key], typical[key])]
    return _choose_first(others, others["margin"], most, per_image)


def _choose_first(
    parts: NDArray[Any], rank: NDArray[np.float64], most: int, per_image: int
) -> NDArray[Any]:
    """Choose the first parts of every cluster, by rising rank."""
    chosen = []
    taken: Counter[tuple[int, ...]] = Counter()
    pairs = list(zip(parts["cluster"].tolist(), parts["image"].tolist(), strict=True))
    for position in np.lexsort((rank, parts["cluster"])).tolist():
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
    reader = open_parts(artefacts)
    rated = take_candidates(reader.rate_all(sample))
    chosen = choose_typical(rated, MOST, PER_IMAGE)
    # by cluster, proposals and what stands in for them apart
    cutouts = reader.cut(chosen[np.argsort(~chosen["proposal"], kind="stable")])
    stand_ins = np.unique(chosen["cluster"][~chosen["proposal"]]).tolist()
    note = _describe(len(sample), len(windows), artefacts.has_proposals, stand_ins)
    return trim_cutouts(cutouts), note


def open_parts(artefacts: Artefacts) -> PartReader:
    """Open what parts are read from."""
    masks = None
    if artefacts.has_proposals:
        masks = open_arrays(artefacts.run.masks, ["proposals"])["proposals"]
    clean = open_arrays(artefacts.features, ["clean"])["clean"]
    return PartReader(artefacts, clean, masks)


def take_candidates(rated: NDArray[Any]) -> NDArray[Any]:
    """Take the proposals, and the regions of the labels for a cluster that has no proposal."""
    proposals = rated[rated["proposal"]]
    lacking = ~rated["proposal"] & ~np.isin(rated["cluster"], proposals["cluster"])
    return np.concatenate([proposals, rated[lacking]])


@dataclass(frozen=True)
class PartReader:
    """The arrays that parts are read from; ``proposals`` is None where there are none."""

    artefacts: Artefacts
    features: zarr.Array
    proposals: zarr.Array | None

    def rate_all(self, windows: Iterable[Window]) -> NDArray[Any]:
        """Rate the parts of some windows, which are read in threads."""
        threads = count_threads()
        rated = map_ahead(self.rate, windows, threads, threads)
        return np.concatenate([np.zeros(0, PART), *rated])

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
        return Cutout(
            source=make_thumbnail(self.draw(image, pixels, part), "photograph", SIDE),
            image_id=image.id,
            split=image.split,
            similarity=float(part["similarity"]),
        )

    def draw(self, image: Image, pixels: NDArray[np.uint8], part: np.void) -> NDArray[np.uint8]:
        """Cut a part out of what the windows of its image cover, uint8 [y, x, rgb]."""
        mask, (left, top, right, bottom) = self.find(image, part)
        return draw_cutout(pixels[top:bottom, left:right], mask, SIDE)

    def find(self, image: Image, part: np.void) -> tuple[NDArray[np.bool_], Box]:
        """Return where a part is in its window, bool [y, x], and the window's box in the cover."""
        window = int(part["window"])
        cover = self.artefacts.cover(image)
        # mapped again as they were rated: kept, the maps of all windows would take too much
        ids = self._map(window)[2][int(part["proposal"])]
        return ids == part["number"], cover.boxes[window - cover.rows.start]


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
        f"at most {PER_IMAGE} of one image."
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
