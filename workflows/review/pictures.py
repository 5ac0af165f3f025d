"""What a review shows of clusters and images: cut-outs, thumbnails, photographs, label maps.

All are made when they are asked for, in threads, and kept as far as a bound on their bytes allows.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw
from scipy.ndimage import distance_transform_edt

from pipeline.errors import UsageError
from pipeline.images.windows import Cover
from pipeline.run.corrections import Point
from pipeline.run.frames import read_frame, read_resized_gaps
from pipeline.run.manifest import Image
from stages.artefacts import Artefacts, read_group_of
from stages.crf.backends import choose_backend
from stages.crf.settings import CrfSettings
from stages.known import locate, number_positions
from stages.labelling import MAIN, Labelling, draw_labels, label_images
from stages.parts import Tree
from stages.report.pictures import sample_evenly, scale_size
from stages.report.typical import (
    PART,
    PER_IMAGE,
    PartReader,
    choose_doubtful,
    choose_typical,
    open_parts,
    take_candidates,
)
from workflows.review.standing import NamedSet

CACHE_BYTES = 128_000_000
RATED_WINDOWS = 1024
TYPICAL, DOUBTFUL = 10, 5
THUMBNAIL, VIEW = 192, 1280  # longest sides, pixels
_QUALITY = 85


class Cache:
    """Bytes that are costly to make, the least used of which go first; of any thread."""

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.held = 0

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return what there is of a key, or make it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self.held += len(made)
            while self.held > self._most and len(self._kept) > 1:
                self.held -= len(self._kept.popitem(last=False)[1])
        return made


@dataclass(frozen=True)
class Examples:
    """The parts that show the clusters, and who they are mistaken for.

    ``parts`` are entries of ``PART``; ``typical`` and ``doubtful`` have places in it by cluster;
    ``rival`` is for every cluster the one that its parts come nearest to being, with the
    probability that they give it.
    """

    parts: NDArray[Any]
    typical: Mapping[int, list[int]]
    doubtful: Mapping[int, list[int]]
    counts: Mapping[int, int]
    rivals: Mapping[int, tuple[int, float]]


def choose_of_units(
    units: Units, rows: NDArray[np.int64], image_of: NDArray[np.int64], cluster: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Choose proposals that are typical of some units, and those that are least like them.

    Gives entries of ``PART``; ``image_of`` is the image of every window, int64 [window].
    """
    # a proposal of the clean view may hold no position of a finer one
    counts = np.maximum(units.counts[rows], 1)
    means = units.totals[rows] / counts[:, None]
    # relative to what all have in common, which says nothing of which are near
    middle = units.totals[rows].sum(axis=0) / counts.sum()
    norms = np.linalg.norm(means, axis=1) * np.linalg.norm(middle)
    similarity = means @ middle / np.where(norms > 0, norms, 1)
    mine = np.flatnonzero(np.isin(units.rows, rows))
    parts = np.zeros(len(mine), PART)
    parts["window"], parts["number"] = np.divmod(units.proposals[mine], 256)
    parts["image"], parts["cluster"], parts["proposal"] = image_of[parts["window"]], cluster, True
    parts["similarity"] = parts["margin"] = similarity[np.searchsorted(rows, units.rows[mine])]
    typical = choose_typical(parts, TYPICAL, PER_IMAGE)
    return typical, choose_doubtful(parts, typical, DOUBTFUL, 1)


class Units(NamedTuple):
    """The proposals, or groups of such, that a fit has merged to clusters: see ``stages.parts``."""

    tree: Tree
    proposals: NDArray[np.int64]  # [proposal]: 256 x row of the window + its number
    rows: NDArray[np.integer]  # [proposal]: its unit
    counts: NDArray[np.float64]  # positions
    totals: NDArray[np.float64]  # [unit, channel]: sum of their features


def read_units(artefacts: Artefacts) -> Units | None:
    """Read the units of a fit; None where it keeps none, or there are no proposals any more."""
    arrays, _ = read_group_of(artefacts.run, artefacts.subject, sums=True)
    if "moments_merges" not in arrays or not artefacts.has_proposals:
        return None
    return Units(
        Tree(arrays["moments_merges"], arrays["moments_cluster"]),
        arrays["moments_proposal"],
        arrays.get("moments_unit", np.arange(len(arrays["moments_proposal"]))),
        arrays["moments_count"],
        arrays["moments_total"],
    )


class Pictures:
    """Makes what is shown of one run and fit."""

    def __init__(self, artefacts: Artefacts, crf: str, device: str) -> None:
        self.artefacts = artefacts
        self.cache = Cache()
        self._parts: PartReader = open_parts(artefacts)
        self.masks = self._parts.proposals
        self._crf, self._device = crf, device
        self._places: dict[tuple[int, int, int], Place | None] = {}

    # --- clusters ---------------------------------------------------------------------------------

    def find_examples(self) -> Examples:
        """Rate the parts of a sample of windows, and choose those that show the clusters."""
        windows = self.artefacts.manifest.usable_windows()
        sample = (windows[i] for i in sample_evenly(len(windows), RATED_WINDOWS))
        rated = take_candidates(self._parts.rate_all(sample))
        typical = choose_typical(rated, TYPICAL, PER_IMAGE)
        doubtful = choose_doubtful(rated, typical, DOUBTFUL, 1)
        clusters = self.artefacts.clusters
        counts = np.bincount(rated["cluster"], minlength=clusters)
        pairs = rated["cluster"] * clusters + rated["second"]
        weights = rated["second_probability"]
        mass = np.bincount(pairs, weights, clusters**2).reshape(clusters, clusters)
        rivals = {
            k: (int(mass[k].argmax()), float(mass[k].max() / counts[k]))
            for k in np.flatnonzero(counts).tolist()
        }
        return Examples(
            np.concatenate([typical, doubtful]),
            _group(typical["cluster"]),
            _group(doubtful["cluster"], len(typical)),
            dict(enumerate(counts.tolist())),
            rivals,
        )

    def draw_cutout(self, examples: Examples, place: int) -> bytes:
        """Draw one of the examples as JPEG."""
        part = examples.parts[place]

        def make() -> bytes:
            image = self.artefacts.manifest.images[int(part["image"])]
            return _encode(self._parts.draw(image, self.artefacts.read_pixels(image), part))

        return self.cache.get(("cutout", place), make)

    def find_pixel(self, examples: Examples, place: int) -> tuple[Image, int, int]:
        """Find a pixel of the photograph that lies well inside an example."""
        part = examples.parts[place]
        image = self.artefacts.manifest.images[int(part["image"])]
        mask, box = self._parts.find(image, part)
        cover = self.artefacts.cover(image)
        left, top = box[0] + cover.box[0], box[1] + cover.box[1]
        y, x = _find_inside(mask)
        side = (box[2] - box[0], box[3] - box[1])
        scale = image.width / cover.resized[0], image.height / cover.resized[1]
        column = int((left + (x + 0.5) * side[0] / mask.shape[1]) * scale[0])
        row = int((top + (y + 0.5) * side[1] / mask.shape[0]) * scale[1])
        return image, min(column, image.width - 1), min(row, image.height - 1)

    # --- images -----------------------------------------------------------------------------------

    def draw_thumbnail(self, image: Image) -> bytes:
        """Draw a photograph small, as JPEG."""
        return self._photograph(image, THUMBNAIL)

    def draw_photograph(self, image: Image) -> bytes:
        """Draw a photograph as large as it is looked at, as JPEG."""
        return self._photograph(image, VIEW)

    def _photograph(self, image: Image, longest: int) -> bytes:
        size = find_size(image, longest)
        root = self.artefacts.manifest.root
        return self.cache.get(
            (image.image, longest), lambda: _encode(read_frame(root, image, *size))
        )

    def draw_labels(
        self, image: Image, named: NamedSet, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Label an image as ``evaluate`` does, at a size, in the numbers of the named set."""
        key = ("labels", image.image, named.key, width, height)

        def make() -> bytes:
            artefacts = self.artefacts
            now = replace(artefacts, classifiers={MAIN: named.classifier})
            logits = now.read_logits([image], device=self._device, names=[MAIN])
            backend = choose_backend(self._crf, self._device)

            def finish(image: Image, labelling: Labelling) -> NDArray[np.uint8]:
                gaps = read_resized_gaps(now.manifest.root, image, width, height)
                return draw_labels(labelling.probabilities, now.cover(image), width, height, gaps)

            main = {row: values[MAIN] for row, values in logits.items()}
            (labels,) = label_images(
                now.manifest, [image], main, now.size, finish, backend, CrfSettings()
            )
            return named.table[labels].tobytes()

        return np.frombuffer(self.cache.get(key, make), np.uint8).reshape(height, width)

    def draw_proposals(self, image: Image, width: int, height: int) -> NDArray[np.uint16]:
        """Draw which proposal a click on each pixel means, uint16 [y, x], 0 where there is none."""
        drawn = np.zeros((height, width), np.uint16)
        proposals = self.artefacts.read_proposals(image)
        if proposals is None:
            return drawn
        cover = self.artefacts.cover(image)
        # the middle of every pixel, as a click on it means it
        x = (np.arange(width) + 0.5) * cover.resized[0] / width
        y = (np.arange(height) + 0.5) * cover.resized[1] / height
        nearest = _find_windows(cover, x, y)
        for place, (window, ids) in enumerate(zip(cover.windows, proposals, strict=True)):
            rows, columns = np.nonzero(nearest == place)
            inside = (y[rows] - window.top).astype(int), (x[columns] - window.left).astype(int)
            numbers = ids[inside].astype(np.uint16)
            numbers[numbers > 0] += 256 * place
            drawn[rows, columns] = numbers
        return drawn

    def find_place(self, image: Image, x: int, y: int) -> Place | None:
        """Find what a click on a pixel of the photograph means; None outside of all windows."""
        # asked again of every click whenever something is said, and proposals do not change
        key = image.image, x, y
        if key not in self._places:
            self._places[key] = self._find_place(image, x, y)
        return self._places[key]

    def _find_place(self, image: Image, x: int, y: int) -> Place | None:
        cover = self.artefacts.cover(image)
        found = locate(Point(x, y, None, None, ""), cover, (image.width, image.height))
        if found is None:
            return None
        window, pixel = found
        proposals = self.artefacts.read_proposals(image)
        number = 0 if proposals is None else int(proposals[window][pixel])
        shape = (self.artefacts.size, self.artefacts.size)
        cell = -1 if number else int(number_positions(shape, self.artefacts.grid)[pixel])
        return Place(window, number, cell)


class Place(NamedTuple):
    """What a click means: a proposal of a window of the image, or one position of its grid."""

    window: int
    proposal: int  # 0 for none
    cell: int  # -1 for none


def find_size(image: Image, longest: int) -> tuple[int, int]:
    """Return width and height of a photograph that is shown, never larger than it is."""
    return scale_size(image.width, image.height, min(1.0, longest / max(image.width, image.height)))


def _find_windows(
    cover: Cover, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Find, as :func:`locate` does, the window that is meant at every x and y: int64 [y, x].

    It is -1 where no window is.
    """
    best = np.full((len(y), len(x)), np.inf)
    nearest = np.full(best.shape, -1)
    for place, window in enumerate(cover.windows):
        left, top, right, bottom = window.box
        across = np.where((left <= x) & (x < right), (x - (left + right) / 2) ** 2, np.inf)
        down = np.where((top <= y) & (y < bottom), (y - (top + bottom) / 2) ** 2, np.inf)
        distance = down[:, None] + across
        closer = distance < best
        best[closer], nearest[closer] = distance[closer], place
    return nearest


def draw_strokes(
    strokes: Sequence[Sequence[tuple[float, float]]], radius: float, image: Image
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Draw what a brush has painted, in pixels of the photograph: a mask, and its corner."""
    points = np.array([point for stroke in strokes for point in stroke], np.float64).reshape(-1, 2)
    reach = radius + 1
    low = np.floor(points.min(axis=0) - reach).clip(0, None).astype(int)
    most = np.array([image.width, image.height])
    high = np.minimum(np.ceil(points.max(axis=0) + reach).astype(int) + 1, most)
    if (high <= low).any():
        raise UsageError("the stroke lies outside of the photograph.")
    picture = PillowImage.new("1", (int(high[0] - low[0]), int(high[1] - low[1])))
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        path = [(x - low[0], y - low[1]) for x, y in stroke]
        if len(path) > 1:
            pen.line(path, fill=1, width=max(1, round(2 * radius)), joint="curve")
        # a small circle may hold the middle of no pixel
        pen.point(path, fill=1)
        for x, y in path:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(picture, dtype=bool), (int(low[0]), int(low[1]))


def _group(clusters: NDArray[np.int64], first: int = 0) -> dict[int, list[int]]:
    """Return the places of every cluster, counted from the first."""
    grouped: dict[int, list[int]] = {}
    for place, cluster in enumerate(clusters.tolist(), first):
        grouped.setdefault(cluster, []).append(place)
    return grouped


def _find_inside(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel of a mask that is farthest from its border, (y, x)."""
    # the edge of the window is a border, too
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(y), int(x)


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
