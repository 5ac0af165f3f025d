"""What is typical of every cluster: parts of windows, rated, chosen, and cut out of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import zarr
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pipeline.images.windows import Window
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.manifest import Image
from pipeline.storage.arrays import open_arrays, read_rows
from stages.evaluate.artefacts import Artefacts
from stages.labelling import MAIN, classify
from stages.report.pictures import make_thumbnail, sample_evenly

WINDOWS = 512
MOST = 10
CUTOUT_BYTES = 8_000_000  # of the page
_PER_IMAGE = 2
_SIDE = 128
# positions of the grid: a proposal of less has no feature of its own, a region of less is a speck
_SMALLEST_PROPOSAL = 1.0
_SMALLEST_REGION = 4.0
# what is not part of a cut-out: its grey, dimmed, and lifted, so that dark photographs show it too
_DIM, _LIFT = 0.5, 40
_MARGIN = 1.15  # side of a cut-out over that of the part
_SMALLEST = 0.2  # side of a cut-out over that of the window: less says nothing of the place
_OUTLINE = (255, 255, 255)


@dataclass(frozen=True)
class Cutout:
    """A proposal that is typical of a cluster, cut out of its photograph."""

    source: str
    image_id: str
    split: str
    similarity: float


@dataclass(frozen=True)
class Parts:
    """Parts of windows, each with the cluster that it belongs to."""

    windows: NDArray[np.int64]
    images: NDArray[np.int64]
    numbers: NDArray[np.int64]
    clusters: NDArray[np.int64]
    similarities: NDArray[np.float64]

    def choose(self, positions: NDArray[np.int64]) -> Parts:
        """Return some of the parts."""
        return Parts(**{f.name: getattr(self, f.name)[positions] for f in fields(self)})


def join_parts(parts: Sequence[Parts]) -> Parts:
    """Join the parts of several windows."""
    none = np.zeros(0, np.int64)
    every = [Parts(none, none, none, none, np.zeros(0)), *parts]
    return Parts(
        **{f.name: np.concatenate([getattr(p, f.name) for p in every]) for f in fields(Parts)}
    )


def find_regions(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Find the connected regions of equal labels."""
    index = np.arange(labels.size).reshape(labels.shape)
    across = labels[:, 1:] == labels[:, :-1]
    down = labels[1:] == labels[:-1]
    start = np.concatenate([index[:, :-1][across], index[:-1][down]])
    end = np.concatenate([index[:, 1:][across], index[1:][down]])
    graph = coo_array((np.ones(len(start)), (start, end)), shape=(labels.size, labels.size))
    _, numbers = connected_components(graph, directed=False)
    regions: NDArray[np.int64] = numbers.reshape(labels.shape).astype(np.int64) + 1
    return regions


def rate_parts(
    ids: NDArray[np.integer],
    features: Tensor,
    logits: Tensor,
    prototypes: Tensor,
    smallest: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Say of every part of a window which cluster it belongs to, and how near it is."""
    rows, columns = features.shape[:2]
    height, width = ids.shape
    cell = (np.arange(height) * rows // height)[:, None] * columns
    cell = cell + np.arange(width) * columns // width
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
    similarities = (pooled * nearest).sum(dim=-1).double().numpy()
    return numbers, clusters.numpy(), similarities


def choose_typical(parts: Parts, most: int, per_image: int) -> Parts:
    """Choose the parts that are nearest to the prototype of their cluster."""
    order = np.lexsort((-parts.similarities, parts.clusters))
    inside = _count_before(parts.clusters[order], parts.images[order])
    order = order[inside < per_image]
    order = order[_count_before(parts.clusters[order]) < most]
    return parts.choose(order)


def _count_before(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count for every entry how many before it have the same keys."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    order = np.lexsort(keys)
    same = np.logical_and.reduce([k[order][1:] == k[order][:-1] for k in keys])
    starts = np.concatenate([[0], np.flatnonzero(~same) + 1])
    first = np.repeat(starts, np.diff([*starts, len(order)]))
    counts = np.empty(len(order), np.int64)
    counts[order] = np.arange(len(order)) - first
    return counts


def draw_cutout(
    frame: NDArray[np.uint8], mask: NDArray[np.bool_], side: int = 128
) -> NDArray[np.uint8]:
    """Cut a part out of its window: a square around it, all else in dim grey, an outline."""
    height, width = frame.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    mask = mask[rows[:, None], columns]
    area = _frame_part(mask)
    picture = PillowImage.fromarray(np.ascontiguousarray(frame[area]))
    cover = PillowImage.fromarray(mask[area].astype(np.uint8) * 255)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    pixels = np.asarray(picture.resize(size, PillowImage.Resampling.LANCZOS)).astype(np.float64)
    share = np.asarray(cover.resize(size, PillowImage.Resampling.BILINEAR))[..., None] / 255
    grey = pixels.mean(axis=-1, keepdims=True)
    drawn = share * pixels + (1 - share) * (_DIM * grey + _LIFT)
    # smoothed, so that specks have no outline
    drawn[_find_edge(uniform_filter(share[..., 0], 3) >= 0.5)] = _OUTLINE
    cutout: NDArray[np.uint8] = np.rint(drawn).clip(0, 255).astype(np.uint8)
    return cutout


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


def _find_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find the positions outside a mask that touch it."""
    padded = np.pad(mask, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return near & ~mask


def gather_typical(
    artefacts: Artefacts, splits: Sequence[str]
) -> tuple[dict[int, list[Cutout]], str]:
    """Cut the most typical proposals of every cluster out of the photographs; say how.

    Where there are no proposals at all, or none of the sample belongs to a cluster, connected
    regions of the labels stand in for them.
    """
    windows = artefacts.manifest.usable_windows(splits=splits)
    sample = [windows[i] for i in sample_evenly(len(windows), WINDOWS)]
    reader = _open_reader(artefacts)
    threads = count_threads()
    rated = list(map_ahead(reader.rate, sample, threads, threads))
    proposals = choose_typical(join_parts([own for own, _ in rated]), MOST, _PER_IMAGE)
    regions = join_parts([others for _, others in rated])
    lacking = np.flatnonzero(~np.isin(regions.clusters, proposals.clusters))
    regions = choose_typical(regions.choose(lacking), MOST, _PER_IMAGE)
    cutouts: dict[int, list[Cutout]] = {}
    for parts, of_proposals in ((proposals, True), (regions, False)):
        for cluster, cutout in zip(
            parts.clusters.tolist(), reader.cut(parts, of_proposals), strict=True
        ):
            cutouts.setdefault(cluster, []).append(cutout)
    note = _describe(
        len(sample), len(windows), artefacts.has_proposals, np.unique(regions.clusters).tolist()
    )
    return trim_cutouts(cutouts), note


@dataclass(frozen=True)
class _Reader:
    """The arrays that parts are read from; ``proposals`` is None where there are none."""

    artefacts: Artefacts
    features: zarr.Array
    proposals: zarr.Array | None

    def rate(self, window: Window) -> tuple[Parts, Parts]:
        """Rate the proposals of a window, and the regions of its labels."""
        features, logits = self._classify(window.index)
        ids = self._read_proposals(window.index)
        regions = find_regions(logits.argmax(dim=0).numpy())
        prototypes = self.artefacts.classifiers[MAIN].prototypes.float()

        def rate(ids: NDArray[np.integer], smallest: float) -> Parts:
            rated = rate_parts(ids, features, logits, prototypes, smallest)
            count = len(rated[0])
            return Parts(
                np.full(count, window.index, np.int64),
                np.full(count, window.image, np.int64),
                *rated,
            )

        proposals = join_parts([]) if ids is None else rate(ids, _SMALLEST_PROPOSAL)
        return proposals, rate(regions, _SMALLEST_REGION)

    def _classify(self, window: int) -> tuple[Tensor, Tensor]:
        """Return features [row, column, channel] and logits [cluster, row, column], float32."""
        features = torch.from_numpy(read_rows(self.features, window, window + 1)).float()
        return features[0], classify(features, self.artefacts.classifiers[MAIN])[0]

    def _read_proposals(self, window: int) -> NDArray[np.uint8] | None:
        if self.proposals is None:
            return None
        ids: NDArray[np.uint8] = read_rows(self.proposals, window, window + 1)[0]
        return ids

    def _map_parts(self, window: int, of_proposals: bool) -> NDArray[np.integer]:
        """Map the parts of a window again that :meth:`rate` has found, int [y, x]."""
        ids = self._read_proposals(window) if of_proposals else None
        return find_regions(self._classify(window)[1].argmax(dim=0).numpy()) if ids is None else ids

    def cut(self, parts: Parts, of_proposals: bool) -> list[Cutout]:
        """Cut parts out of their photographs, each of which is read once."""
        rows = np.unique(parts.images).tolist()
        cutouts: dict[int, Cutout] = {}

        def draw(row: int) -> dict[int, Cutout]:
            image = self.artefacts.manifest.images[row]
            pixels = self.artefacts.read_pixels(image)
            places = np.flatnonzero(parts.images == row).tolist()
            return {
                place: self._draw(image, pixels, parts, place, of_proposals) for place in places
            }

        threads = count_threads()
        for drawn in map_ahead(draw, rows, threads, threads):
            cutouts |= drawn
        return [cutouts[place] for place in range(len(parts.windows))]

    def _draw(
        self,
        image: Image,
        pixels: NDArray[np.uint8],
        parts: Parts,
        place: int,
        of_proposals: bool,
    ) -> Cutout:
        window = int(parts.windows[place])
        cover = self.artefacts.cover(image)
        left, top, right, bottom = cover.boxes[window - cover.rows.start]
        ids = self._map_parts(window, of_proposals)
        cutout = draw_cutout(pixels[top:bottom, left:right], ids == parts.numbers[place], _SIDE)
        return Cutout(
            source=make_thumbnail(cutout, "photograph", _SIDE),
            image_id=image.id,
            split=image.split,
            similarity=float(parts.similarities[place]),
        )


def _open_reader(artefacts: Artefacts) -> _Reader:
    features = open_arrays(artefacts.features, ["clean"])["clean"]
    if not artefacts.has_proposals:
        return _Reader(artefacts, features, None)
    return _Reader(
        artefacts, features, open_arrays(artefacts.run.masks, ["proposals"])["proposals"]
    )


def _describe(sample: int, windows: int, has_proposals: bool, lacking: Sequence[int]) -> str:
    """Say what the cut-outs are."""
    source = (
        f"all {windows} windows"
        if sample == windows
        else (f"{sample} of {windows} windows, evenly spaced")
    )
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
    kept: dict[int, list[Cutout]] = {cluster: [] for cluster in cutouts}
    size = 0
    for round_ in zip_longest(*cutouts.values()):
        size += sum(len(cutout.source) for cutout in round_ if cutout is not None)
        if size > most:
            break
        for cluster, cutout in zip(cutouts, round_, strict=True):
            if cutout is not None:
                kept[cluster].append(cutout)
    return kept
