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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE, Colour, distinct_colours, png_palette
from pipeline.errors import ImageError, RunError, did_you_mean
from pipeline.images.decoding import encode_png, read_label
from pipeline.run.directory import RunDirectory
from pipeline.run.evaluation import LEFT_OUT_NAME, LONGEST
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
    text = "" if name is None else name.strip()
    if not text or not text.isprintable() or len(text) > LONGEST:
        shown = "a list or mapping" if name is None else repr(f"{name[:LONGEST]}")
        raise RunError(
            f"{where}: a class needs a name of one line, at most {LONGEST} characters, and not "
            f"{shown}; correct it."
        )
    return text


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

    # --- what is said -----------------------------------------------------------------------------

    def classes(self) -> tuple[str, ...]:
        """Return the names of the numbers in the painted maps."""
        return self._classes

    def said_names(self) -> tuple[str, ...]:
        """Return the classes of the maps, where there are any, and further names of the points."""
        names = dict.fromkeys(self.classes() if self._maps else ())
        points = (point for each in self._points.values() for point in each)
        names |= dict.fromkeys(point.name for point in points if not point.ignored)
        return tuple(names)

    def images(self) -> list[Image]:
        """List the images of the run of which something is said, in their order."""
        names = {_bare(name) for name in self._maps} | {"/".join(key) for key in self._points}
        return _find_images(self._manifest, names)

    def points_of(self, image: Image) -> list[Point]:
        """List the clicks and boxes in an image, in the order in which they were said."""
        return self._points.get((image.split, image.id), [])

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
        name = _name_map(image)
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
            name = _name_map(image)
            maps = self._digest([name] if name in self._maps else [])
            points = [((image.split, image.id), self.points_of(image))]
        said = [(*key, *point.place, point.name) for key, each in points for point in each]
        return fingerprint(said, maps, self.classes() if maps else ()) if said or maps else ""

    def find_strays(self) -> list[str]:
        """List the maps of no image of the run, by their names below ``corrections``."""
        if not self._maps:
            return []
        known = _find_images(self._manifest, {_bare(name) for name in self._maps})
        return sorted(self._maps.keys() - {*map(_name_map, known)})

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
        with self._write():
            old = None if replace else self.read_map(image)
            new = self._take_numbers(image, said, names)
            if old is not None:
                new = np.where(new == NOT_SAID, old, new)
            file = resolve_inside(self.folder, _name_map(image))
            if (new == NOT_SAID).all():
                remove_file(file)
            else:
                palette = bytearray(png_palette(distinct_colours(IGNORE)))
                palette[3 * NOT_SAID : 3 * IGNORE] = bytes(_NOT_SAID_COLOUR)
                write_bytes(file, encode_png(new, bytes(palette)), noted=False)

    def add_points(self, image: Image, points: Iterable[Point]) -> None:
        """Add clicks and boxes to an image; one at the place of another replaces it."""
        self._write_points({(image.split, image.id): list(points)}, {})

    def remove_points(self, image: Image, points: Iterable[Point]) -> None:
        """Remove clicks and boxes from an image, by their places."""
        self._write_points({}, {(image.split, image.id): list(points)})

    @contextmanager
    def _write(self) -> Iterator[None]:
        """Hold the lock of all who write here, and see what those before have written."""
        with self.run.lock("corrections", wait=True), confine_writes(self.run.path):
            self._forget()
            try:
                yield
            finally:
                self._forget()

    def _forget(self) -> None:
        for name in ("_listing", "_classes", "_points", "_maps"):
            self.__dict__.pop(name, None)

    def _take_numbers(
        self, image: Image, said: NDArray[np.uint8], names: Sequence[str]
    ) -> NDArray[np.uint8]:
        """Give what is said in the numbers of the classes; append those that are new."""
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
        if len(classes) > len(self._classes):
            # before the map, which means nothing without it
            text = yaml.safe_dump(classes, allow_unicode=True, width=1000)
            write_bytes(self.folder / CLASSES, text.encode(), noted=False)
        return table[said]

    def _write_points(
        self, added: Mapping[Key, list[Point]], removed: Mapping[Key, list[Point]]
    ) -> None:
        with self._write():
            points = {key: list(each) for key, each in self._points.items()}
            for change in (added, removed):
                for key, given in change.items():
                    places = {point.place for point in given}
                    kept = (p for p in points.get(key, ()) if p.place not in places)
                    points[key] = [*kept, *(given if change is added else ())]
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(_COLUMNS)
            for key, each in points.items():
                for point in each:
                    name = check_class(point.name, "a point")
                    writer.writerow((*key, point.x, point.y, point.x1, point.y1, name))
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
        return parse_points(_read(file), file, self._manifest)

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
            return name, self._maps[name] or _digest_file(file, stamp(file))

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


def _name_map(image: Image) -> str:
    return f"{MAPS}/{image.split}/{image.id}.png"


def _bare(name: str) -> str:
    """Return the split/id that a map is named after."""
    return name.removeprefix(f"{MAPS}/").removesuffix(".png")


def _other_size(image: Image, shape: Sequence[int]) -> str:
    return f"it is {shape[1]} x {shape[0]}, the image {image.width} x {image.height}"


@lru_cache(maxsize=2**16)
def _digest_file(file: Path, _: Stamp | None) -> str:
    return checksum(file.read_bytes())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}.") from error


def parse_classes(text: bytes, file: object) -> tuple[str, ...]:
    """Parse ``classes.yaml``: a YAML list of names, which are the words as they are written."""
    example = "write one line for each class, such as `- road`"
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise RunError(
            f"{file} is not YAML ({' '.join(str(error).split())}); {example}."
        ) from error
    except RecursionError as error:
        raise RunError(f"{file} is nested too deeply; {example}.") from error
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


def parse_points(text: bytes, file: object, manifest: Manifest) -> dict[Key, list[Point]]:
    """Parse ``points.csv``: by image, in their order; of two at one place the later counts."""
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
    images = {(image.split, image.id): image for image in _find_images(manifest, named)}
    points: dict[Key, dict[tuple[int, ...], Point]] = {}
    for line, row in given:
        where = f"{file}, line {line}"
        key = row[columns["split"]], row[columns["image"]]
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


def _find_images(manifest: Manifest, names: Collection[str]) -> list[Image]:
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
