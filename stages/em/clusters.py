"""More clusters than classes: how many, the sums that join them, and what is known beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.scheduler import Team
from pipeline.datasets.definition import IGNORE
from pipeline.errors import ImageError, RunError, UsageError, count_of, did_you_mean
from pipeline.images.windows import Cover
from pipeline.run.corrections import Corrections
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import count_threads, map_ahead, open_truth, read_gaps, resize_labels
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import Image, read_manifest
from pipeline.run.status import fingerprint_classes, fingerprint_labels
from pipeline.storage.arrays import open_arrays, read_rows
from pipeline.storage.files import fingerprint
from pipeline.storage.places import parse_place
from stages.calibration import FOLDS, HeldOut
from stages.discriminants import GAINS, Moments, find_discriminant, measure_gains
from stages.em.cache import list_windows
from stages.em.methods import Fit, Sums
from stages.em.pieces import FitBatch
from stages.em.settings import CORRECTIONS, SPLIT, EmSettings
from stages.em.sums import PROPOSALS, Piece, hold_positions, number_proposals, read_positions
from stages.known import label_grid, read_said

# Clusters per class: with fewer, classes share clusters; with more, names cost more than they
# bring. And proposals that a cluster holds on average, at least.
PER_CLASS = 8
_LEAST = 2
MOST = 254


def count_clusters(run: RunDirectory, settings: EmSettings) -> int:
    """Return how many clusters to fit: as many as given, or what ``auto`` means here."""
    if settings.clusters is None:
        assert isinstance(settings.classes, int)
        return settings.classes
    if settings.clusters != "auto":
        return settings.clusters
    assert isinstance(settings.classes, int)
    shards = Ledger(run.state("masks")).read_shards().values()
    proposals, windows = (
        sum(int(shard.result[name]) for shard in shards) for name in ("proposals", "windows")
    )
    borne = proposals * len(list_windows(run, settings)) // max(windows, 1) // _LEAST
    return max(settings.classes, min(PER_CLASS * settings.classes, borne, MOST))


def sum_clusters(read: Callable[[], Iterable[FitBatch]], fit: Fit, shrinkage: float) -> Sums:
    """Sum the positions of every cluster of a fit, and calibrate the discriminants of the sums.

    A proposal is of the cluster of most of its positions; positions without a proposal are left
    out, where there are proposals.
    """
    clusters, moments = len(fit.prototypes), None
    for points, labels in _label_positions(read(), fit):
        if moments is None:
            moments = Moments.make_empty(points.mean(dim=0), clusters)
        moments.add(points, labels)
    if moments is None:
        raise RunError("em: no position of the sample has a proposal: there is nothing to sum.")
    found = find_discriminant(moments, shrinkage=shrinkage)
    costs = torch.zeros(len(GAINS), dtype=torch.float64)
    for points, labels in _label_positions(read(), fit):
        costs += measure_gains(found.classify(points), labels)
    return Sums(moments, torch.arange(clusters), GAINS[int(costs.argmin())])


def hold_proposals(pieces: Sequence[Piece], sums: Sums, team: Team) -> HeldOut | None:
    """Keep what judges the sums of proposals; None where clusters alone were summed.

    A fold has whole windows; where groups of proposals are summed, which are of many windows each,
    whole groups.
    """
    assigned = sums.assigned
    if assigned is None:
        return None
    fold = torch.arange(len(sums.clusters))
    if sums.units is None:
        windows = torch.from_numpy(np.concatenate([piece.windows for piece in pieces]))
        fold = torch.searchsorted(windows, assigned.number // PROPOSALS)
    return hold_positions(pieces, assigned, sums.moments, fold % FOLDS, team)


def _label_positions(batches: Iterable[FitBatch], fit: Fit) -> Iterator[tuple[Tensor, Tensor]]:
    """Give features [position, channel], float64, and the cluster of each, int64 [position]."""
    weight = fit.prototypes.cpu().double()
    if fit.logits == "cosine":
        weight = F.normalize(weight, dim=1)
    bias = 0 if fit.bias is None else fit.bias.cpu().double()
    for batch in batches:
        if batch.proposals is None:
            points = batch.features.cpu().double().flatten(0, 2)
            yield points, (points @ weight.T + bias).argmax(dim=1)
            continue
        features, proposals = read_positions(batch)
        held = proposals > 0
        if held.any():
            points = features[held]
            labels = (points @ weight.T + bias).argmax(dim=1)
            numbers = number_proposals(proposals, np.arange(len(proposals)))[held]
            unit = torch.unique(numbers, return_inverse=True)[1]
            yield points, _vote(labels, unit, len(weight))[unit]


def _vote(labels: Tensor, unit: Tensor, clusters: int) -> Tensor:
    votes = torch.zeros(int(unit.max()) + 1, clusters, dtype=torch.int64)
    return votes.index_put_((unit, labels), torch.ones_like(labels), accumulate=True).argmax(dim=1)


class Known(NamedTuple):
    """What is known beside the features: sums of positions by name, and how much it is."""

    names: tuple[str, ...]
    moments: Moments
    images: int
    left_out: tuple[str, ...] = ()  # what says nothing to the fit, and why: a sentence each

    def describe(self, source: str) -> dict[str, Any]:
        """Return what a fit says of the labels that it saw."""
        positions = int(self.moments.count.sum())
        return {"from": source, "images": self.images, "positions": positions}


def open_said(run: RunDirectory, settings: EmSettings) -> Corrections | None:
    """Open the corrections that are meant, of the run or in a folder; None where it is a split."""
    source = str(settings.labels_from)
    if source.startswith(SPLIT):
        return None
    return Corrections(run, None if source == CORRECTIONS else parse_place(source))


def name_known(run: RunDirectory, settings: EmSettings) -> tuple[str, ...]:
    """Name the classes of which something may be known."""
    if (corrections := open_said(run, settings)) is not None:
        return corrections.said_names()
    manifest = read_manifest(run)
    return tuple(manifest.open_dataset().class_names(manifest.labels))


def fingerprint_known(run: RunDirectory, settings: EmSettings) -> str | None:
    """Return a fingerprint of what is known; refuse a source that says nothing."""
    source, manifest = settings.labels_from, read_manifest(run)
    if source is None:
        return None
    if (corrections := open_said(run, settings)) is not None:
        if not corrections.said_names():
            where = "" if source == CORRECTIONS else f" --from {source}"
            raise UsageError(
                f"--labels-from {source}: {corrections.folder} holds no corrections; "
                f"`primaps-pipe correct {run.quoted}{where or ' --from DIR'}` makes such of label "
                f"maps, and `primaps-pipe review {run.quoted}` in the browser."
            )
        return corrections.fingerprint()
    split = source.removeprefix(SPLIT)
    if split not in manifest.splits:
        raise UsageError(
            f"--labels-from {source}: no split {split!r}"
            f"{did_you_mean(split, manifest.splits)}; there are {', '.join(manifest.splits)}."
        )
    if not name_known(run, settings):
        raise UsageError(f"--labels-from {source}: the dataset does not name its classes.")
    return fingerprint(fingerprint_labels(manifest, (split,)), fingerprint_classes(manifest))


def sum_known(run: RunDirectory, settings: EmSettings, store: Any, origin: Tensor) -> Known:
    """Sum the positions whose class is known, of the features, or codes, in ``store``."""
    names = name_known(run, settings)
    arrays = open_arrays(store, ["clean", "mirror"])
    grid = arrays["clean"].shape[1:3]
    moments, images = Moments.make_empty(origin, len(names)), 0
    left_out: list[str] = []
    for rows, labels in _read_known(run, settings, names, (grid[0], grid[1]), left_out):
        clean, mirror = (
            torch.from_numpy(read_rows(arrays[view], rows.start, rows.stop)).double()
            for view in ("clean", "mirror")
        )
        known = torch.from_numpy(labels < len(names))
        features = (clean + mirror.flip(2)) / 2
        moments.add(features[known], torch.from_numpy(labels).long()[known])
        images += 1
    if not images:
        raise RunError(
            f"--labels-from {settings.labels_from}: no image of it is among the usable ones; look "
            "at the splits that the fit is of."
        )
    return Known(names, moments, images, tuple(left_out))


def _read_known(
    run: RunDirectory,
    settings: EmSettings,
    names: tuple[str, ...],
    grid: tuple[int, int],
    left_out: list[str],
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Give the rows of every image of which something is known, and the classes of its positions.

    Classes are uint8 [window, row, column], ``IGNORE`` where none is known. What is ``left_out`` is
    told.
    """
    manifest, source = read_manifest(run), str(settings.labels_from)
    dataset, corrections = manifest.open_dataset(), open_said(run, settings)
    masks = open_arrays(run.masks, ["proposals"])["proposals"] if run.masks.is_dir() else None
    unreadable: list[tuple[str, ImageError]] = []

    def read_truth(image: Image, cover: Cover) -> NDArray[np.uint8] | None:
        path = manifest.label_path(image)
        if path is None:
            return None
        try:
            truth = open_truth(dataset, path, image).classes
        except ImageError as error:
            unreadable.append((image.path, error))
            return None
        if (gaps := read_gaps(manifest.root, image)) is not None:
            truth[gaps] = IGNORE
        return resize_labels(truth, *cover.resized)[cover.area]

    def read(image: Image) -> tuple[slice, NDArray[np.uint8]] | None:
        cover = Cover(tuple(manifest.windows_of(image)))
        if corrections is None:
            said = read_truth(image, cover)
        else:
            saying = read_said(corrections, image, cover, masks, grid, names)
            said = None if saying is None else saying.at_windows
        if said is None:
            return None
        labels = label_grid(said, cover.boxes, grid)
        return (cover.rows, labels) if (labels != IGNORE).any() else None

    splits = settings.splits if corrections else (source.removeprefix(SPLIT),)
    known = [i for i in (corrections.images() if corrections else manifest.images) if i.ok]
    chosen = [image for image in known if image.split in splits]
    threads = count_threads()
    for found in map_ahead(read, chosen, threads, 2 * threads):
        if found is not None:
            yield found
    if corrections and len(chosen) < len(known):
        left_out.append(
            f"--labels-from {source}: {count_of(len(known) - len(chosen), 'images')} of it of "
            f"other splits than the fit's ({', '.join(splits)}) are left out."
        )
    for path, error in sorted(unreadable)[:1]:
        more = f" ({len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        left_out.append(
            f"--labels-from {source}: the label map of {path} is left out: {error}{more}"
        )


def describe_known(known: Known) -> str:
    """Say how much is known."""
    return f"{count_of(known.images, 'images')} of which something is known"
