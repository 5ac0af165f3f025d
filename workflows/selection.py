"""The job behind `select`: which images, or proposals, are worth a person's next minutes.

Chosen are those that stand for most of what nothing that was said so far stands for. That needs
features and proposals alone, so it can be asked before there is any fit.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pipeline.errors import RunError, UsageError, count_of
from pipeline.images.windows import Cover
from pipeline.progress import Screen
from pipeline.run.corrections import NOT_SAID, Corrections
from pipeline.run.directory import RunDirectory, choose_subject
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.ledger import read_record, require_fresh
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.storage.arrays import open_arrays, read_rows, take_rows
from stages.known import read_said
from stages.selection import (
    MOST_CANDIDATES,
    MOST_TARGETS,
    UNCOVERED,
    Chosen,
    Proposals,
    centre,
    choose_covering,
    draw_some,
    measure_nearness,
)
from workflows.export.folder import COMMON, choose_suffix, export_photograph, open_folder
from workflows.export.job import list_items, name_splits, refuse_run

VERSION = 1
LIST = {"images": "images.csv", "proposals": "points.csv"}
"""What is chosen -> the list that is written beside the photographs."""

# Names the sample, of a run with more proposals than are compared.
_SEED = 0
# Windows whose proposals are in memory at a time.
_BLOCK = 256
# Share of its pixels of which something is said, from which on a proposal or an image is known.
_KNOWN = 0.5


@dataclass(frozen=True)
class Pick:
    """An image that was chosen, or a proposal in it.

    Attributes
    ----------
    image
        The image.
    share
        Share of all proposals that resemble this one more than any taken before, or known.
    point
        A pixel (x, y) of the photograph well inside the proposal; None for a whole image.
    proposal
        Row of the proposal's window, and its number there, from 1; None for a whole image.
    """

    image: Image
    share: float
    point: tuple[int, int] | None = None
    proposal: tuple[int, int] | None = None

    def describe(self) -> dict[str, Any]:
        """Describe it, JSON-able."""
        place = {} if self.point is None else {"x": self.point[0], "y": self.point[1]}
        named = {"split": self.image.split, "image": self.image.id, "path": self.image.path}
        return {**named, **place, "share": round(self.share, 4)}


@dataclass(frozen=True)
class Selection:
    """What was chosen, in the order in which it is worth looking at, and why, in a sentence."""

    kind: str
    picks: tuple[Pick, ...]
    why: str

    def describe(self) -> dict[str, Any]:
        """Describe it, JSON-able."""
        chosen = [pick.describe() for pick in self.picks]
        return {"kind": self.kind, "why": self.why, "chosen": chosen}


def describe_pick(pick: Pick) -> str:
    """Describe an image, or a proposal by a pixel in it, in a line of columns."""
    place = "" if pick.point is None else "  {:5d} {:5d}".format(*pick.point)
    return f"{100 * pick.share:5.1f} %{place}  {pick.image.split}/{pick.image.id}"


def select(
    run: RunDirectory,
    *,
    images: int | None = None,
    proposals: int | None = None,
    splits: Sequence[str] = (),
    em: str | None = None,
) -> Selection:
    """Choose the images, or the proposals, whose label would teach most.

    Parameters
    ----------
    run
        A run with proposals. What is said in its ``corrections`` is known already.
    images, proposals
        How many to choose, of one kind.
    splits
        Splits to choose from; train where there is one, else all, when empty.
    em
        A fit: what was added to the run since it was made comes first. The run's own when None.

    Returns
    -------
    Selection
        The same at every call, until something else is said or the images change.

    Raises
    ------
    UsageError
        Not one of both numbers is given, or there is no such split.
    RunError
        There are no proposals, or they are stale.
    """
    if (images is None) == (proposals is None):
        raise UsageError("select takes --images N or --proposals N, one of them.")
    require_fresh(run, "masks")
    pool = _Pool(run, tuple(splits))
    kind, wanted = ("proposals", proposals) if images is None else ("images", images)
    assert wanted is not None
    drawn = pool.features(draw_some(len(pool.window), MOST_TARGETS, _SEED))
    mean = drawn.mean(axis=0, dtype=np.float64)
    targets = centre(drawn, mean)
    said = np.flatnonzero(pool.said)
    covered = np.full(len(targets), UNCOVERED)
    for block in pool.read(said, np.zeros(len(said), np.int64), mean):
        covered = np.maximum(covered, measure_nearness([block], targets, 1)[0])
    new = pool.image >= _count_seen(run, em, len(pool.manifest.images))
    picks, compared, there = list[Pick](), 0, 0
    for part in (new, ~new):
        rows, own, owner, count = _list_candidates(pool, kind, part)
        compared, there = compared + len(rows), there + count
        nearness = measure_nearness(pool.read(own, owner, mean), targets, len(rows))
        chosen = choose_covering(nearness, np.ones(len(targets)), covered, wanted - len(picks))
        for candidate in chosen.candidates:
            covered = np.maximum(covered, nearness[candidate])
        picks += _pick(pool, kind, rows, chosen)
    added = int(np.isin([pick.image.image for pick in picks], pool.image[new]).sum())
    why = _explain(kind, (wanted, len(picks), added), pool, (compared, there), len(targets))
    return Selection(kind, tuple(picks), why)


def _count_seen(run: RunDirectory, em: str | None, images: int) -> int:
    """Count the images that there were when a fit was made; all where there is none."""
    if em is None and not run.names("em"):
        return images
    # fits that an earlier version made do not say so
    return int(read_record(run, choose_subject(run, em, None).key).facts.get("images", images))


def _list_candidates(
    pool: _Pool, kind: str, part: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """List what may be chosen of a part of the proposals: images by row, or proposals.

    With them go their proposals, to which of them each belongs, and of how many they were drawn.
    """
    if kind == "proposals":
        there = np.flatnonzero(part & ~pool.said)
        rows = there[draw_some(len(there), MOST_CANDIDATES, _SEED)]
        return rows, rows, np.arange(len(rows)), len(there)
    there = np.setdiff1d(pool.image[part], list(pool.known))
    rows = there[draw_some(len(there), MOST_CANDIDATES, _SEED)]
    own = np.flatnonzero(np.isin(pool.image, rows))
    return rows, own, np.searchsorted(rows, pool.image[own]), len(there)


def _pick(pool: _Pool, kind: str, rows: NDArray[np.int64], chosen: Chosen) -> Iterator[Pick]:
    for place, share in zip(rows[chosen.candidates].tolist(), chosen.shares.tolist(), strict=True):
        if kind == "images":
            yield Pick(pool.manifest.images[place], share)
        else:
            image = pool.manifest.images[int(pool.image[place])]
            own = int(pool.window[place]), int(pool.number[place]) + 1
            yield Pick(image, share, pool.point(place), own)


def _explain(
    kind: str, counts: tuple[int, int, int], pool: _Pool, among: tuple[int, int], targets: int
) -> str:
    """Say in a sentence why these."""
    total, (wanted, count, added) = len(pool.window), counts
    seen = f"all {total}" if targets == total else f"{targets} drawn of {total}"
    drawn = "" if among[0] == among[1] else f" ({among[0]} drawn of them)"
    why = (
        f"{count_of(count, kind)} of {among[1]}{drawn} in {', '.join(pool.splits)}: the ones whose "
        f"proposals, taken together, resemble most of {seen} proposals, each adding what those "
        "before it lack"
    )
    if added:
        why += f"; first {added} of what was added since the fit was made"
    said = int(pool.said.sum())
    if said:
        left = f", {count_of(len(pool.known), 'images')} left out as known" if pool.known else ""
        why += f"; {count_of(said, 'proposals')} that corrections speak of count as seen{left}"
    if count < wanted:
        why += f"; the others of the {wanted} would add nothing"
    return why


class _Pool:
    """The proposals of some splits of a run: where each lies, and what it looks like."""

    def __init__(self, run: RunDirectory, splits: Sequence[str]) -> None:
        self.manifest: Manifest = read_manifest(run)
        self.splits = self.manifest.choose_splits(splits)
        self.corrections = Corrections(run)
        rows, columns = read_record(run, "extract").facts["grid"]
        self._grid = int(rows), int(columns)
        self._arrays = open_arrays(run.masks, ["proposals", "pooled", "area"])
        windows = self.manifest.usable_windows(splits=self.splits)
        numbers = np.asarray(windows.column("index"))
        images = np.asarray(windows.column("image"))
        area = np.zeros((len(numbers), self._arrays["area"].shape[1]), np.uint32)
        take_rows(self._arrays["area"], numbers, area)
        place, proposal = np.nonzero(area)
        if not len(place):
            raise RunError(
                f"{run.path} has no proposals in {', '.join(self.splits)} to choose from; look at "
                f"its photographs, or take another split."
            )
        self.window: NDArray[np.int64] = numbers[place]  # of every proposal, ascending
        self.number = proposal  # of every proposal in its window, from 0
        self.image: NDArray[np.int64] = images[place]

    def features(self, chosen: NDArray[np.int64]) -> NDArray[np.float16]:
        """Read the pooled features of some proposals, ascending."""
        pooled = self._arrays["pooled"]
        windows, inverse = np.unique(self.window[chosen], return_inverse=True)
        found = np.empty((len(chosen), pooled.shape[2]), np.float16)
        for first in range(0, len(windows), _BLOCK):
            part = windows[first : first + _BLOCK]
            rows = np.empty((len(part), *pooled.shape[1:]), pooled.dtype)
            take_rows(pooled, part, rows)
            here = np.flatnonzero((inverse >= first) & (inverse < first + _BLOCK))
            found[here] = rows[inverse[here] - first, self.number[chosen[here]]]
        return found

    def read(
        self, chosen: NDArray[np.int64], owner: NDArray[np.int64], mean: NDArray[np.float64]
    ) -> Iterator[Proposals]:
        """Read some proposals, ascending, block by block, centred."""
        for first in range(0, len(chosen), _BLOCK):
            part = slice(first, first + _BLOCK)
            yield Proposals(owner[part], centre(self.features(chosen[part]), mean))

    @cached_property
    def _spoken(self) -> tuple[NDArray[np.bool_], set[int]]:
        said, known = np.zeros(len(self.window), np.bool_), set[int]()
        images = [i for i in self.corrections.images() if i.ok and i.split in self.splits]
        threads = count_threads()
        unique = {image.image: image for image in images}.values()
        for row, places, whole in map_ahead(self._find_said, unique, threads, threads):
            said[places] = True
            if whole:
                known.add(row)
        return said, known

    @property
    def said(self) -> NDArray[np.bool_]:
        """Of which proposals corrections speak, bool [proposal]."""
        return self._spoken[0]

    @property
    def known(self) -> set[int]:
        """The images of which corrections have said most."""
        return self._spoken[1]

    def _find_said(self, image: Image) -> tuple[int, NDArray[np.int64], bool]:
        """Find the proposals of an image that are known, and whether it is as a whole."""
        windows = self.manifest.windows_of(image)
        cover, places = Cover(tuple(windows)), list[int]()
        masks = self._arrays["proposals"]
        # which class is said does not matter here
        names = self.corrections.said_names()
        said = read_said(self.corrections, image, cover, masks, self._grid, names)
        if said is None:
            return image.image, np.zeros(0, np.int64), False
        spoken = said.at_windows != NOT_SAID
        ids = read_rows(masks, cover.rows.start, cover.rows.stop)
        for window, own, (x0, y0, x1, y1) in zip(windows, ids, cover.boxes, strict=True):
            size = np.bincount(own.ravel(), minlength=256)
            inside = np.bincount(own.ravel(), spoken[y0:y1, x0:x1].ravel(), 256)
            known = inside >= _KNOWN * np.maximum(size, 1)
            first, last = np.searchsorted(self.window, (window.index, window.index + 1))
            places += [p for p in range(int(first), int(last)) if known[self.number[p] + 1]]
        return image.image, np.array(places, np.int64), bool(spoken.mean() >= _KNOWN)

    def point(self, proposal: int) -> tuple[int, int]:
        """Find the pixel of the photograph that lies deepest in a proposal, as x and y."""
        row, number = int(self.window[proposal]), int(self.number[proposal]) + 1
        image, window = self.manifest.images[int(self.image[proposal])], self.manifest.windows[row]
        (ids,) = read_rows(self._arrays["proposals"], row, row + 1)
        # with a margin: a window's border is a border of the proposal
        depth = distance_transform_edt(np.pad(ids == number, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        width, height = Cover((window,)).resized
        return (
            int((window.left + x + 0.5) * image.width / width),
            int((window.top + y + 0.5) * image.height / height),
        )


def write_selection(run: RunDirectory, selection: Selection, out: Path, screen: Screen) -> str:
    """Copy the chosen photographs into a folder, with a list; say so.

    The list of proposals has the columns of ``corrections/points.csv``: with the last one filled
    in it can be laid there.
    """
    refuse_run(run, out)
    manifest = read_manifest(run)
    images = list({pick.image.image: pick.image for pick in selection.picks}.values())
    splits = name_splits(list(dict.fromkeys(image.split for image in images)))
    places = {
        item.image.image: (
            f"images/{item.split}/{item.name}{choose_suffix(item.image.path, COMMON)}"
        )
        for item in list_items(images, splits, nested=True)
    }
    record = {
        "format": f"select {selection.kind}",
        "version": VERSION,
        "run": run.path.name,
        "chosen": [pick.describe() for pick in selection.picks],
        "photographs": [image.digest for image in images],
    }
    with open_folder(out, record) as folder:
        with screen.count("select", len(images), "images") as counter:
            for image in images:
                export_photograph(manifest.root, image, folder, places[image.image], "copy")
                counter.advance()
        folder.write(LIST[selection.kind], _make_list(selection, places))
    return f"{count_of(len(images), 'photographs')} and {LIST[selection.kind]} are in {out}"


def _make_list(selection: Selection, places: dict[int, str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if selection.kind == "proposals":
        writer.writerow(("split", "image", "x", "y", "x1", "y1", "class"))
        for pick in selection.picks:
            writer.writerow((pick.image.split, pick.image.id, *(pick.point or ()), "", "", ""))
    else:
        writer.writerow(("split", "image", "file", "share"))
        for pick in selection.picks:
            file = places[pick.image.image]
            writer.writerow((pick.image.split, pick.image.id, file, f"{pick.share:.4f}"))
    return text.getvalue().encode()
