"""The views stage: augmented views, crops and attention, cached beside the clean features.

A stage of its own, so that the clean features, and all that was made from them, stay valid when
views are added later. Views that are computed together are a part, with a ledger key of its own
(``views/photometric_1``, ``views/crops``): a later stage depends on the parts that it reads, and
parts come and go one by one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.compute.scheduler import announce
from pipeline.images.windows import Window
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import read_windows, shard_ranges
from pipeline.run.ledger import Ledger, ShardRecord, read_record, require_fresh
from pipeline.run.manifest import Manifest, read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.settings import StageSettings, make_settings
from pipeline.storage.arrays import (
    ArraySpec,
    consolidate,
    prepare_arrays,
    read_metadata,
    write_shard,
)
from pipeline.storage.files import fingerprint, remove_file, remove_tree
from stages.extract.backbones import (
    Backbone,
    attention_spec,
    check_finite,
    describe_backbone,
    extract_attention,
    extract_clean,
    extract_views,
    features_spec,
    gather_batches,
    group_attributes,
    load_backbone,
)
from stages.extract.photometric import augment, draw_augmentation
from stages.extract.settings import ExtractSettings, PartSettings, ViewSettings

CROPS = ("top left", "top right", "bottom left", "bottom right", "centre")
CROP_ARRAYS = tuple(f"crop_{number}" for number in range(1, len(CROPS) + 1))


class Part(ABC):
    """Views that are computed together: which arrays they fill, and from which pictures."""

    # of every window, mirror images not counted
    pictures: ClassVar[int] = 1
    # images that are decoded ahead; None: two batches
    ahead: ClassVar[int | None] = None

    @abstractmethod
    def lay_out(self, facts: dict[str, Any]) -> dict[str, ArraySpec]:
        """Give the arrays by their names."""

    def place(self, window: Window) -> list[Window]:
        """Place the pictures of a window."""
        return [window]

    @abstractmethod
    def look(
        self, backbone: Backbone, manifest: Manifest, rows: np.ndarray, pixels: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Give what goes into each array, from all pictures of some windows."""


@dataclass(frozen=True)
class Photometric(Part):
    """One photometrically augmented view, and its mirror image."""

    number: int
    seed: int

    def lay_out(self, facts: dict[str, Any]) -> dict[str, ArraySpec]:
        """Give two arrays of features."""
        name, text = f"photometric_{self.number}", f"photometrically augmented view {self.number}"
        return {
            name: features_spec(facts, f"features of {text}"),
            f"{name}_mirror": features_spec(
                facts, f"features of {text}, mirrored like the mirror of the clean one"
            ),
        }

    def look(
        self, backbone: Backbone, manifest: Manifest, rows: np.ndarray, pixels: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Give the features of the augmented windows and of their mirror images."""
        windows = [manifest.windows[row] for row in rows]
        augmentations = [
            draw_augmentation(manifest.images[w.image].digest, w.box, self.number, self.seed)
            for w in windows
        ]
        # on the processor whatever the device: the pictures are then the same everywhere
        images = augment(torch.from_numpy(pixels).permute(0, 3, 1, 2), augmentations)
        return extract_views(backbone, images.permute(0, 2, 3, 1).contiguous().numpy())


class Crops(Part):
    """The five half-size crops of a window, at twice its scale."""

    pictures = len(CROPS)
    # at twice the scale an image fills tens of megabytes
    ahead = 8

    def lay_out(self, facts: dict[str, Any]) -> dict[str, ArraySpec]:
        """Give an array of features for each."""
        return {
            name: features_spec(facts, f"features of the {where} half-size crop at twice the scale")
            for name, where in zip(CROP_ARRAYS, CROPS, strict=True)
        }

    def place(self, window: Window) -> list[Window]:
        """Place the crops on the window's image at twice the scale."""
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

    def look(
        self, backbone: Backbone, manifest: Manifest, rows: np.ndarray, pixels: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Give the features of the first crops, of the second ones, and so on."""
        features = extract_clean(backbone, pixels)
        return [features[number :: self.pictures] for number in range(self.pictures)]


class Attention(Part):
    """The last block's attention of every position to its neighbourhood."""

    def lay_out(self, facts: dict[str, Any]) -> dict[str, ArraySpec]:
        """Give one array."""
        return {"attention": attention_spec(facts)}

    def look(
        self, backbone: Backbone, manifest: Manifest, rows: np.ndarray, pixels: np.ndarray
    ) -> Sequence[np.ndarray]:
        """Give the attention in the windows as they are."""
        return [extract_attention(backbone, pixels)]


def open_part(settings: PartSettings) -> Part:
    """Return the part that settings name."""
    if settings.part == "crops":
        return Crops()
    if settings.part == "attention":
        return Attention()
    return Photometric(int(settings.part.rpartition("_")[2]), settings.seed)


class Views(Stage[PartSettings]):
    """The images -> further arrays of ``features.zarr``, one part a run."""

    name: ClassVar[str] = "views"
    unit: ClassVar[str] = "pictures"
    verb: ClassVar[str] = "extract"
    settings_class = PartSettings

    def key(self, settings: PartSettings) -> str:
        """Return ``views/<part>``."""
        return f"{self.name}/{settings.part}"

    def inputs(self, run: RunDirectory, settings: PartSettings) -> list[str]:
        """Return ``extract``."""
        return ["extract"]

    def divide(self, settings: StageSettings) -> list[PartSettings]:
        """Return the settings of every part that is asked for."""
        if isinstance(settings, PartSettings):
            return [settings]
        assert isinstance(settings, ViewSettings)
        return settings.parts

    def adopt(self, run: RunDirectory, settings: StageSettings, *, wait: bool) -> None:
        """Remember which views are asked for, and put the others away.

        One that still fits the windows is left: asked for again, it needs no work. One of another
        length would keep the whole group from being opened as one dataset.
        """
        if not isinstance(settings, ViewSettings):
            return
        extract = require_fresh(run, "extract")
        if settings.attention:
            describe_backbone(extract.facts["backbone"]).check_attention()
        resolved = settings.model_dump(mode="json")
        given = {name: resolved[name] for name in resolved if name in settings.model_fields_set}
        run.write_settings(self.name, resolved, given)
        shape = [len(read_manifest(run).windows), *extract.facts["grid"]]
        wanted = {self.key(part) for part in settings.parts}
        keys = [f"{self.name}/{name}" for name in run.names(self.name)]
        # a version before this kept a ledger for all parts, beside theirs
        keys += [self.name] if run.has_been_run(self.name) else []
        for key in keys:
            with run.lock(key, wait=wait):
                _put_away(run, key, shape, dropped=key not in wanted)

    def plan(self, run: RunDirectory, settings: PartSettings, screen: Screen) -> Plan:
        """Plan one shard for every shard of features."""
        extract = read_record(run, "extract")
        if settings.part == "attention":
            describe_backbone(extract.facts["backbone"]).check_attention()
        part, manifest = open_part(settings), read_manifest(run)
        seed = settings.seed if isinstance(part, Photometric) else None
        shards = []
        ranges = shard_ranges(len(manifest.windows), extract.settings["shard_size"])
        for print_, rows in zip(extract.shards, ranges, strict=True):
            # an image that was rejected and is mended has features that extract's own print of the
            # shard cannot tell from its gap
            used = [w.index - rows.start for w in manifest.usable_windows(rows.start, rows.stop)]
            source = fingerprint(print_, used)
            made = fingerprint(self.name, self.version, settings.part, seed, source)
            shards.append(ShardPlan(made, len(rows) * part.pictures))
        facts: dict[str, Any] = {"arrays": list(part.lay_out(extract.facts))}
        old = Ledger(run.state(self.key(settings))).read_stage()
        if old is not None and "dropped" in old.facts:
            facts["dropped"] = True
        return Plan(shards, facts, payload=(extract, len(manifest.windows)))

    def prepare(self, run: RunDirectory, settings: PartSettings, plan: Plan) -> None:
        """Allocate the arrays, beside those that are there."""
        extract, total = plan.payload
        specs = open_part(settings).lay_out(extract.facts)
        rows = extract.settings["shard_size"]
        prepare_arrays(run.features, specs, total, rows, group_attributes(extract.facts))

    def compute(self, run: RunDirectory, settings: PartSettings, shard: int) -> dict[str, Any]:
        """Compute one block of windows."""
        part, manifest = open_part(settings), read_manifest(run)
        extract = read_record(run, "extract")
        size = extract.settings["shard_size"]
        rows = shard_ranges(len(manifest.windows), size)[shard]
        blocks = {
            name: np.zeros((len(rows), *spec.shape), spec.dtype)
            for name, spec in part.lay_out(extract.facts).items()
        }
        how = make_settings(ExtractSettings, "extract", run.read_settings("extract"))
        backbone = load_backbone(how, extract.facts["weights_digest"])
        usable = manifest.usable_windows(rows.start, rows.stop)
        pictures = [picture for window in usable for picture in part.place(window)]
        frames = read_windows(manifest, pictures, part.ahead or 2 * how.batch_size)
        # whole windows: their pictures come together
        together = max(1, how.batch_size // part.pictures) * part.pictures
        for numbers, pixels in gather_batches(frames, together):
            found = part.look(backbone, manifest, numbers, pixels)
            for block, values in zip(blocks.values(), found, strict=True):
                block[numbers[:: part.pictures] - rows.start] = values
            announce(advance=len(numbers))
        shown = [manifest.images[manifest.windows[row].image].path for row in rows]
        check_finite(blocks, shown, self.name)
        write_shard(run.features, blocks, shard, size)
        return {"device": backbone.device.type}

    def finish(
        self,
        run: RunDirectory,
        settings: PartSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Say what is there."""
        return [f"views: {settings.part.replace('_', ' ')} of every window in {run.features}"]


def _put_away(run: RunDirectory, key: str, shape: list[int], *, dropped: bool) -> None:
    """Mark whether a part is asked for; remove one that is not, and would be of no use later."""
    ledger = Ledger(run.state(key))
    record = ledger.read_stage()
    if record is None:
        return
    if "arrays" not in record.facts:
        remove_tree(ledger.folder / "shards")
        remove_file(ledger.file(None))
        return
    arrays = [run.features / name for name in record.facts["arrays"]]
    whole = record.finished and len(ledger.list_shards()) == len(record.shards)
    if dropped and not (whole and all(_fits(array, shape) for array in arrays)):
        # before the arrays: what a ledger names and is not there counts as lost
        remove_tree(ledger.folder)
        for array in arrays:
            remove_tree(array)
        consolidate(run.features)
    elif dropped != ("dropped" in record.facts):
        facts = {name: fact for name, fact in record.facts.items() if name != "dropped"}
        ledger.write_stage(replace(record, facts=facts | ({"dropped": True} if dropped else {})))


def _fits(array: Path, shape: list[int]) -> bool:
    metadata = read_metadata(array)
    return metadata is not None and metadata["shape"][:3] == shape
