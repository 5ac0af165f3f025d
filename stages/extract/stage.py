"""The extract stage: images -> frozen features of every window and of its mirror image.

The dataset that a run is made of is listed first, as it is now, or as the run keeps it where it is
gone: every image probed once, windows placed, blocks of them fingerprinted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.compute.devices import resolve_device, resolve_precision
from pipeline.compute.scheduler import announce
from pipeline.datasets import (
    Dataset,
    Sample,
    complete_dataset_name,
    describe_difference,
    get_dataset,
    is_gone,
    stamp_file,
)
from pipeline.errors import (
    AccessError,
    DatasetError,
    ImageError,
    PipelineError,
    StaleError,
    UsageError,
    WeightsError,
)
from pipeline.images.decoding import probe_image
from pipeline.images.faults import require_answer
from pipeline.images.windows import Window, fit_size, place_windows
from pipeline.progress import Counter, Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import map_ahead, read_frame, read_windows, shard_ranges
from pipeline.run.ledger import Ledger, ShardRecord, read_record
from pipeline.run.manifest import Image, Manifest, Rows, read_manifest
from pipeline.run.stage import Plan, ShardPlan, Stage
from pipeline.run.status import CLASSES, IMAGES, WEIGHTS, describe_file
from pipeline.storage.arrays import prepare_arrays, write_shard
from pipeline.storage.files import fingerprint
from pipeline.storage.places import count_requests, make_absolute
from pipeline.wording import count_of
from stages.extract.backbones import (
    Backbone,
    check_backbone,
    describe_backbone,
    describe_faults,
    extract_views,
    features_spec,
    find_faulty,
    gather_batches,
    group_attributes,
    load_backbone,
)
from stages.extract.settings import ExtractSettings

PROBE_THREADS = 4


def list_images(
    dataset: Dataset,
    root: Path,
    labels: Path | None,
    splits: Sequence[str],
    limit: int | None,
    known: Sequence[Image],
    exclude: Sequence[Path],
    count: Callable[[int], Counter],
) -> Rows[Image]:
    """List the images of a dataset."""
    samples = dataset.list_samples(root, splits, labels, exclude)
    if limit is not None:
        samples = [s for split in splits for s in [t for t in samples if t.split == split][:limit]]
    if not samples:
        raise DatasetError(f"no images of {', '.join(splits)} at {root}.")
    before = Rows.gather(Image, known)
    places = before.find("path", [sample.image for sample in samples])
    threads = count_requests(root, PROBE_THREADS)
    # a task for every image would take longer than to see that it is the same
    size = min(64, -(-len(samples) // (8 * threads)))

    def probe(block: range) -> list[Image]:
        there = places[block.start : block.stop]
        olds = iter(before.choose(there[there >= 0]))
        return [
            _probe(row, samples[row], root, next(olds) if places[row] >= 0 else None)
            for row in block
        ]

    def probe_all(counter: Counter) -> Iterator[Image]:
        for images in map_ahead(probe, shard_ranges(len(samples), size), threads, 4 * threads):
            yield from images
            counter.advance(len(images))

    with count(len(samples)) as counter:
        return Rows.gather(Image, probe_all(counter))


def _probe(row: int, sample: Sample, root: Path, known: Image | None) -> Image:
    blank = Image(row, sample.id, sample.split, sample.image, sample.label, 0, 0, 0, 0, "")
    path = root / sample.image
    if sample.reason is not None:
        return replace(blank, state="rejected", reason=sample.reason)
    try:
        stamp = stamp_file(root, sample.image)
        # git's rule: a file of the same size and times is the same file
        same = known is not None and (known.bytes, known.modified_ns, known.changed_ns) == stamp
        if known is not None and same and _is_damaged(known):
            raise ImageError(known.reason)
        header = known if known is not None and same and known.width else probe_image(path)
    except OSError as error:
        require_answer(path, error)
        return replace(blank, state="rejected", reason=error.strerror or str(error))
    except AccessError as error:
        return replace(blank, state="rejected", reason=str(error))
    except ImageError as error:
        # with the stamp: the file is tried again when it has changed, and not before
        size, modified, changed = stamp
        blank = replace(blank, bytes=size, modified_ns=modified, changed_ns=changed)
        return replace(blank, state="rejected", reason=str(error))
    return replace(
        blank,
        width=header.width,
        height=header.height,
        bytes=header.bytes,
        modified_ns=header.modified_ns,
        changed_ns=header.changed_ns,
        digest=header.digest,
    )


def _is_damaged(known: Image) -> bool:
    """Whether a file was rejected by its header, and not because it could not be had."""
    return not known.ok and not known.width and known.modified_ns != 0


def place_all(
    images: Iterable[Image], size: int, frame: str, overlap: float
) -> tuple[Rows[Window], dict[int, str]]:
    """Place the windows of all images; say why those of some cannot be."""
    reasons: dict[int, str] = {}

    def place() -> Iterator[Window]:
        index = 0
        for image in images:
            if not image.ok:
                continue
            width, height = fit_size(image.width, image.height, size)
            try:
                corners = place_windows(width, height, size, frame, overlap)
            except ImageError as error:
                reasons[image.image] = str(error)
                continue
            for left, top in corners:
                yield Window(index, image.image, left, top, size, width, height)
                index += 1

    return Rows.gather(Window, place()), reasons


def fingerprint_shard(manifest: Manifest, windows: Rows[Window]) -> str:
    """Return the fingerprint of what a block of windows shows."""
    digests = manifest.images.column("digest").take(windows.column("image")).to_pylist()
    shown = zip(digests, windows, strict=True)
    return fingerprint([(digest, w.box, w.width, w.height) for digest, w in shown])


@dataclass(frozen=True)
class Source:
    """A dataset and its root."""

    dataset: Dataset
    root: Path
    kept: Mapping[str, Any] | None = None
    warning: str = ""


def open_source(run: RunDirectory, settings: ExtractSettings) -> Source:
    """Open the dataset of the settings."""
    name = complete_dataset_name(settings.dataset)
    given = settings.root and make_absolute(settings.root)
    kept = run.manifest_file.is_file() and run.windows_file.is_file()
    manifest = read_manifest(run) if kept else None
    if manifest is None or manifest.dataset != name or manifest.definition is None:
        dataset = get_dataset(name)
        return Source(dataset, dataset.find_root(given))
    if is_gone(name):
        return Source(
            manifest.open_dataset(),
            given or manifest.root,
            manifest.definition,
            f"the dataset {name} is gone; what the run keeps of it is used.",
        )
    dataset = get_dataset(name)
    return Source(dataset, dataset.find_root(given), manifest.definition)


VIEWS = ("clean", "mirror")


class Extract(Stage[ExtractSettings]):
    """Images -> ``manifest.parquet``, ``windows.parquet``, ``features.zarr``."""

    name: ClassVar[str] = "extract"
    unit: ClassVar[str] = "windows"
    settings_class = ExtractSettings

    def resolve(self, run: RunDirectory, settings: ExtractSettings) -> ExtractSettings:
        """Fill in the dataset's splits and frame, the size and the precision."""
        source = open_source(run, settings)
        dataset = source.dataset
        backbone = describe_backbone(settings.backbone)
        device = resolve_device(settings.device)
        return settings.replace(
            dataset=complete_dataset_name(settings.dataset),
            root=source.root,
            labels=settings.labels and make_absolute(settings.labels),
            weights=settings.weights and make_absolute(settings.weights),
            splits=settings.splits or dataset.default_splits,
            frame=settings.frame or dataset.definition.frame,
            size=settings.size or backbone.default_size,
            precision=resolve_precision(settings.precision, device)
            if backbone.takes_bfloat16
            else "float32",
        )

    def plan(self, run: RunDirectory, settings: ExtractSettings, screen: Screen) -> Plan:
        """List and probe the images, place their windows, find the weights."""
        assert settings.size is not None and settings.frame is not None
        assert settings.root is not None
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
        images = list_images(
            source.dataset,
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
            settings.dataset,
            settings.root,
            settings.labels,
            images,
            windows,
            source.dataset.content,
        ).reject(unplaceable)
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
        base = fingerprint(
            self.name, self.version, _window_settings(settings), digest, *raised.values()
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
        missed = _missed(manifest, valid, settings.shard_size)
        if gone is not None:
            # what is finished stays valid without its weights
            if len(valid) < len(shards):
                raise gone
            screen.warn(f"extract: the weights are gone, and not needed any more. {gone}")
        reasons = _recorded_rejections(manifest, valid, settings.shard_size)
        # what is damaged, or has features that are not finite, stays so while its bytes stay
        readable = {i for i in missed if _can_read(manifest, images[i])}
        redo = {
            w.index // settings.shard_size for i in readable for w in manifest.windows_of(images[i])
        }
        manifest = manifest.reject({i: r for i, r in reasons.items() if i not in readable})
        # an image that moves in the tables moves its windows under whatever reads them
        sources = {**file, IMAGES: manifest.fingerprint, CLASSES: fingerprint(manifest.definition)}
        return Plan(shards, facts, redo=frozenset(redo), sources=sources, payload=manifest)

    def _identify_weights(
        self, run: RunDirectory, settings: ExtractSettings, backbone: Backbone, screen: Screen
    ) -> tuple[str, str, PipelineError | None, dict[str, Any]]:
        """Return source and digest of the weights, why they are gone, if they are, and the file."""
        given = settings.weights if backbone.takes_weights else None
        try:
            weights = backbone.find_weights(given, screen.note)
        except (WeightsError, UsageError) as error:
            key = self.key(settings)
            old, before = Ledger(run.state(key)).read_stage(), run.read_settings(key)
            same = settings.model_dump(mode="json", include={"backbone", "weights"})
            if old is None or not same.items() <= before.items():
                raise
            return old.facts["weights_source"], old.facts["weights_digest"], error, old.sources
        if weights is None:
            return "none needed", "", None, {}
        screen.note(f"extract: weights of {settings.backbone} from {weights.source}")
        return weights.source, weights.digest, None, {WEIGHTS: describe_file(weights.path)}

    def prepare(self, run: RunDirectory, settings: ExtractSettings, plan: Plan) -> None:
        """Write the manifest and allocate one array per view."""
        manifest = plan.payload
        manifest.write(run)
        specs = {
            "clean": features_spec(plan.facts, "last-block features after the final norm"),
            "mirror": features_spec(
                plan.facts,
                "the same of the horizontally mirrored window, in mirrored columns",
            ),
        }
        attributes = group_attributes(plan.facts)
        prepare_arrays(run.features, specs, len(manifest.windows), settings.shard_size, attributes)

    def compute(self, run: RunDirectory, settings: ExtractSettings, shard: int) -> dict[str, Any]:
        """Extract the features of one block of windows."""
        manifest = read_manifest(run)
        facts = read_record(run, self.key(settings)).facts
        start = shard * settings.shard_size
        windows = manifest.windows[start : start + settings.shard_size]
        shape = (len(windows), *facts["grid"], facts["channels"])
        blocks = {view: np.zeros(shape, np.float16) for view in VIEWS}
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

        frames = read_windows(manifest, windows, 2 * settings.batch_size, note)
        for rows, pixels in gather_batches(frames, settings.batch_size):
            for view, values in zip(VIEWS, extract_views(backbone, pixels), strict=True):
                blocks[view][rows - start] = values
            announce(advance=len(rows))
        faulty = find_faulty(blocks)
        if len(faulty):
            check_backbone(backbone, facts["size"])
        not_finite = _clear_images(manifest, windows, blocks, faulty)
        write_shard(run.features, blocks, shard, settings.shard_size)
        return {
            "rejected": rejected,
            "missed": missed,
            "not_finite": not_finite,
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
        manifest = manifest.reject(
            _recorded_rejections(manifest, records.values(), settings.shard_size)
        )
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
            if any(record.result.get("not_finite") for record in records.values()):
                raise WeightsError(
                    f"none of the {len(rejected)} images has features that are finite ({reason}); "
                    "try --precision float32, or other weights with --weights."
                )
            raise DatasetError(f"none of the {len(rejected)} images could be decoded ({reason}).")
        return [f"extract: features of {count_of(usable, 'images')} in {run.features}"]


def _window_settings(settings: ExtractSettings) -> dict[str, Any]:
    # which images there are is in the windows' own fingerprints: more images, or another name of
    # the same ones, leave finished shards valid
    names = ("backbone", "precision", "size", "shard_size")
    return {name: value for name, value in settings.output_settings().items() if name in names}


def _known_images(run: RunDirectory, settings: ExtractSettings) -> Sequence[Image]:
    if not (run.manifest_file.exists() and run.windows_file.exists()):
        return ()
    manifest = read_manifest(run)
    # size and time tell one file from another only where the paths mean the same files
    if manifest.root != settings.root:
        return ()
    record = Ledger(run.state("extract")).read_stage()
    if record is None or record.version != settings.version:
        # another version may read what that one refused
        return manifest.images.choose(np.asarray(manifest.images.column("width")) > 0)
    return manifest.images


def _clear_images(
    manifest: Manifest,
    windows: Sequence[Window],
    blocks: dict[str, np.ndarray],
    faulty: np.ndarray,
) -> dict[str, str]:
    """Set the features of the images of faulty windows to 0; return the images' reasons."""
    places: dict[int, list[int]] = {}
    for place, window in enumerate(windows):
        places.setdefault(window.image, []).append(place)
    reasons = {}
    for row in dict.fromkeys(windows[place].image for place in faulty):
        reason = describe_faults(blocks, places[row])
        reasons[manifest.images[row].digest] = f"its features are not finite ({reason})"
        for block in blocks.values():
            block[places[row]] = 0
    return reasons


def _reasons(record: ShardRecord) -> dict[str, str]:
    return {**record.result["rejected"], **record.result.get("not_finite", {})}


def _recorded_rejections(
    manifest: Manifest, records: Collection[ShardRecord], size: int
) -> dict[int, str]:
    # by content, not by row: rows shift when images are added
    reasons = {k: v for record in records for k, v in _reasons(record).items()}
    same = manifest.images.choose(manifest.images.among("digest", reasons))
    damaged = {image.image: reasons[image.digest] for image in same}
    return _missed(manifest, records, size) | damaged


def _missed(manifest: Manifest, records: Collection[ShardRecord], size: int) -> dict[int, str]:
    """Return row -> reason of the images that could not be had when their windows were due."""
    # by place in the shard, which its fingerprint fixes: the file may have another name since
    return {
        manifest.windows[record.shard * size + int(offset)].image: reason
        for record in records
        for offset, reason in record.result["missed"].items()
    }


def _can_read(manifest: Manifest, image: Image) -> bool:
    try:
        read_frame(manifest.root, image, image.width, image.height)
    except (ImageError, StaleError):
        return False
    return True
