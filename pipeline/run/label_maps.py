"""Label PNGs that lie anywhere: which image of a run each is of, and what its numbers stand for.

A file beside the PNGs names the numbers: ``classes.json`` (as `export` writes it, or a list of
names), ``classes.yaml`` (a list of names), ``classes.txt`` (a name a line) or ``labelmap.txt`` (as
CVAT writes it, for masks of numbers). 254 is not said, and 255 ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.definition import IGNORE, Colour
from pipeline.errors import ImageError, RunError, UsageError, list_some
from pipeline.images.decoding import read_label
from pipeline.run.corrections import (
    MAPS,
    MOST,
    NOT_SAID,
    POINTS,
    Corrections,
    Key,
    Point,
    check_class,
    digest_file,
    is_ignored,
    name_map,
    parse_classes,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.manifest import Image, Manifest
from pipeline.storage.files import fingerprint, stamp
from pipeline.storage.places import find_files, is_remote, list_names

LABELMAP = "labelmap.txt"
_BESIDE = ("classes.json", "classes.yaml", "classes.txt", LABELMAP)
# Names of numbers: None for what has none, nothing for what is not said.
Names = Sequence[str | None]

BACKGROUND = "background"
BACKGROUND_CLASS = "background class"
"""What a class is called whose name means "not labelled" to CVAT."""

# A name ends at a colon, and a line that begins with # is none: the wide forms of both.
SPELLINGS = str.maketrans({":": "：", "#": "＃"})
_PLAIN = {ord(wide): chr(plain) for plain, wide in SPELLINGS.items()}


class ImageFinder:
    """Finds the images of a run by the names of files.

    ``further`` are rows of images and more names that they go by, the plainest of all.
    """

    def __init__(self, manifest: Manifest, further: Iterable[tuple[int, str]] = ()) -> None:
        self._manifest, self._names = manifest, dict[str, list[int]]()
        columns = (manifest.images.column(name).to_pylist() for name in ("split", "id", "path"))
        for row, (split, id, path) in enumerate(zip(*columns, strict=True)):
            stem = _bare(path)
            for name in {f"{split}/{id}", id, stem, _last(id), _last(stem)}:
                self._names.setdefault(name, []).append(row)
        for row, name in further:
            if row not in (rows := self._names.setdefault(name, [])):
                rows.append(row)

    def find(self, name: str) -> Image | str:
        """Find the image that a file is named after; without its suffix, and with ``/``.

        Tried are the whole name, and then its ends: split/id, id, path of the photograph, or what
        else it goes by, and the last part of these. Where there is no such image, or more than one,
        the name is given, and what it may be.
        """
        parts = name.split("/")
        ends = ("/".join(parts[begin:]) for begin in range(len(parts)))
        rows = next((self._names[end] for end in ends if end in self._names), [])
        exact = [r for r in rows if len(rows) > 1 and self._is_exactly(r, name)]
        if len(exact or rows) == 1:
            return self._manifest.images[(exact or rows)[0]]
        images = [self._manifest.images[row] for row in rows]
        may_be = list_some([f"{i.split}/{i.id}" for i in images])
        return f"{name} (may be any of {may_be})" if images else name

    def _is_exactly(self, row: int, name: str) -> bool:
        image = self._manifest.images[row]
        return name == image.id or f"/{name}".endswith(f"/{image.split}/{image.id}")


def _bare(path: str) -> str:
    """Return a path without its last suffix."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name.rpartition('.')[0] or name}".removeprefix("/")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def name_file(place: Path, file: Path) -> str:
    """Return the name by which the image of a file is found: below a folder, or of one alone."""
    if file == place:
        return _bare((file if is_remote(file) else file.absolute()).as_posix())
    return _bare(file.relative_to(place).as_posix())


def list_pngs(folder: Path) -> list[Path]:
    """List the PNGs below a folder."""
    return sorted(file for file in find_files(folder) if file.suffix.lower() == ".png")


def find_classes(folder: Path) -> Path | None:
    """Find the file in a folder that names the numbers."""
    return next((folder / name for name in _BESIDE if (folder / name).is_file()), None)


def read_classes(file: Path) -> Names:
    """Read the names of the numbers from a file."""
    try:
        text = file.read_bytes()
        if file.name == LABELMAP:
            return [name for name, _ in parse_labelmap(text.decode("utf-8-sig"))]
        if file.suffix.lower() in (".yaml", ".yml"):
            return parse_classes(text, file)
        if file.suffix.lower() != ".json":
            lines = text.decode("utf-8-sig").splitlines()
            while lines and not lines[-1].strip():
                lines.pop()
            return [check_class(line, f"{file}, line {n}") for n, line in enumerate(lines, 1)]
        content: Any = json.loads(text)
        if isinstance(content, dict):
            rows = {int(each["id"]): each["name"] for each in content["classes"]}
            content = [rows.get(number) for number in range(max(rows, default=-1) + 1)]
        return [None if name is None else check_class(str(name), str(file)) for name in content]
    except OSError as error:
        raise UsageError(f"--classes {file}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{file} does not name classes ({reason}); give a list of names as JSON or YAML, one "
            "name a line, or the classes.json of an export."
        ) from error


def parse_labelmap(text: str) -> list[tuple[str, Colour]]:
    """Parse CVAT's ``labelmap.txt``: names and colours, in the order of its lines.

    The name of what nobody has labelled is nothing. ``ValueError``: it is no such file.
    """
    classes = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, colour, *_ = line.strip().split(":")
        red, green, blue = (int(value) for value in colour.split(","))
        if name == BACKGROUND or not (red or green or blue):
            name = ""
        plain = BACKGROUND if name == BACKGROUND_CLASS else name.translate(_PLAIN)
        classes.append((plain, (red, green, blue)))
    if len({colour for _, colour in classes}) < len(classes):
        raise ValueError("two labels have one colour")
    return classes


def read_map(
    file: Path, image: Image, names: Names, explain: str
) -> tuple[NDArray[np.uint8], list[str]]:
    """Read the label PNG of an image.

    Gives uint8 [y, x], numbers of the names that are given with it, 255 = ignore, 254 = not said.
    ``explain`` says in a sentence why a number has no name.
    """
    try:
        said = read_label(file)
        if said.ndim != 2:
            raise ImageError("it holds colours, and not numbers of classes")
        used = [n for n in np.unique(said).tolist() if n not in (NOT_SAID, IGNORE)]
        unnamed = [n for n in used if not 0 <= n < len(names) or names[n] is None]
        if unnamed:
            shown = ", ".join(map(str, unnamed[:8]))
            raise ImageError(f"it holds {shown}, {explain}; name them first")
        if said.shape != (image.height, image.width):
            size = f"{said.shape[1]} x {said.shape[0]}"
            raise ImageError(f"it is {size}, the image {image.width} x {image.height}")
        used = [n for n in used if names[n]]
        if len(used) > NOT_SAID:
            raise ImageError(f"it has more than {NOT_SAID} classes")
    except ImageError as error:
        raise ImageError(f"{file} is not taken up: {error}.") from error
    # numbers of a map of 16 bits may be larger than those that a correction holds
    table = np.full(max(256, len(names)), NOT_SAID, np.uint8)
    table[used] = np.arange(len(used))
    table[IGNORE] = IGNORE
    return table[said], [names[n] or "" for n in used]


def open_labels(run: RunDirectory, folder: Path) -> Corrections:
    """Open a folder of corrections, or one of label PNGs that are named as the photographs are."""
    held = {name for name, _ in list_names(folder)}
    if not {MAPS, POINTS} & held and (files := list_pngs(folder)):
        return _LabelFolder(run, folder, files)
    return Corrections(run, folder)


class _LabelFolder(Corrections):
    """Label PNGs, read as if somebody had painted them."""

    def __init__(self, run: RunDirectory, folder: Path, files: Sequence[Path]) -> None:
        super().__init__(run, folder)
        self._file = find_classes(folder)
        if self._file is None:
            raise UsageError(
                f"{folder} holds label PNGs, and nothing that says what their numbers stand for; "
                "put classes.txt beside them, a name a line from number 0."
            )
        self._names = read_classes(self._file)
        if len(self.classes()) > MOST:
            raise RunError(f"{self._file} names more than {MOST} classes; leave some out.")
        self._files: dict[str, Path] = {}
        self._left_out: list[str] = []
        finder = ImageFinder(self._manifest)
        for file in files:
            image = finder.find(name_file(folder, file))
            if isinstance(image, str):
                self._left_out.append(image)
            elif (other := self._files.setdefault(name_map(image), file)) != file:
                raise UsageError(
                    f"{other} and {file} are both named after {image.split}/{image.id}; take one "
                    "of them away."
                )

    def find_strays(self) -> list[str]:
        """List the files that are of no image of the run."""
        return sorted(self._left_out)

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for n in self._names if n and not is_ignored(n)))

    @cached_property
    def _points(self) -> dict[Key, list[Point]]:
        return {}

    @cached_property
    def _maps(self) -> dict[str, str]:
        return dict.fromkeys(self._files, "")

    def _digest(self, names: Sequence[str]) -> list[tuple[str, str]]:
        digests = [(name, digest_file(f := self._files[name], stamp(f))) for name in names]
        return [*digests, ("names", fingerprint(list(self._names)))] if names else []

    def _read_map(self, name: str, image: Image) -> NDArray[np.uint8]:
        explain = f"which {self._file} does not name"
        said, kept = read_map(self._files[name], image, self._names, explain)
        table = np.arange(256, dtype=np.uint8)
        for number, each in enumerate(kept):
            table[number] = IGNORE if is_ignored(each) else self._classes.index(each)
        return table[said]
