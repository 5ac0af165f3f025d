"""Proof that no label reaches what is made without labels.

All stages of a run are run again on some of its photographs, in a folder that is gone afterwards:
with their label maps, with those permuted, shifted and removed. Everything but scores must come out
with the same bytes each time.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.compute.scheduler import Execution
from pipeline.datasets.definition import IGNORE, png_palette
from pipeline.datasets.own import CLASSES_FILE, COLUMNS
from pipeline.errors import ImageError, PipelineError, RunError, count_of
from pipeline.images.decoding import encode_png, repaint_png
from pipeline.progress import Screen
from pipeline.run.directory import RunDirectory
from pipeline.run.frames import resize_labels
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.run.verification import read_run_settings
from pipeline.settings import StageSettings
from pipeline.storage.files import checksum
from pipeline.storage.places import find_files
from stages import SETTINGS, run_stage

# What becomes of the label maps.
GIVEN, PERMUTED, SHIFTED, REMOVED = "as they are", "permuted", "shifted", "removed"
WAYS = (GIVEN, PERMUTED, SHIFTED, REMOVED)
# A leak shows in the first step as in the last.
_MOST_STEPS = 20
_STORES = ("features.zarr", "masks.zarr", "heads.zarr", "codes", "em.zarr")
_STAGES = ("extract", "views", "masks", "head", "encode", "em", "evaluate")

Result = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Proof:
    """What came out alike, whatever the labels, and what did not.

    ``leaks`` has artefact -> what was done to the labels when it came out otherwise; ``skipped``
    the fits that labels were given to.
    """

    images: int
    artefacts: dict[str, int]
    leaks: dict[str, list[str]]
    skipped: tuple[str, ...]
    shortened: tuple[str, ...]

    def describe(self) -> Iterator[str]:
        """Say it in lines."""
        for artefact, ways in self.leaks.items():
            yield f"{artefact} is not the same with labels {', '.join(ways)}: labels reach it"
        for key in self.skipped:
            yield f"{key} was given labels (--labels-from): not looked at"
        for key in self.shortened:
            yield f"{key} was trained for {_MOST_STEPS} steps only"
        same = {name: n for name, n in self.artefacts.items() if name not in self.leaks}
        many = count_of(self.images, "images")
        told = ", ".join(f"{name} ({count_of(n, 'files')})" for name, n in same.items())
        yield (
            f"the same bytes of {many} of the run with labels {', '.join(WAYS[:-1])} and "
            f"{WAYS[-1]}: {told or 'nothing'}"
        )


def prove_label_free(run: RunDirectory, images: int, screen: Screen) -> Proof:
    """Run all stages of a run again on so many of its images, in every way, and compare."""
    manifest = read_manifest(run.require())
    chosen = _choose(manifest, images)
    if not chosen:
        raise RunError(f"{run.path} has no image with a label map: no label could reach anything.")
    settings, skipped, shortened = _list_settings(run)
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="primaps-pipe-") as folder:
        scratch = Path(folder)
        photographs = _copy(manifest, chosen, scratch)
        for way in WAYS:
            screen.note(f"verify: all stages on {count_of(len(chosen), 'images')}, labels {way}")
            place = RunDirectory(scratch / "runs" / way.replace(" ", "-"))
            dataset = _write_list(scratch, way, photographs)
            try:
                _run_stages(place, settings, scratch, dataset, way)
            except PipelineError as error:
                raise RunError(f"with labels {way} the stages end in: {error}") from error
            results[way] = _read_results(place.path)
            shutil.rmtree(place.path)
    artefacts, leaks = find_leaks(results)
    return Proof(
        images=len(chosen),
        artefacts=artefacts,
        leaks=leaks,
        skipped=skipped,
        shortened=shortened,
    )


def find_leaks(results: Mapping[str, Result]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Compare what came out in every way with what came out without labels.

    Gives the number of files of every artefact, and of those that are not always the same what was
    done to the labels. One that is there with labels alone leaks, too.
    """
    without = results[REMOVED]
    known = {artefact: files for result in results.values() for artefact, files in result.items()}
    leaks = {
        artefact: [way for way in WAYS if results[way].get(artefact) != without.get(artefact)]
        for artefact in known
    }
    counts = {artefact: len(files) for artefact, files in known.items()}
    return counts, {artefact: ways for artefact, ways in leaks.items() if ways}


def _choose(manifest: Manifest, most: int) -> list[Image]:
    """Choose images with label maps, as many of each split, evenly spread."""
    images = manifest.images
    usable = images.among("state", ["ok"]) & np.asarray(pc.is_valid(images.column("label")))
    chosen: list[Image] = []
    for split in manifest.splits:
        rows = np.flatnonzero(usable & images.among("split", [split]))
        share = max(1, most // len(manifest.splits))
        places = np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(int)
        chosen += images.choose(rows[places])
    return chosen


def _list_settings(
    run: RunDirectory,
) -> tuple[list[tuple[str, StageSettings]], tuple[str, ...], tuple[str, ...]]:
    """List the stages of a run in their order, with the settings that they are run again with.

    And the fits that are left out, because labels were given to them; and the heads whose training
    is shortened.
    """
    found: dict[str, tuple[str, StageSettings]] = {}
    skipped, shortened = [], []
    for key in SETTINGS.sort_keys(run.keys()):
        stage = key.partition("/")[0]
        if stage not in _STAGES:
            continue
        known, settings = read_run_settings(run, SETTINGS, key)
        values = settings.model_dump()
        if values.get("labels_from") is not None:
            skipped.append(key)
            continue
        if f"em/{values.get('em')}" in skipped:
            continue
        change: dict[str, Any] = {}
        if stage == "head" and values["steps"] > _MOST_STEPS:
            change["steps"] = _MOST_STEPS
            shortened.append(key)
        if stage == "em":
            change["keep"] = False
        if stage == "evaluate":
            # which want what a person has said of this run
            change |= {"confidence": False, "min_confidence": 0.0}
        found[known] = stage, type(settings).model_validate(values | change)
    return list(found.values()), tuple(skipped), tuple(shortened)


def _copy(
    manifest: Manifest, chosen: Sequence[Image], scratch: Path
) -> list[tuple[str, str, NDArray[np.uint8]]]:
    """Copy photographs; give the place, the split and the label map of each."""
    dataset, copied = manifest.open_dataset(), []
    for number, image in enumerate(chosen):
        label = manifest.label_path(image)
        assert label is not None
        try:
            truth = dataset.read_label(label)
        except ImageError as error:
            raise RunError(f"{label} cannot be read: {error}.") from error
        source = manifest.root / image.path
        name = f"images/{number:06d}{source.suffix}"
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_bytes(source.read_bytes())
        copied.append((name, image.split, truth))
    names = dataset.class_names(manifest.labels)
    (scratch / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return copied


def _write_list(
    scratch: Path, way: str, images: Sequence[tuple[str, str, NDArray[np.uint8]]]
) -> str:
    """Write label maps as they are in one of the ways; give the dataset."""
    folder = Path("labels", way.replace(" ", "-"))
    (scratch / folder).mkdir(parents=True)
    rows = []
    for number, (name, split, truth) in enumerate(images):
        label = ""
        if way != REMOVED:
            other = images[(number + 1) % len(images)][2] if way == PERMUTED else truth
            label = (folder / f"{number:06d}.png").as_posix()
            (scratch / label).write_bytes(encode_png(_change(other, way, truth.shape)))
        rows.append((name, label, split))
    file = scratch / f"{folder.name}.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return f"list:{file}"


def _change(labels: NDArray[np.uint8], way: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Permute classes, on the label map of another image; or shift pixels and classes."""
    if way == GIVEN:
        return labels
    classes = int(labels[labels != IGNORE].max(initial=0)) + 1
    table = np.arange(256, dtype=np.uint8)
    if way == PERMUTED:
        table[:classes] = table[:classes][::-1]
        height, width = shape
        return np.asarray(table[resize_labels(labels, width, height)])
    table[:classes] = np.roll(table[:classes], 1)
    return np.roll(table[labels], (labels.shape[0] // 3, labels.shape[1] // 3), (0, 1))


def _run_stages(
    run: RunDirectory,
    settings: Sequence[tuple[str, StageSettings]],
    scratch: Path,
    dataset: str,
    way: str,
) -> None:
    """Run stages on the copied photographs."""
    for stage, chosen in settings:
        change: dict[str, Any] = {}
        if stage == "extract":
            change = {"dataset": dataset, "root": str(scratch), "labels": None, "limit": None}
            change |= {"include": (), "exclude": ()}
        if stage == "evaluate" and way == REMOVED:
            # it learns from labels, by its name; what stands beside it must not
            change = {"linear_probe": False}
        run_stage(stage, run, chosen.replace(**change), Execution(), _Silent(progress=False))


class _Silent(Screen):
    """Shows nothing: what the stages say of these runs is not what was asked for."""

    def result(self, text: str, **facts: Any) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Show nothing."""


def _read_results(run: Path) -> Result:
    """Read the checksums of every file that labels must not reach, by artefact."""
    found: dict[str, dict[str, str]] = {}
    folders = [run / name for name in _STORES if (run / name).is_dir()]
    for folder in [*folders, *sorted(run.glob("labels*"))]:
        for file in find_files(folder):
            content = file.read_bytes()
            if file.suffix == ".png":
                # its colours are those of the classes that scores match the clusters to
                content = repaint_png(content, png_palette(()))
            # a fit, a head or its codes are an artefact each
            below = file.relative_to(run).parts
            parts = 2 if folder.name in ("codes", "em.zarr", "heads.zarr") and len(below) > 2 else 1
            found.setdefault("/".join(below[:parts]), {})["/".join(below)] = checksum(content)
    return found
