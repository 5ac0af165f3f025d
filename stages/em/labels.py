"""What is known beside the features: read of label maps and corrections, summed by its names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.definition import IGNORE
from pipeline.errors import (
    ImageError,
    RunError,
    UsageError,
    count_of,
    did_you_mean,
    list_some,
)
from pipeline.images.windows import Cover
from pipeline.run.corrections import Corrections
from pipeline.run.directory import CLEAN, RunDirectory
from pipeline.run.frames import count_threads, map_ahead, open_truth, read_gaps, resize_labels
from pipeline.run.label_maps import open_labels
from pipeline.run.manifest import Image, read_manifest
from pipeline.run.status import fingerprint_classes, fingerprint_labels
from pipeline.storage.arrays import open_arrays, read_rows
from pipeline.storage.files import fingerprint
from pipeline.storage.places import parse_place
from stages.artefacts import open_pair
from stages.discriminants import Moments
from stages.em.pieces import Pins
from stages.em.settings import CORRECTIONS, SPLIT, EmSettings
from stages.em.sums import PROPOSALS
from stages.known import label_grid, label_proposals, read_said
from stages.labelling import average_views


class Known(NamedTuple):
    """What is known beside the features: sums of positions by name, and how much it is."""

    names: tuple[str, ...]
    moments: Moments
    images: int
    left_out: tuple[str, ...] = ()  # what says nothing to the fit, and why: a sentence each
    pinned: tuple[str, ...] = ()  # names of the first clusters, which are those of known classes

    @property
    def means(self) -> Tensor:
        """Mean feature of every name that a position has, float32 [name, channel]."""
        held = self.moments.count > 0
        means = self.moments.total[held] / self.moments.count[held, None]
        return (means + self.moments.origin).float()

    def describe(self, source: str) -> dict[str, Any]:
        """Return what a fit says of the labels that it saw."""
        positions = int(self.moments.count.sum())
        return {"from": source, "images": self.images, "positions": positions}


def open_said(run: RunDirectory, settings: EmSettings) -> Corrections | None:
    """Open the corrections that are meant, of the run or in a folder; None where it is a split."""
    source = str(settings.labels_from)
    if source.startswith(SPLIT):
        return None
    if source == CORRECTIONS:
        return Corrections(run)
    if not (folder := parse_place(source)).is_dir():
        raise UsageError(f"--labels-from {source}: there is no such folder.")
    return open_labels(run, folder)


def name_known(run: RunDirectory, corrections: Corrections | None) -> tuple[str, ...]:
    """Name the classes of which something may be known, by corrections or by a split."""
    if corrections is not None:
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
            if strays := corrections.find_strays():
                raise UsageError(
                    f"--labels-from {source}: no file of it is named after an image of the run "
                    f"({list_some(strays)}); give them the names of the photographs."
                )
            where = "" if source == CORRECTIONS else f" --from {source}"
            raise UsageError(
                f"--labels-from {source}: {corrections.folder} holds no corrections, nor label "
                f"PNGs; `primaps-pipe correct {run.quoted}{where or ' --from DIR'}` makes "
                f"corrections of label maps, and `primaps-pipe review {run.quoted}` in the browser."
            )
        return corrections.fingerprint()
    split = source.removeprefix(SPLIT)
    if split not in manifest.splits:
        raise UsageError(
            f"--labels-from {source}: no split {split!r}"
            f"{did_you_mean(split, manifest.splits)}; there are {', '.join(manifest.splits)}."
        )
    if not name_known(run, None):
        raise UsageError(f"--labels-from {source}: the dataset does not name its classes.")
    return fingerprint(fingerprint_labels(manifest, (split,)), fingerprint_classes(manifest))


@dataclass(frozen=True)
class Labels:
    """What is known of the windows of a run, by position of the grid of a view and by proposal.

    ``table`` is uint8 [window, position or proposal], first all positions and then all numbers that
    a proposal may have: 1 + the number of a name, 0 where nothing is known. It lies in a file that
    takes space for the images of ``rows``, of which something is known, alone. ``clusters``, uint8
    [1 + number], is which of the pinned clusters each name has, 255 where none.
    """

    names: tuple[str, ...]
    view: str
    grid: tuple[int, int]
    table: NDArray[np.uint8]
    rows: tuple[slice, ...]
    clusters: NDArray[np.uint8]
    left_out: tuple[str, ...]

    @property
    def pinned(self) -> tuple[str, ...]:
        """The names of the pinned clusters: those that a position has."""
        return tuple(n for n, k in zip(self.names, self.clusters[1:], strict=False) if k != IGNORE)

    def pin(self, windows: NDArray[np.integer]) -> Pins:
        """Return whose what is known of some windows is."""
        clusters = torch.from_numpy(self.clusters[self.table[windows]])
        positions, proposals = clusters.tensor_split([self.grid[0] * self.grid[1]], dim=1)
        return Pins(positions.unflatten(1, self.grid), proposals.contiguous())

    def pin_proposals(self, number: Tensor) -> Tensor:
        """Return whose proposals are, as :meth:`pin` does, int64 [proposal].

        A number is 256 x row of the window + that of the proposal.
        """
        window, own = (each.numpy() for each in (number // PROPOSALS, number % PROPOSALS))
        known = self.table[window, self.grid[0] * self.grid[1] + own]
        return torch.from_numpy(self.clusters[known]).long()


def read_labels(
    run: RunDirectory, settings: EmSettings, view: str = CLEAN, *, proposals: bool
) -> Labels:
    """Read what is known at a view's grid; of proposals, too, if wanted and there are any."""
    corrections, manifest = open_said(run, settings), read_manifest(run)
    names = name_known(run, corrections)
    store = find_store(run, settings)
    rows, columns = open_pair(store, view)["clean"].shape[1:3]
    # a click is on a position of the clean view, whichever is labelled
    clicked = open_pair(store, CLEAN)["clean"].shape[1:3]
    cells, left_out, found = rows * columns, list[str](), list[slice]()
    shape = len(manifest.windows), cells + PROPOSALS
    with TemporaryFile() as file:
        # where nothing is written, it takes no space
        table = np.memmap(file, np.uint8, "w+", shape=shape)
    count = np.zeros(256, np.int64)
    grids = Grids((rows, columns), (clicked[0], clicked[1]))
    read = _read_known(run, settings, corrections, names, grids, proposals, left_out)
    for own, labels in read:
        # 255 is nothing, and becomes 0
        table[own] = labels + np.uint8(1)
        count += np.bincount(table[own, :cells].ravel(), minlength=256)
        found.append(own)
    if not found:
        raise RunError(
            f"--labels-from {settings.labels_from}: no image of it is among the usable ones; look "
            "at the splits that the fit is of."
        )
    clusters = np.full(256, IGNORE, np.uint8)
    present = np.flatnonzero(count[1:]) + 1
    clusters[present] = np.arange(len(present))
    return Labels(names, view, (rows, columns), table, tuple(found), clusters, tuple(left_out))


def find_store(run: RunDirectory, settings: EmSettings) -> Path:
    """Return where the features, or codes, lie that are fitted."""
    return run.features if settings.head is None else run.codes(settings.head)


def sum_known(
    run: RunDirectory, settings: EmSettings, labels: Labels, origin: Tensor | None = None
) -> Known:
    """Sum the positions whose class is known, about an origin, or about the first of them."""
    arrays = open_pair(find_store(run, settings), labels.view)
    cells, moments, images = labels.grid[0] * labels.grid[1], None, 0
    for rows in labels.rows:
        own = torch.from_numpy(labels.table[rows, :cells].astype(np.int64)).flatten()
        if not own.any():
            continue
        clean, mirror = (
            torch.from_numpy(read_rows(arrays[view], rows.start, rows.stop)).double()
            for view in ("clean", "mirror")
        )
        features = average_views(clean, mirror).flatten(0, 2)
        if moments is None:
            middle = features.mean(dim=0) if origin is None else origin
            moments = Moments.make_empty(middle, len(labels.names))
        moments.add(features[own > 0], own[own > 0] - 1)
        images += 1
    if moments is None:
        raise RunError(
            f"--labels-from {settings.labels_from}: no position of the grid is mostly of one class "
            "of it; say more of the images."
        )
    return Known(labels.names, moments, images, labels.left_out)


class Grids(NamedTuple):
    """Rows and columns of the positions that are summed, and of those that a click is on."""

    summed: tuple[int, int]
    clicked: tuple[int, int]


def _read_known(
    run: RunDirectory,
    settings: EmSettings,
    corrections: Corrections | None,
    names: tuple[str, ...],
    grids: Grids,
    proposals: bool,
    left_out: list[str],
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Give the rows of every image of which something is known, and its classes there.

    Classes are uint8 [window, position or proposal], ``IGNORE`` where none is known. What is
    ``left_out`` is told.
    """
    manifest, source = read_manifest(run), str(settings.labels_from)
    dataset = manifest.open_dataset()
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
            saying = read_said(corrections, image, cover, masks, grids.clicked, names)
            said = None if saying is None else saying.at_windows
        if said is None:
            return None
        ids = None
        if proposals and masks is not None:
            ids = read_rows(masks, cover.rows.start, cover.rows.stop)
        labels = np.concatenate(
            [
                label_grid(said, cover.boxes, grids.summed).reshape(len(cover.boxes), -1),
                label_proposals(said, cover.boxes, ids),
            ],
            axis=1,
        )
        return (cover.rows, labels) if (labels != IGNORE).any() else None

    splits = settings.splits if corrections else (source.removeprefix(SPLIT),)
    known = [i for i in (corrections.images() if corrections else manifest.images) if i.ok]
    chosen = [image for image in known if image.split in splits]
    threads = count_threads()
    for found in map_ahead(read, chosen, threads, 2 * threads):
        if found is not None:
            yield found
    if corrections is not None and (strays := corrections.find_strays()):
        left_out.append(
            f"--labels-from {source}: {count_of(len(strays), 'files')} of it of no image of the "
            f"run are left out: {list_some(strays)}."
        )
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
