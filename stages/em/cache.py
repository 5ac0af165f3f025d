"""The cache: what a fit reads of a run, as tensors on its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batches import Batch, BatchStream
from pipeline.condition import inspect_stage, read_record
from pipeline.manifest import read_manifest
from pipeline.run import Run
from pipeline.store import open_arrays, take_rows
from stages.em.fit import FitBatch
from stages.em.settings import EmSettings

_BLOCK = 256


@dataclass(frozen=True)
class Cache:
    """The cached arrays that a fit reads, as tensors on its device.

    Attributes
    ----------
    arrays
        ``clean`` and, but for K-means, ``proposals``; the windows are the first axis. For
        PriMaPs-EM, ``clean`` may be a pair with the mirror image's, and ``student`` holds such a
        pair for every augmented view; the robust fit has ``mirror``.
    windows
        Indices of the windows to fit on, int64 [window], ascending.
    settings
        Seed, batch size, size of the sample.
    device
        Where the tensors go.
    """

    arrays: Mapping[str, zarr.Array | tuple[zarr.Array, ...]]
    windows: np.ndarray
    settings: EmSettings
    device: torch.device

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return len(self._stream(self.windows, self.arrays))

    @property
    def sample(self) -> np.ndarray:
        """The windows that the PCA and the robust fit see, int64 [window], ascending."""
        return draw_sample(self.windows, self.settings)

    def read_averaged(self) -> Iterator[FitBatch]:
        """Read the sample's features, averaged with those of the mirror images, and proposals."""
        for batch in self._stream(self.sample, self.arrays).read_epoch():
            clean, mirror, ids = (
                torch.from_numpy(batch.arrays[name]) for name in ("clean", "mirror", "proposals")
            )
            yield FitBatch((clean.float() + mirror.float().flip(2)) / 2, ids)

    def read_sample(self) -> Iterator[Tensor]:
        """Read the features of the windows that the PCA sees, each batch over the last."""
        windows = self.sample
        for _, features in self._widen("clean", self._stream(windows, ["clean"]).read_epoch()):
            yield features

    def read_epoch(self, epoch: int) -> Iterator[FitBatch]:
        """Read the batches of an epoch; those of the initialisation, -1, -2, …, are clean.

        Yields
        ------
        FitBatch
            Its features are overwritten by the next.
        """
        names = self.arrays if epoch >= 0 else ["clean"]
        choose = self._draw_views if epoch >= 0 else None
        # a seed sequence takes no negative numbers
        batches = self._stream(self.windows, names).read_epoch(
            self.settings.seed, int(epoch < 0), abs(epoch), choose=choose
        )
        student = torch.empty(0)
        for batch, features in self._widen("clean", batches):
            ids = batch.arrays.get("proposals")
            if ids is not None and "clean" in batch.choices:
                mirrored = batch.choices["clean"] == 1
                ids[mirrored] = ids[mirrored][:, :, ::-1]
            if "student" in batch.arrays:
                student = self._copy(batch.arrays["student"], student)
            yield FitBatch(
                features,
                None if ids is None else torch.from_numpy(ids).to(self.device),
                student[: len(features)] if len(student) else None,
            )

    def _draw_views(self, generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        mirrored = generator.integers(_count(self.arrays["clean"]), size=count)
        if "student" not in self.arrays:
            return {"clean": mirrored}
        views = _count(self.arrays["student"]) // _count(self.arrays["clean"])
        drawn = generator.integers(views, size=count)
        # the views lie in pairs where windows are mirrored
        return {"clean": mirrored, "student": _count(self.arrays["clean"]) * drawn + mirrored}

    def _widen(self, name: str, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        # One buffer for all batches: to free and allocate the largest tensor in every step frays
        # the allocator's memory, and more of it the longer an epoch is.
        wide = torch.empty(0)
        for batch in batches:
            wide = self._copy(batch.arrays[name], wide)
            yield batch, wide[: len(batch.windows)]

    def _copy(self, array: np.ndarray, wide: Tensor) -> Tensor:
        # half the bytes cross to the device, and are widened there
        features = torch.from_numpy(array).to(self.device)
        if len(wide) < len(features):
            wide = torch.empty_like(features, dtype=torch.float32)
        wide[: len(features)].copy_(features)
        return wide

    def _stream(self, windows: np.ndarray, names: Iterable[str]) -> BatchStream:
        arrays = {name: self.arrays[name] for name in names}
        return BatchStream(arrays, windows, self.settings.batch_size)


def _count(source: zarr.Array | tuple[zarr.Array, ...]) -> int:
    return len(source) if isinstance(source, tuple) else 1


def list_windows(run: Run, settings: EmSettings) -> np.ndarray:
    """List the windows to fit on, int64 [window], ascending."""
    windows = read_manifest(run).usable_windows(splits=settings.splits)
    return np.array([window.index for window in windows])


def draw_sample(windows: np.ndarray, settings: EmSettings) -> np.ndarray:
    """Draw the windows of the settings' sample, int64 [window], ascending."""
    if len(windows) <= settings.sample:
        return windows
    generator = np.random.default_rng(settings.seed)
    return np.sort(generator.choice(windows, settings.sample, replace=False))


def open_cache(run: Run, settings: EmSettings, device: torch.device) -> Cache:
    """Open what a fit reads, as its settings say."""
    store = run.features if settings.head is None else run.codes(settings.head)
    windows = list_windows(run, settings)
    if settings.method == "kmeans":
        return Cache(open_arrays(store, ["clean"]), windows, settings, device)
    if settings.method == "robust":
        both = {**open_arrays(store, ["clean", "mirror"]), **open_arrays(run.masks, ["proposals"])}
        return Cache(both, windows, settings, device)

    def open_views(names: Mapping[str, str]) -> tuple[zarr.Array, ...]:
        wanted = [n for pair in names.items() for n in (pair if settings.mirror else pair[:1])]
        arrays = open_arrays(store, wanted)
        return tuple(arrays[name] for name in wanted)

    arrays: dict[str, zarr.Array | tuple[zarr.Array, ...]] = {
        "clean": open_views({"clean": "mirror"}),
        **open_arrays(run.masks, ["proposals"]),
    }
    if settings.student == "photometric":
        views = {view: f"{view}_mirror" for view in list_augmented(run, settings.head)}
        arrays["student"] = open_views(views)
    return Cache(arrays, windows, settings, device)


def list_augmented(run: Run, head: str | None) -> list[str]:
    """Name the augmented views that the features, or a head's codes, are there of."""
    if head is not None:
        return list(read_record(run, f"encode/{head}").facts["augmented"])
    record = inspect_stage(run, "views").record
    return [] if record is None else list(record.facts["views"])


def read_pooled(run: Run, windows: np.ndarray) -> NDArray[np.float32]:
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
