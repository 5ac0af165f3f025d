"""The stages extract and views: images -> frozen features of every window, and further views of it.

The dataset that a run is made of is listed first, as it is now, or as the run keeps it where it is
gone: every image probed once, windows placed, blocks of them fingerprinted.

The views are a stage of their own, so that the clean features, and all that was made from them,
stay valid when views are added later. Each part of them has a ledger key of its own
(``views/photometric_1``, ``views/crops``): a later stage depends on the parts that it reads, and
parts come and go one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.compute.devices import resolve_device, resolve_precision
from pipeline.compute.scheduler import announce
from pipeline.dataset_names import complete_dataset_name, is_gone
from pipeline.datasets import get_dataset
from pipeline.datasets.base import Dataset
from pipeline.datasets.definition import describe_difference
from pipeline.errors import (
    AccessError,
    DatasetError,
    ImageError,
    PipelineError,
    StaleError,
    UsageError,
    WeightsError,
    count_of,
)
from pipeline.images.reading import VERSION, Reading
from pipeline.images.windows import Window
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import read_frame, shard_ranges
from pipeline.run.ledger import Ledger, ShardRecord, read_record, require_fresh
from pipeline.run.manifest import Image, Manifest, Rows, read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.run.status import CLASSES, IMAGES, WEIGHTS, describe_file
from pipeline.settings import StageSettings, make_settings
from pipeline.storage.arrays import consolidate, prepare_arrays, read_metadata, write_shard
from pipeline.storage.files import fingerprint, remove_file, remove_tree
from pipeline.storage.places import make_absolute
from stages.extract.backbones import Backbone, describe_backbone, load_backbone
from stages.extract.checkpoints import list_files
from stages.extract.listing import check_labels, list_manifest
from stages.extract.settings import ExtractSettings, PartSettings, ViewSettings
from stages.extract.views import (
    Clean,
    Part,
    Photometric,
    check_backbone,
    check_finite,
    compute_part,
    explain_faults,
    find_faulty,
    open_part,
)


def fingerprint_shard(manifest: Manifest, windows: Rows[Window]) -> str:
    """Return the fingerprint of what a block of windows shows."""
    digests = manifest.images.column("digest").take(windows.column("image")).to_pylist()
    shown = zip(digests, windows, strict=True)
    return fingerprint([(digest, w.box, w.width, w.height) for digest, w in shown])


@dataclass(frozen=True)
class Source:
    """A dataset and its root; what the run keeps of it, and what to warn of."""

    dataset: Dataset
    root: Path
    kept: Mapping[str, Any] | None = None
    warning: str = ""


def open_source(run: RunDirectory, settings: ExtractSettings) -> Source:
    """Open the dataset of the settings."""
    name = complete_dataset_name(settings.dataset)
    given = settings.root and make_absolute(settings.root)
    manifest = _read_kept(run)
    kept = manifest.definition if manifest is not None and manifest.dataset == name else None
    if manifest is not None and kept is not None and is_gone(name):
        warning = f"the dataset {name} is gone; what the run keeps of it is used."
        return Source(manifest.open_dataset(), given or manifest.root, kept, warning)
    dataset = get_dataset(name)
    return Source(dataset, dataset.find_root(given), kept)


def _read_kept(run: RunDirectory) -> Manifest | None:
    kept = run.manifest_file.is_file() and run.windows_file.is_file()
    return read_manifest(run) if kept else None


class Extract(Stage[ExtractSettings]):
    """Images -> ``manifest.parquet``, ``windows.parquet``, ``features.zarr``."""

    name: ClassVar[str] = "extract"
    unit: ClassVar[str] = "windows"
    reads_images = True
    settings_class = ExtractSettings

    def resolve(self, run: RunDirectory, settings: ExtractSettings) -> ExtractSettings:
        """Fill in the dataset's splits and frame, the size and the precision."""
        source = open_source(run, settings)
        dataset = source.dataset
        backbone = describe_backbone(settings.backbone)
        device = resolve_device(settings.device)
        return settings.replace(
            dataset=complete_dataset_name(settings.dataset),
            backbone=backbone.name,
            root=source.root,
            labels=settings.labels and make_absolute(settings.labels),
            weights=settings.weights and make_absolute(settings.weights),
            splits=settings.splits or dataset.default_splits,
            frame=settings.frame or dataset.definition.frame,
            bands=settings.bands or dataset.definition.bands,
            range=settings.range or dataset.definition.range,
            size=settings.size or backbone.default_size,
            precision=resolve_precision(settings.precision, device)
            if backbone.takes_bfloat16
            else "float32",
        )

    def plan(self, run: RunDirectory, settings: ExtractSettings, screen: Screen) -> Plan:
        """List and probe the images, place their windows, find the weights."""
        assert settings.size is not None and settings.root is not None
        backbone = describe_backbone(settings.backbone)
        backbone.check_size(settings.size)
        source = open_source(run, settings)
        if source.warning:
            screen.warn(f"extract: {source.warning}")
        changed = source.kept and describe_difference(source.kept, source.dataset.content)
        if changed:
            screen.note(
                f"extract: the definition of the dataset has changed: {changed}; features of the "
                "same images stay as they are, and evaluate follows when it is run again"
            )
        source.dataset.fetch(settings.root, screen.note)
        known = _known_images(run, settings)
        kept = _read_kept(run)
        listed = () if kept is None else kept.images
        manifest = list_manifest(source.dataset, settings, known, [run.path], screen, listed)
        for warning in check_labels(manifest):
            screen.warn(f"extract: {warning}")
        origin, digest, gone, file = self._identify_weights(run, settings, backbone, screen)
        facts = {
            "backbone": settings.backbone,
            "weights_source": origin,
            "weights_digest": digest,
            "patch": backbone.patch,
            "channels": backbone.channels,
            "grid": [settings.size // backbone.patch] * 2,
            "size": settings.size,
        }
        # the first version goes without saying
        raised = {"backbone_version": backbone.version} if backbone.version > 1 else {}
        facts |= raised
        if len(_list_tiffs(manifest.images)):
            facts["reading_version"] = VERSION
        # which images there are is in the windows' own fingerprints: more images, or another name
        # of the same ones, leave finished shards valid
        same = ("backbone", "precision", "size", "shard_size")
        own = {name: value for name, value in settings.output_settings().items() if name in same}
        base = fingerprint(self.name, self.version, own, digest, *raised.values())
        shards = [
            ShardPlan(
                fingerprint(base, fingerprint_shard(manifest, manifest.windows[r.start : r.stop])),
                len(r),
            )
            for r in shard_ranges(len(manifest.windows), settings.shard_size)
        ]
        if not shards:
            many = count_of(len(manifest.images), "images")
            raise DatasetError(
                f"of {many} at {settings.root} none can be read; "
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
        missed, damaged = _recall_rejections(manifest, valid, settings.shard_size)
        # what is damaged, or has features that are not finite, stays so while its bytes stay
        readable = {image for image in missed if _can_read(manifest, manifest.images[image])}
        again = (manifest.windows_of(manifest.images[image]) for image in readable)
        redo = {window.index // settings.shard_size for windows in again for window in windows}
        reasons = missed | damaged
        manifest = manifest.reject({i: r for i, r in reasons.items() if i not in readable})
        # an image that moves in the tables moves its windows under whatever reads them
        sources = {**file, IMAGES: manifest.fingerprint, CLASSES: fingerprint(manifest.definition)}
        return Plan(shards, facts, redo=frozenset(redo), sources=sources, payload=manifest)

    def _identify_weights(
        self, run: RunDirectory, settings: ExtractSettings, backbone: Backbone, screen: Screen
    ) -> tuple[str, str, PipelineError | None, dict[str, Any]]:
        """Return source and digest of the weights, why they are gone, if they are, and the file."""
        given, gone = settings.weights if backbone.takes_weights else None, None
        try:
            weights = backbone.find_weights(given, screen.note)
        except (WeightsError, UsageError) as error:
            weights, gone = None, error
        if gone is not None or (weights is not None and not weights.digest):
            key = self.key(settings)
            old, before = Ledger(run.state(key)).read_stage(), run.read_settings(key)
            same = settings.model_dump(mode="json", include={"backbone", "weights"})
            if old is not None and same.items() <= before.items():
                return old.facts["weights_source"], old.facts["weights_digest"], gone, old.sources
        if gone is not None:
            raise gone
        if weights is None:
            return "none needed", "", None, {}
        if not weights.digest:
            return weights.source, "", None, {}
        screen.note(f"extract: weights of {settings.backbone} from {weights.source}")
        return weights.source, weights.digest, None, {WEIGHTS: describe_weights(weights.path)}

    def prepare(self, run: RunDirectory, settings: ExtractSettings, plan: Plan) -> None:
        """Write the manifest and allocate one array per view."""
        manifest = plan.payload
        manifest.write(run)
        _prepare(run, Clean(), plan.facts, len(manifest.windows), settings.shard_size)

    def compute(self, run: RunDirectory, settings: ExtractSettings, shard: int) -> dict[str, Any]:
        """Extract the features of one block of windows."""
        manifest = read_manifest(run)
        facts = read_record(run, self.key(settings)).facts
        start = shard * settings.shard_size
        windows = manifest.windows[start : start + settings.shard_size]
        part = Clean()
        blocks = part.allocate(facts, len(windows))
        backbone = load_backbone(settings, facts["weights_digest"])
        # damaged images, by digest: they stay so
        rejected: dict[str, str] = {}
        # windows, in the shard, of files that could not be had: the next run tries again
        missed: dict[str, str] = {}

        def note(group: list[Window], error: ImageError) -> None:
            if isinstance(error, AccessError):
                missed.update((str(window.index - start), str(error)) for window in group)
            else:
                rejected[manifest.images[group[0].image].digest] = str(error)
            announce(advance=len(group))

        computed = compute_part(part, backbone, manifest, windows, settings.batch_size, note)
        for rows, found in computed:
            for block, values in zip(blocks.values(), found, strict=True):
                block[rows - start] = values
            announce(advance=len(rows))
        faulty = find_faulty(blocks)
        if len(faulty):
            check_backbone(backbone, facts["size"])
        reasons = explain_faults(blocks, faulty, windows)
        for block in blocks.values():
            block[[window.image in reasons for window in windows]] = 0
        write_shard(run.features, blocks, shard, settings.shard_size)
        return {
            "rejected": rejected,
            "missed": missed,
            "not_finite": {manifest.images[row].digest: why for row, why in reasons.items()},
            "not_finite_windows": len(faulty),
            "device": backbone.device.type,
        }

    def find(
        self, run: RunDirectory, settings: ExtractSettings, records: dict[int, ShardRecord]
    ) -> str:
        """Return a fingerprint of which images could not be decoded."""
        rejected = {key for record in records.values() for key in _reasons(record)}
        missed = [(r.shard, offset) for r in records.values() for offset in r.result["missed"]]
        return fingerprint(sorted(rejected), sorted(missed))

    def finish(
        self,
        run: RunDirectory,
        settings: ExtractSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Note in the manifest which images could not be decoded."""
        manifest = read_manifest(run).admit_placed()
        missed, damaged = _recall_rejections(manifest, records.values(), settings.shard_size)
        manifest = manifest.reject(missed | damaged)
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
            reason = f"the first: {rejected[0].path}: {rejected[0].reason}"
            many = count_of(len(rejected), "images")
            if any(record.result.get("not_finite") for record in records.values()):
                raise WeightsError(
                    f"of {many} none has features that are finite ({reason}); "
                    "try --precision float32, or other weights with --weights."
                )
            raise DatasetError(f"of {many} none could be decoded ({reason}).")
        return [f"extract: features of {count_of(usable, 'images')} in {run.features}"]


def describe_weights(path: Path) -> dict[str, Any]:
    """Return what tells weights from later ones at their place: their file, and shards, if any."""
    files = list_files(path)
    return describe_file(path, [] if files == [path] else files)


def _known_images(run: RunDirectory, settings: ExtractSettings) -> Sequence[Image]:
    manifest = _read_kept(run)
    # size and time tell one file from another only where the paths mean the same files
    if manifest is None or manifest.root != settings.root:
        return ()
    record = Ledger(run.state("extract")).read_stage()
    said = {} if record is None else record.settings
    if settings.reading != Reading.of(said):
        return ()
    if record is None or record.version != settings.version:
        # another version may read what that one refused
        return manifest.images.choose(np.asarray(manifest.images.column("width")) > 0)
    if record.facts.get("reading_version", 1) != VERSION:
        tiffs = _list_tiffs(manifest.images)
        return manifest.images.choose(np.delete(np.arange(len(manifest.images)), tiffs))
    return manifest.images


def _list_tiffs(images: Rows[Image]) -> NDArray[np.int64]:
    """List the rows of the images of which an earlier version may have taken something else."""
    paths = images.column("path")
    return np.flatnonzero(np.asarray(pc.match_substring_regex(paths, r"(?i)\.tiff?$")))


def _reasons(record: ShardRecord) -> dict[str, str]:
    return {**record.result["rejected"], **record.result.get("not_finite", {})}


def _recall_rejections(
    manifest: Manifest, records: Collection[ShardRecord], size: int
) -> tuple[dict[int, str], dict[int, str]]:
    """Return row -> reason of the images that could not be had when due, and of damaged ones."""
    # by place in the shard, which its fingerprint fixes: the file may have another name since
    missed = {
        manifest.windows[record.shard * size + int(offset)].image: reason
        for record in records
        for offset, reason in record.result["missed"].items()
    }
    # by content, not by row: rows shift when images are added
    reasons = {k: v for record in records for k, v in _reasons(record).items()}
    same = manifest.images.choose(manifest.images.among("digest", reasons))
    return missed, {image.image: reasons[image.digest] for image in same}


def _can_read(manifest: Manifest, image: Image) -> bool:
    try:
        read_frame(manifest.root, image, image.width, image.height)
    except (ImageError, StaleError):
        return False
    return True


def _prepare(
    run: RunDirectory, part: Part, facts: Mapping[str, Any], windows: int, shard: int
) -> None:
    """Allocate the arrays of a part, beside those that are there."""
    attributes = {name: facts[name] for name in ("backbone", "patch", "size", "weights_source")}
    prepare_arrays(run.features, part.lay_out(facts), windows, shard, attributes)


class Views(Stage[PartSettings]):
    """The images -> further arrays of ``features.zarr``, one part a run."""

    name: ClassVar[str] = "views"
    unit: ClassVar[str] = "pictures"
    reads_images = True
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
        for part in settings.parts:
            _check_part(part, extract.facts)
        resolved = settings.model_dump(mode="json")
        given = {name: resolved[name] for name in resolved if name in settings.model_fields_set}
        run.write_settings(self.name, resolved, given)
        windows, grid = len(read_manifest(run).windows), extract.facts["grid"]
        wanted = {self.key(part) for part in settings.parts}
        keys = [f"{self.name}/{name}" for name in run.names(self.name)]
        # a version before this kept a ledger for all parts, beside theirs
        keys += [self.name] if run.has_been_run(self.name) else []
        for key in keys:
            with run.lock(key, wait=wait):
                _put_away(run, key, windows, grid, dropped=key not in wanted)

    def plan(self, run: RunDirectory, settings: PartSettings, screen: Screen) -> Plan:
        """Plan one shard for every shard of features."""
        extract = read_record(run, "extract")
        _check_part(settings, extract.facts)
        part, manifest = open_part(settings), read_manifest(run)
        seed = settings.seed if isinstance(part, Photometric) else None
        shards = []
        ranges = shard_ranges(len(manifest.windows), extract.settings["shard_size"])
        for print_, rows in zip(extract.shards, ranges, strict=True):
            # an image that was rejected and is mended has features that extract's own print of the
            # shard cannot tell from its gap
            used = [w.index - rows.start for w in manifest.usable_windows(rows.start, rows.stop)]
            source = fingerprint(print_, used)
            side = [] if part.side is None else [part.side]
            made = fingerprint(self.name, self.version, settings.part, seed, *side, source)
            shards.append(ShardPlan(made, len(rows) * part.pictures))
        facts: dict[str, Any] = {"arrays": list(part.arrays)}
        if part.side is not None:
            facts |= {"side": part.side, "grid": part.count_positions(extract.facts)}
        old = Ledger(run.state(self.key(settings))).read_stage()
        if old is not None and "dropped" in old.facts:
            facts["dropped"] = True
        return Plan(shards, facts, payload=(extract, len(manifest.windows)))

    def prepare(self, run: RunDirectory, settings: PartSettings, plan: Plan) -> None:
        """Allocate the arrays, beside those that are there."""
        extract, total = plan.payload
        _prepare(run, open_part(settings), extract.facts, total, extract.settings["shard_size"])

    def compute(self, run: RunDirectory, settings: PartSettings, shard: int) -> dict[str, Any]:
        """Compute one block of windows."""
        part, manifest = open_part(settings), read_manifest(run)
        extract = read_record(run, "extract")
        size = extract.settings["shard_size"]
        rows = shard_ranges(len(manifest.windows), size)[shard]
        blocks = part.allocate(extract.facts, len(rows))
        how = make_settings(ExtractSettings, "extract", run.read_settings("extract"))
        how = how.replace(size=part.side or how.size)
        backbone = load_backbone(how, extract.facts["weights_digest"])
        usable = manifest.usable_windows(rows.start, rows.stop)
        for numbers, found in compute_part(part, backbone, manifest, usable, how.batch_size):
            for block, values in zip(blocks.values(), found, strict=True):
                block[numbers - rows.start] = values
            announce(advance=len(numbers) * part.pictures)
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


def _check_part(settings: PartSettings, facts: Mapping[str, Any]) -> None:
    """Refuse what the backbone of the run cannot give."""
    backbone = describe_backbone(facts["backbone"])
    if settings.part == "mixing":
        backbone.check_attention()
    if (side := settings.side) is None:
        return
    patch, size = facts["patch"], facts["size"]
    if side % patch or side <= size:
        nearest = -(-max(side, size + 1) // patch) * patch
        raise UsageError(
            f"--views clean,fine:{side}: the fine view needs a multiple of the patch of {patch} "
            f"pixels above the windows' {size}, such as fine:{nearest}."
        )
    backbone.check_size(side)


def _put_away(run: RunDirectory, key: str, windows: int, grid: list[int], *, dropped: bool) -> None:
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
    shape = [windows, *record.facts.get("grid", grid)]
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
