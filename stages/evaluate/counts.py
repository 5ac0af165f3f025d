"""What evaluation counts of every image alone: one table for every shard, scored at the end.

The matching of clusters to classes is that of a whole split, and so it is known only when all
images are counted. Until then an image is the pairs of cluster and class that occur in it.

The tables of single images: one of counts for every shard, and all of them scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from pipeline.errors import DamageError, RunError
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image
from pipeline.run.subject import Subject
from pipeline.storage.files import decode_table, remove_file
from pipeline.storage.places import find_files
from stages.evaluate.metrics import MAX_CLASSES, UNMATCHED
from stages.labelling import Labelling

# Pair of cluster and class -> cluster * MAX_CLASSES + class.
_PAIRS = pa.list_(pa.int32())
_COUNTS = pa.list_(pa.int64())
_COUNT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("pixels", pa.int64()),
        ("covered", pa.int64()),
        ("predicted", pa.int64()),
        ("confidence", pa.float64()),
        ("pairs", _PAIRS),
        ("counts", _COUNTS),
        ("pairs_crf", _PAIRS),
        ("counts_crf", _COUNTS),
    ]
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
    ]
)


@dataclass(frozen=True)
class ImageCounts:
    """Counts of one image."""

    id: str
    split: str
    pixels: int
    covered: int
    predicted: int
    confidence: float
    pairs: Sequence[int] = ()
    counts: Sequence[int] = ()
    pairs_crf: Sequence[int] = ()
    counts_crf: Sequence[int] = ()


@dataclass(frozen=True)
class ImageScores:
    """Scores of some images of one split, in per cent; NaN where there are none."""

    images: NDArray[np.int64]
    coverage: NDArray[np.float64]
    confidence: NDArray[np.float64]
    labelled_pixels: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    miou: NDArray[np.float64]
    accuracy_crf: NDArray[np.float64]
    miou_crf: NDArray[np.float64]

    @property
    def final(self) -> NDArray[np.float64]:
        """Accuracy of the final labels, float64 [image]."""
        return np.where(np.isnan(self.accuracy_crf), self.accuracy, self.accuracy_crf)

    def read(self, position: int) -> dict[str, float]:
        """Return the scores of one image by name, those that there are."""
        values = {f.name: float(getattr(self, f.name)[position]) for f in fields(self)}
        del values["images"]
        return {name: value for name, value in values.items() if not np.isnan(value)}


def list_pairs(confusion: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """List what of a confusion, int64 [cluster, class], is not 0: pairs and counts as above."""
    pairs = np.flatnonzero(confusion)
    return pairs.tolist(), confusion.ravel()[pairs].tolist()


def encode_counts(counts: Sequence[ImageCounts]) -> bytes:
    """Write counts as a parquet file whose pages carry checksums; equal counts, equal bytes."""
    return _encode(pa.Table.from_pylist([asdict(count) for count in counts], _COUNT_SCHEMA))


def decode_counts(content: bytes) -> list[ImageCounts]:
    """Read what :func:`encode_counts` wrote."""
    table = _decode(content)
    if table.schema != _COUNT_SCHEMA:
        raise ValueError("it holds other columns than counts of images")
    return [ImageCounts(**row) for row in table.to_pylist()]


def score_counts(
    counts: Sequence[ImageCounts],
    assignment: Sequence[int | None] | None,
    assignment_crf: Sequence[int | None] | None,
    rows: Mapping[str, int],
) -> ImageScores:
    """Score images of one split."""
    plain = _score([c.pairs for c in counts], [c.counts for c in counts], assignment)
    refined = _score([c.pairs_crf for c in counts], [c.counts_crf for c in counts], assignment_crf)
    pixels = np.array([(c.covered, c.pixels, c.confidence, c.predicted) for c in counts])
    covered, total, confidence, predicted = pixels.reshape(-1, 4).T
    return ImageScores(
        images=np.array([rows[c.id] for c in counts], np.int64),
        coverage=100 * covered / np.maximum(total, 1),
        confidence=100 * confidence / np.maximum(predicted, 1),
        labelled_pixels=np.array([sum(c.counts) for c in counts], np.int64),
        accuracy=plain[0],
        miou=plain[1],
        accuracy_crf=refined[0],
        miou_crf=refined[1],
    )


def _score(
    pairs: Sequence[Sequence[int]],
    counts: Sequence[Sequence[int]],
    assignment: Sequence[int | None] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute accuracy and mean IoU of every image, in per cent."""
    nothing = np.full(len(pairs), np.nan)
    flat = np.array([pair for image in pairs for pair in image], np.int64)
    if assignment is None or not len(flat):
        return nothing, nothing
    number = np.array([count for image in counts for count in image], np.int64)
    row = np.repeat(np.arange(len(pairs)), [len(image) for image in pairs])
    cluster, label = np.divmod(flat, MAX_CLASSES)
    match = np.array([UNMATCHED if k is None else k for k in assignment], np.int64)[cluster]

    def add(chosen: NDArray[np.bool_], to: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros((len(pairs), MAX_CLASSES))
        np.add.at(total, (row[chosen], to[chosen]), number[chosen])
        return total

    # pixels of unmatched clusters miss their class and belong to no other
    labelled = add(np.ones(len(flat), np.bool_), label)
    predicted = add(match != UNMATCHED, match)
    hits = add(match == label, label)
    union = labelled + predicted - hits
    occurs = union > 0
    with np.errstate(invalid="ignore"):
        accuracy = hits.sum(axis=1) / labelled.sum(axis=1)
        shares = np.where(occurs, hits / np.where(occurs, union, 1), 0)
        miou = shares.sum(axis=1) / occurs.sum(axis=1)
    return 100 * accuracy, 100 * miou


def join_scores(parts: Sequence[ImageScores]) -> ImageScores:
    """Join the scores of several shards; at least one."""
    return ImageScores(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(ImageScores)}
    )


def encode_scores(scores: Mapping[str, ImageScores], ids: Sequence[str]) -> bytes:
    """Write the scores of all splits as ``images.parquet``, one row for every image."""
    rows = [int(row) for part in scores.values() for row in part.images]
    split = [name for name, part in scores.items() for _ in part.images]
    columns: dict[str, Any] = {"image": rows, "id": [ids[row] for row in rows], "split": split}
    for name in _SCORE_SCHEMA.names[len(columns) :]:
        columns[name] = np.concatenate([[], *(getattr(part, name) for part in scores.values())])
    arrays = [pa.array(columns[f.name], f.type, from_pandas=True) for f in _SCORE_SCHEMA]
    return _encode(pa.Table.from_arrays(arrays, schema=_SCORE_SCHEMA))


def decode_scores(content: bytes) -> list[dict[str, Any]]:
    """Read the rows of ``images.parquet``; values are None where there are none."""
    table = _decode(content)
    if table.schema.names != _SCORE_SCHEMA.names:
        raise ValueError("it holds other columns than scores of images")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def read_scores(content: bytes, splits: Iterable[str]) -> dict[str, ImageScores]:
    """Read ``images.parquet`` as it was written from the scores of some splits."""
    rows = decode_scores(content)
    found = {}
    for split in splits:
        own = [row for row in rows if row["split"] == split]
        columns: dict[str, Any] = {"images": np.array([row["image"] for row in own], np.int64)}
        for field in fields(ImageScores)[1:]:
            kind = np.int64 if field.name == "labelled_pixels" else np.float64
            columns[field.name] = np.array([row[field.name] for row in own], kind)
        found[split] = ImageScores(**columns)
    return found


def _decode(content: bytes) -> pa.Table:
    try:
        return decode_table(content)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _encode(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


# int64 [cluster, class] without and with CRF; None where there are no labels, or no CRF.
Confusions = tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]


def counts_file(run: RunDirectory, subject: Subject, shard: int) -> Path:
    """Return where the counts of the images of one shard lie."""
    return run.state(f"evaluate/{subject.title}") / "images" / f"{shard:06d}.parquet"


def left_out_file(run: RunDirectory, subject: Subject) -> Path:
    """Return where it is noted which label maps could not be read, and why."""
    return run.state(f"evaluate/{subject.title}") / "left_out.json"


def count_image(
    image: Image, labels: NDArray[np.uint8], labelling: Labelling, confusions: Confusions
) -> ImageCounts:
    """Count one image."""
    plain, refined = (((), ()) if c is None else list_pairs(c) for c in confusions)
    return ImageCounts(
        id=image.id,
        split=image.split,
        pixels=labels.size,
        covered=int(np.count_nonzero(labels != IGNORE)),
        predicted=labelling.plain.size,
        confidence=labelling.confidence,
        pairs=plain[0],
        counts=plain[1],
        pairs_crf=refined[0],
        counts_crf=refined[1],
    )


def score_images(
    run: RunDirectory,
    subject: Subject,
    blocks: Mapping[str, Any],
    shards: Iterable[int],
    images: Iterable[Image],
) -> dict[str, ImageScores]:
    """Score every image by the matching of its split, reading one shard after another."""
    files = [counts_file(run, subject, shard) for shard in sorted(shards)]
    for old in set(find_files(counts_file(run, subject, 0).parent)) - set(files):
        remove_file(old)
    rows: dict[str, dict[str, int]] = {split: {} for split in blocks}
    for image in images:
        rows.setdefault(image.split, {})[image.id] = image.image
    parts = {split: [_score_block(split, block, [], rows)] for split, block in blocks.items()}
    for file in files:
        counts = _read_counts(run, file)
        for split, block in blocks.items():
            parts[split].append(_score_block(split, block, counts, rows))
    return {split: join_scores(found) for split, found in parts.items()}


def _score_block(
    split: str,
    block: Mapping[str, Any],
    counts: Iterable[ImageCounts],
    rows: Mapping[str, Mapping[str, int]],
) -> ImageScores:
    own = [count for count in counts if count.split == split]
    return score_counts(own, block["assignment"], block["assignment_crf"], rows[split])


def _read_counts(run: RunDirectory, file: Path) -> list[ImageCounts]:
    try:
        return decode_counts(file.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}.") from error
    except ValueError as error:
        raise DamageError(
            f"{file} is not as it was written ({error}); "
            f"`primaps-pipe verify {run.quoted} --repair` puts it right."
        ) from error
