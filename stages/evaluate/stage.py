"""The evaluate stage: prototypes and cached features -> label PNGs and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.compute.devices import resolve_device
from pipeline.compute.scheduler import announce
from pipeline.datasets.definition import IGNORE, png_palette
from pipeline.datasets.labels import LabelCounts
from pipeline.datasets.listing import forget_listings
from pipeline.errors import ImageError, count_of
from pipeline.images.decoding import encode_png, repaint_png
from pipeline.progress import Screen
from pipeline.run.by_hand import (
    forget_notes,
    guard_maps,
    note_maps,
    remove_other_maps,
    write_maps,
)
from pipeline.run.confidence import CERTAIN, confidence_file, find_least, is_map, require_names
from pipeline.run.corrections import Corrections
from pipeline.run.directory import FINE, RunDirectory, Subject, choose_subject
from pipeline.run.evaluation import (
    LEFT_OUT,
    LEFT_OUT_NAME,
    ClusterLook,
    Evaluation,
    Part,
    read_given_names,
    read_part_names,
)
from pipeline.run.frames import count_threads, map_ahead, read_gaps, shard_ranges
from pipeline.run.ledger import (
    Ledger,
    ShardRecord,
    StageRecord,
    inspect_stage,
    list_files,
    list_sources,
    read_record,
)
from pipeline.run.manifest import Image, read_manifest
from pipeline.run.stage import Plan, ShardPlan, SubjectStage
from pipeline.run.status import (
    CLASSES,
    CORRECTIONS,
    LABELS,
    describe_new_classes,
    fingerprint_classes,
    fingerprint_ids,
    fingerprint_labels,
)
from pipeline.storage.files import (
    checksum,
    fingerprint,
    note_writes,
    write_bytes,
    write_json,
)
from stages.artefacts import (
    OWN,
    Artefacts,
    classifier_file,
    fingerprint_image,
    label_file,
    read_group_of,
    write_classifier,
)
from stages.calibration import Calibration
from stages.crf.backends import choose_backend
from stages.crf.settings import CrfSettings
from stages.evaluate.metrics import (
    CORRECTED,
    count_image,
    count_unusual,
    counts_file,
    encode_counts,
    encode_table,
    read_counts,
    remove_other_counts,
    score_images,
    summarise_splits,
    tally_images,
)
from stages.evaluate.names import (
    bind_names,
    carry_names,
    find_owner,
    is_younger,
    write_carried,
)
from stages.evaluate.naming import (
    CALIBRATION,
    FURTHER,
    NUMBERS,
    WORDS,
    correct_labels,
    describe_naming,
    find_left_out,
    find_naming,
    match_names,
    name_numbers,
    require_confidence,
)
from stages.evaluate.probe import (
    fingerprint_probe,
    has_trained,
    list_training_windows,
    open_named,
    open_with_probe,
    probe_file,
    read_trained,
    train_supervised,
)
from stages.evaluate.settings import EvaluateSettings
from stages.labelling import (
    MAIN,
    Labelling,
    draw_confidence,
    draw_labels,
    label_images,
    take_clusters,
)
from stages.scores import (
    MAX_CLASSES,
    describe_labels,
    describe_metrics,
    number_names,
    put_first,
)

# In a shard's result: pixels that are left out because they are not sure, and pixels.
_UNSURE = "unsure"
# Of the inputs of a fit, those that are labelled, too: codes, or the fine view.
_LABELLED = ("encode/", f"views/{FINE}")
# In a shard's result: which palette its label maps have, nothing while it is the clusters' own.
_PALETTE = "palette"


class Evaluate(SubjectStage[EvaluateSettings]):
    """Prototypes, the features or codes that they fit, images -> ``labels/`` and metrics."""

    name: ClassVar[str] = "evaluate"
    unit: ClassVar[str] = "images"
    reads_images = True
    settings_class = EvaluateSettings

    def inputs(self, run: RunDirectory, settings: EvaluateSettings) -> list[str]:
        """Return ``extract``, the fit or head, and what it labels instead of the clean features."""
        subject = settings.subject
        made = inspect_stage(run, subject.key).record
        own = [] if made is None else [key for key in made.inputs if key.startswith(_LABELLED)]
        return list(dict.fromkeys([*subject.inputs, *own]))

    def resolve(self, run: RunDirectory, settings: EvaluateSettings) -> EvaluateSettings:
        """Name the fit, the splits and the CRF backend, which ``auto`` takes for the device."""
        subject = choose_subject(run.require(), settings.em, settings.head)
        manifest = read_manifest(run)
        manifest.check_splits(settings.splits)
        if settings.linear_probe:
            list_training_windows(manifest, settings.linear_probe_sample)
        backend = choose_backend(settings.crf, settings.device)
        return settings.replace(
            em=subject.name if subject.kind == "em" else None,
            splits=settings.splits or manifest.splits,
            crf="none" if backend is None else backend.name,
            confidence=settings.confidence or settings.min_confidence > 0,
        )

    def plan(self, run: RunDirectory, settings: EvaluateSettings, screen: Screen) -> Plan:
        """Plan one shard for every shard of features: the images whose first window is in it."""
        manifest = read_manifest(run)
        forget_listings()
        extract = read_record(run, "extract")
        made = {key: read_record(run, key).digest for key in self.inputs(run, settings)[1:]}
        probe = fingerprint_probe(run, settings, manifest) if settings.linear_probe else None
        if probe and not has_trained(run, settings, probe):
            screen.note("evaluate: a linear probe is trained on the labels first")
        if changed := describe_new_classes(manifest):
            screen.warn(f"evaluate: {changed}")
        names = manifest.open_dataset().class_names(manifest.labels)
        artefacts, said = open_named(run, settings), Corrections(run)
        # names that are none are refused before anything is done
        given = _find_names(artefacts, made[settings.subject.key], screen)
        naming = find_naming(artefacts, settings, given, names)
        require_confidence(naming, settings, run)
        if settings.confidence:
            require_names(manifest)
        print_ = (
            "" if naming is None else fingerprint(made, naming.facts, naming.joined, self.version)
        )
        base = fingerprint(
            self.name,
            self.version,
            settings.output_settings(),
            made,
            CrfSettings().model_dump(),
            probe,
            fingerprint_ids(manifest),
            # those of a folder are not in what the run keeps of it
            *([names] if names and manifest.definition is None else []),
            *([print_] if print_ else []),
        )
        shards = []
        for rows in shard_ranges(len(manifest.windows), extract.settings["shard_size"]):
            images = manifest.images_starting_in(rows.start, rows.stop, settings.splits)
            sources = [
                (*fingerprint_image(manifest, image), *filter(None, [said.fingerprint(image)]))
                for image in images
            ]
            shards.append(ShardPlan(fingerprint(base, extract.version, sources), len(images)))
        facts: dict[str, Any] = {
            "crf": settings.crf,
            "dataset": manifest.dataset,
            "class_names": list(names),
        }
        if probe:
            facts["linear_probe"] = probe
        if naming is not None:
            facts |= {OWN: print_, **naming.facts}
            describe_naming(naming, settings, screen)
        labels = fingerprint_labels(manifest, settings.splits)
        known = {LABELS: labels, CLASSES: fingerprint_classes(manifest)}
        if corrected := said.fingerprint():
            known[CORRECTIONS] = corrected
        # the label maps come out the same
        done = Ledger(run.state(self.key(settings))).read_shards()
        counted = {"label_pixels", *([_UNSURE] if settings.min_confidence else [])}
        redo = frozenset(n for n, record in done.items() if not counted <= record.result.keys())
        why = "an earlier version counted otherwise"
        payload = artefacts, naming, made[settings.subject.key]
        return Plan(shards, facts, WORDS, redo, why, known, payload)

    def protect(
        self,
        run: RunDirectory,
        settings: EvaluateSettings,
        plan: Plan,
        pending: Sequence[int],
        screen: Screen,
        *,
        force: bool,
    ) -> None:
        """Refuse to write over a map that a person has changed; note whose names there are."""
        subject, (artefacts, _, fit) = settings.subject, plan.payload
        if (owner := find_owner(run, subject)) is not None:
            clusters = artefacts.classifiers[MAIN] if owner == fit else None
            bind_names(run, subject, owner, clusters)
        folder = run.labels(subject.title)
        shards = {
            n: _list_maps(folder, settings, _list_images(run, settings, n))
            for n in range(len(plan.shards))
        }
        key = self.key(settings)
        guard_maps(run, key, folder, shards, pending, force=force, screen=screen)

    def prepare(self, run: RunDirectory, settings: EvaluateSettings, plan: Plan) -> None:
        """Make the classifiers that all shards share; there is nothing to allocate."""
        artefacts, naming, _ = plan.payload
        if naming is not None:
            file = classifier_file(run, settings.subject)
            write_classifier(file, plan.facts[OWN], naming.classifier, {})
        if not settings.linear_probe:
            return
        print_ = plan.facts["linear_probe"]
        if has_trained(run, settings, print_):
            return
        windows = list_training_windows(artefacts.manifest, settings.linear_probe_sample)
        device = resolve_device(settings.device)
        for name, trained in train_supervised(artefacts, windows, device).items():
            write_classifier(probe_file(run, settings, name), print_, *trained)

    def compute(self, run: RunDirectory, settings: EvaluateSettings, shard: int) -> dict[str, Any]:
        """Label the images of one block of windows, and count."""
        artefacts = open_with_probe(run, settings)
        images = _list_images(run, settings, shard)
        backend = choose_backend(settings.crf, settings.device)
        logits = artefacts.read_logits(images, device=settings.device)
        folder = run.labels(artefacts.subject.title)

        maps: dict[Path, bytes] = {}
        unsure: dict[int, tuple[int, int]] = {}
        facts = read_record(run, self.key(settings)).facts
        names, said = name_numbers(facts, artefacts.clusters), Corrections(run)
        calibration = Calibration(**facts[CALIBRATION]) if CALIBRATION in facts else None
        least, left_out = find_least(settings.min_confidence), find_left_out(names)

        def finish(
            image: Image, labelling: Labelling
        ) -> tuple[dict[str, Any], str | None, LabelCounts | None]:
            cover = artefacts.cover(image)
            gaps = read_gaps(artefacts.manifest.root, image)
            labels = draw_labels(labelling.probabilities, cover, image.width, image.height, gaps)
            corrected = correct_labels(artefacts, said, image, names, labels, labelling.final)
            shown = labels if corrected is None else corrected.image
            if left_out != IGNORE:
                shown = np.where(shown == left_out, IGNORE, shown).astype(np.uint8)
            if labelling.calibrated is not None:
                sure = draw_confidence(labelling.calibrated, labels, cover)
                if corrected is not None:
                    sure[corrected.said] = CERTAIN
                maps[confidence_file(folder, image)] = encode_png(sure)
                left = int(np.count_nonzero((sure < least) & (shown != IGNORE)))
                unsure[image.image] = left, sure.size
                shown = np.where(sure < least, IGNORE, shown).astype(np.uint8)
            maps[label_file(folder, image)] = encode_png(shown, png_palette(()))
            truth, reason, counts = None, None, None
            try:
                if (found := artefacts.count_truth(image, gaps)) is not None:
                    truth, counts = found
            except ImageError as error:
                reason = str(error)
            others = {}
            if truth is not None:
                others = {
                    name: take_clusters(values, cover.boxes, artefacts.size)
                    for name, values in logits[image.image].items()
                    if name != MAIN
                }
            if truth is not None and corrected is not None:
                others[CORRECTED] = corrected.windows
            row = count_image(image, shown, labelling, len(names), truth, others)
            return row, reason, counts

        main = {row: values[MAIN] for row, values in logits.items()}
        ends = label_images(
            artefacts.manifest,
            images,
            main,
            artefacts.size,
            finish,
            backend,
            CrfSettings(),
            calibration,
        )
        rows, unreadable = [], {}
        pixels: dict[str, LabelCounts] = {}
        for image, (row, reason, counts) in zip(images, ends, strict=True):
            rows.append(row)
            if counts is not None:
                pixels.setdefault(image.split, LabelCounts()).add(counts)
            if reason is not None:
                unreadable[image.path] = reason
            announce(advance=1)
        write_maps(run, self.key(settings), shard, maps)
        write_bytes(counts_file(run, artefacts.subject, shard), encode_counts(rows))
        return {
            "unreadable_labels": unreadable,
            "label_pixels": {split: counts.dump() for split, counts in pixels.items()},
            "device": resolve_device(settings.device).type,
            **({_UNSURE: np.sum([(0, 0), *unsure.values()], axis=0).tolist()} if least else {}),
        }

    def find(
        self, run: RunDirectory, settings: EvaluateSettings, records: dict[int, ShardRecord]
    ) -> str:
        """Return a fingerprint of the classes that the clusters are matched to."""
        classes = fingerprint_classes(read_manifest(run))
        joined = _list_joined(run, settings)
        return fingerprint(classes, joined) if joined else classes

    def finish(
        self,
        run: RunDirectory,
        settings: EvaluateSettings,
        records: dict[int, ShardRecord],
        screen: Screen,
    ) -> list[str]:
        """Match clusters to classes over each split, and write the metrics."""
        artefacts = open_with_probe(run, settings)
        manifest, title = artefacts.manifest, artefacts.subject.title
        subject, own, folder = artefacts.subject, self.key(settings), run.labels(title)
        images = [i for i in manifest.images if i.ok and i.split in settings.splits]
        keep = set(_list_maps(folder, settings, images))
        removed, left = remove_other_maps(run, own, folder, keep)
        if removed:
            many = count_of(len(removed), "label maps")
            screen.note(f"evaluate: removed {many} of an earlier evaluation")
        if left:
            many = count_of(len(left), "PNGs")
            screen.warn(f"evaluate did not write {many} in {folder}, and leaves them ({left[0]}).")
        mine = read_record(run, own)
        _bind_names(open_named(run, settings), mine.inputs[subject.key], screen)
        numbers = name_numbers(mine.facts, artefacts.clusters)
        unreadable = _collect_unreadable(run, settings, records)
        for path, reason in list(unreadable.items())[:1]:
            more = f" ({len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
            screen.warn(f"label map of {path} is left out of the scores: {reason}{more}")
        write_json(run.state(own) / LEFT_OUT, unreadable)
        remove_other_counts(run, subject, records)
        tables = read_counts(run, subject, records)
        tallies = tally_images(tables, settings.splits, len(numbers))
        others = [name for name in artefacts.classifiers if name != MAIN]
        others += [CORRECTED] if any(t.corrected for t in tallies.values()) else []
        names = manifest.open_dataset().class_names(manifest.labels)
        for record in records.values():
            for split, counts in record.result["label_pixels"].items():
                tallies[split].labels.add(LabelCounts.parse(counts))
        for split, tally in tallies.items():
            fault = tally.labels.find_fault(told=artefacts.dataset.definition.tells_ignore)
            if any(image.split == split and image.path in unreadable for image in images):
                fault = fault if tally.labelled else "none of its label maps can be read"
            tally.refuse(fault)
        made = {
            key: (record, list(Ledger(run.state(key)).read_shards().values()))
            for key, record in list_sources(run, own).items()
        }
        splits = summarise_splits(
            tallies,
            names,
            others,
            *match_names(numbers, number_names(names, MAX_CLASSES), mine.facts.get(FURTHER, 0)),
        )
        tables = read_counts(run, subject, records)
        scores = score_images(tables, splits, manifest.images)
        metrics = {
            "em": settings.em,
            "head": settings.head,
            "crf": settings.crf,
            **_describe_numbers(run, subject, mine),
            **({CALIBRATION: mine.facts[CALIBRATION]} if CALIBRATION in mine.facts else {}),
            **put_first(splits),
            "counts": count_unusual(
                rejected=[str(image.reason) for image in manifest.rejected],
                listed=len(manifest.images),
                stages=made | {own: (made[own][0], list(records.values()))},
                usage=np.sum([tally.usage for tally in tallies.values()], axis=0).tolist(),
                left_out=unreadable,
            ),
        }
        report = run.report(title)
        write_json(report / "metrics.json", metrics)
        look = Evaluation(run, subject, read_record(run, own)).look()
        _paint_labels(run, own, records, look)
        forget_notes(run, own)
        write_bytes(report / "images.parquet", encode_table(scores))
        if settings.linear_probe:
            trained = read_trained(run, settings)[1]
            counts = LabelCounts.parse(trained.get("label_pixels", {}))
            if counts.unknown:
                screen.warn(f"the linear probe learns without some pixels: {counts.describe()}")
        for line in describe_labels(metrics):
            screen.warn(line)
        if settings.min_confidence:
            left, total = np.sum([r.result[_UNSURE] for r in records.values()], axis=0).tolist()
            screen.note(
                f"evaluate: {100 * left / max(total, 1):.1f} % of the pixels are less sure than "
                f"{settings.min_confidence:g}, and are 255 in the label maps"
            )
        return [
            *describe_metrics(metrics),
            f"evaluate: {count_of(len(images), 'label maps')} in {folder}",
        ]


def _find_names(artefacts: Artefacts, fit: str, screen: Screen) -> dict[Part, str]:
    """Find the names of the clusters: as they are given, or carried over from an earlier fit."""
    run, subject = artefacts.run, artefacts.subject
    if find_owner(run, subject) in (None, fit):
        return read_part_names(run, subject.title, artefacts.clusters)
    carried = carry_names(artefacts, read_part_names(run, subject.title), fit)
    if carried.names != carried.given and is_younger(run, subject):
        screen.warn(
            f"evaluate: {run.names_file(subject.title)} was written after {subject.key} was made "
            "anew, and before it was ever evaluated; its numbers are taken for those of the "
            "earlier fit. If they are the new one's, write them again after this evaluation."
        )
    return carried.names


def _bind_names(artefacts: Artefacts, fit: str, screen: Screen) -> None:
    """Bind the names to the fit that was evaluated, at the clusters that are theirs in it."""
    run, subject = artefacts.run, artefacts.subject
    if find_owner(run, subject) not in (None, fit):
        carried = carry_names(artefacts, read_part_names(run, subject.title), fit)
        write_carried(artefacts, carried, screen)
    bind_names(run, subject, fit, artefacts.classifiers[MAIN])


def _describe_numbers(run: RunDirectory, subject: Subject, record: StageRecord) -> dict[str, Any]:
    """Say what the label maps hold beside, or instead of, clusters, of what, and labels seen."""
    made = read_group_of(run, subject)[1]
    said = {name: made.get(name) for name in ("view", "labels_used")}
    said[NUMBERS] = record.facts.get(NUMBERS)
    return {name: value for name, value in said.items() if value is not None}


def _list_joined(run: RunDirectory, settings: EvaluateSettings) -> list[tuple[int, str]]:
    """List the names that give clusters another colour than the matching: shared or reserved."""
    if read_record(run, f"evaluate/{settings.subject.title}").facts.get("joined"):
        return []
    given = read_given_names(run, settings.subject.title)
    manifest, often = read_manifest(run), Counter(given.values())
    reserved = manifest.open_dataset().class_names(manifest.labels)

    def joins(name: str) -> bool:
        return often[name] > 1 or name in reserved or name.casefold() == LEFT_OUT_NAME

    return [(k, given[k]) for k in sorted(given) if joins(given[k])]


def _paint_labels(
    run: RunDirectory, key: str, records: dict[int, ShardRecord], look: ClusterLook
) -> None:
    """Give the label maps the colours of the report, which the matching of all images decides."""
    palette = look.png_palette
    wanted = "" if palette == png_palette(()) else checksum(palette)
    ledger, threads, made = Ledger(run.state(key)), count_threads(), read_record(run, key)

    ours: dict[str, list[str]] = {}

    def paint(entry: tuple[str, tuple[int, str]]) -> tuple[Path, bytes] | None:
        file = run.path / entry[0]
        content = file.read_bytes()
        # one that somebody has changed since is theirs
        mine = checksum(content) in ours[entry[0]]
        return (file, repaint_png(content, palette)) if mine else None

    for number, record in records.items():
        if record.result.get(_PALETTE, "") == wanted:
            continue
        entries = [entry for entry in record.files.items() if is_map(entry[0], made)]
        # killed here, what is painted already is known by these notes, and no label is lost
        ours |= note_maps(run, key, number, {name: total for name, (_, total) in entries})
        painted = dict(filter(None, map_ahead(paint, entries, threads, 2 * threads)))
        with note_writes() as written:
            write_maps(run, key, number, painted)
        files = {**record.files, **list_files(run, written)}
        result = {**record.result, _PALETTE: wanted}
        ledger.commit(replace(record, result=result, files=files))


def _list_maps(folder: Path, settings: EvaluateSettings, images: Sequence[Image]) -> list[Path]:
    """List the maps of images: their labels, and how sure these are."""
    maps = [label_file(folder, image) for image in images]
    return maps + [confidence_file(folder, i) for i in images if settings.confidence]


def _list_images(run: RunDirectory, settings: EvaluateSettings, shard: int) -> Sequence[Image]:
    size = read_record(run, "extract").settings["shard_size"]
    return read_manifest(run).images_starting_in(shard * size, (shard + 1) * size, settings.splits)


def _collect_unreadable(
    run: RunDirectory, settings: EvaluateSettings, records: dict[int, ShardRecord]
) -> dict[str, str]:
    """Collect the label maps that could not be read, and why."""
    unreadable: dict[str, str] = {}
    for record in records.values():
        unreadable |= record.result["unreadable_labels"]
    if settings.linear_probe:
        # the split that it is trained on need not be among those that are labelled
        unreadable |= read_trained(run, settings)[1]["unreadable"]
    return unreadable
