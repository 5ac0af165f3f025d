"""Anybody's label maps against the truth, in folders: what ``primaps-pipe score`` does.

Predictions are files of the names that the label maps, or the dataset's images, have. Nothing that
has a label is passed over: what is missing, damaged or of another size ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import get_dataset
from pipeline.datasets.base import Dataset
from pipeline.datasets.definition import EVERYTHING, IGNORE
from pipeline.datasets.labels import NO_CLASS, LabelCounts, LabelMap
from pipeline.errors import DatasetError, ImageError, UsageError, count_of
from pipeline.images.decoding import read_label
from pipeline.images.formats import list_suffixes
from pipeline.images.windows import place_windows
from pipeline.progress import Screen
from pipeline.run.confidence import SUFFIX
from pipeline.run.frames import count_threads, map_ahead, resize_labels
from pipeline.storage.places import find_files
from stages.scores import (
    MATCHINGS,
    compare_maps,
    count_boundaries,
    put_first,
    read_numbers,
    score_boundaries,
    show_miou,
    summarise_maps,
)

_NUMPY = ".npy"
# -1 as it is stored without a sign
_UNSIGNED = 65535
_MOST_NAMED = 5


@dataclass(frozen=True)
class Rules:
    """How a prediction is brought to its label map, and what of it counts."""

    matching: str = MATCHINGS[0]
    crop: str = "none"
    resize: str = "none"
    ignore: Collection[int] = ()
    boundaries: bool = False


@dataclass(frozen=True)
class Task:
    """An image with a label map, and the names that its prediction may have, without suffix."""

    split: str
    id: str
    label: Path
    names: tuple[str, ...]


def score_folder(
    predictions: Path,
    *,
    labels: Path | None = None,
    dataset: str | None = None,
    root: Path | None = None,
    splits: Sequence[str] = (),
    rules: Rules,
    screen: Screen,
) -> dict[str, Any]:
    """Score the label maps of a folder; every split as :func:`stages.scores.score`, as JSON has it.

    The split that papers report stands on top, the others in ``splits``. ``label_pixels`` says what
    of the label maps is in no score, by value.
    """
    source, tasks = _list_tasks(labels, dataset, root, splits)
    pairs = _pair(predictions, tasks, screen)
    found: dict[str, dict[str, Any]] = {task.split: {} for task in tasks}
    pixels = {task.split: LabelCounts() for task in tasks}
    work = partial(_compare, source, rules)
    threads = count_threads()
    edges: dict[str, Any] = dict.fromkeys(found, 0)
    with screen.count("score", len(tasks), "images") as counter:
        for task, (images, counts, near) in zip(
            tasks, map_ahead(work, pairs, threads, 2 * threads), strict=True
        ):
            # as evaluate draws images for its intervals
            found[task.split][f"{task.split}/{task.id}"] = images
            pixels[task.split].add(counts)
            edges[task.split] += near
            counter.advance()
    told = source.definition.tells_ignore or IGNORE in rules.ignore
    for split, counts in pixels.items():
        if fault := counts.find_fault(told=told):
            raise DatasetError(f"{split} is not scored: {fault}.")
    names = source.class_names(labels)
    blocks = {
        split: {
            **summarise_maps(images, rules.matching, names),
            **({"boundary_f": score_boundaries(edges[split])} if rules.boundaries else {}),
            "label_pixels": pixels[split].dump(),
        }
        for split, images in found.items()
    }
    return put_first(blocks)


def describe_scores(result: Mapping[str, Any]) -> Iterator[str]:
    """Describe the scores in lines: of every split, and of every class of the first."""
    for split, block in result["splits"].items():
        many = count_of(block["labelled_images"], "labelled images")
        if block["accuracy"] is None:
            yield f"{split}: {count_of(block['images'], 'images')} without a labelled pixel"
            continue
        how = "predictions are classes"
        if block["matching"] != "none":
            how = f"{count_of(block['classes'], 'clusters')} matched {block['matching']}"
        yield f"{split}: accuracy {block['accuracy']:.1f}, mIoU {show_miou(block)} ({many}, {how})"
        for width, value in block.get("boundary_f", {}).items():
            shown = "none: one of the maps has no boundary" if value is None else f"{value:.1f}"
            yield f"{split}: boundary F within {width} px {shown}"
        if left_out := LabelCounts.parse(block["label_pixels"]).describe():
            yield f"{split}: {left_out}"
    rows = [(each["name"], each["iou"]) for each in result["per_class"] if each["iou"] is not None]
    width = max((len(name) for name, _ in rows), default=0)
    if rows:
        yield f"IoU of every class that occurs in {result['split']}:"
    yield from (f"  {name:{width}} {iou:6.2f}" for name, iou in rows)


def describe_doubts(result: Mapping[str, Any]) -> Iterator[str]:
    """Say what makes scores less than they seem: what is not predicted, and a kind matching."""
    for split, block in result["splits"].items():
        if lost := block["unpredicted_pixels"]:
            share = 100 * lost / block["labelled_pixels"]
            yield (
                f"{split}: {lost} labelled pixels ({share:.1f} %) have no prediction (255 or -1): "
                "they count as wrong."
            )
    if result["matching"] == MATCHINGS[1]:
        yield (
            "many-to-one matching grows with the number of clusters: these scores compare with "
            "those of as many clusters alone."
        )


def _list_tasks(
    labels: Path | None, dataset: str | None, root: Path | None, splits: Sequence[str]
) -> tuple[Dataset, list[Task]]:
    """List the images that have a label map."""
    if (labels is None) == (dataset is None):
        raise UsageError("score needs --labels DIR, or --dataset NAME with --root DIR.")
    if labels is not None:
        if splits or root is not None:
            raise UsageError("--split and --root go with --dataset, not with --labels.")
        found = _list_maps(labels)
        if not found:
            raise DatasetError(f"no label maps ({', '.join(_list_suffixes())}) in {labels}.")
        twice = [name for name, files in found.items() if len(files) > 1]
        if twice:
            raise DatasetError(f"{labels} has several label maps called {twice[0]}: keep one.")
        tasks = [Task(EVERYTHING, name, files[0], (name,)) for name, files in sorted(found.items())]
        return get_dataset("folder").know_labels(labels), tasks
    source = get_dataset(str(dataset))
    base = source.find_root(root)
    samples = source.list_samples(base, tuple(splits) or source.default_splits)
    tasks = [
        Task(sample.split, sample.id, base / sample.label, _name(sample.split, sample.id))
        for sample in samples
        if sample.label is not None
    ]
    if not tasks:
        raise DatasetError(f"no image of {dataset} in {base} has a label map.")
    return source, tasks


def _name(split: str, id_: str) -> tuple[str, ...]:
    # as evaluate writes it; and in a folder of one split
    return f"{split}/{id_}", id_


def _list_suffixes() -> list[str]:
    return [*sorted(list_suffixes()), _NUMPY]


def _list_maps(folder: Path) -> dict[str, list[Path]]:
    """List the files of a folder that may be label maps, by path without suffix."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}.")
    found: dict[str, list[Path]] = {}
    suffixes = set(_list_suffixes())
    for file in sorted(find_files(folder)):
        path = PurePosixPath(file.relative_to(folder).as_posix())
        hidden = any(part.startswith(".") for part in path.parts)
        if path.suffix.lower() in suffixes and not hidden and not path.name.endswith(SUFFIX):
            found.setdefault(path.with_suffix("").as_posix(), []).append(file)
    return found


def _pair(predictions: Path, tasks: Sequence[Task], screen: Screen) -> list[tuple[Task, Path]]:
    """Find the prediction of every image; say which are missing, and which are none's."""
    there = _list_maps(predictions)
    pairs, lost, taken = [], [], dict[Path, Task]()
    for task in tasks:
        files = [file for name in task.names for file in there.get(name, ())]
        if not files:
            lost.append(task.names[0])
            continue
        if len(files) > 1:
            raise UsageError(
                f"{files[0]} and {files[1]} are both predictions of {task.label}: keep one."
            )
        if files[0] in taken:
            raise UsageError(
                f"{files[0]} may be the prediction of {taken[files[0]].label} and of {task.label}: "
                f"put them into folders {taken[files[0]].split} and {task.split}, or choose one "
                "with --split."
            )
        taken[files[0]] = task
        pairs.append((task, files[0]))
    if lost:
        named = ", ".join(lost[:_MOST_NAMED]) + (" ..." if len(lost) > _MOST_NAMED else "")
        raise UsageError(
            f"{predictions} has no prediction of {len(lost)} of {count_of(len(tasks), 'labelled')} "
            f"images: {named} (png, tif or npy). Every image with a label counts: add them, or "
            "score a folder or --split of which there are all."
        )
    others = sorted({file for files in there.values() for file in files} - set(taken))
    if others:
        many = count_of(len(others), "files")
        screen.warn(
            f"{many} in {predictions} belong to no image that is scored (first: {others[0]})."
        )
    return pairs


def _compare(
    source: Dataset, rules: Rules, pair: tuple[Task, Path]
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], LabelCounts, NDArray[np.int64] | int]:
    """Compare one prediction with its label map: classes, values, and boundaries if wanted."""
    task, file = pair
    known = _read(task.label, lambda path: _read_truth(source, path, rules.ignore))
    left_out = rules.ignore if rules.matching == "none" else ()
    told = _read(file, lambda path: read_numbers(_read_raw(path), left_out, what="it"))
    height, width = known.raw.shape
    box = (0, 0, width, height)
    if rules.crop == "centre":
        side = min(width, height)
        ((left, top),) = place_windows(width, height, side, "centre", 0)
        box = (left, top, left + side, top + side)
        if width != height and told.shape[0] == told.shape[1]:
            # of the square alone
            told = _fit(told, (side, side), file, task.label, rules.resize)
        else:
            told = _fit(told, known.raw.shape, file, task.label, rules.resize)
            told = told[top : top + side, left : left + side]
    else:
        told = _fit(told, known.raw.shape, file, task.label, rules.resize)
    left, top, right, bottom = box
    truth = known.classes[top:bottom, left:right]
    near = count_boundaries(told, truth) if rules.boundaries else 0
    return compare_maps(told, truth), known.count(box), near


def _fit(
    told: NDArray[np.uint8], shape: tuple[int, ...], file: Path, label: Path, resize: str
) -> NDArray[np.uint8]:
    """Bring a prediction to the size of its label map, where that is asked for."""
    (height, width), (own_height, own_width) = shape, told.shape
    if (height, width) == (own_height, own_width):
        return told
    sizes = f"{file} is {own_width} x {own_height}, its label map {label} {width} x {height}"
    # to a pixel: sides are rounded where images are scaled
    if abs(own_width * height - own_height * width) > max(height, width):
        raise UsageError(
            f"{sizes}, which is another shape: predict whole images, or the centred square of each "
            "(--crop centre)."
        )
    if resize == "none":
        raise UsageError(
            f"{sizes}: scores are those of the labels' pixels; with --resize nearest every one of "
            "them takes the nearest prediction."
        )
    return resize_labels(told, width, height)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (ImageError, ValueError) as error:
        raise DatasetError(f"{path} cannot be scored: {error}.") from error


def _read_raw(path: Path) -> NDArray[np.integer[Any]]:
    if path.suffix.lower() != _NUMPY:
        values = read_label(path)
        if values.ndim == 3:
            raise ImageError("it holds colours, and not numbers of clusters or classes")
        return values
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, EOFError) as error:
        raise ImageError(f"it is no NumPy array ({error})") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ImageError(f"it is {array.dtype} {list(array.shape)}, not whole numbers [y, x]")
    return array


def _read_truth(source: Dataset, path: Path, ignore: Collection[int]) -> LabelMap:
    """Read a label map with what it means, and what is to be ignored."""
    numpy = path.suffix.lower() == _NUMPY
    found = source.map_label(_read_raw(path)) if numpy else source.open_label(path)
    if found.coloured:
        return found
    ignored = np.isin(found.raw, [*ignore])
    ignored |= (found.raw == _UNSIGNED) & (found.meaning == NO_CLASS)
    meaning = np.where(ignored, IGNORE, found.meaning).astype(np.int16)
    return replace(found, meaning=meaning)
