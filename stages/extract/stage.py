"""The extract stage: images -> frozen features of every window and of its mirror image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.batches import shard_ranges
from pipeline.condition import read_record
from pipeline.datasets import get_dataset
from pipeline.devices import resolve_device
from pipeline.errors import (
    DatasetError,
    ImageError,
    PipelineError,
    RunError,
    StaleError,
    UsageError,
    WeightsError,
)
from pipeline.files import fingerprint
from pipeline.frames import read_frame, read_windows
from pipeline.ledger import Ledger, ShardRecord
from pipeline.manifest import Image, Manifest, read_manifest
from pipeline.progress import Screen
from pipeline.run import Run
from pipeline.scheduler import announce
from pipeline.stage import Plan, ShardPlan, Stage
from pipeline.store import ArraySpec, holds_shard, prepare_arrays, write_shard
from pipeline.windows import Window
from stages.extract.listing import fingerprint_shard, list_images, place_all
from stages.extract.settings import HANDCRAFTED, ExtractSettings
from stages.extract.weights import find_weights

if TYPE_CHECKING:
    from stages.extract.backbones import Backbone

VIEWS = ("clean", "mirror")
DIMS = ("window", "row", "column", "channel")
_TOGETHER = 2


class Extract(Stage[ExtractSettings]):
    """Images -> ``manifest.parquet``, ``windows.parquet``, ``features.zarr``."""

    name: ClassVar[str] = "extract"
    unit: ClassVar[str] = "windows"
    settings_class = ExtractSettings

    def resolve(self, run: Run, settings: ExtractSettings) -> ExtractSettings:
        """Fill in the dataset's splits and frame, the size and the precision."""
        from stages.extract.backbones import (
            default_size,
            describe_backbone,
            resolve_precision,
        )

        dataset = get_dataset(settings.dataset)
        patch, _ = describe_backbone(settings.backbone)
        device = resolve_device(settings.device)
        return settings.replace(
            root=settings.root.expanduser().absolute(),
            labels=settings.labels and settings.labels.expanduser().absolute(),
            weights=settings.weights and settings.weights.expanduser().absolute(),
            splits=settings.splits or dataset.default_splits,
            frame=settings.frame or dataset.default_frame,
            size=settings.size or default_size(patch),
            precision="float32"
            if settings.backbone == HANDCRAFTED
            else resolve_precision(settings.precision, device),
        )

    def plan(self, run: Run, settings: ExtractSettings, screen: Screen) -> Plan:
        """List and probe the images, place their windows, find the weights."""
        from stages.extract.backbones import check_size, describe_backbone

        assert settings.size is not None and settings.frame is not None
        patch, channels = describe_backbone(settings.backbone)
        check_size(settings.size, patch, settings.backbone)
        dataset = get_dataset(settings.dataset)
        known = _known_images(run, settings)
        images = list_images(
            dataset,
            settings.root,
            settings.labels,
            settings.splits,
            settings.limit,
            known,
            [run.path],
            lambda total: screen.count("list images", total, "images"),
        )
        windows, unplaceable = place_all(images, settings.size, settings.frame, settings.overlap)
        manifest = Manifest(
            settings.dataset, settings.root, settings.labels, tuple(images), tuple(windows)
        ).reject(unplaceable)
        source, digest, gone = self._identify_weights(run, settings, screen)
        facts = {
            "backbone": settings.backbone,
            "weights_source": source,
            "weights_digest": digest,
            "patch": patch,
            "channels": channels,
            "grid": [settings.size // patch] * 2,
            "size": settings.size,
        }
        base = fingerprint(
            self.name, self.version, _window_settings(settings), facts["weights_digest"]
        )
        shards = [
            ShardPlan(
                fingerprint(base, fingerprint_shard(manifest, manifest.windows[r.start : r.stop])),
                len(r),
            )
            for r in shard_ranges(len(manifest.windows), settings.shard_size)
        ]
        if not shards:
            raise DatasetError(
                f"none of the {len(images)} images at {settings.root} can be read; "
                f"the first: {manifest.images[0].path}: {manifest.images[0].reason}."
            )
        records = Ledger(run.state(self.key(settings))).read_shards()
        valid = [
            record
            for number, record in records.items()
            if number < len(shards) and record.fingerprint == shards[number].fingerprint
        ]
        if gone is not None:
            # what is finished stays valid without its weights
            if len(valid) < len(shards):
                raise gone
            screen.warn(f"extract: the weights are gone, and not needed any more. {gone}")
        reasons = _recorded_rejections(manifest, valid)
        readable = {i for i in reasons if _can_read(manifest, manifest.images[i])}
        redo = {
            w.index // settings.shard_size for i in readable for w in manifest.windows_of(images[i])
        }
        manifest = manifest.reject({i: r for i, r in reasons.items() if i not in readable})
        return Plan(shards, facts, redo=frozenset(redo), payload=manifest)

    def _identify_weights(
        self, run: Run, settings: ExtractSettings, screen: Screen
    ) -> tuple[str, str, PipelineError | None]:
        """Return the source and the digest of the weights, and why they are gone, if they are."""
        if settings.backbone == HANDCRAFTED:
            return "none needed", "", None
        try:
            weights = find_weights(settings.backbone, settings.weights, report=screen.note)
        except (WeightsError, UsageError) as error:
            key = self.key(settings)
            old, before = Ledger(run.state(key)).read_stage(), run.read_settings(key)
            same = settings.model_dump(mode="json", include={"backbone", "weights"})
            if old is None or not same.items() <= before.items():
                raise
            return old.facts["weights_source"], old.facts["weights_digest"], error
        screen.note(f"extract: weights of {settings.backbone} from {weights.source}")
        return weights.source, weights.digest, None

    def prepare(self, run: Run, settings: ExtractSettings, plan: Plan) -> None:
        """Write the manifest and allocate one array per view."""
        manifest = plan.payload
        manifest.write(run)
        facts = plan.facts
        specs = {
            view: ArraySpec(
                shape=(*facts["grid"], facts["channels"]),
                dims=DIMS,
                dtype="float16",
                compress=False,
                attributes={"long_name": text, "units": "1"},
            )
            for view, text in (
                ("clean", "last-block features after the final norm"),
                ("mirror", "the same of the horizontally mirrored window, in mirrored columns"),
            )
        }
        attributes = {k: facts[k] for k in ("backbone", "patch", "size", "weights_source")}
        prepare_arrays(run.features, specs, len(manifest.windows), settings.shard_size, attributes)

    def holds(self, run: Run, settings: ExtractSettings, shard: int) -> bool:
        """Whether the shard's files are there."""
        return holds_shard(run.features, VIEWS, shard)

    def compute(self, run: Run, settings: ExtractSettings, shard: int) -> dict[str, Any]:
        """Extract the features of one block of windows."""
        manifest = read_manifest(run)
        facts = read_record(run, self.key(settings)).facts
        start = shard * settings.shard_size
        windows = manifest.windows[start : start + settings.shard_size]
        shape = (len(windows), *facts["grid"], facts["channels"])
        blocks = {view: np.zeros(shape, np.float16) for view in VIEWS}
        backbone = _load_backbone(settings, facts["weights_digest"])
        rejected: dict[str, str] = {}
        frames = _decode(settings, manifest, windows, rejected)
        for rows, pixels in _gather(frames, settings.batch_size):
            clean, mirror = extract_views(backbone, pixels)
            blocks["clean"][rows - start] = clean
            blocks["mirror"][rows - start] = mirror
            announce(advance=len(rows))
        for view, block in blocks.items():
            if not np.isfinite(block).all():
                raise RunError(
                    f"extract: {view} features of shard {shard} are not finite in float16; "
                    "try --precision float32 or other weights."
                )
        write_shard(run.features, blocks, shard, settings.shard_size)
        return {"rejected": rejected}

    def find(self, run: Run, settings: ExtractSettings, records: dict[int, ShardRecord]) -> str:
        """Return a fingerprint of which images could not be decoded."""
        rejected = {digest for record in records.values() for digest in record.result["rejected"]}
        return fingerprint(sorted(rejected))

    def finish(
        self,
        run: Run,
        settings: ExtractSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Note in the manifest which images could not be decoded."""
        manifest = read_manifest(run)
        manifest = manifest.reject(_recorded_rejections(manifest, records.values()))
        manifest.write(run)
        rejected = manifest.rejected
        if rejected:
            first = rejected[0]
            screen.warn(
                f"{len(rejected)} of {len(manifest.images)} images were rejected and are skipped "
                f"({first.path}: {first.reason}); all reasons are in {run.manifest_file}."
            )
        usable = len(manifest.images) - len(rejected)
        if not usable:
            raise DatasetError(f"none of the {len(rejected)} images could be decoded.")
        return [f"extract: features of {usable} images in {run.features}"]


def extract_views(backbone: Backbone, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extract the features of some windows and of their mirror images.

    Parameters
    ----------
    backbone
        The frozen backbone.
    pixels
        uint8 [window, y, x, rgb].

    Returns
    -------
    clean, mirror : numpy.ndarray
        float16 [window, row, column, channel]; the columns of ``mirror`` are mirrored.
    """
    import torch

    # A processor gains nothing from more windows at a time, and what it computes in between is then
    # small enough to stay in the cache and to be allocated again and again. The number does not
    # follow the threads: another one may round differently.
    together = len(pixels) if backbone.device.type != "cpu" else _TOGETHER
    grids: list[list[np.ndarray]] = [[], []]
    for part in torch.from_numpy(pixels).split(together):
        images = part.to(backbone.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        for view, grid in zip((images, images.flip(-1)), grids, strict=True):
            grid.append(backbone(view).to(torch.float16).cpu().numpy())
    clean, mirror = (np.concatenate(grid) for grid in grids)
    return clean, mirror


def _window_settings(settings: ExtractSettings) -> dict[str, Any]:
    # which images there are is in the windows' own fingerprints: more images, or another name of
    # the same ones, leave finished shards valid
    names = ("backbone", "precision", "size", "shard_size")
    return {name: value for name, value in settings.output_settings().items() if name in names}


def _known_images(run: Run, settings: ExtractSettings) -> tuple[Image, ...]:
    if not run.manifest_file.exists():
        return ()
    manifest = read_manifest(run)
    # size and time tell one file from another only where the paths mean the same files
    return manifest.images if manifest.root == settings.root else ()


def _load_backbone(settings: ExtractSettings, digest: str) -> Backbone:
    assert settings.size is not None
    return _build(
        settings.backbone,
        settings.weights,
        digest,
        settings.size,
        settings.device,
        settings.precision,
    )


@lru_cache(maxsize=1)
def _build(
    name: str, given: Path | None, digest: str, size: int, device: str, precision: str
) -> Backbone:
    from stages.extract.backbones import build_backbone

    weights = None
    if name != HANDCRAFTED:
        weights = find_weights(name, given, report=lambda _: None)
        if weights.digest != digest:
            raise RunError(
                f"the weights at {weights.path} are not those that extract was planned with; "
                "run `primaps-pipe extract` again."
            )
    return build_backbone(
        name, weights, size=size, device=resolve_device(device), precision=precision
    )


def _decode(
    settings: ExtractSettings,
    manifest: Manifest,
    windows: Sequence[Window],
    rejected: dict[str, str],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the row numbers and pixels of one image's windows after the other's."""
    for group, pixels in read_windows(manifest, windows, 2 * settings.batch_size):
        if isinstance(pixels, ImageError):
            rejected[manifest.images[group[0].image].digest] = str(pixels)
            announce(advance=len(group))
            continue
        yield np.array([window.index for window in group]), pixels


def _gather(
    frames: Iterator[tuple[np.ndarray, np.ndarray]], batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Regroup windows into batches of one size (the last may be smaller)."""
    rows: list[int] = []
    pixels: list[np.ndarray] = []
    for numbers, stack in frames:
        rows.extend(int(number) for number in numbers)
        pixels.extend(stack)
        while len(rows) >= batch:
            yield np.array(rows[:batch]), np.stack(pixels[:batch])
            del rows[:batch], pixels[:batch]
    if rows:
        yield np.array(rows), np.stack(pixels)


def _recorded_rejections(manifest: Manifest, records: Iterable[ShardRecord]) -> dict[int, str]:
    # by content, not by row: rows shift when images are added
    reasons = {k: v for record in records for k, v in record.result["rejected"].items()}
    return {i.image: reasons[i.digest] for i in manifest.images if i.digest in reasons}


def _can_read(manifest: Manifest, image: Image) -> bool:
    try:
        read_frame(manifest.root, image, image.width, image.height)
    except (ImageError, StaleError):
        return False
    return True
