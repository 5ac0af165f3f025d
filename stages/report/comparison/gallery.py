"""The gallery of a comparison: every image with the label maps of all evaluations in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, StaleError
from pipeline.progress import Screen
from pipeline.run.frames import count_threads, map_ahead, read_frame, read_truth, resize_labels
from pipeline.run.manifest import Image
from pipeline.run.subject import Evaluation
from stages.report.comparison.colours import Paint
from stages.report.comparison.common_images import Name, Role
from stages.report.comparison.page import ComparedImage
from stages.report.gallery import colour_labels, make_thumbnail

SIDE = 384  # longest side of a picture, pixels
BUDGET = 18_000_000  # characters of all pictures: with text and plots, the page is below 25 MB


@dataclass(frozen=True)
class Gallery:
    """The rows, and what had to be left out."""

    images: tuple[ComparedImage, ...]
    left_out: int
    unreadable: tuple[tuple[str, str], ...]


def draw_gallery(
    opened: Sequence[Evaluation],
    rows: Mapping[Name, Role],
    differences: Mapping[Name, float],
    paints: Mapping[str, Sequence[Paint]],
    reference: int,
    screen: Screen,
    budget: int = BUDGET,
) -> Gallery:
    """Draw as many rows as there is room for, fair to all splits."""
    ordered = _take_turns(list(rows))
    scores = [entry.read_scores(ordered) for entry in opened]
    truth_palette = opened[reference].class_palette

    def draw(name: Name) -> tuple[ComparedImage, list[tuple[str, str]]]:
        value = differences[name]
        faults: list[tuple[str, str]] = []
        image = ComparedImage(
            id=name[1],
            split=name[0],
            role=rows[name],
            difference=None if np.isnan(value) else value,
            photograph=_draw_photograph(opened, name, faults),
            truth=_draw_truth(opened[reference], name, truth_palette, faults),
            labels=tuple(
                _draw_map(entry.read_labels(entry.images[name]), paint.palette)
                for entry, paint in zip(opened, paints[name[0]], strict=True)
            ),
            accuracy=tuple(_read_accuracy(found.get(name, {})) for found in scores),
        )
        return image, faults

    drawn: dict[Name, ComparedImage] = {}
    unreadable: list[tuple[str, str]] = []
    size, threads = 0, count_threads()
    with screen.count("draw", len(ordered), "images") as counter:
        for name, (image, faults) in zip(
            ordered, map_ahead(draw, ordered, threads, threads), strict=False
        ):
            size += sum(len(s) for s in (image.photograph, image.truth, *image.labels) if s)
            if size > budget:
                break
            drawn[name] = image
            unreadable += faults
            counter.advance()
    images = tuple(drawn[name] for name in rows if name in drawn)
    return Gallery(images, len(rows) - len(images), tuple(unreadable))


def _read_accuracy(scores: Mapping[str, float]) -> float | None:
    """Return the accuracy of the final labels."""
    return scores.get("accuracy_crf", scores.get("accuracy"))


def _take_turns(names: Sequence[Name]) -> list[Name]:
    """Take the first of every split, then the second of every split, and so on."""
    splits = dict.fromkeys(split for split, _ in names)
    lists = [[name for name in names if name[0] == split] for split in splits]
    return [name for turn in zip_longest(*lists) for name in turn if name is not None]


def _draw_photograph(
    opened: Sequence[Evaluation], name: Name, faults: list[tuple[str, str]]
) -> str | None:
    """Draw the photograph of the first evaluation that still has it."""
    for entry in opened:
        image = entry.images[name]
        width, height = _fit(image)
        try:
            pixels = read_frame(entry.manifest.root, image, width, height)
        except (ImageError, StaleError) as error:
            fault = (image.path, str(error))
            continue
        return make_thumbnail(pixels, "photograph", SIDE)
    faults.append(fault)
    return None


def _draw_truth(
    entry: Evaluation, name: Name, palette: NDArray[np.uint8], faults: list[tuple[str, str]]
) -> str | None:
    image = entry.images[name]
    path = entry.manifest.label_path(image)
    if path is None:
        return None
    try:
        truth = read_truth(entry.dataset, path, image)
    except ImageError as error:
        faults.append((str(image.label), str(error)))
        return None
    return _draw_map(truth, palette)


def _draw_map(ids: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    height, width = ids.shape
    scale = min(1.0, SIDE / max(width, height))
    # ids are made small before they are coloured: a colour takes three times the memory
    small = resize_labels(ids, *(max(1, round(scale * length)) for length in (width, height)))
    return make_thumbnail(colour_labels(small, palette), "map", SIDE)


def _fit(image: Image) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(image.width, image.height))
    return max(1, round(scale * image.width)), max(1, round(scale * image.height))
