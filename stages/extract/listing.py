"""The images of a dataset as they are now: each listed and probed, and their windows placed."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from pipeline.datasets.base import Dataset, Sample
from pipeline.datasets.labels import LabelCounts
from pipeline.datasets.listing import Globs, stamp_file
from pipeline.errors import AccessError, DatasetError, ImageError, count_of
from pipeline.images.decoding import probe_pages, read_label_nodata, read_sample
from pipeline.images.reading import (
    ALPHA,
    FULL,
    LEAST_SHARE,
    MASK,
    PERCENTILES,
    PERCENTS,
    SAMPLE,
    Reading,
    Taking,
    measure,
    spread,
)
from pipeline.images.stored import require_answer
from pipeline.images.windows import Window, fit_size, place_windows
from pipeline.progress import Counter, Screen
from pipeline.run.frames import map_ahead, open_truth, shard_ranges
from pipeline.run.manifest import Image, Manifest, Rows
from pipeline.storage.places import count_requests
from stages.extract.settings import ExtractSettings

PROBE_THREADS = 4
# Label maps that are read before anything is computed.
LOOKED = 6


def list_manifest(
    dataset: Dataset,
    settings: ExtractSettings,
    known: Sequence[Image],
    exclude: Sequence[Path],
    screen: Screen,
    listed: Sequence[Image] = (),
) -> Manifest:
    """List and probe the images of a dataset, and place their windows."""
    root, labels = settings.root, settings.labels
    assert root is not None and settings.size is not None and settings.frame is not None
    images = list_images(dataset, settings, known, exclude, screen, listed)
    tell_takings(images, settings.reading, screen)
    images = settle_range(images, root, settings.reading, screen)
    windows, unplaceable = place_all(images, settings.size, settings.frame, settings.overlap)
    manifest = Manifest(settings.dataset, root, labels, images, windows, dataset.content)
    return manifest.reject(unplaceable)


def list_images(
    dataset: Dataset,
    settings: ExtractSettings,
    known: Sequence[Image],
    exclude: Sequence[Path],
    screen: Screen,
    listed: Sequence[Image] = (),
) -> Rows[Image]:
    """List the images of a dataset; of those that are known and the same no file is read again.

    Those that were ``listed`` before keep their order. Those that are added come after them, and
    cost no shard but their own.
    """
    root, splits, limit, reading = (
        settings.root,
        settings.splits,
        settings.limit,
        settings.reading,
    )
    assert root is not None
    globs = Globs(settings.include, settings.exclude)
    samples = dataset.list_samples(root, splits, settings.labels, exclude, globs)
    if limit is not None:
        samples = [s for split in splits for s in [t for t in samples if t.split == split][:limit]]
    if not samples:
        raise DatasetError(f"no images of {', '.join(splits)} at {root}.")
    earlier = Rows.gather(Image, listed)
    # a file may be in several splits
    names = zip(*(earlier.column(name).to_pylist() for name in ("split", "path")), strict=True)
    rows = {name: row for row, name in enumerate(names)}
    samples = sorted(samples, key=lambda s: rows.get((s.split, s.image), len(listed)))
    before = Rows.gather(Image, known)
    places = before.find("path", [sample.image for sample in samples])
    threads = count_requests(root, PROBE_THREADS)
    # a task for every image would take longer than to see that it is the same
    size = min(64, -(-len(samples) // (8 * threads)))

    def probe(block: range) -> list[Image]:
        there = places[block.start : block.stop]
        olds = iter(before.choose(there[there >= 0]))
        found = []
        for row in block:
            old = [next(olds)] if places[row] >= 0 else []
            if old and reading.all_pages:
                place = int(places[row])
                old = list(before[place : place + Taking.parse(old[0].digest).pages])
            found += _probe(samples[row], root, old, reading)
        return found

    def probe_all(counter: Counter) -> Iterator[Image]:
        rows = itertools.count()
        blocks = shard_ranges(len(samples), size)
        for block, images in zip(
            blocks, map_ahead(probe, blocks, threads, 4 * threads), strict=True
        ):
            yield from (replace(image, image=next(rows)) for image in images)
            counter.advance(len(block))

    with screen.count("list images", len(samples), "images") as counter:
        images = Rows.gather(Image, probe_all(counter))
    if settings.pages == "all":
        _require_own_ids(images)
    return images


def _require_own_ids(images: Rows[Image]) -> None:
    """Refuse a page that would be called as another image is."""
    seen: dict[tuple[str, str], str] = {}
    for image in images:
        first = seen.setdefault((image.split, image.id), image.path)
        if first != image.path:
            raise DatasetError(
                f"a page of {image.path} and {first} have the id '{image.id}': rename one of them."
            )


_MEASURED = ("width", "height", "bytes", "modified_ns", "digest", "changed_ns")


def _probe(sample: Sample, root: Path, known: Sequence[Image], reading: Reading) -> list[Image]:
    """Give the image of a file, or of each page; those that are known where it is the same file."""
    place = (-1, sample.id, sample.split, sample.image, sample.label)
    rejected = Image(*place, 0, 0, 0, 0, "", "rejected")
    if sample.reason is not None:
        return [replace(rejected, reason=sample.reason)]
    path = root / sample.image
    try:
        stamp = stamp_file(root, sample.image)
        first = known[0] if known else None
        # git's rule: a file of the same size and times is the same file
        if first is not None and (first.bytes, first.modified_ns, first.changed_ns) == stamp:
            if not first.width and not first.ok and first.modified_ns:
                # by its header, and not because it could not be had
                raise ImageError(first.reason)
            if first.width:
                measured = [{name: getattr(old, name) for name in _MEASURED} for old in known]
                return _name_pages([replace(rejected, **m, state="ok") for m in measured], reading)
        headers = probe_pages(path, reading)
        return _name_pages([replace(rejected, **vars(h), state="ok") for h in headers], reading)
    except OSError as error:
        require_answer(path, error)
        return [replace(rejected, reason=error.strerror or str(error))]
    except AccessError as error:
        return [replace(rejected, reason=str(error))]
    except ImageError as error:
        # with the stamp: the file is tried again when it has changed, and not before
        size, modified, changed = stamp
        stamped = replace(rejected, bytes=size, modified_ns=modified, changed_ns=changed)
        return [replace(stamped, reason=str(error))]


def _name_pages(images: list[Image], reading: Reading) -> list[Image]:
    """Give each page of a file an id of its own; a label map is that of the first."""
    takings = [Taking.parse(image.digest) for image in images]
    if not reading.all_pages or takings[0].pages == 1:
        return images
    digits = len(str(max(taking.page for taking in takings)))
    return [
        replace(
            image,
            id=f"{image.id}.page{taking.page:0{digits}d}",
            label=None if number else image.label,
        )
        for number, (image, taking) in enumerate(zip(images, takings, strict=True))
    ]


def tell_takings(images: Rows[Image], reading: Reading, screen: Screen) -> None:
    """Say which files are not read as a whole."""
    digests = images.column("digest")
    chosen = digests.filter(pc.match_substring_regex(digests, ":(page|bands|nodata)=")).to_pylist()
    takings = [Taking.parse(digest) for digest in chosen]
    longer = [taking.pages - 1 for taking in takings if taking.pages > 1]
    if longer and not reading.all_pages:
        screen.warn(
            f"extract: of {count_of(len(longer), 'files')} with several pages or frames the first "
            f"is read, and {count_of(sum(longer), 'pages')} are left out; --pages all makes every "
            "page an image."
        )
    empty = collections.Counter(each.nodata for each in takings if each.nodata)
    for value, count in empty.items():
        what = {MASK: "their masks leave out", ALPHA: "are transparent"}.get(value, f"are {value}")
        screen.note(
            f"extract: of {count_of(count, 'images')} the pixels that {what} hold no data; they "
            "get no label, take part in no proposal and are in no score"
        )
    bands = collections.Counter((each.bands, each.of) for each in takings if each.bands)
    for (taken, of), count in bands.items():
        numbers = f"{'bands' if len(taken) > 1 else 'band'} {', '.join(map(str, taken))}"
        text = (
            f"extract: of {count_of(count, 'images')} with {count_of(of, 'bands')}, {numbers} "
            f"{'are red, green and blue' if len(taken) > 1 else 'is grey'}"
        )
        if reading.bands:
            screen.note(f"{text}, as asked")
        else:
            screen.warn(f"{text}; the others are left out, and --bands chooses.")


def settle_range(images: Rows[Image], root: Path, reading: Reading, screen: Screen) -> Rows[Image]:
    """Measure the values beyond 8 bit of some images: for percentiles, or to warn of a narrow use.

    Every stage reads by the range that then stands in the digests.
    """
    digests = images.column("digest")
    deep = np.asarray(pc.match_substring(digests, ":range="))
    rows = np.flatnonzero(deep & images.among("state", ["ok"]))
    if not len(rows) or reading.range not in (FULL, PERCENTILES):
        return images
    samples, tops = [], set[int]()
    for row in rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)]:
        image = images[int(row)]
        # why one cannot be read is said where it is needed
        with suppress(ImageError):
            sample, top = read_sample(root / image.path, image.digest)
            samples.append(sample)
            tops.add(top)
    if not samples:
        return images
    low, high = measure(samples)
    top = max(tops)
    share = PERCENTS[1] - PERCENTS[0]
    deep_images = count_of(len(rows), "images")
    if reading.range == PERCENTILES:
        screen.note(
            f"extract: {low:g} and {high:g} become black and white: {share} % of the values of "
            f"{deep_images} beyond 8 bit lie between"
        )
        settled = pc.replace_substring_regex(digests, ":range=[^:]*", f":range={spread(low, high)}")
        return images.replace(digest=settled)
    if low >= 0 and high - low < LEAST_SHARE * top:
        first, last = (int(255 * value / top) for value in (low, high))
        screen.warn(
            f"extract: {share} % of the values of {deep_images} beyond 8 bit lie in "
            f"{low:g}..{high:g} of 0..{top}, and become {first}..{last} of 0..255, with little "
            "contrast; give --range percentiles, or the values for black and white with "
            "--range LOW..HIGH."
        )
    return images


def check_labels(manifest: Manifest) -> list[str]:
    """Read a few label maps, evenly spaced, and say what an evaluation would make of them."""
    labelled = np.flatnonzero(np.asarray(manifest.images.column("label").is_valid()))
    if not len(labelled):
        return []
    chosen = np.unique(labelled[np.linspace(0, len(labelled) - 1, LOOKED).astype(int)])
    dataset, counts, faults = manifest.open_dataset(), LabelCounts(), []
    empty: dict[str, str] = {}
    for image in manifest.images.choose(chosen):
        path = manifest.label_path(image)
        assert path is not None
        try:
            if image.ok:
                counts.add(open_truth(dataset, path, image).count())
                empty.setdefault(read_label_nodata(path), str(image.label))
        except ImageError as error:
            faults.append(f"{image.label}: {error}")
    warnings = []
    among = f"of {count_of(len(chosen), 'label maps')} looked at"
    if faults:
        warnings.append(f"{among}, {len(faults)} cannot be scored (first: {faults[0]})")
    if fault := counts.find_fault(told=dataset.definition.tells_ignore):
        warnings.append(f"there would be no score, {among}: {fault}")
    elif counts.unknown:
        warnings.append(f"{among}: {counts.describe()}")
    for value in empty.keys() & counts.scored.keys():
        warnings.append(
            f"{among}, some say that {value} is no data, and it is scored as a class (first: "
            f"{empty[value]}); `ignore: [{value}]` in a dataset YAML leaves it out"
        )
    if len(labelled) < len(manifest.images):
        warnings.append(f"{len(labelled)} of {len(manifest.images)} images have a label map")
    return warnings


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
