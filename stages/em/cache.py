"""The cache: what a fit reads of a run, as tensors on its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.devices import resolve_device
from pipeline.compute.scheduler import Team
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import Batch, BatchStream, Choose, Part
from pipeline.run.ledger import read_record
from pipeline.run.manifest import read_manifest
from pipeline.storage.arrays import open_arrays, take_rows
from stages.artefacts import list_photometric, open_pair
from stages.em.labels import Labels, find_store
from stages.em.pieces import GROUP, FitBatch, Pins
from stages.em.settings import METHODS, EmSettings
from stages.labelling import average_views

_BLOCK = 256
_FOR_SUMS = {"mirror", "proposals"}


@dataclass(frozen=True)
class Cache:
    """The cached arrays that a fit reads, as tensors on its device."""

    arrays: Mapping[str, zarr.Array | tuple[zarr.Array, ...]]
    windows: np.ndarray
    settings: EmSettings
    device: torch.device
    # what pins the clusters of a fit; the workers of a team get their pieces' part of it
    labels: Labels | None = None
    # ``clean`` and ``mirror`` of the view that is labelled, where it is another
    labelled: Mapping[str, zarr.Array] | None = None

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self._stream(self.windows, self.arrays))

    @property
    def sample(self) -> np.ndarray:
        """The windows that the PCA sees, int64 [window], ascending."""
        return draw_sample(self.windows, self.settings)

    def read_averaged(self, *, labelled: bool = False) -> Iterator[FitBatch]:
        """Read the sample's features, averaged with those of the mirror images, and proposals.

        Those of the view that is ``labelled``, where they are meant: its grid may be another.
        """
        for batch in self._stream_mean(self.sample, labelled).read_epoch():
            found = _average(batch)
            pins = self.pin(batch.windows)
            yield replace(found, pins=pins and pins.refine(*found.features.shape[1:3]))

    def read_mean(self, windows: np.ndarray, *, labelled: bool = False) -> FitBatch:
        """Read what :meth:`read_averaged` does of some windows, into memory of its own."""
        return _average(self._stream_mean(windows, labelled).read_part((windows, {})))

    def count_together(self, *, labelled: bool) -> int:
        """Count the windows of a batch; those of a finer view take no more memory."""
        most = self.settings.batch_size
        if not labelled or self.labelled is None:
            return most
        rows, finer = (_first(views["clean"]).shape[1] for views in (self.arrays, self.labelled))
        return max(1, most * rows**2 // finer**2)

    def _stream_mean(self, windows: np.ndarray, labelled: bool) -> BatchStream:
        views = {**self.arrays, **((labelled and self.labelled) or {})}
        averaged = ("clean", "mirror", "proposals")
        arrays = {name: array for name, array in views.items() if name in averaged}
        return BatchStream(arrays, windows, self.count_together(labelled=labelled))

    def read_sample(self) -> Iterator[Tensor]:
        """Read the features of the windows that the PCA sees, each batch over the last."""
        wide = _Wide(self.device)
        for batch in self._stream(self.sample, ["clean"]).read_epoch():
            yield wide.fill(batch.arrays["clean"])

    def plan_sample(self) -> list[Part]:
        """List the batches of :meth:`read_sample`, for :meth:`read_piece`."""
        return self._stream(self.sample, ["clean"]).plan_epoch()

    def read_epoch(self, epoch: int) -> Iterator[list[FitBatch]]:
        """Read the steps of an epoch, each in one piece; those of the initialisation are clean."""
        stream, seed, choose = self._name_epoch(epoch)
        clean, student = _Wide(self.device), _Wide(self.device)
        for batch in stream.read_epoch(*seed, choose=choose):
            yield [self._finish(batch, self.pin(batch.windows), clean, student)]

    def pin(self, windows: np.ndarray) -> Pins | None:
        """Return what is known of some windows, where anything is of any."""
        return None if self.labels is None else self.labels.pin(windows)

    def plan_epoch(self, epoch: int) -> list[list[Part]]:
        """List the steps of an epoch, cut into pieces of a group each, for :meth:`read_piece`."""
        stream, seed, choose = self._name_epoch(epoch)
        return [_cut(part) for part in stream.plan_epoch(*seed, choose=choose)]

    def read_piece(self, part: Part, *, clean: bool, pins: Pins | None = None) -> FitBatch:
        """Read one piece; only its clean features where nothing else is needed."""
        batch = self._stream(self.windows, self._name_arrays(clean)).read_part(part)
        return self._finish(batch, pins, _Wide(self.device), _Wide(self.device))

    def _name_epoch(self, epoch: int) -> tuple[BatchStream, tuple[int, ...], Choose | None]:
        stream = self._stream(self.windows, self._name_arrays(epoch < 0))
        # a seed sequence takes no negative numbers
        seed = (self.settings.seed, int(epoch < 0), abs(epoch))
        return stream, seed, self._draw_views if epoch >= 0 else None

    def _name_arrays(self, clean: bool) -> Iterable[str]:
        # mirror images beside the clean ones are for averages alone, proposals perhaps for sums
        left = {"mirror"} if METHODS[self.settings.method].needs_proposals else _FOR_SUMS
        return ["clean"] if clean else [n for n in self.arrays if n not in left]

    def _finish(self, batch: Batch, pins: Pins | None, clean: _Wide, student: _Wide) -> FitBatch:
        ids = batch.arrays.get("proposals")
        mirrored = batch.choices.get("clean", np.zeros(len(batch.windows), int)) == 1
        if ids is not None:
            ids[mirrored] = ids[mirrored][:, :, ::-1]
        if pins is not None:
            positions = pins.positions.clone()
            positions[mirrored] = positions[mirrored].flip(2)
            pins = Pins(*(each.to(self.device) for each in (positions, pins.proposals)))
        other = batch.arrays.get("student")
        return FitBatch(
            clean.fill(batch.arrays["clean"]),
            None if ids is None else torch.from_numpy(ids).to(self.device),
            None if other is None else student.fill(other),
            pins,
        )

    def _draw_views(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        mirrored = generator.integers(_count(self.arrays["clean"]), size=count)
        if "student" not in self.arrays:
            return {"clean": mirrored}
        views = _count(self.arrays["student"]) // _count(self.arrays["clean"])
        drawn = generator.integers(views, size=count)
        # the views lie in pairs where windows are mirrored
        return {"clean": mirrored, "student": _count(self.arrays["clean"]) * drawn + mirrored}

    def _stream(self, windows: np.ndarray, names: Iterable[str]) -> BatchStream:
        arrays = {name: self.arrays[name] for name in names}
        return BatchStream(arrays, windows, self.settings.batch_size)


def _average(batch: Batch) -> FitBatch:
    found = {name: torch.from_numpy(array) for name, array in batch.arrays.items()}
    mean = average_views(found["clean"].float(), found["mirror"].float())
    return FitBatch(mean, found.get("proposals"))


class _Wide:
    """One float32 buffer on the device for all batches.

    To free and allocate the largest tensor in every step frays the allocator's memory, and more of
    it the longer an epoch is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(0)

    def fill(self, array: np.ndarray) -> Tensor:
        """Move and widen features; what was given before is overwritten."""
        # half the bytes cross to the device, and are widened there
        features = torch.from_numpy(array).to(self._device)
        if len(self._buffer) < len(features):
            self._buffer = torch.empty_like(features, dtype=torch.float32)
        return self._buffer[: len(features)].copy_(features)


def _cut(part: Part) -> list[Part]:
    windows, choices = part
    return [
        (
            windows[low : low + GROUP],
            {name: drawn[low : low + GROUP] for name, drawn in choices.items()},
        )
        for low in range(0, len(windows), GROUP)
    ]


@dataclass(frozen=True)
class TeamCache:
    """The same cache, read by the workers of a team: it gives pieces in place of tensors."""

    team: Team
    source: Source
    cache: Cache

    def read_sample(self) -> Iterator[Any]:
        """Give the blocks of :meth:`Cache.read_sample`."""
        for part in self.cache.plan_sample():
            yield self.team.start(read_block, self.source, part)

    def read_epoch(self, epoch: int) -> Iterator[list[Any]]:
        """Give the steps of :meth:`Cache.read_epoch`; while one is used, the next is read."""
        following: list[Any] = []
        for parts in self.cache.plan_epoch(epoch):
            step = following
            following = [
                self.team.start(
                    read_piece, self.source, part, epoch < 0, self.cache.pin(part[0]), ahead=True
                )
                for part in parts
            ]
            if step:
                yield step
        if following:
            yield following


@dataclass(frozen=True)
class Source:
    """What a worker needs to open the cache of a fit."""

    run: RunDirectory
    settings: EmSettings
    fingerprint: str


@dataclass(frozen=True)
class MeanPiece:
    """Some windows, ascending, whose features are read as :meth:`Cache.read_mean` does.

    What it reads from is a cache, or what a worker opens one from.
    """

    opened: Cache | Source
    windows: np.ndarray
    batch: int
    labelled: bool = False

    def list_batches(self) -> list[np.ndarray]:
        """Cut the windows into batches as even as those of an epoch."""
        return [windows for windows, _ in BatchStream({}, self.windows, self.batch).plan_epoch()]

    def read(self, windows: np.ndarray) -> FitBatch:
        """Read one batch."""
        opened = self.opened
        cache = _open_source(opened) if isinstance(opened, Source) else opened
        return cache.read_mean(windows, labelled=self.labelled)


@lru_cache(maxsize=2)
def _open_source(source: Source) -> Cache:
    # every worker has a device of its own
    return open_cache(source.run, source.settings, resolve_device(source.settings.device))


def read_block(source: Source, part: Part) -> Tensor:
    """Read one batch of the sample; called at a worker."""
    return _open_source(source).read_piece(part, clean=True).features


def read_piece(source: Source, part: Part, clean: bool, pins: Pins | None) -> FitBatch:
    """Read one piece of a step; called at a worker."""
    return _open_source(source).read_piece(part, clean=clean, pins=pins)


def name_device(source: Source) -> str:
    """Return the kind of device that a worker has."""
    return _open_source(source).device.type


def _first(source: zarr.Array | tuple[zarr.Array, ...]) -> zarr.Array:
    return source[0] if isinstance(source, tuple) else source


def _count(source: zarr.Array | tuple[zarr.Array, ...]) -> int:
    return len(source) if isinstance(source, tuple) else 1


def list_windows(run: RunDirectory, settings: EmSettings) -> np.ndarray:
    """List the windows to fit on, int64 [window], ascending."""
    windows = read_manifest(run).usable_windows(splits=settings.splits)
    return np.array([window.index for window in windows])


def draw_sample(windows: np.ndarray, settings: EmSettings) -> np.ndarray:
    """Draw the windows of the settings' sample, int64 [window], ascending."""
    if len(windows) <= settings.sample:
        return windows
    generator = np.random.default_rng(settings.seed)
    return np.sort(generator.choice(windows, settings.sample, replace=False))


def open_cache(run: RunDirectory, settings: EmSettings, device: torch.device) -> Cache:
    """Open what a fit reads, as its settings say."""
    store = find_store(run, settings)
    method = METHODS[settings.method]

    def open_views(names: Mapping[str, str]) -> tuple[zarr.Array, ...]:
        both = method.has_student and settings.mirror
        wanted = [n for pair in names.items() for n in (pair if both else pair[:1])]
        arrays = open_arrays(store, wanted)
        return tuple(arrays[name] for name in wanted)

    arrays: dict[str, zarr.Array | tuple[zarr.Array, ...]] = {
        "clean": open_views({"clean": "mirror"}),
        **open_arrays(store, ["mirror"]),
    }
    if method.needs_proposals or sums_proposals(run, settings):
        arrays |= open_arrays(run.masks, ["proposals"])
    if settings.student == "photometric":
        views = {view: f"{view}_mirror" for view in list_augmented(run, settings.head)}
        arrays["student"] = open_views(views)
    labelled = open_pair(store, settings.view) if settings.fine else None
    return Cache(arrays, list_windows(run, settings), settings, device, labelled=labelled)


def sums_proposals(run: RunDirectory, settings: EmSettings) -> bool:
    """Whether clusters are summed proposal by proposal though the fit itself needs none."""
    return settings.joins_clusters and run.has_been_run("masks")


def list_augmented(run: RunDirectory, head: str | None) -> list[str]:
    """Name the augmented views that the features, or a head's codes, are there of."""
    if head is not None:
        return list(read_record(run, f"encode/{head}").facts["augmented"])
    return list_photometric(run)


def read_pooled(run: RunDirectory, windows: np.ndarray) -> NDArray[np.float32]:
    """Read the pooled features of the proposals of some windows, float32 [proposal, channel]."""
    arrays = open_arrays(run.masks, ["pooled", "area"])
    shape = arrays["pooled"].shape
    pooled = []
    for rows in np.array_split(windows, -(-len(windows) // _BLOCK)):
        block = np.empty((len(rows), *shape[1:]), np.float16)
        area = np.empty((len(rows), shape[1]), np.uint32)
        take_rows(arrays["pooled"], rows, block)
        take_rows(arrays["area"], rows, area)
        pooled.append(block[area > 0].astype(np.float32))
    return np.concatenate(pooled)
