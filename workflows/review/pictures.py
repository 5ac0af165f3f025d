"""What a review shows of clusters and images: cut-outs, thumbnails, photographs, label maps.

All are made when they are asked for, in threads, and kept as far as a bound on their bytes allows.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw
from scipy.ndimage import distance_transform_edt

from pipeline.errors import UsageError
from pipeline.images.windows import Box, Cover
from pipeline.run.frames import read_frame
from pipeline.run.manifest import Image
from stages.artefacts import Artefacts
from stages.crf.backends import choose_backend
from stages.crf.settings import CrfSettings
from stages.labelling import MAIN, Labelling, draw_labels, label_images, scale_box
from stages.report.pictures import enlarge, sample_evenly, scale_size
from stages.report.typical import (
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
                return draw_labels(labelling.probabilities, now.cover(image), width, height)

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
        nearest = _find_windows(cover, width, height)
        for place, (box, ids) in enumerate(
            zip(_place(cover, width, height), proposals, strict=True)
        ):
            left, top, right, bottom = box
            numbers = enlarge(ids, bottom - top, right - left).astype(np.uint16)
            numbers[numbers > 0] += 256 * place
            own = nearest[top:bottom, left:right] == place
            drawn[top:bottom, left:right][own] = numbers[own]
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
        place = int(_find_windows(cover, image.width, image.height, (x, y))[0, 0])
        left, top, right, bottom = _place(cover, image.width, image.height)[place]
        if not (left <= x < right and top <= y < bottom):
            return None
        proposals = self.artefacts.read_proposals(image)
        if proposals is not None:
            ids = proposals[place]
            row = (y - top) * ids.shape[0] // (bottom - top)
            column = (x - left) * ids.shape[1] // (right - left)
            if ids[row, column]:
                return Place(place, int(ids[row, column]), None)
        rows, columns = self.artefacts.grid
        cell = (y - top) * rows // (bottom - top), (x - left) * columns // (right - left)
        return Place(place, 0, cell)


@dataclass(frozen=True)
class Place:
    """What a click means: a proposal of a window of the image, or one position of its grid."""

    window: int
    proposal: int
    cell: tuple[int, int] | None


def find_size(image: Image, longest: int) -> tuple[int, int]:
    """Return width and height of a photograph that is shown, never larger than it is."""
    return scale_size(image.width, image.height, min(1.0, longest / max(image.width, image.height)))


def _place(cover: Cover, width: int, height: int) -> list[Box]:
    """Place the windows of an image in a picture of it."""
    return [scale_box(window.box, cover.resized, (width, height)) for window in cover.windows]


def _find_windows(
    cover: Cover, width: int, height: int, pixel: tuple[int, int] | None = None
) -> NDArray[np.int64]:
    """Find the window whose centre is nearest to every pixel, or to one, int64 [y, x]."""
    columns, rows = (
        (np.arange(width), np.arange(height)) if pixel is None else map(np.atleast_1d, pixel)
    )
    x = (columns + 0.5) * cover.resized[0] / width
    y = (rows + 0.5) * cover.resized[1] / height
    best = np.full((len(rows), len(columns)), np.inf)
    nearest = np.zeros(best.shape, np.int64)
    for place, window in enumerate(cover.windows):
        middle = window.left + window.size / 2, window.top + window.size / 2
        distance = ((y - middle[1]) ** 2)[:, None] + ((x - middle[0]) ** 2)[None]
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
