"""The views stage: augmented views, crops and attention, cached beside the clean features.

A stage of its own, so that the clean features, and all that was made from them, stay valid when
views are added later. Views of one kind are a part of every shard: a part has a ledger of its own
below the stage's (``views/photometric_1``, ``views/crops``), so that a shard whose settings have
changed computes the parts that it lacks, and a later stage depends on the parts that it reads.

The parts of the views: which arrays each has, and where it keeps its ledger.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.compute.scheduler import announce
from pipeline.images.windows import Window
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import read_windows, shard_ranges
from pipeline.run.ledger import (
    Ledger,
    ShardRecord,
    StageRecord,
    find_lost,
    list_files,
    note_files,
    read_record,
)
from pipeline.run.manifest import Manifest, read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.settings import make_settings
from pipeline.storage.arrays import ArraySpec, consolidate, prepare_arrays, write_shard
from pipeline.storage.files import fingerprint, note_writes, read_json, remove_tree
from stages.extract.arrays import attention_spec, features_spec, group_attributes
from stages.extract.passes import (
    check_finite,
    extract_attention,
    extract_clean,
    extract_views,
    gather_batches,
    load_backbone,
)
from stages.extract.settings import ExtractSettings, ViewSettings, parse_views

if TYPE_CHECKING:
    from stages.extract.backbones import Backbone

STAGE = "views"
"""The stage, below whose ledger those of the parts lie."""

CROPS = ("top left", "top right", "bottom left", "bottom right", "centre")
CROP_ARRAYS = tuple(f"crop_{number}" for number in range(1, len(CROPS) + 1))


@dataclass(frozen=True)
class Part:
    """Views that are computed together."""

    name: str
    arrays: tuple[str, ...]
    view: int = 0

    @property
    def pictures(self) -> int:
        """How many pictures of every window are looked at, mirror images not counted."""
        return len(self.arrays) if self.name == "crops" else 1


def list_parts(settings: ViewSettings) -> list[Part]:
    """List what the settings ask for, in the order of the arrays."""
    parts = [
        Part(name, (name, f"{name}_mirror"), view)
        for view in range(1, parse_views(settings.views) + 1)
        for name in [f"photometric_{view}"]
    ]
    if settings.crops == "five":
        parts.append(Part("crops", CROP_ARRAYS))
    if settings.attention:
        parts.append(Part("attention", ("attention",)))
    return parts


def lay_out(part: Part, facts: dict[str, Any]) -> list[tuple[str, ArraySpec]]:
    """Give the arrays of a part."""
    if part.name == "attention":
        return [(part.name, attention_spec(facts))]
    if part.name == "crops":
        texts = [f"features of the {where} half-size crop at twice the scale" for where in CROPS]
    else:
        text = f"features of photometrically augmented view {part.view}"
        texts = [text, f"{text}, mirrored like the mirror of the clean one"]
    return [
        (name, features_spec(facts, text)) for name, text in zip(part.arrays, texts, strict=True)
    ]


def open_ledger(run: RunDirectory, part: str) -> Ledger:
    """Return the ledger of a part by its name."""
    return Ledger(run.state(f"{STAGE}/{part}"))


def remove_outgrown(
    run: RunDirectory, wanted: dict[str, ArraySpec], total: int, grid: Sequence[int]
) -> None:
    """Remove views that are wanted no more and fit the windows no more.

    One that still fits is left: wanted again, it needs no work. One of another length would keep
    the whole group from being opened as one dataset.
    """
    store = run.features
    old = [
        path.name
        for pattern in ("photometric_*", "crop_*", "attention")
        for path in sorted(store.glob(pattern))
        if path.name not in wanted and not _fits(path, total, grid)
    ]
    # before the arrays: what a ledger names and is not there counts as lost
    for part in sorted({_name_part(name) for name in old}):
        remove_tree(open_ledger(run, part).folder)
    for name in old:
        remove_tree(store / name)
    if old:
        consolidate(store)


def _name_part(array: str) -> str:
    return "crops" if array in CROP_ARRAYS else array.removesuffix("_mirror")


def _fits(array: Path, total: int, grid: Sequence[int]) -> bool:
    metadata = read_json(array / "zarr.json") or {}
    return metadata.get("shape", [])[:3] == [total, *grid]


# As many images at a time are decoded ahead: at twice the scale one fills tens of megabytes.
_AHEAD = 8


class Views(Stage[ViewSettings]):
    """The images -> further arrays of ``features.zarr``."""

    name: ClassVar[str] = "views"
    unit: ClassVar[str] = "pictures"
    verb: ClassVar[str] = "extract"
    settings_class = ViewSettings

    def inputs(self, run: RunDirectory, settings: ViewSettings) -> list[str]:
        """Return ``extract``."""
        return ["extract"]

    def plan(self, run: RunDirectory, settings: ViewSettings, screen: Screen) -> Plan:
        """Plan one shard for every shard of features."""
        extract = read_record(run, "extract")
        if settings.attention:
            from stages.extract.backbones import check_attention

            check_attention(extract.facts["backbone"])
        manifest = read_manifest(run)
        parts = list_parts(settings)
        pictures = sum(part.pictures for part in parts)
        total = len(manifest.windows)
        shards = []
        ranges = shard_ranges(total, extract.settings["shard_size"])
        for source, rows in zip(_fingerprint_sources(manifest, extract), ranges, strict=True):
            prints = [self._fingerprint_part(part, settings, source) for part in parts]
            shards.append(ShardPlan(fingerprint(self.name, prints), len(rows) * pictures))
        facts = {
            "views": [part.name for part in parts if part.view],
            "crops": len(CROPS) if settings.crops == "five" else 0,
            "attention": settings.attention,
        }
        known = Ledger(run.state(self.name)).read_shards()
        right = [
            number
            for number, shard in enumerate(shards)
            if number in known and known[number].fingerprint == shard.fingerprint
        ]
        return Plan(shards, facts, payload=(extract, total, right))

    def prepare(self, run: RunDirectory, settings: ViewSettings, plan: Plan) -> None:
        """Allocate the arrays, beside those that are there."""
        extract, total, right = plan.payload
        parts = list_parts(settings)
        ledger = Ledger(run.state(self.name))
        # right when it was planned and forgotten since: it is lost
        lost = {number for number in right if ledger.read_shard(number) is None}
        for number in lost | plan.redo:
            for part in parts:
                open_ledger(run, part.name).drop(number)
        specs = {name: spec for part in parts for name, spec in lay_out(part, extract.facts)}
        prepare_arrays(
            run.features,
            specs,
            total,
            extract.settings["shard_size"],
            group_attributes(extract.facts),
        )
        remove_outgrown(run, specs, total, extract.facts["grid"])

    def compute(self, run: RunDirectory, settings: ViewSettings, shard: int) -> dict[str, Any]:
        """Compute the parts of one block of windows that are not there yet."""
        begun = time.perf_counter()
        manifest = read_manifest(run)
        extract = read_record(run, "extract")
        size = extract.settings["shard_size"]
        rows = shard_ranges(len(manifest.windows), size)[shard]
        source = _fingerprint_sources(manifest, extract)[shard]
        prints = {
            part: self._fingerprint_part(part, settings, source) for part in list_parts(settings)
        }
        held = {part: _find_part(run, part, shard, prints[part]) for part in prints}
        missing = [part for part, record in held.items() if record is None]
        announce(advance=len(rows) * sum(p.pictures for p in prints if p not in missing))
        for part in missing:
            open_ledger(run, part.name).drop(shard)
        blocks = {
            name: np.zeros((len(rows), *spec.shape), spec.dtype)
            for part in missing
            for name, spec in lay_out(part, extract.facts)
        }
        if missing:
            how = make_settings(ExtractSettings, "extract", run.read_settings("extract"))
            backbone = load_backbone(how, extract.facts["weights_digest"])
            block = _Block(manifest, rows, backbone, how.batch_size)
            for part in missing:
                if part.name == "crops":
                    _fill_crops(blocks, block)
            _fill_views(blocks, block, [p for p in missing if p.name != "crops"], settings.seed)
            shown = [manifest.images[manifest.windows[row].image].path for row in rows]
            check_finite(blocks, shown, self.name)
        seconds = round(time.perf_counter() - begun, 3)
        for part, record in held.items():
            if record is not None:
                note_files(run, record.files)
                continue
            own = {name: blocks[name] for name in part.arrays}
            with note_writes() as written:
                write_shard(run.features, own, shard, size)
            files = list_files(run, written)
            note_files(run, files)
            result = {"device": backbone.device.type}
            record = ShardRecord(shard, prints[part], seconds, len(rows), result, files)
            open_ledger(run, part.name).commit(record)
        return {"computed": [part.name for part in missing]}

    def finish(
        self,
        run: RunDirectory,
        settings: ViewSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Finish the ledger of every part, and say what is there."""
        extract = read_record(run, "extract")
        sources = _fingerprint_sources(read_manifest(run), extract)
        for part in list_parts(settings):
            record = StageRecord(
                stage=self.name,
                version=self.version,
                settings={},
                inputs={"extract": extract.digest},
                shards=[self._fingerprint_part(part, settings, source) for source in sources],
                facts={"arrays": list(part.arrays)},
                verb=self.verb,
                finished=True,
            )
            open_ledger(run, part.name).write_stage(record)
        photometric = parse_views(settings.views)
        kinds = [
            f"{photometric} photometric views" if photometric else "",
            "five crops" if settings.crops == "five" else "",
            "attention" if settings.attention else "",
        ]
        what = ", ".join(kind for kind in kinds if kind) or "nothing but the clean views"
        return [f"views: {what} of every window in {run.features}"]

    def _fingerprint_part(self, part: Part, settings: ViewSettings, source: str) -> str:
        seed = settings.seed if part.view else None
        return fingerprint(self.name, self.version, part.name, seed, source)


def place_crops(window: Window) -> list[Window]:
    """Place the five half-size crops of a window, on its image at twice the scale."""
    size = window.size
    corners = ((0, 0), (size, 0), (0, size), (size, size), (size // 2, size // 2))
    return [
        Window(
            window.index,
            window.image,
            2 * window.left + left,
            2 * window.top + top,
            size,
            2 * window.width,
            2 * window.height,
        )
        for left, top in corners
    ]


@dataclass(frozen=True)
class _Block:
    """The windows of one shard, and what their features are computed with."""

    manifest: Manifest
    rows: range
    backbone: Backbone
    batch: int

    @property
    def windows(self) -> list[Window]:
        return self.manifest.usable_windows(self.rows.start, self.rows.stop)


def _fill_views(
    blocks: dict[str, np.ndarray], block: _Block, parts: Sequence[Part], seed: int
) -> None:
    """Fill in photometric views and attention, which look at the windows as they are."""
    if not parts:
        return
    frames = read_windows(block.manifest, block.windows, 2 * block.batch)
    for rows, pixels in gather_batches(frames, block.batch):
        places = rows - block.rows.start
        for part in parts:
            views: tuple[np.ndarray, ...]
            if part.view:
                pictures = _augment(block.manifest, rows, pixels, part.view, seed)
                views = extract_views(block.backbone, pictures)
            else:
                views = (extract_attention(block.backbone, pixels),)
            for name, values in zip(part.arrays, views, strict=True):
                blocks[name][places] = values
            announce(advance=len(rows))


def _augment(
    manifest: Manifest, rows: np.ndarray, pixels: np.ndarray, view: int, seed: int
) -> np.ndarray:
    """Give one photometric view of some windows, uint8 [window, y, x, rgb]."""
    import torch

    from stages.extract.photometric import augment, draw_augmentation

    windows = [manifest.windows[row] for row in rows]
    augmentations = [
        draw_augmentation(manifest.images[w.image].digest, w.box, view, seed) for w in windows
    ]
    # on the processor whatever the device: the pictures are then the same everywhere
    images = augment(torch.from_numpy(pixels).permute(0, 3, 1, 2), augmentations)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _fill_crops(blocks: dict[str, np.ndarray], block: _Block) -> None:
    """Fill in the five crops, which are read at twice the scale."""
    crops = [crop for window in block.windows for crop in place_crops(window)]
    count = len(CROPS)
    # Whole windows: an image's crops come in fives.
    together = max(1, block.batch // count) * count
    for rows, pixels in gather_batches(read_windows(block.manifest, crops, _AHEAD), together):
        features = extract_clean(block.backbone, pixels)
        for number, name in enumerate(CROP_ARRAYS):
            blocks[name][rows[number::count] - block.rows.start] = features[number::count]
        announce(advance=len(rows))


def _fingerprint_sources(manifest: Manifest, extract: StageRecord) -> list[str]:
    """Fingerprint what every shard is made from."""
    prints = []
    ranges = shard_ranges(len(manifest.windows), extract.settings["shard_size"])
    for print_, rows in zip(extract.shards, ranges, strict=True):
        # an image that was rejected and is mended has features that extract's own print of the
        # shard cannot tell from its gap
        used = [w.index - rows.start for w in manifest.usable_windows(rows.start, rows.stop)]
        prints.append(fingerprint(print_, used))
    return prints


def _find_part(run: RunDirectory, part: Part, shard: int, print_: str) -> ShardRecord | None:
    """Return the record of a part of a shard where what it wrote is there."""
    record = open_ledger(run, part.name).read_shard(shard)
    right = record is not None and record.fingerprint == print_ and not find_lost(run, record.files)
    return record if right else None
