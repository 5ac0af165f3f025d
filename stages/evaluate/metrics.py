"""What evaluation counts of every image alone, and what the counts come to: ``metrics.json``.

The matching of clusters to classes is that of a whole split, and so it is known only when all
images are counted. Until then an image is a row of its shard's table: for its labels and every
other classifier, the pairs of cluster and class that occur in it. ``images.parquet`` is what became
of them all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.datasets.labels import LabelCounts
from pipeline.errors import DamageError, RunError
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.frames import map_ahead
from pipeline.run.ledger import ShardRecord, StageRecord
from pipeline.run.manifest import Image
from pipeline.storage.files import decode_table, remove_file
from pipeline.storage.places import REQUESTS, find_files
from stages.calibration import LEVELS, count_levels
from stages.intervals import Resampling, draw_weights
from stages.labelling import RUNNING, SUPERVISED, Labelling
from stages.scores import (
    MAX_CLASSES,
    UNMATCHED,
    count_hits,
    count_pairs,
    number_names,
    read_assignment,
    score_hits,
    summarise_confusion,
    to_percent,
)

# What is counted against the truth: the labels without and with CRF, and the other classifiers, to
# which a method of another package may add.
PLAIN, REFINED = "plain", "crf"
# the final labels after what a person said of an image, where something is said
CORRECTED = "corrected"
_KINDS = (PLAIN, REFINED, RUNNING, *SUPERVISED)
_PAIRS, _COUNTS = "pairs_", "counts_"
# how sure the final labels are: codes of stages.calibration.count_levels, and how often
_LEVELS, _PIXELS = "levels", "level_pixels"
_COUNT_COLUMNS = (
    ("id", pa.string()),
    ("split", pa.string()),
    # of the label PNG: all, and those of every cluster
    ("pixels", pa.int64()),
    ("usage", pa.list_(pa.int64())),
    # of the windows: all, and the sum of their largest probabilities
    ("predicted", pa.int64()),
    ("confidence", pa.float64()),
)
_SCORE_SCHEMA = pa.schema(
    [
        pa.field("image", pa.int64(), metadata={"long_name": "row of manifest.parquet"}),
        pa.field("id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("coverage", pa.float64(), metadata={"units": "%"}),
        pa.field("confidence", pa.float64(), metadata={"units": "%"}),
        pa.field("labelled_pixels", pa.int64(), metadata={"units": "pixels of the windows"}),
        pa.field("accuracy", pa.float64(), metadata={"units": "%"}),
        pa.field("miou", pa.float64(), metadata={"units": "%"}),
        pa.field("accuracy_crf", pa.float64(), metadata={"units": "%"}),
        pa.field("miou_crf", pa.float64(), metadata={"units": "%"}),
        # of the final labels and the classes that occur in them or in the truth: what the IoU of
        # any number of images is the quotient of
        pa.field("classes", pa.list_(pa.int64())),
        pa.field("hits", pa.list_(pa.int64()), metadata={"units": "pixels of the windows"}),
        pa.field("union", pa.list_(pa.int64()), metadata={"units": "pixels of the windows"}),
    ]
)
TOP_REASONS = 5
_STRIP_PIXELS = 2**22
_PROCESSOR = "cpu"


# --- single images --------------------------------------------------------------------------------


def count_image(
    image: Image,
    labels: NDArray[np.uint8],
    labelling: Labelling,
    clusters: int,
    truth: NDArray[np.uint8] | None = None,
    others: Mapping[str, NDArray[np.uint8]] | None = None,
) -> dict[str, Any]:
    """Count one image: a row of its shard's table.

    ``labels`` is its label map, uint8 [y, x], drawn from ``labelling``. ``truth`` has the classes
    at the windows' scale, uint8 [y, x], 255 = ignore; ``others`` the clusters, or classes, of every
    other classifier.
    """
    row: dict[str, Any] = {
        "id": image.id,
        "split": image.split,
        "pixels": labels.size,
        "usage": _count_numbers(labels)[:clusters].tolist(),
        "predicted": labelling.plain.size,
        "confidence": labelling.confidence,
    }
    kinds = {PLAIN: labelling.plain, REFINED: labelling.refined, **(others or {})}
    for kind, prediction in kinds.items():
        if truth is not None and prediction is not None:
            row[_PAIRS + kind], row[_COUNTS + kind] = count_pairs(prediction, truth)
    if labelling.calibrated is not None:
        row[_LEVELS], row[_PIXELS] = count_levels(labelling.calibrated, labelling.final, truth)
    return row


def _count_numbers(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the pixels of every number; in strips, for they are widened eightfold."""
    rows = max(1, _STRIP_PIXELS // labels.shape[1])
    strips = (labels[top : top + rows].ravel() for top in range(0, len(labels), rows))
    return np.sum([np.bincount(strip, minlength=256) for strip in strips], axis=0)


def _make_schema(kinds: Iterable[str], *, sure: bool) -> pa.Schema:
    # null without a truth, or without that kind; cluster * MAX_CLASSES + class, and how often
    pairs = [(_PAIRS + kind, pa.list_(pa.int32())) for kind in kinds]
    counts = [(_COUNTS + kind, pa.list_(pa.int64())) for kind in kinds]
    levels = [(name, pa.list_(pa.int64())) for name in (_LEVELS, _PIXELS) if sure]
    return pa.schema([*_COUNT_COLUMNS, *pairs, *counts, *levels])


def _list_kinds(columns: Iterable[str]) -> list[str]:
    return [name.removeprefix(_PAIRS) for name in columns if name.startswith(_PAIRS)]


def encode_counts(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write the counts of a shard's images."""
    found = {kind for row in rows for kind in _list_kinds(row)}
    sure = any(_LEVELS in row for row in rows)
    schema = _make_schema([*_KINDS, *sorted(found - {*_KINDS})], sure=sure)
    return encode_table(pa.Table.from_pylist(rows, schema))


def encode_table(table: pa.Table) -> bytes:
    """Write a table as parquet whose pages carry checksums; equal tables, equal bytes."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def decode_counts(content: bytes) -> pa.Table:
    """Read what :func:`encode_counts` wrote; ValueError where it is damaged or something else."""
    try:
        table = decode_table(content)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    names = table.column_names
    if table.schema != _make_schema(_list_kinds(names), sure=_LEVELS in names):
        raise ValueError("it holds other columns than counts of images")
    return table


def counts_file(run: RunDirectory, subject: Subject, shard: int) -> Path:
    """Return where the counts of the images of one shard lie."""
    return run.state(f"evaluate/{subject.title}") / "images" / f"{shard:06d}.parquet"


def read_counts(run: RunDirectory, subject: Subject, shards: Iterable[int]) -> Iterator[pa.Table]:
    """Read the tables of some shards, one after another."""
    files = [counts_file(run, subject, shard) for shard in sorted(shards)]
    return map_ahead(partial(_read_counts, run), files, REQUESTS, REQUESTS)


def _read_counts(run: RunDirectory, file: Path) -> pa.Table:
    try:
        return decode_counts(file.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}.") from error
    except ValueError as error:
        raise DamageError(
            f"{file} is not as it was written ({error}); "
            f"`primaps-pipe verify {run.quoted} --repair` puts it right."
        ) from error


def remove_other_counts(run: RunDirectory, subject: Subject, shards: Iterable[int]) -> None:
    """Remove the tables of shards that there are no more."""
    files = {counts_file(run, subject, shard) for shard in shards}
    for old in set(find_files(counts_file(run, subject, 0).parent)) - files:
        remove_file(old)


def _choose(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def _flatten(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row and the value of all that is in lists."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists)), lengths), lists.flatten().to_numpy().astype(np.int64)


def _list_pairs(table: pa.Table, kind: str) -> tuple[NDArray[np.int64], ...]:
    """Return row, cluster, class and count of all pairs that occur in images."""
    rows, pairs = _flatten(table[_PAIRS + kind])
    return rows, *np.divmod(pairs, MAX_CLASSES), _flatten(table[_COUNTS + kind])[1]


# --- images of a split added up -------------------------------------------------------------------


@dataclass
class Tally:
    """Counts over the images of one split: as of single images, with the windows' confusions.

    ``usage`` is int64 [cluster], ``confusions`` int64 [cluster, class], by kind.
    """

    clusters: int
    images: int = 0
    labelled: int = 0
    pixels: int = 0
    predicted: int = 0
    confidence: float = 0.0
    usage: NDArray[np.int64] = field(init=False)
    confusions: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    # labelled images that a person has corrected, and the final labels of the others
    corrected: int = 0
    rest: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    # of the final labels by how sure they are, int64 [level, cluster, class], the last class not
    # known; None where nothing says it
    levels: NDArray[np.int64] | None = None
    # pixels of the label maps by value, and why they are not scored, if they are not
    labels: LabelCounts = field(default_factory=LabelCounts)
    refused: str = ""

    def __post_init__(self) -> None:
        self.usage = np.zeros(self.clusters, np.int64)

    def add(self, table: pa.Table) -> None:
        """Add the images of a table, all of them of the split."""
        self.images += len(table)
        self.labelled += len(table) - table[_PAIRS + PLAIN].null_count
        self.pixels += sum(table["pixels"].to_pylist())
        self.predicted += sum(table["predicted"].to_pylist())
        self.confidence += sum(table["confidence"].to_pylist())
        self.usage += _flatten(table["usage"])[1].reshape(-1, self.clusters).sum(axis=0)
        for kind in _list_kinds(table.column_names):
            self._count(table, kind, self.confusions)
        if _LEVELS in table.column_names:
            if self.levels is None:
                self.levels = np.zeros((LEVELS, self.clusters, 256), np.int64)
            level, pair = np.divmod(_flatten(table[_LEVELS])[1], 2**16)
            np.add.at(self.levels, (level, *np.divmod(pair, 256)), _flatten(table[_PIXELS])[1])
        rest = table
        if CORRECTED in _list_kinds(table.column_names):
            said = pc.is_valid(table[_PAIRS + CORRECTED])
            self.corrected += pc.sum(said).as_py() or 0
            rest = table.filter(pc.invert(said))
        refined = pc.is_valid(rest[_PAIRS + REFINED])
        self._count(rest.filter(refined), REFINED, self.rest)
        self._count(rest.filter(pc.invert(refined)), PLAIN, self.rest)

    @staticmethod
    def _count(table: pa.Table, kind: str, to: dict[str, NDArray[np.int64]]) -> None:
        if table[_PAIRS + kind].null_count < len(table):
            nothing = np.zeros((MAX_CLASSES, MAX_CLASSES), np.int64)
            total = to.setdefault(kind, nothing)
            _, cluster, label, counts = _list_pairs(table, kind)
            np.add.at(total, (cluster, label), counts)

    def refuse(self, reason: str) -> None:
        """Let nothing be scored, for a reason."""
        self.refused = reason
        if reason:
            self.confusions.clear()


def tally_images(
    tables: Iterable[pa.Table], splits: Sequence[str], clusters: int
) -> dict[str, Tally]:
    """Add up the images of every split."""
    tallies = {split: Tally(clusters) for split in splits}
    for table in tables:
        for split, tally in tallies.items():
            tally.add(_choose(table, split))
    return tallies


def summarise(
    tally: Tally,
    class_names: Sequence[str],
    others: Sequence[str] = (),
    named: Mapping[int, int] | None = None,
    said: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Turn counts into what ``metrics.json`` says of a split, in per cent.

    Classes without a name, up to the largest label, are numbered. Of the ``others`` that were
    scored the supervised predict classes, which are not matched; all others predict as many
    clusters as the labels have. What is ``named`` is the class that a person says, or
    ``UNMATCHED``, and is not matched; what is ``said`` of images alone is so after correction.
    Scores are None where no image has labels, or none was refined: nothing is made up.
    """
    nothing = np.zeros((MAX_CLASSES, MAX_CLASSES), np.int64)
    confusions = {k: tally.confusions.get(k, nothing) for k in (PLAIN, REFINED, *others)}
    if CORRECTED in others:
        confusions[CORRECTED] = confusions[CORRECTED] + sum(tally.rest.values())
    # a label that nobody has named is a class all the same: left out, the scores would be too good
    present = np.flatnonzero(confusions[PLAIN].sum(axis=0))
    names = number_names(class_names, int(present.max(initial=-1)) + 1)
    # a class that no label has is none here
    named, said = (
        {k: c if c < len(names) else UNMATCHED for k, c in (given or {}).items()}
        for given in (named, said)
    )
    used = max(int(tally.usage.sum()), 1)
    scored: dict[str, dict[str, Any]] = {}
    for kind, confusion in confusions.items():
        assignment = None
        clusters, classes = tally.clusters, len(names)
        if kind in SUPERVISED:
            # a class that is only predicted has an IoU of 0, too
            predicted = np.flatnonzero(confusion.any(axis=1))
            clusters = classes = max(classes, int(predicted.max(initial=-1)) + 1)
            assignment = np.arange(classes)
        elif kind == CORRECTED:
            final = scored[REFINED]["assignment"] or scored[PLAIN]["assignment"]
            if final is not None:
                assignment = read_assignment(final)
                assignment[[*said]] = [*said.values()]
        scored[kind] = summarise_confusion(confusion[:clusters, :classes], assignment, named)
    plain, refined = scored[PLAIN], scored[REFINED]
    return {
        "images": tally.images,
        "labelled_images": tally.labelled,
        "label_pixels": tally.labels.dump(),
        "refused": tally.refused or None,
        "classes": tally.clusters,
        "accuracy": plain["accuracy"],
        "miou": plain["miou"],
        "accuracy_crf": refined["accuracy"],
        "miou_crf": refined["miou"],
        "class_names": names,
        "per_class": [
            {"name": name, "iou": iou, "iou_crf": iou_crf}
            for name, iou, iou_crf in zip(names, plain["iou"], refined["iou"], strict=True)
        ],
        "assignment": plain["assignment"],
        "assignment_crf": refined["assignment"],
        "confusion": plain["confusion"],
        "confusion_crf": refined["confusion"],
        "class_usage": [to_percent(count / used) for count in tally.usage],
        "coverage": to_percent(tally.usage.sum() / max(tally.pixels, 1)),
        "confidence": to_percent(tally.confidence / max(tally.predicted, 1)),
        **{k: {n: scored[k][n] for n in ("accuracy", "miou", "assignment")} for k in others},
        **_describe_levels(tally, refined["assignment"] or plain["assignment"]),
    }


def _describe_levels(tally: Tally, assignment: Sequence[int | None] | None) -> dict[str, Any]:
    """Say how many pixels are how sure, and right; how many of a class are wrong, in per cent.

    What is expected to be wrong is said by the confidence alone. Pixels without a true class are
    neither right nor wrong.
    """
    if tally.levels is None:
        return {}
    counts = tally.levels
    pixels, known = counts.sum(axis=2), counts[:, :, :MAX_CLASSES].sum(axis=2)
    right = np.zeros_like(known)
    for number, label in enumerate(assignment or ()):
        if label is not None:
            right[:, number] = counts[:, number, label]
    middle = (np.arange(LEVELS) + 0.5) / LEVELS
    scored = assignment is not None and not tally.refused

    def share(part: NDArray[Any], whole: NDArray[Any]) -> list[float | None]:
        pairs = zip(part.tolist(), whole.tolist(), strict=True)
        return [to_percent(1 - some / of) if of else None for some, of in pairs]

    noise = {"expected": share(middle @ pixels, pixels.sum(axis=0))}
    levels = {"pixels": pixels.sum(axis=1).tolist()}
    if scored:
        noise["true"] = share(right.sum(axis=0), known.sum(axis=0))
        levels |= {"labelled": known.sum(axis=1).tolist(), "right": right.sum(axis=1).tolist()}
    return {"levels": levels, "noise": noise}


def summarise_splits(
    tallies: Mapping[str, Tally],
    class_names: Sequence[str],
    others: Sequence[str],
    named: Mapping[int, int] | None = None,
    said: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Score every split; parameters are those of :func:`summarise`."""
    return {s: summarise(tally, class_names, others, named, said) for s, tally in tallies.items()}


# --- every image scored by the matching of its split ----------------------------------------------


Hits = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def score_images(
    tables: Iterable[pa.Table], blocks: Mapping[str, dict[str, Any]], images: Iterable[Image]
) -> pa.Table:
    """Score every image by the matching of its split, as ``metrics.json`` has it.

    The ``blocks`` of the splits are told the interval of each mIoU, as ``miou_interval``: low and
    high, in per cent; None where fewer than two images have labels.
    """
    rows: dict[str, dict[str, int]] = {split: {} for split in blocks}
    for image in images:
        rows.setdefault(image.split, {})[image.id] = image.image
    parts: dict[str, list[pa.Table]] = {split: [] for split in blocks}
    drawn = {(s, k): Resampling() for s, block in blocks.items() for k in _list_matchings(block)}
    for table in tables:
        for split, block in blocks.items():
            chosen = _choose(table, split)
            counted = count_matched(chosen, block)
            parts[split].append(score_counts(chosen, counted, rows[split]))
            if counted:
                weights = draw_weights([f"{split}/{id_}" for id_ in chosen["id"].to_pylist()])
            for kind, (_, hits, union) in counted.items():
                drawn[split, kind].add(weights, hits, union)
    for (split, kind), resampling in drawn.items():
        end = {PLAIN: "miou_interval", REFINED: "miou_crf_interval"}
        where = blocks[split] if kind in end else blocks[split][kind]
        where[end.get(kind, "miou_interval")] = resampling.interval
    scores = [_SCORE_SCHEMA.empty_table(), *(part for own in parts.values() for part in own)]
    return pa.concat_tables(scores).combine_chunks()


def _list_matchings(block: Mapping[str, Any]) -> dict[str, Sequence[int | None]]:
    """List the class of every cluster, for all that was scored."""
    found = {PLAIN: block["assignment"], REFINED: block["assignment_crf"]}
    found |= {k: v["assignment"] for k, v in block.items() if isinstance(v, dict) and "miou" in v}
    return {kind: matching for kind, matching in found.items() if matching is not None}


def count_matched(table: pa.Table, block: Mapping[str, Any]) -> dict[str, Hits]:
    """Count what the images of one split have right, by the matchings of the split."""
    shape, counted = (len(table), MAX_CLASSES), dict[str, Hits]()

    def count(kind: str, matching: Sequence[int | None]) -> Hits:
        row, cluster, label, counts = _list_pairs(table, kind)
        return count_hits((row, cluster, label), counts, read_assignment(matching), shape)

    matchings = _list_matchings(block)
    for kind, matching in matchings.items():
        if kind != CORRECTED:
            counted[kind] = count(kind, matching)
            continue
        # of an image of which nothing is said the final labels count
        final = count(REFINED if REFINED in matchings else PLAIN, matching)
        if CORRECTED not in _list_kinds(table.column_names):
            counted[kind] = final
            continue
        said = np.asarray(pc.is_valid(table[_PAIRS + CORRECTED]))[:, None]
        ours, others = count(CORRECTED, matching), final
        labelled, hits, union = (np.where(said, a, b) for a, b in zip(ours, others, strict=True))
        counted[kind] = labelled, hits, union
    return counted


def score_counts(table: pa.Table, counted: Mapping[str, Hits], rows: Mapping[str, int]) -> pa.Table:
    """Score the images of one split from :func:`count_matched`, in per cent.

    ``rows`` says which row of the manifest an id is. What there is none of is null.
    """

    def score(kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if kind not in counted:
            nothing = np.full(len(table), np.nan)
            return nothing, nothing
        accuracy, miou, _ = score_hits(*counted[kind])
        return 100 * accuracy, 100 * miou

    def add(column: str) -> NDArray[np.float64]:
        row, values = _flatten(table[column])
        return np.bincount(row, values.astype(np.float64), len(table)).astype(np.float64)

    nothing = np.zeros((len(table), 0))
    _, hits, union = counted.get(REFINED, counted.get(PLAIN, (nothing, nothing, nothing)))
    row, used = np.nonzero(union)
    ends = np.searchsorted(row, np.arange(len(table) + 1))

    def list_used(values: NDArray[Any]) -> pa.ListArray:
        return pa.ListArray.from_arrays(ends.astype(np.int32), values.astype(np.int64))

    pixels, predicted, confidence = (
        table[name].to_numpy() for name in ("pixels", "predicted", "confidence")
    )
    columns = [
        [rows[id_] for id_ in table["id"].to_pylist()],
        table["id"].to_pylist(),
        table["split"].to_pylist(),
        100 * add("usage") / np.maximum(pixels, 1),
        100 * confidence / np.maximum(predicted, 1),
        add(_COUNTS + PLAIN).astype(np.int64),
        *score(PLAIN),
        *score(REFINED),
    ]
    pairs = zip(columns, _SCORE_SCHEMA, strict=False)
    arrays = [pa.array(values, field.type, from_pandas=True) for values, field in pairs]
    arrays += [list_used(used), list_used(hits[row, used]), list_used(union[row, used])]
    return pa.Table.from_arrays(arrays, schema=_SCORE_SCHEMA)


# --- what was unusual -----------------------------------------------------------------------------


def count_unusual(
    rejected: Sequence[str],
    listed: int,
    stages: Mapping[str, tuple[StageRecord, Sequence[ShardRecord]]],
    usage: Sequence[int],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Count what a reader of the scores should know happened on the way."""

    def add(key: str, name: str) -> int | None:
        if key not in stages:
            return None
        return sum(shard.result.get(name, 0) for shard in stages[key][1])

    devices = {key: _list_devices(*records) for key, records in stages.items()}
    return {
        "images": listed,
        "images_rejected": len(rejected),
        "rejected_for": count_reasons(rejected),
        "windows": sum(r.items for r in stages["extract"][1]) if "extract" in stages else None,
        "windows_not_finite": add("extract", "not_finite_windows"),
        "windows_constant": add("masks", "constant"),
        "windows_without_proposal": add("masks", "empty"),
        "windows_with_one_proposal": add("masks", "single"),
        "windows_with_most_proposals": add("masks", "full"),
        "classes": len(usage),
        "classes_unused": [cluster for cluster, pixels in enumerate(usage) if not pixels],
        "label_maps_left_out": len(left_out),
        "left_out_for": count_reasons(left_out.values()),
        "devices": devices,
        "same_bytes_again": all(found == [_PROCESSOR] for found in devices.values()),
    }


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count reasons by what stands before their details, the most frequent first, five at most."""
    kinds = Counter(re.split(r": | \(", reason, maxsplit=1)[0] for reason in reasons)
    # of equally frequent ones the first of the alphabet: no count depends on an order
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS])


def _list_devices(record: StageRecord, shards: Sequence[ShardRecord]) -> list[str]:
    """List where a stage computed; the CRF may have a device of its own."""
    found = {str(shard.result.get("device", "an unknown device")) for shard in shards}
    if record.facts.get("crf") == "cuda":
        found.add("cuda")
    return sorted(found)
