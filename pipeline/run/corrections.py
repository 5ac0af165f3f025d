"""What a person says of a run's images lies in ``RUN/corrections``; this alone reads and writes it.

``points.csv`` holds clicks and boxes. ``maps/SPLIT/ID.png`` holds painted label maps: 254 = not
said, 255 = ignore, other numbers are places in ``classes.yaml``, which is only ever appended to.
Names of clusters, ``names.yaml`` beside them, belong to a fit (:mod:`pipeline.run.evaluation`).
No stage writes here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE, Colour, distinct_colours, png_palette
from pipeline.errors import ImageError, RunError, did_you_mean
from pipeline.images.decoding import encode_png, read_label
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import (
    LEFT_OUT_NAME,
    LONGEST,
    Part,
    check_name,
    compose_yaml,
    format_names,
    format_part,
    parse_names,
    read_part_names,
)
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.storage.files import (
    Stamp,
    checksum,
    confine_writes,
    fingerprint,
    remove_file,
    stamp,
    write_bytes,
)
from pipeline.storage.places import (
    find_files,
    find_objects,
    is_remote,
    list_names,
    map_requests,
    resolve_inside,
)

NOT_SAID = 254
# Classes that a map can hold beside NOT_SAID and IGNORE.
MOST = NOT_SAID
CLASSES, POINTS, MAPS = "classes.yaml", "points.csv", "maps"
_COLUMNS = ("split", "image", "x", "y", "x1", "y1", "class")
_NOT_SAID_COLOUR: Colour = (128, 128, 128)
# Whose word counts.
Prefer = Literal["ours", "theirs"]
# An image, by split and id.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Point:
    """A click on a pixel of the upright photograph, or a box; both of its corners are in it."""

    x: int
    y: int
    x1: int | None
    y1: int | None
    name: str

    @property
    def place(self) -> tuple[int, int, int, int]:
        """What tells it from other points of an image; a click is a box of no size below 0."""
        corner = (-1, -1) if self.x1 is None or self.y1 is None else (self.x1, self.y1)
        return (self.x, self.y, *corner)

    @property
    def ignored(self) -> bool:
        """Whether it says that what it shows is to be left out."""
        return is_ignored(self.name)


def is_ignored(name: str) -> bool:
    """Whether a name says that what has it is left out: 255 in every label map."""
    return name.casefold() == LEFT_OUT_NAME


def check_class(name: str | None, where: str) -> str:
    """Return the name of a class, stripped, if it is one line that is not too long."""
    return check_name(name, f"{where}: a class", "correct it")


class Corrections:
    """What a person says of the images of a run.

    What was read is kept: make another object to see what others have written since. Whatever is
    written is laid over what lies there then.

    Parameters
    ----------
    run
        The run. To name it touches nothing.
    folder
        Another folder of the same kind, such as that of another person, to be read; that of the run
        when None.

    Raises
    ------
    RunError
        ``classes.yaml`` or ``points.csv`` is not what it should be.
    """

    def __init__(self, run: RunDirectory, folder: Path | None = None) -> None:
        self.run = run
        self.folder = folder or run.corrections
        # points of a whole row of writes are one file
        self._held = self._changed = False
        # another's images may be others than ours
        self._strays: list[str] | None = None if folder is None else []

    # --- what is said -----------------------------------------------------------------------------

    def classes(self) -> tuple[str, ...]:
        """Return the names of the numbers in the painted maps."""
        return self._classes

    def said_names(self) -> tuple[str, ...]:
        """Return the classes of the maps, where there are any, and further names of the points."""
        # a list that is none is an error, whether a map needs it or not
        classes = self.classes()
        names = dict.fromkeys(classes if self._maps else ())
        points = (point for each in self._points.values() for point in each)
        names |= dict.fromkeys(point.name for point in points if not point.ignored)
        return tuple(names)

    def images(self) -> list[Image]:
        """List the images of the run of which something is said, in their order."""
        names = {_bare(name) for name in self._maps} | {"/".join(key) for key in self._points}
        return find_images(self._manifest, names)

    def points_of(self, image: Image) -> list[Point]:
        """List the clicks and boxes in an image, in the order in which they were said."""
        return list(self._points.get((image.split, image.id), ()))

    def read_map(self, image: Image) -> NDArray[np.uint8] | None:
        """Read the painted map of an image; None where there is none.

        Returns
        -------
        numpy.ndarray
            uint8 [y, x] of the photograph's size: number of one of :meth:`classes`, 255 = ignore,
            254 = not said.

        Raises
        ------
        ImageError
            It cannot be read, has another size, or holds a number that no class has.
        """
        name = name_map(image)
        return self._read_map(name, image) if name in self._maps else None

    def fingerprint(self, image: Image | None = None) -> str:
        """Return a fingerprint of what is said of an image, or of all; "" where nothing is.

        It does without reading maps that this process has read, or an object store has digested.
        Names of clusters are not in it.
        """
        if image is None:
            maps = self._digest(sorted(self._maps))
            points = sorted(self._points.items())
        else:
            name = name_map(image)
            maps = self._digest([name] if name in self._maps else [])
            points = [((image.split, image.id), self.points_of(image))]
        said = [(*key, *point.place, point.name) for key, each in points for point in each]
        classes = self.classes()
        return fingerprint(said, maps, classes if maps else ()) if said or maps else ""

    def find_strays(self) -> list[str]:
        """List what is of no image of the run: maps, by their names here, and another's points."""
        maps = set(self._maps)
        if maps:
            found = find_images(self._manifest, {_bare(name) for name in maps})
            maps -= {name_map(image) for image in found}
        points = self._strays if self._points or self._strays else ()
        return sorted({*maps, *(f"{POINTS}: {name}" for name in points or ())})

    # --- saying it --------------------------------------------------------------------------------

    def write_map(
        self,
        image: Image,
        said: NDArray[np.uint8],
        names: Sequence[str],
        *,
        replace: bool = False,
    ) -> None:
        """Lay what is said of an image over what is there.

        Parameters
        ----------
        image
            The image.
        said
            uint8 [y, x] of the photograph's size: number of one of ``names``, 255 = ignore, 254 =
            as it was.
        names
            Names of the classes; ``ignore`` is 255.
        replace
            What is 254 is not said any more, rather than as it was.
        """
        with self.hold():
            old = None if replace else self._read_old(image)
            new, classes = self._take_numbers(image, said, names)
            self._write_map(image, new if old is None else _lay(new, old), classes)

    def merge_map(
        self,
        image: Image,
        said: NDArray[np.uint8],
        names: Sequence[str],
        prefer: Prefer | None = None,
        *,
        write: bool = True,
    ) -> tuple[int, dict[tuple[str, str], int]]:
        """Lay what another says of an image beside what is there; where both differ, as told.

        Parameters
        ----------
        image, said, names
            As in :meth:`write_map`.
        prefer
            Whose word counts where both say something else; ours stays, and is a conflict, if None.
        write
            Whether to write it, or to count alone.

        Returns
        -------
        int
            Pixels that change.
        dict of (str, str) to int
            Conflicts: pixels by what is said here and there.
        """
        with self.hold() if write else nullcontext():
            old = self._read_old(image)
            new, classes = self._take_numbers(image, said, names)
            if old is None:
                old = np.full_like(new, NOT_SAID)
            both = (old != new) & (old != NOT_SAID) & (new != NOT_SAID)
            pairs = np.bincount(old[both] * np.uint16(256) + new[both], minlength=2**16)
            merged = _lay(new, old) if prefer == "theirs" else _lay(old, new)
            changed = int(np.count_nonzero(merged != old))
            if write and changed:
                self._write_map(image, merged, classes)
        shown = (*classes, *("" for _ in range(len(classes), IGNORE)), LEFT_OUT_NAME)
        conflicts = {
            (shown[pair >> 8], shown[pair & 255]): int(pairs[pair])
            for pair in np.flatnonzero(pairs).tolist()
        }
        return changed, {} if prefer else conflicts

    def add_points(self, image: Image, points: Iterable[Point]) -> None:
        """Add clicks and boxes to an image; one at the place of another replaces it."""
        self.merge_points(image, points, "theirs")

    def merge_points(
        self,
        image: Image,
        points: Iterable[Point],
        prefer: Prefer | None = None,
        *,
        write: bool = True,
    ) -> tuple[int, list[tuple[Point, Point]]]:
        """Add another's clicks and boxes; where one lies at the place of ours, as told.

        Parameters and what is returned as in :meth:`merge_map`: points that change, and pairs of
        ours and theirs that differ.
        """
        with self.hold() if write else nullcontext():
            ours = {point.place: point for point in self.points_of(image)}
            new = [point for point in points if ours.get(point.place) != point]
            conflicts = [(ours[point.place], point) for point in new if point.place in ours]
            taken = [p for p in new if prefer == "theirs" or p.place not in ours]
            if write and taken:
                self._change_points(image, taken, taken)
        return len(taken), [] if prefer else conflicts

    def remove_points(self, image: Image, points: Iterable[Point]) -> None:
        """Remove clicks and boxes from an image, by their places."""
        with self.hold():
            self._change_points(image, points, ())

    def write_names(
        self, title: str, names: Mapping[int, str] | Mapping[Part, str], *, replace: bool = False
    ) -> None:
        """Name clusters of a fit or head, or parts, beside those that have names or in their place.

        A file that cannot say it by lines below what a person wrote is kept beside the new one.
        """
        with self.hold():
            file = self.run.names_file(title)
            old = _read(file) if file.is_file() else b""
            known = parse_names(old, file)
            given = {_take_part(key): name for key, name in names.items()}
            wanted = {**({} if replace else known), **given}
            wanted = {
                part: check_class(name, f"cluster {format_part(part)}")
                for part, name in sorted(wanted.items())
            }
            if wanted == known:
                return
            new = {number: name for number, name in wanted.items() if number not in known}
            text = old + (b"" if not old or old.endswith(b"\n") else b"\n") + _dump(new)
            if not _says(text, wanted):
                text = _dump(wanted)
                if b"#" in old:
                    kept = file.with_name(f"{file.name}.{checksum(old)[:8]}")
                    write_bytes(kept, old, noted=False)
            write_bytes(file, text, noted=False)

    def merge_names(
        self,
        title: str,
        names: Mapping[Part, str],
        prefer: Prefer | None = None,
        *,
        write: bool = True,
    ) -> tuple[int, list[tuple[Part, str, str]]]:
        """Add another's names of clusters; where ours has another name, as told.

        Returns how many names change, and the conflicts: cluster, our name, theirs.
        """
        with self.hold() if write else nullcontext():
            ours = read_part_names(self.run, title)
            differ = [(n, ours[n], name) for n, name in names.items() if ours.get(n, name) != name]
            taken = {n: name for n, name in names.items() if n not in ours}
            if prefer == "theirs":
                taken |= {number: name for number, _, name in differ}
            if write and taken:
                self.write_names(title, taken)
        return len(taken), [] if prefer else differ

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock of all who write here, for several writes in a row perhaps.

        What those before have written is seen.
        """
        if self._held:
            yield
            return
        with self.run.lock("corrections", wait=True), confine_writes(self.run.path):
            self._forget()
            self._held = True
            try:
                yield
            finally:
                self._held = False
                changed, points = self._changed, self._points if self._changed else {}
                self._forget()
                if changed:
                    self._write_points(points)

    def _forget(self) -> None:
        self._changed = False
        for name in ("_listing", "_classes", "_points", "_maps"):
            self.__dict__.pop(name, None)

    def _take_numbers(
        self, image: Image, said: NDArray[np.uint8], names: Sequence[str]
    ) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """Give what is said in the numbers of the classes, and those with what is new."""
        if said.shape != (image.height, image.width):
            raise ImageError(_other_size(image, said.shape))
        used = np.flatnonzero(np.bincount(said.ravel(), minlength=256)).tolist()
        table = np.full(256, NOT_SAID, np.uint8)
        table[IGNORE] = IGNORE
        classes = list(self._classes)
        for number in used:
            if number in (NOT_SAID, IGNORE):
                continue
            if number >= len(names):
                raise ImageError(f"it holds {number}, and there are {len(names)} names")
            name = check_class(names[number], f"class {number}")
            if is_ignored(name):
                table[number] = IGNORE
                continue
            if name not in classes:
                classes.append(name)
            table[number] = classes.index(name) if len(classes) <= MOST else 0
        if len(classes) > MOST:
            raise RunError(
                f"{self.folder / CLASSES} would have {len(classes)} classes, and a map holds "
                f"{MOST} at most; give some of them one name."
            )
        return table[said], tuple(classes)

    def _read_old(self, image: Image) -> NDArray[np.uint8] | None:
        """Read a map without the list of all of them."""
        name = name_map(image)
        return self._read_map(name, image) if (self.folder / name).is_file() else None

    def _write_map(self, image: Image, said: NDArray[np.uint8], classes: tuple[str, ...]) -> None:
        file = resolve_inside(self.folder, name_map(image))
        if (said == NOT_SAID).all():
            remove_file(file)
            return
        if len(classes) > len(self._classes):
            # before the map, which means nothing without it
            text = yaml.safe_dump(list(classes), allow_unicode=True, width=1000)
            write_bytes(self.folder / CLASSES, text.encode(), noted=False)
            self.__dict__["_classes"] = classes
        palette = bytearray(png_palette(distinct_colours(IGNORE)))
        palette[3 * NOT_SAID : 3 * IGNORE] = bytes(_NOT_SAID_COLOUR)
        write_bytes(file, encode_png(said, bytes(palette)), noted=False)

    def _change_points(
        self, image: Image, removed: Iterable[Point], added: Sequence[Point]
    ) -> None:
        key, places = (image.split, image.id), {point.place for point in removed}
        for point in added:
            check_class(point.name, "a point")
        kept = [point for point in self.points_of(image) if point.place not in places]
        if not self._changed:
            # of many changes in a row the first alone copies
            self.__dict__["_points"], self._changed = dict(self._points), True
        self._points[key] = [*kept, *added]

    def _write_points(self, points: Mapping[Key, Sequence[Point]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for key, each in points.items():
            writer.writerows((*key, p.x, p.y, p.x1, p.y1, p.name) for p in each)
        write_bytes(self.folder / POINTS, text.getvalue().encode(), noted=False)

    # --- the files --------------------------------------------------------------------------------

    @cached_property
    def _listing(self) -> set[str]:
        """What lies there, of one listing."""
        return {name for name, _ in list_names(self.folder)}

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if CLASSES not in self._listing:
            return ()
        file = self.folder / CLASSES
        return parse_classes(_read(file), file)

    @cached_property
    def _points(self) -> dict[Key, list[Point]]:
        if POINTS not in self._listing:
            return {}
        file = self.folder / POINTS
        now, listed = stamp(file), stamp(self.run.manifest_file)
        if self._strays is None and now is not None and listed is not None:
            return _recall_points(self.run, now, listed)
        return parse_points(_read(file), file, self._manifest, self._strays)

    @cached_property
    def _maps(self) -> dict[str, str]:
        """The maps by their names below the folder, with the digest that a store has of each."""
        folder = self.folder / MAPS
        if MAPS not in self._listing:
            return {}
        if is_remote(folder):
            found = ((name, status.etag) for name, status in find_objects(folder))
        else:
            found = ((path.relative_to(folder).as_posix(), "") for path in find_files(folder))
        return {f"{MAPS}/{name}": etag for name, etag in found if name.endswith(".png")}

    @cached_property
    def _manifest(self) -> Manifest:
        return read_manifest(self.run)

    def _digest(self, names: Sequence[str]) -> list[tuple[str, str]]:
        def digest(name: str) -> tuple[str, str]:
            file = self.folder / name
            return name, self._maps[name] or digest_file(file, stamp(file))

        return map_requests(self.folder, digest, names)

    def _read_map(self, name: str, image: Image) -> NDArray[np.uint8]:
        file = resolve_inside(self.folder, name)
        try:
            said = read_label(file)
            if said.ndim != 2:
                raise ImageError("it holds colours, and not numbers of classes")
            if said.shape != (image.height, image.width):
                raise ImageError(_other_size(image, said.shape))
            known = len(self.classes())
            wrong = said[(said >= known) & (said != NOT_SAID) & (said != IGNORE) | (said < 0)]
            if wrong.size:
                raise ImageError(
                    f"it holds {wrong.flat[0]}, and {CLASSES} names {known} classes, from 0"
                )
        except ImageError as error:
            raise ImageError(
                f"{file} cannot be taken as a painted map: {error}; correct it or take it away."
            ) from error
        return said.astype(np.uint8)


def _lay(over: NDArray[np.uint8], under: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.where(over == NOT_SAID, under, over)


def name_map(image: Image) -> str:
    """Name the painted map of an image, below the folder."""
    return f"{MAPS}/{image.split}/{image.id}.png"


def _bare(name: str) -> str:
    """Return the split/id that a map is named after."""
    return name.removeprefix(f"{MAPS}/").removesuffix(".png")


def _other_size(image: Image, shape: Sequence[int]) -> str:
    return f"it is {shape[1]} x {shape[0]}, the image {image.width} x {image.height}"


@lru_cache(maxsize=2**16)
def digest_file(file: Path, _: Stamp | None) -> str:
    """Digest a file, once in a process as long as its stamp is the same."""
    return checksum(file.read_bytes())


@lru_cache(maxsize=1)
def _recall_points(run: RunDirectory, *_: Stamp) -> dict[Key, list[Point]]:
    """Read the points once in a process for every time they were written: every shard asks."""
    file = run.corrections / POINTS
    return parse_points(_read(file), file, read_manifest(run))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}.") from error


def parse_classes(text: bytes, file: object) -> tuple[str, ...]:
    """Parse ``classes.yaml``: a YAML list of names, which are the words as they are written."""
    example = "write one line for each class, such as `- road`"
    root = compose_yaml(text, file, example)
    if root is None:
        return ()
    if not isinstance(root, yaml.SequenceNode):
        raise RunError(f"{file} is no list of names; {example}.")
    names: list[str] = []
    for node in root.value:
        where = f"{file}, line {node.start_mark.line + 1}"
        name = check_class(node.value if isinstance(node, yaml.ScalarNode) else None, where)
        if is_ignored(name):
            raise RunError(f"{where}: {name!r} is 255 in every map; take the name out of the list.")
        if name in names:
            raise RunError(
                f"{where}: {name!r} is class {names.index(name)}, too; give one of them another "
                "name."
            )
        names.append(name)
    if len(names) > MOST:
        raise RunError(f"{file} has {len(names)} names, and a map holds {MOST} classes at most.")
    return tuple(names)


def parse_points(
    text: bytes, file: object, manifest: Manifest, strays: list[str] | None = None
) -> dict[Key, list[Point]]:
    """Parse ``points.csv``: by image, in their order; of two at one place the later counts.

    Images that the run has not are an error, or told as ``strays`` where there is such a list.
    """
    try:
        lines = io.StringIO(text.decode("utf-8-sig"), newline="")
        rows = csv.reader(lines, strict=True)
        header = [name.strip() for name in next(rows, [])]
        optional = {"x1", "y1"}
        if len({*header}) != len(header) or not {*_COLUMNS} - optional <= {*header} <= {*_COLUMNS}:
            raise RunError(
                f"{file} has the columns {', '.join(header)[:LONGEST] or 'of no name'}; its first "
                f"line must be {','.join(_COLUMNS)}."
            )
        given = [(rows.line_num, row) for row in rows if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{file} is not CSV in UTF-8 ({error}); save it so.") from error
    columns = {name: header.index(name) for name in header}
    for line, row in given:
        if len(row) != len(header):
            raise RunError(
                f"{file}, line {line}: it has {len(row)} fields, and the first line {len(header)}; "
                "correct the line or remove it."
            )
    named = {f"{row[columns['split']]}/{row[columns['image']]}" for _, row in given}
    images = {(image.split, image.id): image for image in find_images(manifest, named)}
    points: dict[Key, dict[tuple[int, ...], Point]] = {}
    for line, row in given:
        where = f"{file}, line {line}"
        key = row[columns["split"]], row[columns["image"]]
        if key not in images and strays is not None:
            strays.append("/".join(key))
            continue
        if key not in images:
            raise _no_image(where, key, manifest)
        cells = {name: row[at].strip() for name, at in columns.items()}
        point = _parse_point(cells, where, images[key].width, images[key].height)
        points.setdefault(key, {}).pop(point.place, None)
        points[key][point.place] = point
    return {key: list(each.values()) for key, each in points.items()}


def _parse_point(cells: Mapping[str, str], where: str, width: int, height: int) -> Point:
    name = check_class(cells["class"], where)
    numbers: list[int | None] = []
    for column, end in (("x", width), ("y", height), ("x1", width), ("y1", height)):
        text = cells.get(column, "")
        if not text and column in ("x1", "y1"):
            numbers.append(None)
            continue
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < end):
            raise RunError(
                f"{where}: {column} is {text[:LONGEST]!r}, and the image has pixels 0 to {end - 1} "
                "there; correct the line or remove it."
            )
        numbers.append(int(text))
    x, y, x1, y1 = numbers
    assert x is not None and y is not None
    if (x1 is None) != (y1 is None) or (x1 is not None and y1 is not None and (x1 < x or y1 < y)):
        raise RunError(
            f"{where}: a box goes from x,y to an x1,y1 that lies right of it and below, and a "
            "click has neither; correct the line or remove it."
        )
    return Point(x, y, x1, y1, name)


def find_images(manifest: Manifest, names: Collection[str]) -> list[Image]:
    """Find images by split/id, in one go over the columns."""
    images = manifest.images
    known = pc.binary_join_element_wise(images.column("split"), images.column("id"), "/")
    found = pc.is_in(known, value_set=pa.array(list(names), pa.string()))
    return list(images.choose(np.asarray(found, dtype=bool)))


def _no_image(where: str, key: Key, manifest: Manifest) -> RunError:
    split, id = key
    images = manifest.images
    same = pc.equal(images.column("split"), split)
    ids = images.table.filter(same)["id"].to_pylist() or [*manifest.splits]
    close = did_you_mean(id if split in manifest.splits else split, ids[:10_000])
    return RunError(
        f"{where}: there is no image {id[:LONGEST]!r} in split {split[:LONGEST]!r}{close}; correct "
        "the line or remove it."
    )


def _take_part(key: int | Part) -> Part:
    return (key,) if isinstance(key, int) else key


def _dump(names: Mapping[Part, str]) -> bytes:
    return "".join(f"{line}\n" for line in format_names(names)).encode()


def _says(text: bytes, names: Mapping[Part, str]) -> bool:
    try:
        return parse_names(text, "") == names
    except RunError:
        return False
