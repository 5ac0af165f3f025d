"""One review: what is said of a run, what its pages show, what the named set gives now.

Pages ask :meth:`Review.pulse` whether anything has changed, and then for what they show of it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import PipelineError, RunError, UsageError
from pipeline.run.corrections import NOT_SAID, POINTS, Corrections, Point, is_ignored
from pipeline.run.directory import RunDirectory, choose_subject
from pipeline.run.evaluation import Part, format_part
from pipeline.run.ledger import require_fresh
from pipeline.run.manifest import Image
from pipeline.storage.files import stamp
from stages import SETTINGS, recall_settings
from stages.artefacts import open_artefacts, read_group_of
from stages.evaluate.naming import read_pinned
from stages.evaluate.settings import EvaluateSettings
from stages.known import find_clicked, read_said
from stages.labelling import MAIN
from workflows.review.journal import Entry
from workflows.review.pictures import (
    VIEW,
    Examples,
    Pictures,
    choose_of_units,
    draw_strokes,
    find_size,
    read_units,
)
from workflows.review.standing import (
    ClusterFacts,
    NamedSet,
    Sample,
    describe_clusters,
    find_named_set,
    measure_standing,
    read_sample,
)
from workflows.review.state import ConflictError, Said
from workflows.selection import select

MOST_LISTED = 500
# images that are chosen to be looked at first
MOST_FIRST = 200
_HIGHEST = NOT_SAID - 1


class Review:
    """A run that is reviewed; any thread may call it."""

    def __init__(self, run: RunDirectory, em: str | None, head: str | None) -> None:
        self.run = run.require()
        self.subject = choose_subject(run, em, head)
        require_fresh(run, self.subject.key, SETTINGS)
        em, head = self.subject.names
        settings = recall_settings("evaluate", run, {"em": em, "head": head}, forget=False)
        assert isinstance(settings, EvaluateSettings)
        artefacts = open_artefacts(run, em, head=head, gain=settings.cosine_gain)
        self.manifest = artefacts.manifest
        self.artefacts, self._settings = artefacts, settings
        self.pictures = Pictures(artefacts, settings.crf, settings.device)
        self.class_names = artefacts.dataset.class_names(self.manifest.labels)
        self.said = Said(run, self.subject, artefacts.classifiers[MAIN], self._find_image)
        images = self.manifest.images
        self._listed = images.choose(images.among("state", ["ok"])).table
        # what pages look at: each goes up when it has changed
        self._counts = {"names": 0, "said": 0, "standing": 0, "examples": 0}
        self._lock = threading.RLock()
        self._ranking = threading.Lock()
        self._examples: Examples | None = None
        self._units = read_units(artefacts)
        self._pinned = read_pinned(read_group_of(run, self.subject)[1])
        # share of the cluster, proposals, and the places of typical and doubtful cut-outs
        self._halves: dict[Part, tuple[float, int, list[int], list[int]]] = {}
        self._facts: ClusterFacts | None = None
        self._sample: Sample | None = None
        self._standing: dict[str, Any] | None = None
        self._named: NamedSet | None = None
        self._named_by: tuple[Any, ...] = ()
        self._stamps = self._stamp()
        self._first: tuple[tuple[str, str], list[int]] | None = None
        self._undo: dict[str, Any] | None = None
        self._wanted = threading.Event()
        self.trouble = ""
        self.closed = False

    def look(self) -> None:
        """Read what clusters and the panel are shown by, and keep the panel up to date.

        For a thread of its own, until the review is closed: what it reads takes seconds.
        """
        self._try(self.look_once)
        while not self.closed:
            self._wanted.wait()
            self._try(self._measure)

    def close(self) -> None:
        """End :meth:`look`, when it has done what it is at."""
        self.closed = True
        self._wanted.set()

    def _try(self, look: Callable[[], None]) -> None:
        try:
            look()
            self.trouble = ""
        except PipelineError as error:
            # the pages say it; another name may mend it
            self._wanted.clear()
            self.trouble = str(error)
        except RuntimeError:
            # no thread can be started any more by a process that ends
            if not self.closed:
                raise

    def look_once(self) -> None:
        """Read what clusters and the panel are shown by."""
        sample = read_sample(self.artefacts)
        facts = describe_clusters(sample, self.artefacts.classifiers[MAIN])
        with self._changing("examples"):
            self._sample, self._facts = sample, facts
        self._measure()
        if self.closed:
            return
        examples = self.pictures.find_examples()
        with self._changing("examples"):
            self._examples = examples

    def _measure(self) -> None:
        self._wanted.clear()
        if self._sample is None:
            return
        with self._lock:
            given, named, facts = self.said.names(), self.named(), self._facts
        standing = measure_standing(self._sample, named, self.class_names)
        assert facts is not None
        standing["named_share"] = sum(
            float(facts.shares[k])
            for (k, *half), name in given.items()
            if not half and not is_ignored(name)
        )
        standing["unnamed"] = self.artefacts.clusters - sum(len(part) == 1 for part in given)
        standing["joined"] = named.joined
        with self._changing("standing"):
            self._standing = standing

    @contextmanager
    def _changing(self, *which: str) -> Iterator[None]:
        with self._lock:
            yield
            for name in which:
                self._counts[name] += 1

    # --- what there is ----------------------------------------------------------------------------

    def pulse(self) -> dict[str, Any]:
        """Say what has changed, by counts, and what could be undone."""
        with self._lock:
            now = self._stamp()
            for name, seen in now.items():
                if self._stamps[name] != seen:
                    # by hand, or by another program
                    self._counts[name] += 1
                    self._wanted.set()
            self._stamps = now
            journal = self.said.journal
            number = journal.undoable[-1] if journal.undoable else None
            if number is None:
                self._undo = None
            elif self._undo is None or self._undo["number"] != number:
                self._undo = {"number": number, "what": journal.read(number)["what"]}
            return {**self._counts, "undo": self._undo, "trouble": self.trouble}

    def describe(self) -> dict[str, Any]:
        """Describe the run, once for each page."""
        run = self.run
        return {
            "run": str(run.path),
            "fit": self.subject.key.removesuffix("/default"),
            "clusters": self.artefacts.clusters,
            "images": self._listed.num_rows,
            "splits": list(self.manifest.splits),
            "command": f"primaps-pipe evaluate {run.quoted}{self.subject.options}",
            "has_proposals": self.artefacts.has_proposals,
        }

    def named(self) -> NamedSet:
        """Return what the names make of the fit now."""
        with self._lock:
            given = self.said.names()
            # what is said of images makes further classes, and takes proposals out of clusters
            said = self.said.corrections().said_names()
            key = (tuple(sorted(given.items())), said, self._stamp()["said"])
            if self._named is None or self._named_by != key:
                self._named = find_named_set(
                    self.artefacts, self._settings, self.class_names, given
                )
                self._named_by = key
            return self._named

    def list_clusters(self) -> dict[str, Any]:
        """List the clusters, and the parts of those that are split, with what is known so far.

        With them go the names to choose from, and the image of every cut-out.
        """
        with self._lock:
            given, named, corrections = self.said.names(), self.named(), self.said.corrections()
            examples = self._examples
            told = {} if examples is None else self._find_told(examples, corrections)
            for part in given:
                self._open_halves(part)
            parts = [(k,) for k in range(self.artefacts.clusters)] + [*self._halves]
            cards = [self._describe_part(part, given, named, told) for part in sorted(parts)]
            rows = [] if self._examples is None else self._examples.parts["image"].tolist()
        names = dict.fromkeys([*given.values(), *corrections.said_names(), *self.class_names])
        return {
            "clusters": cards,
            "names": [name for name in names if not is_ignored(name)],
            "images": [[row, self.manifest.images[row].id] for row in rows],
        }

    def _describe_part(
        self, part: Part, given: Mapping[Part, str], named: NamedSet, told: Mapping[int, str]
    ) -> dict[str, Any]:
        cluster, examples, facts = part[0], self._examples, self._facts
        # what has no name follows what it is part of
        called_so = self._pinned | dict(given)
        names = (called_so.get(part[: n + 1]) for n in reversed(range(len(part))))
        called = next((name for name in names if name is not None), None)
        number = {name: n for n, name in named.names.items()}.get(called or f"cluster {cluster}")
        card: dict[str, Any] = {
            "part": format_part(part),
            "cluster": cluster,
            "name": given.get(part),
            # what it counts as while nobody names it
            "known": self._pinned.get(part),
            "colour": _colour(named, IGNORE if number is None else number),
            "splits": self._can_split(part),
        }
        if len(part) > 1:
            share, count, typical, doubtful = self._halves[part]
            card |= {"proposals": count, "typical": typical, "doubtful": doubtful}
            if facts is not None:
                card["share"] = share * float(facts.shares[cluster])
        else:
            if facts is not None:
                card["share"] = float(facts.shares[cluster])
                if (near := int(facts.nearest[cluster])) >= 0:
                    card["nearest"] = [near, float(facts.similarity[cluster])]
            if examples is not None:
                card["proposals"] = examples.counts[cluster]
                card["typical"] = examples.typical.get(cluster, [])
                card["doubtful"] = examples.doubtful.get(cluster, [])
                if cluster in examples.rivals:
                    card["rival"] = examples.rivals[cluster]
        shown = card.get("typical", []) + card.get("doubtful", [])
        card["told"] = {place: told[place] for place in shown if place in told}
        return card

    def split(self, part: Part) -> None:
        """Show the two halves that a cluster, or a part of one, was merged from."""
        with self._changing("examples"):
            if not self._can_split(part):
                raise UsageError(
                    f"{self.subject.key} keeps no halves of {format_part(part)}; fit with "
                    "--clusters where there are masks, or name single cut-outs."
                )
            self._open_halves((*part, 0))

    def _can_split(self, part: Part) -> bool:
        if self._units is None or self._examples is None or (*part, 0) in self._halves:
            return False
        try:
            return self._units.tree.measure(part) > 1
        except KeyError:
            return False

    def _open_halves(self, part: Part) -> None:
        """Choose cut-outs for a part, its other half, and those that it is a part of."""
        for depth in range(1, len(part)):
            above = part[:depth]
            if not self._can_split(above):
                continue
            units, examples = self._units, self._examples
            assert units is not None and examples is not None
            image_of = np.asarray(self.manifest.windows.column("image"))
            whole = units.counts[units.tree.find_units((above[0],))].sum()
            for half in (0, 1):
                rows = units.tree.find_units((*above, half))
                chosen = choose_of_units(units, rows, image_of, above[0])
                first, second = len(examples.parts), len(examples.parts) + len(chosen[0])
                examples = replace(examples, parts=np.concatenate([examples.parts, *chosen]))
                self._halves[(*above, half)] = (
                    float(units.counts[rows].sum() / whole),
                    len(rows),
                    list(range(first, second)),
                    list(range(second, len(examples.parts))),
                )
            self._examples = examples

    def find_standing(self) -> dict[str, Any] | None:
        """Return what the named set gives; None as long as nobody knows."""
        return self._standing

    def list_images(
        self,
        start: int,
        count: int,
        *,
        split: str = "",
        search: str = "",
        said: bool = False,
        turn: str = "",
    ) -> dict[str, Any]:
        """List some of the images that are chosen, and say how many there are.

        With a ``turn`` those whose label would teach most come first; they are chosen anew for
        every other turn, and stay where they are meanwhile, whatever is said.
        """
        corrections = self.said.corrections()
        keys = {image.image for image in corrections.images()}
        table = self._listed
        if split:
            table = table.filter(pc.equal(table["split"], split))
        if search:
            table = table.filter(pc.match_substring(table["id"], search, ignore_case=True))
        if said:
            table = table.filter(pc.is_in(table["image"], value_set=pa.array([*keys], pa.int64())))
        if turn:
            table = table.take(pa.array(self._rank(table["image"], split, turn)))
        page = table.slice(max(0, start), max(0, min(count, MOST_LISTED)))
        columns = ("image", "id", "split", "width", "height")
        rows = page.select(columns).to_pylist()
        return {
            "total": table.num_rows,
            "images": [{**row, "said": row["image"] in keys} for row in rows],
        }

    def _rank(self, images: pa.ChunkedArray, split: str, turn: str) -> NDArray[np.int64]:
        """Return in which order images are shown, int64 [image]: first those to look at first."""
        # seconds, during which all else goes on
        with self._ranking:
            if self._first is None or self._first[0] != (split, turn):
                splits = (split,) if split else self.manifest.splits
                picks = select(self.run, images=MOST_FIRST, splits=splits).picks
                self._first = (split, turn), [pick.image.image for pick in picks]
            first = self._first[1]
        rank = np.full(len(self.manifest.images), MOST_FIRST)
        rank[first] = np.arange(len(first))
        return np.argsort(rank[np.asarray(images)], kind="stable")

    def find_image(self, row: int) -> Image:
        """Find an image by its row in the manifest."""
        images = self.manifest.images
        if not 0 <= row < len(images) or not images[row].ok:
            raise UsageError(f"there is no image {row} in {self.run.path}.")
        return images[row]

    def draw_cutout(self, place: int) -> bytes:
        """Draw one of the cut-outs, as JPEG."""
        return self.pictures.draw_cutout(self._require_example(place), place)

    def show_image(self, row: int) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Return what is known of an image, and its maps at the size of the view.

        They are the proposals, uint16 [y, x]; and the labels of the named set and what is said,
        uint8 [y, x] in the numbers of the legend.
        """
        image = self.find_image(row)
        width, height = find_size(image, VIEW)
        named, corrections = self.named(), self.said.corrections()
        numbers = self._number_names(named, corrections)
        labels = self.pictures.draw_labels(image, named, width, height)
        said = self._draw_said(image, corrections, numbers, width, height)
        proposals = self.pictures.draw_proposals(image, width, height)
        facts = {
            "image": row,
            "id": image.id,
            "split": image.split,
            "size": [width, height],
            "photograph": [image.width, image.height],
            "revision": self.said.revision(image, corrections),
            "points": [[p.x, p.y, p.x1, p.y1, p.name] for p in corrections.points_of(image)],
            "legend": [
                {
                    "number": number,
                    "name": name,
                    "colour": _colour(named, number),
                    "named": number in named.named or number not in named.names,
                }
                for name, number in numbers.items()
            ],
        }
        return facts, [proposals.astype("<u2"), labels, said]

    # --- changes ----------------------------------------------------------------------------------

    def name_clusters(self, changes: Mapping[Part, tuple[str | None, str | None]]) -> Entry:
        """Name some clusters; see :meth:`Said.name_clusters`."""
        with self._changing("names"):
            for part, (_, name) in changes.items():
                if len(part) > 1 and name is not None and part not in self._halves:
                    raise UsageError(f"{self.subject.key} has no part {format_part(part)}.")
            return self._done(self.said.name_clusters(changes))

    def name_example(self, place: int, seen: str | None, name: str | None) -> Entry:
        """Name one cut-out apart from its cluster; None takes its name away."""
        examples = self._require_example(place)
        image, x, y = self.pictures.find_pixel(examples, place)
        with self._changing("said"):
            corrections = self.said.corrections()
            if self._find_told(examples, corrections).get(place) != seen:
                raise ConflictError("this cut-out was named by another page; look at it again.")
            return self._done(self._place(image, corrections, x, y, name))

    def name_place(self, row: int, seen: str, x: int, y: int, name: str | None) -> Entry:
        """Give what lies under a pixel a class; None takes clicks on it back."""
        image = self.find_image(row)
        with self._changing("said"):
            corrections = self.said.corrections()
            return self._done(self._place(image, corrections, x, y, name, seen))

    def paint(
        self,
        row: int,
        seen: str,
        strokes: Sequence[Sequence[tuple[float, float]]],
        radius: float,
        name: str,
    ) -> Entry:
        """Paint with a brush, or erase where there is no name."""
        image = self.find_image(row)
        mask, corner = draw_strokes(strokes, radius, image)
        with self._changing("said"):
            return self._done(self.said.paint(image, seen, mask, corner, name))

    def accept(self, row: int, seen: str) -> Entry:
        """Say that the labels of an image are right, but for those of clusters without a name."""
        image = self.find_image(row)
        named, corrections = self.named(), self.said.corrections()
        numbers = self._number_names(named, corrections)
        labels = self.pictures.draw_labels(image, named, image.width, image.height)
        table = np.arange(256, dtype=np.uint8)
        table[[*(named.names.keys() - named.named)]] = NOT_SAID
        right = table[labels]
        said = self._draw_said(image, corrections, numbers, image.width, image.height)
        right = np.where(said == NOT_SAID, right, said)
        if (right == NOT_SAID).all():
            raise UsageError("no cluster in this image has a name yet; name clusters first.")
        with self._changing("said"):
            return self._done(self.said.accept(image, seen, right, _list_names(numbers)))

    def ignore(self, row: int, seen: str) -> Entry:
        """Leave a whole image out."""
        with self._changing("said"):
            return self._done(self.said.ignore(self.find_image(row), seen))

    def undo(self, number: int) -> Entry:
        """Take the last change back."""
        with self._changing("names", "said"):
            return self._done(self.said.undo(number))

    def _done(self, entry: Entry) -> Entry:
        self._stamps = self._stamp()
        self._wanted.set()
        return entry

    def _place(
        self,
        image: Image,
        corrections: Corrections,
        x: int,
        y: int,
        name: str | None,
        seen: str | None = None,
    ) -> Entry:
        place = self.pictures.find_place(image, x, y)
        if place is None:
            raise UsageError(
                "no window covers this part of the photograph, so that it has no proposal; paint "
                "it with the brush instead."
            )
        clicks = [point for point in corrections.points_of(image) if point.x1 is None]
        same = [p for p in clicks if self.pictures.find_place(image, p.x, p.y) == place]
        if name is None and not same:
            raise UsageError("nothing was said of this place by a click.")
        added = [] if name is None else [Point(x, y, None, None, name)]
        seen = self.said.revision(image, corrections) if seen is None else seen
        return self.said.place_points(image, seen, added, same)

    # --- helpers ----------------------------------------------------------------------------------

    def _find_image(self, split: str, id: str) -> Image:
        images = self.manifest.images
        for image in images.choose(images.among("id", [id])):
            if image.split == split:
                return image
        raise RunError(
            f"{self.said.journal.file} is of image {split}/{id}, which the run has not; move the "
            "file away: only undo needs it."
        )

    def _require_example(self, place: int) -> Examples:
        examples = self._examples
        if examples is None or not 0 <= place < len(examples.parts):
            raise UsageError(f"there is no cut-out {place}.")
        return examples

    def _find_told(self, examples: Examples, corrections: Corrections) -> dict[int, str]:
        """Find which cut-outs clicks name."""
        if self.pictures.masks is None:
            return {}
        told: dict[int, str] = {}
        clicked = find_clicked(corrections, self.manifest, self.pictures.masks)
        parts = examples.parts
        for (window, number), name in clicked.items():
            same = (parts["window"] == window) & (parts["number"] == number) & parts["proposal"]
            told |= dict.fromkeys(np.flatnonzero(same).tolist(), name)
        return told

    def _number_names(self, named: NamedSet, corrections: Corrections) -> dict[str, int]:
        """Give all names numbers: as the named set does, and further ones from the other end."""
        numbers = {name: number for number, name in named.names.items()}
        used = set(numbers.values())
        spare = (number for number in range(_HIGHEST, -1, -1) if number not in used)
        # those of the dataset, which nothing has yet, as long as there is room
        for name in (*corrections.said_names(), *self.class_names):
            if name in numbers or (number := next(spare, None)) is None:
                continue
            numbers[name] = number
        if lacking := {*corrections.said_names()} - numbers.keys():
            raise RunError(
                f"clusters and corrections have more than {NOT_SAID} names, so that {min(lacking)} "
                "has no number; give some of them one name."
            )
        return numbers

    def _draw_said(
        self,
        image: Image,
        corrections: Corrections,
        numbers: Mapping[str, int],
        width: int,
        height: int,
    ) -> NDArray[np.uint8]:
        """Draw what is said of an image at a size, as ``evaluate`` takes it; 254 is not said."""
        cover, masks, names = self.artefacts.cover(image), self.pictures.masks, _list_names(numbers)
        said = read_said(corrections, image, cover, masks, self.artefacts.grid, names)
        if said is None:
            return np.full((height, width), NOT_SAID, np.uint8)
        return said.draw(width, height)

    def _stamp(self) -> dict[str, Any]:
        return {
            "names": stamp(self.said.names_file),
            "said": stamp(self.run.corrections / POINTS),
        }


def _list_names(numbers: Mapping[str, int]) -> list[str]:
    """List names by their numbers, "" where there is none."""
    names = [""] * 256
    for name, number in numbers.items():
        names[number] = name
    return names


def _colour(named: NamedSet, number: int) -> list[int]:
    return [128, 128, 128] if number == IGNORE else named.palette[number].tolist()


def pack_maps(facts: Mapping[str, Any], maps: Sequence[NDArray[Any]]) -> bytes:
    """Pack what :meth:`Review.show_image` gives: length of the JSON in 4 bytes, JSON, maps."""
    head = json.dumps(facts).encode()
    # two bytes each begin at an even place
    head += b" " * (-len(head) % 4)
    return len(head).to_bytes(4, "little") + head + b"".join(each.tobytes() for each in maps)
