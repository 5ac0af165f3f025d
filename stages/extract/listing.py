"""The listing of a dataset: every image probed once, windows placed, blocks fingerprinted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.datasets import Dataset, Sample
from pipeline.datasets.listing import stamp_file
from pipeline.errors import AccessError, DatasetError, ImageError
from pipeline.files import fingerprint
from pipeline.frames import FETCH_THREADS, map_ahead
from pipeline.image_faults import require_answer
from pipeline.images import probe_image
from pipeline.manifest import Image, Manifest
from pipeline.places import is_remote
from pipeline.progress import Counter
from pipeline.windows import Window, fit_size, place_windows

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
    """List the images of a dataset.

    Parameters
    ----------
    dataset
        The layout.
    root, labels
        Where images and, for a ``folder``, label maps lie.
    splits
        Splits to list, in this order.
    limit
        At most so many images of each split.
    known
        Rows of an earlier listing: a file of the same size and modification time is not read again,
        unless it could not be opened.
    exclude
        Folders to leave out, such as a run directory below the root.
    count
        Opens a counter for that many images.

    Returns
    -------
    list of Image
        Rejected ones included, with the reason.

    Raises
    ------
    DatasetError
        The layout is not there, or holds no image.
    RunError, MemoryShortError
        The machine is at fault and not an image.
    """
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
        threads = FETCH_THREADS if is_remote(root) else PROBE_THREADS
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
    """Place the windows of all images.

    Parameters
    ----------
    images
        Rows of the manifest.
    size, frame, overlap
        See :func:`pipeline.windows.place_windows`.

    Returns
    -------
    windows : list of Window
        Of all images that are ok.
    reasons : dict
        Row -> reason of those whose windows cannot be placed.
    """
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
