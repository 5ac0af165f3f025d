"""The cut-outs of every cluster: read from a bounded sample of the run's windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images.windows import Window
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.manifest import Image
from pipeline.storage.arrays import open_arrays, read_rows
from stages.evaluate.artefacts import Artefacts
from stages.labelling import MAIN, classify
from stages.report.budget import trim_cutouts
from stages.report.gallery import make_thumbnail
from stages.report.page import Cutout
from stages.report.sample import sample_evenly
from stages.report.typical import (
    Parts,
    choose_typical,
    draw_cutout,
    find_regions,
    join_parts,
    rate_parts,
)

WINDOWS = 512
MOST = 10
_PER_IMAGE = 2
_SIDE = 128
# positions of the grid: a proposal of less has no feature of its own, a region of less is a speck
_SMALLEST_PROPOSAL = 1.0
_SMALLEST_REGION = 4.0


@dataclass(frozen=True)
class Typical:
    """What is typical of every cluster."""

    cutouts: dict[int, list[Cutout]]
    note: str


def gather_typical(artefacts: Artefacts, splits: Sequence[str]) -> Typical:
    """Cut the most typical proposals of every cluster out of the photographs.

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
    return Typical(trim_cutouts(cutouts), note)


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
