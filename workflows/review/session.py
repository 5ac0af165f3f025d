"""One review: what is said of a run, what its pages show, what the named set gives now.

Pages ask :meth:`Review.pulse` whether anything has changed, and then for what they show of it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import PipelineError, RunError, UsageError
from pipeline.run.corrections import NOT_SAID, POINTS, Corrections, Point, is_ignored
from pipeline.run.directory import RunDirectory, choose_subject
from pipeline.run.evaluation import read_part_names
from pipeline.run.ledger import require_fresh
from pipeline.run.manifest import Image
from pipeline.storage.files import stamp
from stages import SETTINGS, recall_settings
from stages.artefacts import open_artefacts
from stages.evaluate.settings import EvaluateSettings
from stages.known import lay_said, read_painted
from stages.labelling import MAIN, scale_box
from stages.report.pictures import enlarge
from workflows.review.journal import Entry
from workflows.review.pictures import VIEW, Examples, Pictures, draw_strokes, find_size
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

MOST_LISTED = 500
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
        self._examples: Examples | None = None
        self._facts: ClusterFacts | None = None
        self._sample: Sample | None = None
        self._standing: dict[str, Any] | None = None
        self._named: NamedSet | None = None
        self._named_by: tuple[Any, ...] = ()
        self._stamps = self._stamp()
        self._undo: dict[str, Any] | None = None
        self._wanted = threading.Event()
        self.trouble = ""

    def look(self) -> None:
        """Read what clusters and the panel are shown by, and keep the panel up to date; for ever.

        For a thread of its own: what it reads takes seconds.
        """
        self._try(self.look_once)
        while True:
            self._wanted.wait()
            self._try(self._measure)

    def _try(self, look: Callable[[], None]) -> None:
        try:
            look()
            self.trouble = ""
        except PipelineError as error:
            # the pages say it; another name may mend it
            self._wanted.clear()
            self.trouble = str(error)

    def look_once(self) -> None:
        """Read what clusters and the panel are shown by."""
        sample = read_sample(self.artefacts)
        facts = describe_clusters(sample, self.artefacts.classifiers[MAIN])
        with self._changing("examples"):
            self._sample, self._facts = sample, facts
        self._measure()
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
            float(facts.shares[k]) for k, name in given.items() if not is_ignored(name)
        )
        standing["unnamed"] = self.artefacts.clusters - len(given)
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
            given = read_part_names(self.run, self.subject.title, self.artefacts.clusters)
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
        """List the clusters with what is known of them so far; and the names to choose from."""
        with self._lock:
            given, named = self.said.names(), self.named()
            facts, examples = self._facts, self._examples
            corrections = self.said.corrections()
            told = {} if examples is None else self._find_told(examples, corrections)
        clusters = []
        for k in range(self.artefacts.clusters):
            card: dict[str, Any] = {
                "cluster": k,
                "name": given.get(k),
                "colour": _colour(named, int(named.clusters[k])),
            }
            if facts is not None:
                card["share"] = float(facts.shares[k])
                near = int(facts.nearest[k])
                if near >= 0:
                    card["nearest"] = [near, float(facts.similarity[k])]
            if examples is not None:
                card["proposals"] = examples.counts[k]
                if k in examples.rivals:
                    card["rival"] = examples.rivals[k]
                card["typical"] = examples.typical.get(k, [])
                card["doubtful"] = examples.doubtful.get(k, [])
                shown = card["typical"] + card["doubtful"]
                card["told"] = {place: told[place] for place in shown if place in told}
            clusters.append(card)
        names = dict.fromkeys([*given.values(), *corrections.said_names(), *self.class_names])
        rows = [] if examples is None else examples.parts["image"].tolist()
        return {
            "clusters": clusters,
            "names": [name for name in names if not is_ignored(name)],
            # of every cut-out
            "images": [[row, self.manifest.images[row].id] for row in rows],
        }

    def find_standing(self) -> dict[str, Any] | None:
        """Return what the named set gives; None as long as nobody knows."""
        return self._standing

    def list_images(
        self, start: int, count: int, *, split: str = "", search: str = "", said: bool = False
    ) -> dict[str, Any]:
        """List some of the images that are chosen, and say how many there are."""
        corrections = self.said.corrections()
        keys = {image.image for image in corrections.images()}
        table = self._listed
        if split:
            table = table.filter(pc.equal(table["split"], split))
        if search:
            table = table.filter(pc.match_substring(table["id"], search, ignore_case=True))
        if said:
            table = table.filter(pc.is_in(table["image"], value_set=pa.array([*keys], pa.int64())))
        page = table.slice(max(0, start), max(0, min(count, MOST_LISTED)))
        columns = ("image", "id", "split", "width", "height")
        rows = page.select(columns).to_pylist()
        return {
            "total": table.num_rows,
            "images": [{**row, "said": row["image"] in keys} for row in rows],
        }

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

    def name_clusters(self, changes: Mapping[int, tuple[str | None, str | None]]) -> Entry:
        """Name some clusters; see :meth:`Said.name_clusters`."""
        with self._changing("names"):
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
        names = ["" for _ in range(256)]
        for name, number in numbers.items():
            names[number] = name
        if (right == NOT_SAID).all():
            raise UsageError("no cluster in this image has a name yet; name clusters first.")
        with self._changing("said"):
            return self._done(self.said.accept(image, seen, right, names))

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
        shown = {int(row) for row in examples.parts["image"]}
        told: dict[int, str] = {}
        for image in corrections.images():
            if image.image not in shown:
                continue
            first = self.artefacts.cover(image).rows.start
            parts = examples.parts
            for point in corrections.points_of(image):
                place = self.pictures.find_place(image, point.x, point.y)
                if point.x1 is not None or place is None:
                    continue
                same = (parts["window"] == first + place.window) & parts["proposal"]
                same &= parts["number"] == place.proposal
                told |= dict.fromkeys(np.flatnonzero(same).tolist(), point.name)
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
        names = [""] * 256
        for name, number in numbers.items():
            names[number] = name
        drawn = np.full((height, width), NOT_SAID, np.uint8)
        cover, masks = self.artefacts.cover(image), self.pictures.masks
        said = lay_said(corrections, image, cover, masks, self.artefacts.grid, names)
        if said is not None:
            left, top, right, bottom = scale_box(cover.box, cover.resized, (width, height))
            drawn[top:bottom, left:right] = enlarge(said, bottom - top, right - left)
        painted = read_painted(corrections, image, names)
        if painted is None:
            return drawn
        # in the sharpness of the photograph
        small = enlarge(painted, height, width)
        return np.where(small == NOT_SAID, drawn, small)

    def _stamp(self) -> dict[str, Any]:
        return {
            "names": stamp(self.said.names_file),
            "said": stamp(self.run.corrections / POINTS),
        }


def _colour(named: NamedSet, number: int) -> list[int]:
    return [128, 128, 128] if number == IGNORE else named.palette[number].tolist()


def pack_maps(facts: Mapping[str, Any], maps: Sequence[NDArray[Any]]) -> bytes:
    """Pack what :meth:`Review.show_image` gives: length of the JSON in 4 bytes, JSON, maps."""
    head = json.dumps(facts).encode()
    # two bytes each begin at an even place
    head += b" " * (-len(head) % 4)
    return len(head).to_bytes(4, "little") + head + b"".join(each.tobytes() for each in maps)
