"""The listing of a dataset: every image probed once, windows placed, blocks fingerprinted.

The dataset that a run is made of: as it is now, or as the run keeps it where it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.datasets import (
    Dataset,
    Sample,
    complete_dataset_name,
    get_dataset,
    is_gone,
    stamp_file,
)
from pipeline.errors import AccessError, DatasetError, ImageError
from pipeline.images.decoding import probe_image
from pipeline.images.faults import require_answer
from pipeline.images.windows import Window, fit_size, place_windows
from pipeline.progress import Counter
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import map_ahead, shard_ranges
from pipeline.run.manifest import Image, Manifest, Rows, read_manifest
from pipeline.storage.files import fingerprint
from pipeline.storage.places import count_requests, make_absolute
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
