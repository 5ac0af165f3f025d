"""A fit or head that was evaluated: its scores, its settings and its label maps, read for reuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import IGNORE, Dataset
from pipeline.datasets.base import png_palette
from pipeline.errors import ImageError, RunError
from pipeline.images.decoding import read_label
from pipeline.run.directory import RunDirectory
from pipeline.run.ledger import StageRecord
from pipeline.run.manifest import Image, Manifest, read_manifest
from pipeline.run.subject import (
    ClusterLook,
    Subject,
    choose_block,
    choose_look,
    read_given_names,
    require_evaluated,
)
from pipeline.settings import field_extra
from pipeline.storage.files import read_json
from stages import SETTINGS, VERSIONS
from stages.evaluate.counts import decode_scores
from stages.report.exhibition import label_file
from stages.report.reproduction import list_sources


@dataclass(frozen=True)
class Evaluated:
    """One fit or head whose label maps and scores are up to date."""

    run: RunDirectory
    subject: Subject
    manifest: Manifest
    record: StageRecord
    metrics: dict[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were labelled."""
        return tuple(self.metrics["splits"])

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return int(self.metrics["classes"])

    @cached_property
    def images(self) -> dict[tuple[str, str], Image]:
        """The images that were labelled, by split and id."""
        splits = set(self.splits)
        return {(i.split, i.id): i for i in self.manifest.images if i.ok and i.split in splits}

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the images are of."""
        return self.manifest.open_dataset()

    @property
    def class_palette(self) -> NDArray[np.uint8]:
        """Colours of the dataset's classes, uint8 [256, rgb]."""
        return np.frombuffer(png_palette(self.dataset.palette), np.uint8).reshape(256, 3)

    def choose_look(self, split: str, *, refined: bool = True) -> ClusterLook:
        """Choose how the clusters look by their matching in a split."""
        block = choose_block(self.metrics, split)
        final = block["assignment_crf"] if refined else None
        return choose_look(
            self.clusters,
            block["assignment"] if final is None else final,
            block["class_names"],
            self.dataset.palette,
            read_given_names(self.run, self.subject.title, self.clusters),
        )

    def read_labels(self, name: tuple[str, str]) -> NDArray[np.uint8]:
        """Read the label map of an image, uint8 [y, x], 255 where it has no label."""
        image = self.images[name]
        file = label_file(self.run.labels(self.subject.title), image)
        try:
            labels = read_label(file)
        except ImageError as error:
            raise RunError(
                f"the label map {file} cannot be read ({error}); run {self.command} again."
            ) from error
        known = (labels < self.clusters) | (labels == IGNORE)
        if labels.shape != (image.height, image.width) or not known.all():
            raise RunError(f"{file} is no label map of {image.path}; run {self.command} again.")
        return labels.astype(np.uint8)

    def read_scores(
        self, names: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], dict[str, float]]:
        """Read the scores of some images from ``images.parquet``."""
        file = self.run.report(self.subject.title) / "images.parquet"
        try:
            rows = decode_scores(file.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read ({error}); run {self.command} again.") from error
        wanted = set(names)
        return {
            (row["split"], row["id"]): {k: v for k, v in row.items() if isinstance(v, float)}
            for row in rows
            if (row["split"], row["id"]) in wanted
        }

    @property
    def command(self) -> str:
        """The command that made it, in quotes."""
        return f"`primaps-pipe evaluate {self.run.quoted}{self.subject.options}`"


def open_evaluated(run: RunDirectory, em: str | None, head: str | None) -> Evaluated:
    """Open a fit or head that was evaluated."""
    subject, record = require_evaluated(run, em, head, VERSIONS)
    command = f"`primaps-pipe evaluate {run.quoted}{subject.options}`"
    file = run.report(subject.title) / "metrics.json"
    metrics = read_json(file)
    if metrics is None:
        raise RunError(f"{file} is gone; run {command} again.")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("splits"), dict):
        raise RunError(f"{file} is not what an evaluation writes; run {command} again.")
    return Evaluated(run, subject, read_manifest(run), record, metrics)


def list_settings(run: RunDirectory, key: str) -> dict[str, Any]:
    """List every setting that has a part in what a stage wrote, those of all before it included."""
    return {
        f"{record.stage}.{name}": value
        for record in list_sources(run, key).values()
        for name, value in record.settings.items()
        if name not in _list_execution(record.stage)
    }


def _list_execution(stage: str) -> frozenset[str]:
    """List the options of a stage that change nothing in what it writes."""
    known = SETTINGS[stage]
    return frozenset(n for n in known.model_fields if not field_extra(known, n, "affects_output"))


def find_differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Find the settings in which some differ."""
    names = dict.fromkeys(name for mapping in settings for name in mapping)
    rows = {name: tuple(mapping.get(name) for mapping in settings) for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def name_columns(places: Sequence[tuple[Path, str]]) -> list[str]:
    """Name what is compared as shortly as tells them apart."""
    runs = list(dict.fromkeys(path for path, _ in places))
    short = dict(zip(runs, _shorten_paths(runs), strict=True))
    if len(runs) == 1:
        return [title for _, title in places]
    if len(runs) == len(places) and len({title for _, title in places}) == 1:
        return [short[path] for path, _ in places]
    return [f"{short[path]} · {title}" for path, title in places]


def _shorten_paths(paths: Sequence[PurePath]) -> list[str]:
    """Give each path by as few of its last parts as tell it from the others."""
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if max(Counter(names).values(), default=1) == 1:
            return names
    return [str(path) for path in paths]
