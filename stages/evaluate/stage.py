"""The evaluate stage: prototypes and cached features -> label PNGs, metrics, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batches import shard_ranges
from pipeline.condition import read_record
from pipeline.datasets import get_dataset
from pipeline.datasets.palettes import png_palette
from pipeline.errors import ImageError, RunError, UsageError
from pipeline.files import fingerprint, write_json, write_text
from pipeline.frames import count_threads, map_ahead, resize_labels
from pipeline.images import read_label
from pipeline.labels import remove_other_labels, write_label
from pipeline.ledger import ShardRecord
from pipeline.manifest import Image, Manifest, read_manifest
from pipeline.progress import Screen
from pipeline.run import DEFAULT_NAME, Run
from pipeline.scheduler import announce
from pipeline.settings import did_you_mean
from pipeline.stage import Plan, ShardPlan, Stage
from pipeline.store import read_group
from stages.crf import Backend, CrfSettings, choose_backend
from stages.crf.batches import refine_each
from stages.evaluate.artefacts import Artefacts, open_artefacts
from stages.evaluate.content import (
    ClusterLook,
    Exhibit,
    build_gallery,
    choose_look,
    describe_facts,
    sample_evenly,
)
from stages.evaluate.labelling import (
    Labelling,
    Scores,
    give_to_crf,
    label_windows,
    score_windows,
    take_labels,
)
from stages.evaluate.report import Curve, GalleryItem, ReportContent, render_report
from stages.evaluate.settings import EvaluateSettings
from stages.evaluate.stitching import draw_labels, scale_box
from stages.evaluate.tally import Tally, summarise, unpack_tally


class Evaluate(Stage[EvaluateSettings]):
    """``em.zarr``, ``features.zarr`` and the images -> ``labels/`` and ``report/``."""

    name: ClassVar[str] = "evaluate"
    unit: ClassVar[str] = "images"
    settings_class = EvaluateSettings

    def key(self, settings: EvaluateSettings) -> str:
        """Return ``evaluate/<name of the fit>``."""
        return f"evaluate/{settings.em}"

    def choose_key(self, run: Run, given: Mapping[str, Any]) -> str:
        """Return ``evaluate/<name>`` for the fit that is given, or the one that is meant."""
        return f"evaluate/{_choose_fit(run.require(), given.get('em'))}"

    def name_options(self, settings: EvaluateSettings) -> str:
        """Return ``--em`` where the fit is not the default."""
        return "" if settings.em == DEFAULT_NAME else f" --em {settings.em}"

    def inputs(self, run: Run, settings: EvaluateSettings) -> list[str]:
        """Return ``extract`` and the fit."""
        return ["extract", f"em/{settings.em}"]

    def resolve(self, run: Run, settings: EvaluateSettings) -> EvaluateSettings:
        """Name the fit, the splits and the CRF backend, which ``auto`` takes for the device."""
        name = _choose_fit(run.require(), settings.em)
        manifest = read_manifest(run)
        manifest.check_splits(settings.splits)
        backend = choose_backend(settings.crf, settings.device)
        return settings.replace(
            em=name,
            splits=settings.splits or manifest.splits,
            crf="none" if backend is None else backend.name,
        )

    def plan(self, run: Run, settings: EvaluateSettings, screen: Screen) -> Plan:
        """Plan one shard for every shard of features: the images whose first window is in it."""
        manifest = read_manifest(run)
        extract = read_record(run, "extract")
        fit = read_record(run, f"em/{settings.em}")
        base = fingerprint(
            self.name,
            self.version,
            settings.output_settings(),
            fit.digest,
            CrfSettings().model_dump(),
        )
        shards = []
        for rows in shard_ranges(len(manifest.windows), extract.settings["shard_size"]):
            images = _list_images(manifest, settings, rows)
            sources = [
                (
                    i.id,
                    i.split,
                    i.digest,
                    [w.box for w in manifest.windows_of(i)],
                    _stat(manifest, i),
                )
                for i in images
            ]
            shards.append(ShardPlan(fingerprint(base, extract.version, sources), len(images)))
        names = get_dataset(manifest.dataset).class_names(manifest.labels)
        facts = {"crf": settings.crf, "dataset": manifest.dataset, "class_names": list(names)}
        return Plan(shards, facts)

    def prepare(self, run: Run, settings: EvaluateSettings, plan: Plan) -> None:
        """Nothing to allocate: every label map is a file of its own."""

    def holds(self, run: Run, settings: EvaluateSettings, shard: int) -> bool:
        """Whether every label map of the shard is there."""
        folder = run.labels(str(settings.em))
        images = _list_images(read_manifest(run), settings, _shard_rows(run, shard))
        return all(_label_file(folder, image).is_file() for image in images)

    def holds_summary(self, run: Run, settings: EvaluateSettings) -> bool:
        """Whether report and metrics are there."""
        report = run.report(str(settings.em))
        return all((report / name).is_file() for name in ("metrics.json", "index.html"))

    def compute(self, run: Run, settings: EvaluateSettings, shard: int) -> dict[str, Any]:
        """Label the images of one block of windows, and count."""
        assert settings.em is not None
        artefacts = open_artefacts(run, settings.em)
        images = _list_images(artefacts.manifest, settings, _shard_rows(run, shard))
        backend = choose_backend(settings.crf, settings.device)
        logits = artefacts.read_logits(images, gain=settings.cosine_gain, device=settings.device)
        folder = run.labels(settings.em)

        tallies = {split: Tally(len(artefacts.prototypes)) for split in settings.splits}
        unreadable: dict[str, str] = {}
        ends = _label_images(artefacts, images, logits, backend, folder)
        for image, end in zip(images, ends, strict=True):
            tally, labelling = tallies[image.split], end.labelling
            tally.count_labels(end.labels, labelling.confidence, labelling.plain.size)
            if isinstance(end.truth, ImageError):
                unreadable[image.path] = str(end.truth)
            elif end.truth is not None:
                tally.count_truth(labelling.plain, labelling.refined, end.truth)
            announce(advance=1)
        return {
            "tallies": {split: tally.pack() for split, tally in tallies.items()},
            "unreadable_labels": unreadable,
        }

    def finish(
        self,
        run: Run,
        settings: EvaluateSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Match clusters to classes over each split, and write metrics and report."""
        assert settings.em is not None
        manifest = read_manifest(run)
        folder = run.labels(settings.em)
        images = [i for i in manifest.images if i.ok and i.split in settings.splits]
        removed = remove_other_labels(folder, {_label_file(folder, image) for image in images})
        if removed:
            screen.note(f"evaluate: removed {removed} label maps of an earlier evaluation")
        metrics = _summarise_records(settings, manifest, records)
        warnings = [
            f"label map of {path} is left out of the scores: {reason}"
            for record in records.values()
            for path, reason in record.result["unreadable_labels"].items()
        ]
        if warnings:
            more = f" ({len(warnings) - 1} more)" if len(warnings) > 1 else ""
            screen.warn(f"{warnings[0]}{more}")
        report = run.report(settings.em)
        write_json(report / "metrics.json", metrics)
        content = _build_content(run, settings, manifest, metrics, warnings)
        write_text(report / "index.html", render_report(content))
        return [
            *_describe_metrics(metrics),
            f"evaluate: {len(images)} label maps in {folder}",
            f"evaluate: report in {report / 'index.html'}",
        ]


@dataclass(frozen=True)
class _Labelled:
    """What became of one image; truth is an error where the label map cannot be read."""

    labels: NDArray[np.uint8]
    labelling: Labelling
    truth: NDArray[np.uint8] | ImageError | None


def _label_images(
    artefacts: Artefacts,
    images: Sequence[Image],
    logits: Mapping[int, Tensor],
    backend: Backend | None,
    folder: Path,
) -> Iterator[_Labelled]:
    """Label images and write their maps, in threads; the CRF between may work on a device."""

    def score(image: Image) -> Scores:
        boxes = artefacts.cover(image).boxes
        return score_windows(logits[image.image], boxes, artefacts.size)

    def prepare(image: Image) -> tuple[tuple[Image, Scores], Tensor, NDArray[np.uint8]]:
        scores = score(image)
        return (image, scores), *give_to_crf(scores, artefacts.read_pixels(image))

    def finish(kept: tuple[Image, Scores], posterior: Tensor | None) -> _Labelled:
        image, scores = kept
        return _write_image(artefacts, image, take_labels(scores, posterior), folder)

    if backend is None:
        threads = count_threads()
        return map_ahead(
            lambda image: finish((image, score(image)), None), images, threads, threads
        )
    return refine_each(backend, images, prepare, finish, CrfSettings())


def _write_image(
    artefacts: Artefacts, image: Image, labelling: Labelling, folder: Path
) -> _Labelled:
    cover = artefacts.cover(image)
    box = scale_box(cover.box, cover.resized, (image.width, image.height))
    labels = draw_labels(labelling.probabilities, box, image.width, image.height)
    write_label(_label_file(folder, image), labels, png_palette(()))
    try:
        truth: NDArray[np.uint8] | ImageError | None = artefacts.read_truth(image)
    except ImageError as error:
        truth = error
    return _Labelled(labels, labelling, truth)


def _gather_exhibit(artefacts: Artefacts, image: Image, settings: EvaluateSettings) -> Exhibit:
    """Gather what the report shows of an image that is labelled already."""
    cover = artefacts.cover(image)
    logits = artefacts.read_logits([image], gain=settings.cosine_gain, device=settings.device)
    plain = label_windows(logits[image.image], cover.boxes, artefacts.size, None, None).plain
    refined = None
    if settings.crf != "none":
        file = _label_file(artefacts.run.labels(artefacts.fit), image)
        refined = resize_labels(read_label(file).astype(np.uint8), *cover.resized)[cover.area]
    try:
        truth = artefacts.read_truth(image)
    except ImageError:
        truth = None  # the reason is among the report's warnings
    return Exhibit(
        id=image.id,
        split=image.split,
        frame=artefacts.read_pixels(image),
        boxes=cover.boxes,
        features=artefacts.read_features(image),
        proposals=artefacts.read_proposals(image),
        plain=plain,
        refined=refined,
        truth=truth,
    )


def _build_content(
    run: Run,
    settings: EvaluateSettings,
    manifest: Manifest,
    metrics: dict[str, Any],
    warnings: list[str],
) -> ReportContent:
    artefacts = open_artefacts(run, str(settings.em))
    facts = read_record(run, "extract").facts
    gallery: list[GalleryItem] = []
    for split in settings.splits:
        images = [i for i in manifest.images if i.ok and i.split == split]
        chosen = [images[i] for i in sample_evenly(len(images), settings.gallery)]
        exhibits = [_gather_exhibit(artefacts, image, settings) for image in chosen]
        # every split is matched, and hence scored, on its own
        gallery += build_gallery(exhibits, *_choose_looks(artefacts, metrics["splits"][split]))
    look = _choose_looks(artefacts, metrics)[1]
    fit, _ = read_group(run.em, str(settings.em))
    rejected = [f"{i.path} was rejected: {i.reason}" for i in manifest.rejected]
    notice = ""
    if not facts["weights_digest"]:
        notice = (
            "Made from hand-crafted colour, gradient and texture channels, without pretrained "
            "weights: expect far weaker classes than with a real backbone."
        )
    return ReportContent(
        title=f"Pseudo-labels: {run.path.name}",
        notice=notice,
        facts=describe_facts(facts, metrics, manifest.dataset, str(manifest.root)),
        settings_yaml=run.settings_file.read_text(encoding="utf-8"),
        commands=_list_commands(run, settings),
        metrics=metrics,
        gallery=tuple(gallery),
        curve=Curve(
            loss=tuple(fit["loss"].tolist()),
            usage=tuple(tuple(row) for row in fit["class_usage"].tolist()),
        ),
        palette=look.colours,
        cluster_names=look.names,
        warnings=(*warnings, *rejected),
    )


def _list_commands(run: Run, settings: EvaluateSettings) -> tuple[str, ...]:
    fit = read_record(run, f"em/{settings.em}")
    keys = [*fit.inputs, f"em/{settings.em}", f"evaluate/{settings.em}"]
    return tuple(
        f"primaps-pipe {key.partition('/')[0]} {run.quoted}{read_record(run, key).options}"
        for key in keys
    )


def _choose_looks(artefacts: Artefacts, block: dict[str, Any]) -> tuple[ClusterLook, ClusterLook]:
    """Choose how clusters look in one split, without and with CRF."""

    def choose(assignment: list[int | None] | None) -> ClusterLook:
        colours = artefacts.dataset.palette
        return choose_look(block["classes"], assignment, block["class_names"], colours)

    plain = choose(block["assignment"])
    return plain, plain if block["assignment_crf"] is None else choose(block["assignment_crf"])


def _choose_fit(run: Run, name: str | None) -> str:
    names = run.names("em")
    if name is not None:
        if name not in names:
            raise UsageError(
                f"--em {name!r}: the run has {', '.join(names) or 'no fit yet'}"
                f"{did_you_mean(name, names)}; "
                f"fit it with `primaps-pipe em {run.quoted} --classes K --name {name}`."
            )
        return name
    if not names:
        raise RunError(
            f"{run.path} has no fit yet; run `primaps-pipe em {run.quoted} --classes K` first."
        )
    if DEFAULT_NAME in names or len(names) == 1:
        return DEFAULT_NAME if DEFAULT_NAME in names else names[0]
    raise UsageError(f"the run has several fits ({', '.join(names)}); choose one with --em NAME.")


def _list_images(manifest: Manifest, settings: EvaluateSettings, rows: range) -> list[Image]:
    return manifest.images_starting_in(rows.start, rows.stop, settings.splits)


def _shard_rows(run: Run, shard: int) -> range:
    size = read_record(run, "extract").settings["shard_size"]
    return range(shard * size, (shard + 1) * size)


def _label_file(folder: Path, image: Image) -> Path:
    return folder / image.split / f"{image.id}.png"


def _stat(manifest: Manifest, image: Image) -> tuple[int, int] | None:
    path = manifest.label_path(image)
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns


def _summarise_records(
    settings: EvaluateSettings, manifest: Manifest, records: dict[int, ShardRecord]
) -> dict[str, Any]:
    names = get_dataset(manifest.dataset).class_names(manifest.labels)
    crf = settings.crf != "none"
    splits = {}
    for split in settings.splits:
        tallies = [
            unpack_tally(records[number].result["tallies"][split]) for number in sorted(records)
        ]
        for tally in tallies[1:]:
            tallies[0].add(tally)
        splits[split] = summarise(tallies[0], names, crf=crf)
    # the held-out split is the one that papers report, but one without labels says nothing
    ranked = [s for s in ("val", "test", *settings.splits) if s in splits]
    primary = next((s for s in ranked if splits[s]["accuracy"] is not None), ranked[0])
    return {
        "em": settings.em,
        "crf": settings.crf,
        "split": primary,
        **splits[primary],
        "splits": splits,
    }


def _describe_metrics(metrics: dict[str, Any]) -> list[str]:
    lines = []
    for split, block in metrics["splits"].items():
        if block["accuracy"] is None:
            lines.append(
                f"{split}: {block['images']} images without labels: "
                f"coverage {block['coverage']:.1f} %, confidence {block['confidence']:.1f} %"
            )
            continue
        line = f"{split}: accuracy {block['accuracy']:.1f}, mIoU {block['miou']:.1f}"
        if block["accuracy_crf"] is not None:
            line += f"; with CRF {block['accuracy_crf']:.1f}, {block['miou_crf']:.1f}"
        lines.append(f"{line} ({block['labelled_images']} labelled images)")
    return lines
