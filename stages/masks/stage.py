"""The masks stage: features -> principal mask proposals, refined by the dense CRF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from pipeline.compute.devices import resolve_device
from pipeline.compute.memory import compute_halving
from pipeline.compute.scheduler import announce
from pipeline.images.windows import Window
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import (
    count_threads,
    map_ahead,
    read_resized_gaps,
    read_windows,
    shard_ranges,
)
from pipeline.run.ledger import ShardRecord, read_record
from pipeline.run.manifest import Manifest, read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.storage.arrays import ArraySpec, open_arrays, prepare_arrays, read_rows, write_shard
from pipeline.storage.files import fingerprint
from pipeline.storage.places import count_requests
from stages.crf.backends import Backend, choose_backend, place_beside, refine_each
from stages.crf.settings import CrfSettings
from stages.masks.settings import MaskSettings

# How often the largest array of a step is held at once: the median looks at nine neighbours.
_COPIES = 12


class Masks(Stage[MaskSettings]):
    """``features.zarr`` and the images -> ``masks.zarr``."""

    name: ClassVar[str] = "masks"
    unit: ClassVar[str] = "windows"
    reads_images = True
    settings_class = MaskSettings

    def inputs(self, run: RunDirectory, settings: MaskSettings) -> list[str]:
        """Return ``extract``."""
        return ["extract"]

    def resolve(self, run: RunDirectory, settings: MaskSettings) -> MaskSettings:
        """Name the CRF backend that ``auto`` means for the device.

        The name is part of the fingerprint: all shards of a run are refined by one backend, and a
        run that goes on where another backend is meant computes its shards again.
        """
        backend = choose_backend(settings.crf, settings.device)
        return settings.replace(crf="none" if backend is None else backend.name)

    def plan(self, run: RunDirectory, settings: MaskSettings, screen: Screen) -> Plan:
        """Plan one shard for every shard of features."""
        extract = read_record(run, "extract")
        base = fingerprint(
            self.name, self.version, settings.output_settings(), CrfSettings().model_dump()
        )
        size = extract.settings["shard_size"]
        manifest = read_manifest(run)
        total = len(manifest.windows)
        shards = []
        for rows, print_ in zip(shard_ranges(total, size), extract.shards, strict=True):
            # an image that was rejected and is mended has features that extract's own print of the
            # shard cannot tell from its gap
            used = [window.index for window in manifest.usable_windows(rows.start, rows.stop)]
            shards.append(ShardPlan(fingerprint(base, print_, used), len(rows)))
        facts = {"max_proposals": settings.max_proposals, "crf": settings.crf}
        return Plan(shards, facts, payload=(extract, total))

    def prepare(self, run: RunDirectory, settings: MaskSettings, plan: Plan) -> None:
        """Allocate the id maps and the table of proposals."""
        extract, total = plan.payload
        size, channels = extract.facts["size"], extract.facts["channels"]
        most = settings.max_proposals

        def spec(
            dtype: str, name: str, units: str, dims: tuple[str, ...], shape: tuple[int, ...]
        ) -> ArraySpec:
            facts = {"long_name": name, "units": units}
            return ArraySpec(shape, ("window", *dims), dtype, compress=True, attributes=facts)

        pooled = "mean unit feature of proposal 1, 2, ..., scaled to unit length"
        specs = {
            "proposals": spec(
                "uint8", "proposal of every pixel, 0 = none", "1", ("y", "x"), (size, size)
            ),
            "pooled": spec("float16", pooled, "1", ("proposal", "channel"), (most, channels)),
            "area": spec("uint32", "area of proposal 1, 2, ...", "pixels", ("proposal",), (most,)),
        }
        attributes = {"threshold": settings.threshold, "crf": settings.crf}
        prepare_arrays(run.masks, specs, total, extract.settings["shard_size"], attributes)

    def compute(self, run: RunDirectory, settings: MaskSettings, shard: int) -> dict[str, Any]:
        """Propose, refine and pool one block of windows."""
        # numba, which a finished run does without, takes half a second to import
        from stages.masks.proposals import find_constant

        manifest = read_manifest(run)
        extract = read_record(run, "extract")
        rows = extract.settings["shard_size"]
        start, stop = shard * rows, min((shard + 1) * rows, len(manifest.windows))
        windows = manifest.usable_windows(start, stop)
        size, channels = extract.facts["size"], extract.facts["channels"]
        most = settings.max_proposals
        blocks = {
            "proposals": np.zeros((stop - start, size, size), np.uint8),
            "pooled": np.zeros((stop - start, most, channels), np.float16),
            "area": np.zeros((stop - start, most), np.uint32),
        }
        features = read_rows(open_arrays(run.features, ["clean"])["clean"], start, stop)
        device = resolve_device(settings.device)
        backend = choose_backend(settings.crf, settings.device)
        frames = read_windows(manifest, windows, ahead=8)
        images = (window for _, pixels in frames for window in pixels)
        gaps = _read_gaps(manifest, windows)
        full = constant = 0
        for first in range(0, len(windows), settings.batch_size):
            batch = windows[first : first + settings.batch_size]
            local = np.array([window.index - start for window in batch])
            grid = torch.from_numpy(features[local]).to(device).float()
            ids, counts = _propose_batch(grid, images, size, settings, backend)
            for place, window in enumerate(batch):
                if window.image in gaps:
                    ids[place][torch.from_numpy(gaps[window.image][window.area])] = 0
            full += counts.count(most)
            constant += int(find_constant(grid).sum())
            pooled, area = _pool_batch(ids, grid, most)
            blocks["proposals"][local] = ids.cpu().numpy()
            blocks["pooled"][local] = pooled.half().cpu().numpy()
            blocks["area"][local] = area.cpu().numpy()
        write_shard(run.masks, blocks, shard, rows)
        used = blocks["area"] > 0
        # what is left after the refinement, of the windows that are looked at
        held = used.sum(axis=1)[[window.index - start for window in windows]]
        return {
            "windows": len(windows),
            "full": full,
            "empty": int((held == 0).sum()),
            "single": int((held == 1).sum()),
            "constant": constant,
            "device": device.type,
            "proposals": int(used.sum()),
            "covered": int((blocks["proposals"] > 0).sum()),
            "pixels": len(windows) * size * size,
        }

    def finish(
        self,
        run: RunDirectory,
        settings: MaskSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Sum up what was proposed."""
        sums = {
            key: sum(record.result[key] for record in records.values())
            for key in ("windows", "full", "proposals", "covered", "pixels")
        }
        mean = sums["proposals"] / max(sums["windows"], 1)
        covered = 100 * sums["covered"] / max(sums["pixels"], 1)
        if not sums["proposals"]:
            screen.warn("masks: no window has a proposal; em will have nothing to learn from.")
        if sums["full"]:
            screen.warn(
                f"masks: {sums['full']} windows have {settings.max_proposals} proposals, and may "
                "need more; raise --max-proposals."
            )
        return [
            f"masks: {mean:.1f} proposals a window, {covered:.0f} % of the pixels covered, "
            f"in {run.masks}"
        ]


def _read_gaps(manifest: Manifest, windows: Sequence[Window]) -> dict[int, NDArray[np.bool_]]:
    """Read where the resized images of some windows hold no data, by the rows of the images."""

    def read(window: Window) -> NDArray[np.bool_] | None:
        image = manifest.images[window.image]
        return read_resized_gaps(manifest.root, image, window.width, window.height)

    by_image = {window.image: window for window in windows}
    threads = count_requests(manifest.root, count_threads())
    found = map_ahead(read, by_image.values(), threads, threads)
    return {row: gaps for row, gaps in zip(by_image, found, strict=True) if gaps is not None}


def _propose_batch(
    grid: torch.Tensor,
    images: Iterator[np.ndarray],
    size: int,
    settings: MaskSettings,
    backend: Backend | None,
) -> tuple[torch.Tensor, list[int]]:
    """Propose, up-sample and refine; return uint8 [window, y, x] beside the CRF, and the counts."""
    from stages.masks.proposals import propose_masks, score_proposals

    def propose(part: torch.Tensor) -> list[torch.Tensor]:
        proposals = propose_masks(part, **settings.proposing())
        scores = place_beside(score_proposals(proposals, gain=settings.gain), backend)
        counts = proposals.count.tolist()
        return [window[: count + 1] for window, count in zip(scores, counts, strict=True)]

    parts = compute_halving(
        propose,
        grid,
        len(grid),
        what="windows whose proposals are made",
        each=_COPIES * (settings.max_proposals + 1) * grid[0, ..., 0].numel() * grid.itemsize,
        device=grid.device,
    )
    own = [window for part in parts for window in part]
    counts = [len(window) - 1 for window in own]
    maps = []
    for ids in _refine_scores(iter(own), images, size, backend):
        maps.append(ids)
        announce(advance=1)
    return torch.stack(maps), counts


def _pool_batch(
    ids: torch.Tensor, grid: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool what was proposed; see :func:`pool_proposals`."""
    from stages.masks.proposals import pool_proposals

    def pool(part: range) -> tuple[torch.Tensor, torch.Tensor]:
        rows = slice(part.start, part.stop)
        return pool_proposals(ids[rows].to(grid.device).long(), grid[rows], proposals=most)

    parts = compute_halving(
        pool,
        range(len(ids)),
        len(ids),
        what="windows whose proposals are pooled",
        # the positions of all pixels, as 64-bit numbers, some at a time
        each=_COPIES * ids[0].numel() * 8,
        device=grid.device,
    )
    pooled, area = zip(*parts, strict=True)
    return torch.cat(pooled), torch.cat(area)


def _refine_scores(
    scores: Iterator[torch.Tensor],
    images: Iterator[np.ndarray],
    size: int,
    backend: Backend | None,
) -> Iterator[torch.Tensor]:
    """Give the id map of each window, uint8 [y, x], from its scores and, for the CRF, its image."""
    if backend is None:
        threads = count_threads()
        yield from map_ahead(
            lambda window: take_largest(enlarge_scores(window, size)), scores, threads, threads
        )
        return
    yield from refine_each(
        backend,
        # one after the other: the images are not decoded before there is a place for them
        ((window, next(images)) for window in scores),
        prepare=lambda item: (None, -enlarge_scores(item[0], size), item[1]),
        finish=lambda _, posterior: take_largest(posterior),
        settings=CrfSettings(),
    )


def enlarge_scores(scores: torch.Tensor, size: int) -> torch.Tensor:
    """Up-sample the log-probabilities of one window."""
    return F.interpolate(scores[None], (size, size), mode="bilinear", align_corners=False)[0]


def take_largest(scores: torch.Tensor) -> torch.Tensor:
    """Take the largest channel of every pixel, the first of equals."""
    return scores.argmax(dim=0).to(torch.uint8)
