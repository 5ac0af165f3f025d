"""Parts of images that are typical of a cluster: rated, chosen, and cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

# what is not part of a cut-out: its grey, dimmed, and lifted, so that dark photographs show it too
_DIM, _LIFT = 0.5, 40
_MARGIN = 1.15  # side of a cut-out over that of the part
_SMALLEST = 0.2  # side of a cut-out over that of the window: less says nothing of the place
_OUTLINE = (255, 255, 255)


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
    picture = Image.fromarray(np.ascontiguousarray(frame[area]))
    cover = Image.fromarray(mask[area].astype(np.uint8) * 255)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS)).astype(np.float64)
    share = np.asarray(cover.resize(size, Image.Resampling.BILINEAR))[..., None] / 255
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
