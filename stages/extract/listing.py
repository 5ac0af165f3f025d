"""The listing of a dataset: every image probed once, windows placed, blocks fingerprinted.

The dataset that a run is made of: as it is now, or as the run keeps it where it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.datasets import Dataset, Sample, complete_dataset_name, get_dataset, is_gone
from pipeline.datasets.listing import stamp_file
from pipeline.errors import AccessError, DatasetError, ImageError
from pipeline.images.decoding import probe_image
from pipeline.images.faults import require_answer
from pipeline.images.windows import Window, fit_size, place_windows
from pipeline.progress import Counter
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import map_ahead
from pipeline.run.manifest import Image, Manifest, read_manifest
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
) -> list[Image]:
    """List the images of a dataset."""
    samples = dataset.list_samples(root, splits, labels, exclude)
    if limit is not None:
        samples = [s for split in splits for s in [t for t in samples if t.split == split][:limit]]
    if not samples:
        raise DatasetError(f"no images of {', '.join(splits)} at {root}.")
    by_path = {image.path: image for image in known}

    def probe(row: int) -> Image:
        return _probe(row, samples[row], root, by_path.get(samples[row].image))

    images = []
    with count(len(samples)) as counter:
        threads = count_requests(root, PROBE_THREADS)
        for image in map_ahead(probe, range(len(samples)), threads, 4 * threads):
            images.append(image)
            counter.advance()
    return images


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
    images: Sequence[Image], size: int, frame: str, overlap: float
) -> tuple[list[Window], dict[int, str]]:
    """Place the windows of all images."""
    windows: list[Window] = []
    reasons: dict[int, str] = {}
    for image in images:
        if not image.ok:
            continue
        width, height = fit_size(image.width, image.height, size)
        try:
            corners = place_windows(width, height, size, frame, overlap)
        except ImageError as error:
            reasons[image.image] = str(error)
            continue
        windows += [
            Window(index, image.image, left, top, size, width, height)
            for index, (left, top) in enumerate(corners, start=len(windows))
        ]
    return windows, reasons


def fingerprint_shard(manifest: Manifest, windows: Sequence[Window]) -> str:
    """Return the fingerprint of what a block of windows shows."""
    return fingerprint(
        [(manifest.images[w.image].digest, w.box, w.width, w.height) for w in windows]
    )


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
