"""A dataset of the Hugging Face library in a local folder, its images unpacked once.

The folder is what ``save_to_disk`` wrote, or it holds parquet files. Nothing in it is run: arrow
and parquet files hold plain values, scripts beside them are not looked at, and nothing is fetched.
The package ``datasets`` is needed to read it, and not any more once it is unpacked.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from pipeline.datasets.base import Benchmark, Say
from pipeline.datasets.definition import (
    IGNORE,
    PLAIN_NAME,
    Colour,
    Definition,
    name_classes,
)
from pipeline.errors import DatasetError, UsageError, count_of
from pipeline.storage.files import find_cache, fingerprint, may_fetch
from pipeline.storage.places import require_local

IMAGE_NAMES = ("image", "img", "pixel_values", "photo")
LABEL_NAMES = (
    *("label", "labels", "annotation", "annotations", "mask", "masks", "segmentation"),
    *("segmentation_mask", "segmentation_map", "semantic_segmentation", "label_map", "gt"),
)

_HEADS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"RIFF", ".webp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"", ".bin"),
)
_BATCH = 16
_PARQUET = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]+)?")
# Whatever the readers of arrow, parquet and features raise for what they cannot read.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)


@dataclass(frozen=True)
class Rows:
    """The rows of one split, the columns of their images and label maps, and names of classes."""

    split: str
    # a dataset of the library, or the parquet files
    source: Any
    image: str
    label: str | None
    names: tuple[str, ...]

    def read(self) -> Iterator[tuple[Any, Any]]:
        """Yield what the rows hold as image and as label map, one row after the other."""
        columns = [name for name in (self.image, self.label) if name is not None]
        try:
            for batch in self._read_batches(columns):
                for row in batch.to_pylist():
                    yield row[self.image], row.get(self.label)
        except pa.ArrowException as error:
            raise DatasetError(f"the split {self.split} is damaged: {_words(error)}") from error

    def _read_batches(self, columns: list[str]) -> Iterator[Any]:
        if isinstance(self.source, list):
            for path in self.source:
                yield from pq.ParquetFile(path).iter_batches(_BATCH, columns=columns)
        else:
            arrow = self.source.select_columns(columns).with_format("arrow")
            yield from arrow.iter(batch_size=_BATCH)


def open_rows(folder: Path) -> list[Rows]:
    """Open all splits of a dataset's folder."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            "huggingface: datasets are read with the package datasets, which is not installed: "
            "pip install 'primaps-pipe[huggingface]'."
        ) from error
    try:
        if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            loaded = _load_quietly(datasets, folder)
            if not isinstance(loaded, dict):
                split = "" if loaded.split is None else str(loaded.split)
                loaded = {split if PLAIN_NAME.fullmatch(split) else "train": loaded}
            parts = [(str(name), part, part.features) for name, part in loaded.items()]
        else:
            parts = [
                (split, files, datasets.Features.from_arrow_schema(pq.read_schema(files[0])))
                for split, files in _find_parquet(folder).items()
            ]
    except _UNREADABLE as error:
        raise DatasetError(f"{folder} is no dataset that can be read: {_words(error)}") from error
    if not parts:
        raise DatasetError(
            f"{folder} holds no dataset: neither what save_to_disk writes nor parquet files"
        )
    for split, _, _ in parts:
        if not PLAIN_NAME.fullmatch(split):
            raise DatasetError(f"{folder} has a split {split!r}, which can name no folder")
    return [Rows(split, source, *_choose_columns(folder, kinds)) for split, source, kinds in parts]


def _load_quietly(datasets: Any, folder: Path) -> Any:
    """Load a dataset without a bar of its own between the lines of ours."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_from_disk(str(folder))
    finally:
        if shown:
            datasets.enable_progress_bars()


def _find_parquet(folder: Path) -> dict[str, list[Path]]:
    """Find the parquet files of each split, by their names: ``train-00000-of-00002.parquet``.

    A name without a number is that of the split, and files of a folder that is not called ``data``
    are of the split of its name.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        inner = path.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts):
            continue
        numbered = _PARQUET.fullmatch(path.stem)
        above = inner.parent.name
        otherwise = path.stem if above in ("", "data") else above
        found.setdefault(numbered[1] if numbered else otherwise, []).append(path)
    return {
        split: found[split] for split in sorted(found, key=lambda name: (name != "train", name))
    }


def _choose_columns(
    folder: Path, features: Mapping[str, Any]
) -> tuple[str, str | None, tuple[str, ...]]:
    """Choose the columns of images and label maps, and find the names of classes."""
    pictures = [name for name, feature in features.items() if _is_image(feature)]
    tables = [name for name, feature in features.items() if _is_table(feature)]
    labels = [name for name in (*pictures, *tables) if name.lower() in LABEL_NAMES]
    images = [name for name in pictures if name not in labels]
    if len(images) > 1:
        images = [name for name in images if name.lower() in IMAGE_NAMES] or images
    if len(images) == 1 and not labels:
        labels = [name for name in (*pictures, *tables) if name not in images]
    if len(images) != 1 or len(labels) > 1:
        raise DatasetError(
            f"{folder} has the columns {', '.join(features)}: it must be clear which one holds "
            "images (call it 'image') and which one label maps (call it 'label')"
        )
    kind = features[labels[0]] if labels else None
    while (inner := _element(kind)) is not None:
        kind = inner
    return images[0], labels[0] if labels else None, tuple(getattr(kind, "names", None) or ())


def _is_image(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        # of files that were not written by datasets
        return {"bytes", "path"} <= feature.keys()
    return type(feature).__name__ == "Image"


def _is_table(feature: Any) -> bool:
    inner = _element(feature)
    return type(feature).__name__ == "Array2D" or _element(inner) is not None


def _element(feature: Any) -> Any:
    if isinstance(feature, list):
        return feature[0] if feature else None
    return getattr(feature, "feature", None)


def _name_classes(definition: Definition, folder: Path, parts: Sequence[Rows]) -> Definition:
    """Name and colour the classes as the dataset does, where it does."""
    names = dict(enumerate(next((part.names for part in parts if part.names), ())))
    names = names or _read_names(folder / "id2label.json")
    names.pop(IGNORE, None)
    if len(names) > IGNORE or min(names, default=0) < 0:
        raise DatasetError(f"{folder} names {len(names)} classes: a label map holds {IGNORE}")
    return name_classes(definition, names, _find_palette(parts) if names else {})


def _read_names(file: Path) -> dict[int, str]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {int(raw): str(name) for raw, name in content.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{file} holds no names of classes: {_words(error)}") from error


def _find_palette(parts: Sequence[Rows]) -> dict[int, Colour]:
    """Give the colours of the first label map, where it has a palette."""
    for part in parts:
        _, value = next(part.read(), (None, None))
        if not isinstance(value, Mapping) or not value.get("bytes"):
            continue
        try:
            with Image.open(io.BytesIO(value["bytes"]), formats=("PNG",)) as image:
                flat = image.getpalette() if image.mode == "P" else None
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            continue  # that it cannot be read is said where it is
        triples = zip(*[iter(flat or [])] * 3, strict=False)
        return {raw: (red, green, blue) for raw, (red, green, blue) in enumerate(triples)}
    return {}


def sniff_suffix(data: bytes) -> str:
    """Give the suffix of an image by its first bytes; ``.bin`` where they say nothing."""
    return next(suffix for head, suffix in _HEADS if data.startswith(head))


def name_row(row: int, path: str | None) -> str:
    """Name an image by its row, and by what is harmless in the name of the file it was."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path or "").stem)[:64].strip("_")
    return f"{row:06d}-{stem}" if stem else f"{row:06d}"


def encode_label(value: Any, where: str) -> bytes | None:
    """Give the file of a label map: its own bytes, or a PNG of a table of ids; None for none."""
    if isinstance(value, Mapping):
        return value.get("bytes") or None
    if value is None:
        return None
    try:
        ids = np.asarray(value)
        wrong = ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size
    except ValueError:
        wrong = True
    if wrong or ids.min() < -1 or ids.max() > 65535:
        raise DatasetError(f"{where}: its label map is no table of ids 0..65535")
    ids = np.where(ids == -1, IGNORE, ids)
    file = io.BytesIO()
    Image.fromarray(ids.astype(np.uint8 if ids.max() <= IGNORE else np.uint16)).save(file, "PNG")
    return file.getvalue()


def _words(error: object) -> str:
    return " ".join(str(error).split())[:300]


_PREFIX = "huggingface-"
_DATA = (".arrow", ".parquet", ".json")


@dataclass(frozen=True, eq=False)
class HuggingFace(Benchmark):
    """The images of a Hugging Face dataset, unpacked from its rows.

    Image and label map are columns of the feature ``Image``, or a label map is a table of ids.
    Classes have the names of the label column's ``ClassLabel``, or of ``id2label.json``, and the
    colours of the first label map's palette; without names, ids are classes.
    """

    folder: Path
    stamp: str

    @classmethod
    def open(cls, folder: Path) -> HuggingFace:
        """Give the dataset of a folder, reading no more than a row of it."""
        require_local(folder, f"huggingface:{folder} must be a local folder: copy it there first")
        if not folder.is_dir():
            raise DatasetError(
                f"no folder of a dataset at {folder}: nothing is downloaded, give a local folder"
            )
        parts = open_rows(folder)
        splits = [part.split for part in parts]
        suffixes = [suffix for _, suffix in _HEADS]
        definition = Definition(
            name="huggingface",
            images=tuple(f"images/{{split}}/*{each}" for each in dict.fromkeys(suffixes)),
            labels=("labels/{split}/*.png",),
            splits={split: split for split in splits},
            default_splits=tuple(splits),
        )
        return cls(_name_classes(definition, folder, parts), folder, _stamp(folder))

    @property
    def name(self) -> str:
        """What the user calls it."""
        return f"huggingface:{self.folder}"

    def find_root(self, given: Path | None) -> Path:
        """Give the folder that the images are unpacked into: in the cache, or below the given."""
        require_local(given, f"{self.name} is unpacked into a local folder, and not into {given}")
        top = given or find_cache("datasets").absolute()
        # what a run remembers of an earlier time is such a folder already
        top = top.parent if top.name.startswith(_PREFIX) else top
        return top / f"{_PREFIX}{self.stamp}"

    def fetch(self, root: Path, say: Say) -> None:
        """Unpack the images and label maps, where that has not been done."""
        if root.is_dir():
            return
        if not may_fetch():
            raise DatasetError(
                f"a dry run unpacks nothing, and the images of {self.name} are not in {root} yet: "
                "leave --dry-run away once"
            )
        say(f"{self.name}: images are unpacked into {root}, where the run will read them")
        # it takes its name when it is whole; the loser of a race is removed
        part = root.with_name(f"{root.name}.part-{uuid4().hex[:8]}")
        try:
            count, lost = _unpack(open_rows(self.folder), part)
            if not count:
                raise DatasetError(
                    f"no row of {self.folder} holds the bytes of an image: save it with them"
                )
            with suppress(FileExistsError):
                if not root.is_dir():
                    part.rename(root)
        except OSError as error:
            raise DatasetError(
                f"cannot unpack {self.folder} into {root}: {error.strerror or error}; --root or "
                "$PRIMAPS_CACHE_DIR names another place."
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        say(
            f"{self.name}: {count_of(count, 'images')}"
            + (f", {count_of(lost, 'rows')} without one" if lost else "")
        )


def _stamp(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.suffix in _DATA)
    stamps = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return fingerprint(str(folder), [(n, s.st_size, s.st_mtime_ns) for n, s in stamps])[:20]


def _unpack(parts: Sequence[Rows], top: Path) -> tuple[int, int]:
    """Write the images and label maps of all rows; return how many there were, and were not."""
    count = lost = 0
    for part in parts:
        images, labels = top / "images" / part.split, top / "labels" / part.split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for row, (image, label) in enumerate(part.read()):
            data = image.get("bytes") if isinstance(image, dict) else None
            if not data:
                lost += 1
                continue
            name = name_row(row, image.get("path"))
            (images / f"{name}{sniff_suffix(data)}").write_bytes(data)
            ids = encode_label(label, f"row {row} of {part.split}")
            if ids is not None:
                (labels / f"{name}.png").write_bytes(ids)
            count += 1
    return count, lost
