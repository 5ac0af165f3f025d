"""What a person says in a review: every change is checked, journaled, and saved at once.

A change carries what its page last saw of the thing that it changes: the name of a cluster, the
revision of an image. Where that is not what is there any more, another page, or another program,
was first: the change is refused, and nothing is lost.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE
from pipeline.errors import ImageError, RunError, UsageError
from pipeline.run.corrections import NOT_SAID, Corrections, Point, check_class, is_ignored
from pipeline.run.directory import RunDirectory, Subject
from pipeline.run.evaluation import Part, format_names, format_part, parse_names, read_part_names
from pipeline.run.ledger import read_record
from pipeline.run.manifest import Image
from pipeline.storage.files import checksum, confine_writes, fingerprint, make_folder, write_bytes
from stages.evaluate.names import bind_names, find_owner
from stages.labelling import Classifier
from workflows.review.journal import Entry, Journal

JOURNAL = "journal.jsonl"
# Left, top, right, bottom in the photograph; right and bottom are outside.
Area = tuple[int, int, int, int]


class ConflictError(RunError):
    """What is to be changed is not as the page has seen it."""


class Said:
    """What is said of a run and one of its fits; used by one thread at a time.

    ``classifier`` is that of the clusters; ``find_image`` gives an image by split and id, as the
    journal names it.
    """

    def __init__(
        self,
        run: RunDirectory,
        subject: Subject,
        classifier: Classifier,
        find_image: Callable[[str, str], Image],
    ) -> None:
        self.run, self.subject, self.clusters = run, subject, classifier.classes
        self._classifier, self._bound = classifier, False
        self._find_image = find_image
        self._fit = read_record(run, subject.key).digest
        owner = find_owner(run, subject)
        if owner not in (None, self._fit):
            raise RunError(
                f"{self.names_file} names the clusters of an earlier {subject.key}; run "
                f"`primaps-pipe evaluate {run.quoted}{subject.options}` first, which carries them "
                "over, or move the file away."
            )
        self.names()
        make_folder(run.corrections)
        self.journal = Journal(run.corrections / JOURNAL)
        self._go_on()

    # --- what there is ----------------------------------------------------------------------------

    @property
    def names_file(self) -> Path:
        """The file of the names of clusters."""
        return self.run.names_file(self.subject.title)

    def names(self) -> dict[Part, str]:
        """Return the names that clusters, and parts of them, have been given."""
        return read_part_names(self.run, self.subject.title, self.clusters)

    def corrections(self) -> Corrections:
        """Open what is said of images, as it is now."""
        return Corrections(self.run)

    def revision(self, image: Image, corrections: Corrections | None = None) -> str:
        """Return what tells what is said of an image from what was said before."""
        corrections = corrections or self.corrections()
        said = corrections.read_map(image)
        points = [astuple(point) for point in corrections.points_of(image)]
        # the numbers of classes stay, so that new classes change no revision
        return fingerprint(points, None if said is None else checksum(said.tobytes()))

    # --- changes ----------------------------------------------------------------------------------

    def name_clusters(self, changes: Mapping[Part, tuple[str | None, str | None]]) -> Entry:
        """Give some clusters another name each, at once: the one seen, and the new one or None."""
        present, names = self.names(), {}
        for part, (seen, new) in changes.items():
            cluster = format_part(part)
            if not 0 <= part[0] < self.clusters:
                raise UsageError(f"there is no cluster {cluster}; they go to {self.clusters - 1}.")
            if present.get(part) != seen:
                is_now = present.get(part) or "without a name"
                raise ConflictError(
                    f"cluster {cluster} is {is_now} now, by another page or program; look at it "
                    "and name it again."
                )
            name = None if new is None else check_class(new, f"cluster {cluster}")
            names[cluster] = [seen, name]
        given = {new for _, new in names.values()}
        told = ", ".join(sorted(new if new else "no name" for new in given))
        which = f"cluster {next(iter(names))}" if len(names) == 1 else f"{len(names)} clusters"
        return self._make({"what": f"{which}: {told}", "names": names})

    def place_points(
        self, image: Image, seen: str, added: Sequence[Point], removed: Sequence[Point] = ()
    ) -> Entry:
        """Say the class of places in an image; those of points that are removed is open again."""
        corrections = self._require(image, seen)
        for point in added:
            check_class(point.name, "a click")
            if not (0 <= point.x < image.width and 0 <= point.y < image.height):
                raise UsageError(f"pixel {point.x}, {point.y} lies outside of {image.id}.")
        places = {point.place for point in added}
        old = [p for p in corrections.points_of(image) if p in removed or p.place in places]
        names = ", ".join(dict.fromkeys(point.name for point in added))
        change = {
            "what": f"{image.id}: {names or 'a click less'}",
            "image": [image.split, image.id],
            "points": {
                "removed": [list(astuple(point)) for point in old],
                "added": [list(astuple(point)) for point in added],
            },
        }
        return self._make(change)

    def paint(
        self, image: Image, seen: str, mask: NDArray[np.bool_], corner: tuple[int, int], name: str
    ) -> Entry:
        """Say the class of some pixels, bool [y, x] from a corner (left, top); "" erases."""
        height, width = mask.shape
        left, top = corner
        area = left, top, left + width, top + height
        if left < 0 or top < 0 or area[2] > image.width or area[3] > image.height:
            raise UsageError(f"the stroke lies outside of {image.id}.")
        said = np.where(mask, NOT_SAID if not name else 0, -1)
        what = f"{image.id}: {'painted ' + name if name else 'erased'}"
        return self._change_map(image, seen, said, [name] if name else [], area, what)

    def accept(
        self, image: Image, seen: str, labels: NDArray[np.uint8], names: Sequence[str]
    ) -> Entry:
        """Say that a whole label map is right, uint8 [y, x] in numbers of names; 255 is left out.

        What is already said stays; 254 is not said.
        """
        area = 0, 0, image.width, image.height
        said = self._require(image, seen).read_map(image)
        known = labels.astype(np.int64)
        known[labels == NOT_SAID] = -1
        if said is not None:
            known[said != NOT_SAID] = -1
        return self._change_map(image, seen, known, names, area, f"{image.id}: is right")

    def ignore(self, image: Image, seen: str) -> Entry:
        """Say that a whole image is to be left out."""
        said = np.full((image.height, image.width), IGNORE, np.int64)
        area = 0, 0, image.width, image.height
        return self._change_map(image, seen, said, [], area, f"{image.id}: ignored")

    def undo(self, number: int) -> Entry:
        """Take the last change back, which must be the one that the page has seen as such."""
        if not self.journal.undoable:
            raise ConflictError("there is nothing to undo.")
        if self.journal.undoable[-1] != number:
            last = self.journal.read(self.journal.undoable[-1])["what"]
            raise ConflictError(f"another page was first; the last change is now: {last}.")
        entry = _invert(self.journal.read(number))
        if not self._is(_invert(entry), "after"):
            self.journal.undoable.pop()
            raise ConflictError(
                f"{entry['what']}: it was changed elsewhere since, and is left as it is; the "
                "change before it can be undone."
            )
        return self._make({**entry, "undoes": number})

    # --- how they are made ------------------------------------------------------------------------

    def _require(self, image: Image, seen: str) -> Corrections:
        corrections = self.corrections()
        if self.revision(image, corrections) != seen:
            raise ConflictError(
                f"{image.id} was changed by another page or program; look at it and try again."
            )
        return corrections

    def _change_map(
        self,
        image: Image,
        seen: str,
        said: NDArray[np.int64],
        names: Sequence[str],
        area: Area,
        what: str,
    ) -> Entry:
        """Change an area of a painted map; ``said`` has numbers of names, -1 stays as it is."""
        corrections = self._require(image, seen)
        before = _cut(corrections.read_map(image), area)
        classes = list(corrections.classes())
        table = np.arange(256)
        used = np.unique(said[(said >= 0) & (said < NOT_SAID)]).tolist()
        for number in used:
            name = check_class(names[number], "a class")
            if is_ignored(name):
                table[number] = IGNORE
                continue
            if name not in classes:
                classes.append(name)
            table[number] = classes.index(name)
        if len(classes) > NOT_SAID:
            raise RunError(f"a map holds {NOT_SAID} classes at most; give some of them one name.")
        after = np.where(said < 0, before, table[said]).astype(np.uint8)
        change = {
            "what": what,
            "image": [image.split, image.id],
            "map": {
                "area": list(area),
                "classes": classes,
                "before": _pack(before),
                "after": _pack(after),
            },
        }
        return self._make(change)

    def _make(self, change: Mapping[str, Any]) -> Entry:
        entry = self.journal.append(change)
        try:
            self._apply(entry)
        except (RunError, ImageError):
            self.journal.withdraw()
            raise
        return entry

    def _apply(self, entry: Entry) -> None:
        if "names" in entry:
            self._write_names({parse_part(k): new for k, (_, new) in entry["names"].items()})
            return
        image = self._find_image(*entry["image"])
        corrections = self.corrections()
        if "points" in entry:
            added, removed = (_points(entry["points"][k]) for k in ("added", "removed"))
            places = {point.place for point in added}
            # one write
            with corrections.hold():
                corrections.remove_points(image, [p for p in removed if p.place not in places])
                corrections.add_points(image, added)
            return
        said = corrections.read_map(image)
        if said is None:
            said = np.full((image.height, image.width), NOT_SAID, np.uint8)
        left, top, right, bottom = area = entry["map"]["area"]
        said[top:bottom, left:right] = _unpack(entry["map"]["after"], area)
        corrections.write_map(image, said, entry["map"]["classes"], replace=True)

    def _is(self, entry: Entry, side: str) -> bool:
        """Whether all is as it was before a change, or after it."""
        if "names" in entry:
            names, place = self.names(), 0 if side == "before" else 1
            pairs = entry["names"].items()
            return all(names.get(parse_part(k)) == values[place] for k, values in pairs)
        image = self._find_image(*entry["image"])
        corrections = self.corrections()
        if "points" in entry:
            keys = ("removed", "added") if side == "before" else ("added", "removed")
            there, gone = (set(_points(entry["points"][key])) for key in keys)
            points = {*corrections.points_of(image)}
            return there <= points and not (gone - there) & points
        area = entry["map"]["area"]
        said = _cut(corrections.read_map(image), area)
        return bool((said == _unpack(entry["map"][side], area)).all())

    def _go_on(self) -> None:
        """Make the last change, where a process was killed before it had made it."""
        entry = self.journal.last
        if entry is not None and self._is(entry, "before") and not self._is(entry, "after"):
            self._apply(entry)

    def _write_names(self, changes: Mapping[Part, str | None]) -> None:
        file = self.names_file
        text = file.read_bytes() if file.is_file() else b""
        wanted = parse_names(text, file)
        for part, name in changes.items():
            wanted.pop(part, None)
            if name is not None:
                wanted[part] = name
        with confine_writes(self.run.path):
            new = _edit_lines(text, changes)
            if not _holds(new, wanted):
                # no line for each cluster: written anew, and kept as it was
                kept = file.with_name(f"{file.name}.{checksum(text)[:8]}")
                write_bytes(kept, text, noted=False)
                new = ("\n".join(format_names(wanted)) + "\n").encode()
            if not self._bound:
                # before the names: of a fit that nobody knows they would be taken for another's
                bind_names(self.run, self.subject, self._fit, self._classifier)
                self._bound = True
            write_bytes(file, new, noted=False)


_LINE = re.compile(rb"[\"']?(\d{1,9}(?:\.[01])*)[\"']?[ \t]*:")


def parse_part(text: str) -> Part:
    """Return the cluster, or the part of one, that a text names as ``names.yaml`` does."""
    return tuple(map(int, text.split(".")))


def _edit_lines(text: bytes, changes: Mapping[Part, str | None]) -> bytes:
    """Change the lines of some clusters in ``names.yaml``; comments stay where they are."""
    left = dict(changes)
    lines = []
    for line in text.splitlines():
        found = _LINE.match(line)
        part = parse_part(found[1].decode()) if found else None
        if part is None or part not in changes:
            lines.append(line)
        elif (name := left.pop(part, None)) is not None:
            lines += _dump({part: name})
    lines += _dump({part: name for part, name in left.items() if name is not None})
    return b"\n".join(lines) + b"\n"


def _holds(text: bytes, names: Mapping[Part, str]) -> bool:
    try:
        return parse_names(text, "names.yaml") == names
    except RunError:
        return False


def _dump(names: Mapping[Part, str]) -> list[bytes]:
    return [line.encode() for line in format_names(names)]


def _invert(entry: Entry) -> Entry:
    """Return the change that takes a change back."""
    inverse: Entry = {key: entry[key] for key in ("what", "image") if key in entry}
    if "names" in entry:
        inverse["names"] = {k: [new, old] for k, (old, new) in entry["names"].items()}
    if "points" in entry:
        points = entry["points"]
        inverse["points"] = {"removed": points["added"], "added": points["removed"]}
    if "map" in entry:
        sides = {"before": entry["map"]["after"], "after": entry["map"]["before"]}
        inverse["map"] = {**entry["map"], **sides}
    return inverse


def _points(rows: Iterable[Sequence[Any]]) -> list[Point]:
    return [Point(*row) for row in rows]


def _cut(said: NDArray[np.uint8] | None, area: Sequence[int]) -> NDArray[np.uint8]:
    left, top, right, bottom = area
    if said is None:
        return np.full((bottom - top, right - left), NOT_SAID, np.uint8)
    return said[top:bottom, left:right].copy()


def _pack(numbers: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(numbers.tobytes())).decode()


def _unpack(text: str, area: Sequence[int]) -> NDArray[np.uint8]:
    left, top, right, bottom = area
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return numbers.reshape(bottom - top, right - left)
