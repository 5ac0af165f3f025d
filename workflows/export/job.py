"""The job behind `export`: choose what, name the files, open the folder, hand it all to the format.

The files are named so that every file system takes them, and never two images alike.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.base import Dataset
from pipeline.datasets.definition import IGNORE, Colour, png_palette
from pipeline.errors import ImageError, UsageError, count_of, did_you_mean
from pipeline.images.geo import is_placed
from pipeline.progress import Screen
from pipeline.run.confidence import find_least
from pipeline.run.directory import RunDirectory, choose_subject
from pipeline.run.evaluation import LEFT_OUT_NAME, Evaluation, choose_look, open_evaluation
from pipeline.run.frames import count_threads, map_ahead
from pipeline.run.manifest import Image, Manifest
from pipeline.run.status import find_upstream_changes
from pipeline.storage.files import fingerprint
from pipeline.storage.places import require_local
from stages import SETTINGS
from stages.scores import UNMATCHED, describe_weak, match_majority
from workflows.export import FORMATS, GEOTIFF, PROTOTYPES
from workflows.export.folder import Folder, export_photograph, open_folder

VERSION = 1
EVERYTHING = "all"
LOOKED = 16
"""So many photographs, evenly over all, are asked whether they have a georeference."""
# A file system allows 255 bytes; formats append suffixes of up to 40.
_LONGEST = 160
_UNSAFE = re.compile(r"[^\w.-]+")
# What Windows takes for a device, whatever suffix follows.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")

Ids = Literal["auto", "classes", "majority", "clusters"]
Images = Literal["copy", "link", "none"]
R = TypeVar("R")


class Format(Protocol):
    """A module that writes one format: ours, or one of the entry points ``primaps_pipe.formats``.

    Attributes
    ----------
    NESTED
        Whether names of files may hold folders.
    NOTE
        What is special to the format, in a few words for the screen, or nothing.
    """

    NESTED: bool
    NOTE: str

    def write(self, export: Export) -> list[tuple[str, str]]:
        """Write all but the index and the classes; return the files of every image, in order.

        They are those of the photograph and of the label map, relative to the folder.
        """


def export_run(
    run: RunDirectory,
    format: str,
    out: Path,
    *,
    em: str | None = None,
    head: str | None = None,
    splits: tuple[str, ...] = (),
    ids: Ids = "auto",
    images: Images = "copy",
    min_confidence: float = 0.0,
    screen: Screen,
) -> list[str]:
    """Write the label maps of a fit or head, or its prototypes, for other tools.

    Parameters
    ----------
    run
        The run.
    format
        One of ``FORMATS``.
    out
        Local folder; new, empty, or one that holds the same export or a part of it. For
        ``prototypes`` a folder, or a file whose name ends in ``.safetensors``.
    em, head
        Name of the fit or of the head; the run's only one, or ``default``, when neither is given.
    splits
        Splits to export; all that were evaluated when empty.
    ids
        What the numbers in the label maps stand for: the dataset's ``classes``, to which clusters
        are matched one to one; these by ``majority``, every cluster as the class of most of its
        pixels; ``clusters``; or ``auto``: classes where clusters are matched to classes.
    images
        Whether to ``copy`` the photographs, ``link`` to them, or leave them out (``none``).
    min_confidence
        Pixels that are less sure than this are 255; of an evaluation with confidence.
    screen
        Where progress is shown.

    Returns
    -------
    list of str
        What was written, a sentence each.

    Raises
    ------
    UsageError
        A name or an option that does not exist, or does not fit the run.
    RunError
        The fit or head was not evaluated, or its labels are stale; or the folder is not ours.
    """
    known = (
        ("--format", format, tuple(FORMATS)),
        ("--ids", ids, get_args(Ids)),
        ("--images", images, get_args(Images)),
    )
    for option, given, names in known:
        if given not in names:
            raise UsageError(
                f"{option} {given!r}: no such{did_you_mean(given, names)}; there are "
                f"{', '.join(names)}."
            )
    refuse_run(run, out)
    _warn_of_changes(run, em, head, screen)
    if format == PROTOTYPES:
        if min_confidence:
            raise UsageError(f"--min-confidence: --format {PROTOTYPES} writes no label maps.")
        from workflows.export.prototypes import export_prototypes

        warn_of_names(open_evaluation(run, em, head, SETTINGS), "auto", screen)
        return export_prototypes(run, out, em=em, head=head)
    source = open_source(run, em=em, head=head, splits=splits, ids=ids)
    if min_confidence:
        source = _require_confidence(source, min_confidence)
    warn_of_names(source.evaluation, source.ids, screen)
    root = source.manifest.root
    if images == "link":
        require_local(root, f"--images link: the photographs lie at {root}; take copy or none.")
    writer = cast(Format, FORMATS[format])
    items = source.list_items(nested=writer.NESTED)
    record = {"format": format, "version": VERSION, "photographs": images, **source.describe()}
    if format != GEOTIFF and (lost := describe_places(root, [i.image for i in items])):
        screen.warn(f"export: {lost} --format {GEOTIFF} keeps it.")
    with open_folder(out, record) as folder:
        places = writer.write(Export(source, items, folder, images, screen))
        # no format says the classes completely
        classes = [
            {"id": number, "name": name, "colour": list(colour)}
            for number, (name, colour) in enumerate(source.classes)
        ]
        used = {k: v for k, v in source.evaluation.metrics.items() if k == "labels_used"}
        facts = {"ids": source.ids, "ignore": 255, "classes": classes, **used}
        folder.write_json("classes.json", facts)
        folder.write("index.csv", _make_index(items, places))
    counts = Counter(item.split for item in items).items()
    written = ", ".join(f"{count_of(count, 'images')} of {split}" for split, count in counts)
    sure = f"export: pixels that are less than {100 * min_confidence:g} % sure are 255"
    return [
        describe_ids(source),
        *([sure] if min_confidence else []),
        f"export: {written} as {format} in {out}",
        *([f"export: {writer.NOTE}"] if writer.NOTE else []),
    ]


def describe_places(root: Path, images: Sequence[Image]) -> str:
    """Say of how many photographs a georeference is dropped; a few are looked at."""
    if not images:
        return ""
    chosen = [images[n] for n in np.unique(np.linspace(0, len(images) - 1, LOOKED).astype(int))]
    placed = []
    for image in chosen:
        # a photograph that is gone takes its georeference with it
        with suppress(ImageError):
            placed += [image] if is_placed(root, image.path, image.digest) else []
    if not placed:
        return ""
    return (
        f"of {count_of(len(chosen), 'photographs')} looked at, {len(placed)} "
        f"{'has' if len(placed) == 1 else 'have'} a georeference (first: {placed[0].path}), which "
        "label maps in PNG do not keep;"
    )


def _require_confidence(source: Source, share: float) -> Source:
    """Leave out what is less sure than a share; refuse where nobody knows how sure it is."""
    evaluation = source.evaluation
    if not evaluation.record.settings.get("confidence"):
        raise UsageError(
            f"--min-confidence: {evaluation.subject.key} was evaluated without confidence; run "
            f"{evaluation.command[:-1]} --confidence` first."
        )
    return replace(source, least=find_least(share))


def refuse_run(run: RunDirectory, out: Path) -> None:
    """Keep exports out of runs: what lies in a run is the run's."""
    for folder in (out, *out.absolute().parents):
        if (folder / "run.yaml").is_file() and (folder / "state").is_dir():
            raise UsageError(f"--out {out} lies in the run {folder}; give a folder outside of it.")


def _warn_of_changes(run: RunDirectory, em: str | None, head: str | None, screen: Screen) -> None:
    """Say that images, label maps, weights or a dataset have changed since the evaluation."""
    subject = choose_subject(run.require(), em, head)
    if changed := find_upstream_changes(run, f"evaluate/{subject.title}"):
        screen.warn(
            f"export: {changed.rstrip('.')}; what is written is what was evaluated before. "
            f"`primaps-pipe status {run.quoted}` says what to run."
        )


def _make_index(items: Iterable[Item], places: Iterable[tuple[str, str]]) -> bytes:
    """Make the table from images of the run to files of the export."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "split", "image", "label"))
    for item, (image, label) in zip(items, places, strict=True):
        writer.writerow((item.image.id, item.split, image, label))
    return text.getvalue().encode()


@dataclass(frozen=True)
class Item:
    """One image of an export."""

    image: Image
    split: str
    name: str


@dataclass(frozen=True)
class Source:
    """The label maps of one fit or head, under the numbers that were asked for."""

    evaluation: Evaluation
    manifest: Manifest
    dataset: Dataset
    ids: str
    classes: tuple[tuple[str, Colour], ...]
    table: NDArray[np.uint8]
    splits: dict[str, str]
    # pixels whose confidence is a lower byte are left out
    least: int = 0

    @property
    def dataset_name(self) -> str:
        """Name of the dataset, without the folder that a file of one's own lies in."""
        return self.manifest.dataset.replace("\\", "/").rpartition("/")[2]

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [name for name, _ in self.classes]

    @property
    def colours(self) -> list[Colour]:
        """Colours of the classes."""
        return [colour for _, colour in self.classes]

    @property
    def palette(self) -> bytes:
        """The classes' colours as the palette of an indexed PNG."""
        return png_palette(self.colours)

    def list_items(self, *, nested: bool) -> list[Item]:
        """List the images, split by split, in the order of the manifest."""
        images = [i for i in self.manifest.images if i.ok and i.split in self.splits]
        return list_items(images, self.splits, nested=nested)

    def read_labels(self, image: Image) -> NDArray[np.uint8]:
        """Read the label map of an image, uint8 [y, x], 255 = ignore."""
        labels = self.table[self.evaluation.read_labels(image)]
        if self.least:
            labels[self.evaluation.read_confidence(image) < self.least] = IGNORE
        return labels

    def describe(self) -> dict[str, Any]:
        """Describe the export, but for the format, as JSON: who gets the same gets one folder."""
        return {
            "run": self.evaluation.run.path.name,
            "subject": self.evaluation.subject.key,
            "dataset": self.dataset_name,
            "labels": self.evaluation.record.digest,
            "images_listed": self.manifest.fingerprint,
            "ids": self.ids,
            "splits": self.splits,
            "classes": [[name, list(colour)] for name, colour in self.classes],
            "table": fingerprint(self.table.tolist()),
            **({"least": self.least} if self.least else {}),
        }


@dataclass(frozen=True)
class Export:
    """What a format writes, and where.

    Attributes
    ----------
    source
        Gives label maps, uint8 [y, x], 255 = ignore, and names and colours of the classes.
    items
        The images, with their names in the export.
    folder
        What files are written into; a file that is there is kept.
    images
        ``copy``, ``link`` or ``none``: what becomes of the photographs.
    screen
        Where progress is shown.
    """

    source: Source
    items: Sequence[Item]
    folder: Folder
    images: str
    screen: Screen

    def map(self, function: Callable[[Item], R]) -> Iterator[R]:
        """Apply a function to every image, in threads, a few ahead; show progress."""
        threads = count_threads()
        title = f"export {self.source.evaluation.subject.key}"
        with self.screen.count(title, len(self.items), "images") as counter:
            for result in map_ahead(function, self.items, threads, 2 * threads):
                counter.advance()
                yield result

    def parts(self) -> Iterator[tuple[str, Export]]:
        """Give every split with the part of the export that is of it."""
        for split in self.source.splits.values():
            yield split, replace(self, items=[item for item in self.items if item.split == split])

    def write_photograph(self, item: Item, name: str, *, as_it_is: bool = False) -> None:
        """Bring the photograph of an image along under a name; as it is: its file, bit by bit."""
        root = self.source.manifest.root
        export_photograph(root, item.image, self.folder, name, self.images, as_it_is=as_it_is)

    def write_photographs(self, place: Callable[[Item], str]) -> None:
        """Bring all photographs along, to their places."""
        for _ in self.map(lambda item: self.write_photograph(item, place(item))):
            pass

    def write_pairs(
        self,
        place: Callable[[Item], tuple[str, str]],
        write_labels: Callable[[str, NDArray[np.uint8]], None],
    ) -> list[tuple[str, str]]:
        """Write photograph and label map of every image to their places, which are returned."""

        def write(item: Item) -> tuple[str, str]:
            image, label = place(item)
            self.write_photograph(item, image)
            if not self.folder.has(label):
                write_labels(label, self.source.read_labels(item.image))
            return image, label

        return list(self.map(write))

    def write_list(self, name: str, lines: Iterable[str]) -> None:
        """Write a text of lines."""
        self.folder.write(name, "".join(f"{line}\n" for line in lines).encode())


def open_source(
    run: RunDirectory, *, em: str | None, head: str | None, splits: Sequence[str], ids: str
) -> Source:
    """Open what is exported; parameters and errors as in :func:`export_run`."""
    evaluation = open_evaluation(run, em, head, SETTINGS)
    key = evaluation.subject.key
    assignment, names = evaluation.match()
    matched = assignment is not None and any(label is not None for label in assignment)
    if ids == "auto":
        ids = "classes" if matched else "clusters"
    if ids != "clusters" and not matched:
        raise UsageError(
            f"--ids {ids}: the clusters of {key} are matched to no classes, "
            "for the images have no label maps; take --ids clusters."
        )
    if ids == "majority":
        assignment = _find_majority(evaluation)
    look = evaluation.look()
    if ids != "clusters":
        palette, given = evaluation.dataset.palette, evaluation.given_names
        look = choose_look(evaluation.clusters, assignment, names, palette, given)
    if ids == "clusters":
        # clusters of one name are one class
        kept = np.unique(look.first[look.first != IGNORE])
        table = np.where(look.first == IGNORE, IGNORE, np.searchsorted(kept, look.first))
        names, colours = [look.names[k] for k in kept], look.palette[look.index[kept]]
    else:
        table = np.where(look.index < len(names), look.index, IGNORE)
        colours = look.palette[: len(names)]
    if (table == IGNORE).all():
        raise UsageError(
            f"--ids {ids}: every cluster of {key} is named {LEFT_OUT_NAME} or has no class: "
            f"nothing is left to export; look at {run.names_file(evaluation.subject.title)}."
        )
    labelled = list(evaluation.record.settings["splits"])
    for split in splits:
        if split not in labelled:
            raise UsageError(
                f"--split {split!r}: {key} was evaluated on "
                f"{', '.join(labelled)}{did_you_mean(split, labelled)}; "
                f"{evaluation.command[:-1]} --split NAME` labels others."
            )
    # lists of names have a line for each
    lines = make_unique(" ".join(name.split()) for name in names)
    shades = [(red, green, blue) for red, green, blue in colours.tolist()]
    return Source(
        evaluation=evaluation,
        manifest=evaluation.manifest,
        dataset=evaluation.dataset,
        ids=ids,
        classes=tuple(zip(lines, shades, strict=True)),
        table=table.astype(np.uint8),
        splits=name_splits(list(dict.fromkeys(splits)) or labelled),
    )


def _find_majority(evaluation: Evaluation) -> list[int | None]:
    """Find the class of most pixels of every cluster, in the final labels of the main split."""
    metrics = evaluation.metrics
    counts = metrics["confusion" if metrics["confusion_crf"] is None else "confusion_crf"]
    majority = match_majority(np.array(counts, np.int64)).tolist()
    return [None if label == UNMATCHED else label for label in majority]


def describe_ids(source: Source) -> str:
    """Say in one sentence what the numbers of the label maps stand for."""
    evaluation, count = source.evaluation, len(source.classes)
    key, clusters = evaluation.subject.key, evaluation.clusters
    left = [str(k) for k in range(clusters) if source.table[k] == IGNORE]
    without = f", among it the clusters without a class ({', '.join(left)})" if left else ""
    if source.ids == "clusters":
        joined = len(set(source.table[:clusters].tolist()) - {IGNORE}) < clusters - len(left)
        what = f"the {clusters} clusters of {key}"
        if joined or left:
            what = f"{count} class{'' if count == 1 else 'es'}, {what} by their names"
        return f"export: label maps hold {what}; 255 = ignore{without}"
    how = "matched"
    if source.ids == "majority":
        how = "assigned by the majority of their pixels"
    return (
        f"export: label maps hold the {count} classes of {source.dataset_name}, to which the "
        f"clusters of {key} are {how} on {evaluation.metrics.get('split', '')}; "
        f"255 = ignore{without}"
    )


def warn_of_names(evaluation: Evaluation, ids: str, screen: Screen) -> None:
    """Say which clusters are exported under a name that is hardly theirs."""
    given, (_, names) = evaluation.given_names, evaluation.match()
    if ids in ("auto", "classes") and (weak := describe_weak(evaluation.metrics, given)):
        file = evaluation.run.names_file(evaluation.subject.title)
        screen.warn(
            f"export: {weak}. `--ids majority` gives every cluster the class of most of its "
            f"pixels, `--ids clusters` no class at all, and a line of {file} a name of yours."
        )
    others = sorted({*given.values()} - {*names, LEFT_OUT_NAME})
    if ids in ("classes", "majority") and others:
        screen.warn(
            f"export: names that are no class of the dataset ({', '.join(others)}) are not in the "
            "label maps, and clusters of one name are the class of the first of them; "
            "`--ids clusters` writes the classes by these names."
        )


def make_safe(text: str) -> str:
    """Make one part of a path safe: letters, digits, ``.``, ``_`` and ``-``, not too long.

    Letters of any script are kept. What is hidden on Unix or a device on Windows gets a ``_`` in
    front; a name that is too long ends in a digest of the whole.
    """
    plain = unicodedata.normalize("NFC", text)
    name = _UNSAFE.sub("_", plain).rstrip(".")
    if not name or name[0] in ".-" or _DEVICES.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) > _LONGEST:
        start = name.encode()[: _LONGEST - 17].decode(errors="ignore")
        name = f"{start}-{_digest(text)}"
    return name


def name_images(ids: Sequence[str], *, nested: bool) -> dict[str, str]:
    """Name the files of the images of one split."""
    names = {}
    for image in ids:
        parts = [make_safe(part) for part in image.split("/")]
        name = "/".join(parts) if nested else "__".join(parts)
        if not nested and len(name.encode()) > _LONGEST:
            name = make_safe(name)
        names[image] = name
    return _tell_apart(names, "-")


def list_items(images: Sequence[Image], splits: Mapping[str, str], *, nested: bool) -> list[Item]:
    """Name the files of images, split by split: those of the splits that have a name."""
    items = []
    for split, shown in splits.items():
        own = [image for image in images if image.split == split]
        names = name_images([image.id for image in own], nested=nested)
        items += [Item(image, shown, names[image.id]) for image in own]
    return items


def name_splits(splits: Sequence[str]) -> dict[str, str]:
    """Name the splits: the ``all`` of a folder, which is no split, is what is trained on."""
    renamed = {s: "train" if s == EVERYTHING and "train" not in splits else s for s in splits}
    safe = {split: re.sub(r"\W+", "_", name) or "_" for split, name in renamed.items()}
    return _tell_apart(safe, "_")


def _tell_apart(names: Mapping[str, str], joint: str) -> dict[str, str]:
    """Append a digest to the names that would meet where capitals do not count."""
    claims = Counter(name.casefold() for name in names.values())
    return {
        text: name if claims[name.casefold()] == 1 else f"{name}{joint}{_digest(text)}"
        for text, name in names.items()
    }


def _digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def make_unique(names: Iterable[str]) -> list[str]:
    """Give names that occur again a number: ``road``, ``road (2)``."""
    unique: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in unique:
            number += 1
            candidate = f"{name} ({number})"
        unique.append(candidate)
    return unique
