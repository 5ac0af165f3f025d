"""Pictures of what the stages made: of which images, in which colours, and as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.definition import IGNORE
from pipeline.images.windows import Box
from pipeline.run.evaluation import ClusterLook

T = TypeVar("T")
Role = Literal["worst", "best", "sample"]
# (position, why it is shown)
Choice = tuple[int, Role]
ROLES: tuple[Role, ...] = ("worst", "best", "sample")

# What is shown of an image, in the order in which the stages made it.
CAPTIONS = {
    "image": "image",
    "features": "features (PCA)",
    "proposals": "proposals",
    "label": "label",
    "label_crf": "label + CRF",
    "truth": "ground truth",
    "errors": "errors",
}

RIGHT_COLOUR = (184, 224, 186)
WRONG_COLOUR = (200, 30, 45)
IGNORED_COLOUR = (128, 128, 128)
NO_PROPOSAL_COLOUR = (44, 44, 44)

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_SAMPLED_POSITIONS = 65_536
_JPEG_QUALITY = 80
_LARGEST_ID = 255  # ids are bytes; those above start again at 1


def sample_evenly(count: int, wanted: int) -> list[int]:
    """Choose ``wanted`` of ``count`` positions, evenly spaced, without chance."""
    if wanted >= count:
        return list(range(count))
    return [round((i + 0.5) * count / wanted - 0.5) for i in range(wanted)]


def take_turns(lists: Iterable[Sequence[T]]) -> list[T]:
    """Put the items of several lists in an order that is fair to all, where room may run out."""
    return [item for turn in zip_longest(*lists) for item in turn if item is not None]


def take_within(items: Iterable[T], measure: Callable[[T], int], most: int) -> Iterator[T]:
    """Take items as long as they fit; those after them are not even asked for."""
    size = 0
    for item in items:
        size += measure(item)
        if size > most:
            return
        yield item


def choose_images(ids: Sequence[str], scores: NDArray[np.float64], wanted: int) -> list[Choice]:
    """Choose the images of a split that are shown.

    A third are the worst, a third the best, and the rest are evenly spaced among all others.
    """
    wanted = min(wanted, len(ids))
    rated = [i for i in range(len(ids)) if not np.isnan(scores[i])]
    worst = sorted(rated, key=lambda i: (scores[i], ids[i]))[: (wanted + 1) // 3]
    left = set(rated) - set(worst)
    best = sorted(left, key=lambda i: (-scores[i], ids[i]))[: wanted // 3]
    shown = {*worst, *best}
    others = [i for i in range(len(ids)) if i not in shown]
    sample = sample_evenly(len(others), wanted - len(worst) - len(best))
    chosen = (worst, best, [others[i] for i in sample])
    return [(i, role) for role, own in zip(ROLES, chosen, strict=True) for i in own]


def rank_choices(choices: Sequence[Sequence[tuple[Any, Role]]]) -> list[tuple[int, int]]:
    """Say in which order images are taken as long as there is room: fair to splits and roles."""
    lists = [
        [(split, n) for n, (_, found) in enumerate(chosen) if found == role]
        for role in ROLES
        for split, chosen in enumerate(choices)
    ]
    return take_turns(lists)


@dataclass(frozen=True)
class FeatureColours:
    """How features become colours, the same for all pictures that are compared."""

    basis: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def colour_labels(ids: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour a label map."""
    return palette[ids]


def colour_proposals(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour a map of mask proposals by fixed distinct colours."""
    return _PROPOSAL_PALETTE[ids]


def colour_errors(prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour where a prediction is right (light green), wrong (red) or not judged (grey)."""
    colours = np.array([WRONG_COLOUR, RIGHT_COLOUR, IGNORED_COLOUR], np.uint8)
    state = (prediction == truth).astype(np.intp)
    state[truth == IGNORE] = 2
    return colours[state]


def fit_feature_colours(features: NDArray[Any]) -> FeatureColours:
    """Find the colours that show most of what differs in a sample of features."""
    positions = features.reshape(-1, features.shape[-1])
    step = -(-len(positions) // _SAMPLED_POSITIONS)
    sample = positions[::step].astype(np.float64)
    mean = sample.mean(axis=0)
    centred = sample - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    leading = directions[:, ::-1][:, :3]
    largest = leading[np.abs(leading).argmax(axis=0), np.arange(leading.shape[1])]
    basis = np.zeros((len(mean), 3))
    basis[:, : leading.shape[1]] = leading * np.where(largest < 0, -1.0, 1.0)
    low, high = np.percentile(centred @ basis, (1, 99), axis=0)
    return FeatureColours(basis, mean, low, high)


def colour_features(features: NDArray[Any], colours: FeatureColours) -> NDArray[np.uint8]:
    """Colour features by their projections on three directions."""
    low, high = colours.low, colours.high
    projected = (features.astype(np.float64) - colours.mean) @ colours.basis
    extent = high - low
    flat = extent <= np.finfo(np.float64).eps * np.maximum(np.abs(high), np.abs(low))
    scaled = (projected - low) / np.where(flat, 1.0, extent)
    shares = np.where(flat, 0.5, np.clip(scaled, 0.0, 1.0))
    return np.rint(255 * shares).astype(np.uint8)


def scale_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Return a size that is so many times as large, of a pixel at least."""
    return max(1, round(scale * width)), max(1, round(scale * height))


def make_thumbnail(
    pixels: NDArray[np.uint8], kind: Literal["photograph", "map"], side: int = 320
) -> str:
    """Shrink a picture and inline it."""
    if kind not in ("photograph", "map"):
        raise ValueError(f"a thumbnail is a photograph or a map, not {kind!r}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(image.size)
    if scale < 1:
        image = image.resize(
            scale_size(*image.size, scale),
            Image.Resampling.LANCZOS if kind == "photograph" else Image.Resampling.NEAREST,
        )
    buffer = io.BytesIO()
    if kind == "photograph":
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    else:
        _index_colours(image).save(buffer, "PNG", optimize=True)
    media_type = "image/jpeg" if kind == "photograph" else "image/png"
    return f"data:{media_type};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _index_colours(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    # as one number each: sorting rows of three takes twenty times as long
    packed = pixels.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    numbers, indices = np.unique(packed, return_inverse=True)
    if len(numbers) > 256:
        return image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colours = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=1).astype(np.uint8)
    indexed = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8))
    indexed.putpalette(colours.tobytes())
    return indexed


def _make_proposal_palette() -> NDArray[np.uint8]:
    # hues a golden section apart: any run of consecutive ids, which is what an image has, is spread
    # evenly over the circle; saturation and value step slower, so that no two ids share a colour
    index = np.arange(255)
    hue = (0.58 + index * _GOLDEN_RATIO) % 1.0
    saturation = 0.75 - 0.15 * (index // 3 % 4)
    value = 0.98 - 0.14 * (index % 3)
    colours = np.rint(255 * hsv_to_rgb(np.stack([hue, saturation, value], axis=-1)))
    return np.concatenate([[NO_PROPOSAL_COLOUR], colours]).astype(np.uint8)


_PROPOSAL_PALETTE = _make_proposal_palette()


def join_pictures(
    windows: NDArray[np.uint8], boxes: Sequence[Box], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Paste pictures of windows into one; where they overlap, one fades into the other."""
    total = np.zeros((*shape[:2], 3), np.float32)
    weights = np.zeros((*shape[:2], 1), np.float32)
    for window, (left, top, right, bottom) in zip(windows, boxes, strict=True):
        height, width = bottom - top, right - left
        weight = np.minimum.outer(_ramp(height), _ramp(width))[..., None]
        total[top:bottom, left:right] += weight * enlarge(window, height, width)
        weights[top:bottom, left:right] += weight
    mean = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
    return np.rint(mean).astype(np.uint8)


def join_proposals(
    windows: NDArray[np.uint8], boxes: Sequence[Box], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Paste the proposals of windows into one map; what two windows agree on keeps one id."""
    joined = np.zeros(shape[:2], np.int64)
    used = 0
    for window, (left, top, right, bottom) in zip(windows, boxes, strict=True):
        ids = enlarge(window, bottom - top, right - left).astype(np.int64)
        before = joined[top:bottom, left:right]
        names, used = _match_ids(ids, before, used)
        before[...] = np.where(before > 0, before, names[ids])
    return np.where(joined > 0, (joined - 1) % _LARGEST_ID + 1, 0).astype(np.uint8)


def _match_ids(
    ids: NDArray[np.int64], before: NDArray[np.int64], used: int
) -> tuple[NDArray[np.int64], int]:
    """Choose the joined id of every id of a window; return them and the largest one in use."""
    count = int(ids.max()) + 1
    shared = (ids > 0) & (before > 0)
    overlap = np.zeros((count, used + 1), np.int64)
    np.add.at(overlap, (ids[shared], before[shared]), 1)
    best = overlap.argmax(axis=1)
    agreed = 2 * overlap[np.arange(count), best] > overlap.sum(axis=1)
    names = np.where(agreed, best, 0)
    new = np.setdiff1d(np.unique(ids), [0])
    new = new[names[new] == 0]
    names[new] = used + 1 + np.arange(len(new))
    return names, used + len(new)


def _ramp(length: int) -> NDArray[np.float32]:
    """Return the distance of every pixel from the nearer end, half a pixel at the least."""
    position = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(position, length - position)


def enlarge(window: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Enlarge a picture or map to the nearest of its pixels."""
    rows = np.arange(height) * window.shape[0] // height
    columns = np.arange(width) * window.shape[1] // width
    return window[rows[:, None], columns]


@dataclass(frozen=True)
class Labels:
    """Clusters before the CRF and after it, if there was one, and how those of each look."""

    plain: NDArray[np.uint8]
    refined: NDArray[np.uint8] | None
    plain_look: ClusterLook
    look: ClusterLook

    @property
    def final(self) -> NDArray[np.uint8]:
        """The labels that are written."""
        return self.plain if self.refined is None else self.refined


@dataclass(frozen=True)
class Exhibit:
    """What the stages made of one image, over the box that its windows cover, at their scale.

    ``palette`` has the colours of the classes, uint8 [256, rgb].
    """

    frame: NDArray[np.uint8]
    boxes: tuple[Box, ...]
    features: NDArray[np.float32]
    proposals: NDArray[np.uint8] | None
    truth: NDArray[np.uint8] | None
    palette: NDArray[np.uint8]
    labels: Labels | None


def draw_exhibit(exhibit: Exhibit, colours: FeatureColours) -> dict[str, NDArray[np.uint8]]:
    """Draw what there is of an image, uint8 [y, x, rgb] each; by the keys of ``CAPTIONS``."""
    shape, boxes = exhibit.frame.shape, exhibit.boxes
    grids = colour_features(exhibit.features, colours)
    drawn = {"image": exhibit.frame, "features": join_pictures(grids, boxes, shape)}
    if exhibit.proposals is not None:
        ids = join_proposals(exhibit.proposals, boxes, shape)
        drawn["proposals"] = colour_proposals(ids)
    labels, truth = exhibit.labels, exhibit.truth
    if labels is not None:
        before, after = labels.plain_look, labels.look
        drawn["label"] = colour_labels(before.index[labels.plain], before.palette)
        if labels.refined is not None:
            drawn["label_crf"] = colour_labels(after.index[labels.refined], after.palette)
    if truth is not None:
        drawn["truth"] = colour_labels(truth, exhibit.palette)
        if labels is not None and labels.look.classes is not None:
            drawn["errors"] = colour_errors(labels.look.table[labels.final], truth)
    return drawn
