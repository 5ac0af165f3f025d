"""The tables of single images: one of counts for every shard, and all of them scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE
from pipeline.errors import DamageError, RunError
from pipeline.files import remove_file
from pipeline.manifest import Image
from pipeline.places import find_files
from pipeline.run_directory import RunDirectory
from pipeline.subject import Subject
from stages.evaluate.image_counts import (
    ImageCounts,
    ImageScores,
    decode_counts,
    join_scores,
    list_pairs,
    score_counts,
)
from stages.evaluate.labelling import Labelling

# int64 [cluster, class] without and with CRF; None where there are no labels, or no CRF.
Confusions = tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]


def counts_file(run: RunDirectory, subject: Subject, shard: int) -> Path:
    """Return where the counts of the images of one shard lie."""
    return run.state(f"evaluate/{subject.title}") / "images" / f"{shard:06d}.parquet"


def count_image(
    image: Image, labels: NDArray[np.uint8], labelling: Labelling, confusions: Confusions
) -> ImageCounts:
    """Count one image.

    Parameters
    ----------
    image
        Row of the manifest.
    labels
        uint8 [y, x]: its label PNG.
    labelling
        Of its windows.
    confusions
        Of its windows and its label map.
    """
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
    """Score every image by the matching of its split, reading one shard after another.

    Parameters
    ----------
    run, subject
        What was evaluated.
    blocks
        What ``metrics.json`` says of every split.
    shards
        Numbers of the shards; files of others, of an earlier evaluation, are removed.
    images
        Rows of the manifest, as it is now.

    Raises
    ------
    RunError
        A file is gone, or not as it was written.
    """
    files = [counts_file(run, subject, shard) for shard in sorted(shards)]
    for old in set(find_files(counts_file(run, subject, 0).parent)) - set(files):
        remove_file(old)
    rows: dict[str, dict[str, int]] = {split: {} for split in blocks}
    for image in images:
        rows.setdefault(image.split, {})[image.id] = image.image
    parts = {split: [_score(split, block, [], rows)] for split, block in blocks.items()}
    for file in files:
        counts = _read_counts(run, file)
        for split, block in blocks.items():
            parts[split].append(_score(split, block, counts, rows))
    return {split: join_scores(found) for split, found in parts.items()}


def _score(
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
