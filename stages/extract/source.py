"""The dataset that a run is made of: as it is now, or as the run keeps it where it is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets import Dataset, complete_dataset_name, get_dataset, is_gone
from pipeline.manifest import read_manifest
from pipeline.places import make_absolute
from pipeline.run_directory import RunDirectory
from stages.extract.settings import ExtractSettings


@dataclass(frozen=True)
class Source:
    """A dataset and its root.

    Attributes
    ----------
    dataset, root
        What is read, and where.
    kept
        What the run keeps of the same dataset from an earlier time, or None.
    warning
        What the user should know, or nothing.
    """

    dataset: Dataset
    root: Path
    kept: Mapping[str, Any] | None = None
    warning: str = ""


def open_source(run: RunDirectory, settings: ExtractSettings) -> Source:
    """Open the dataset of the settings.

    Raises
    ------
    UsageError
        There is no such dataset, or it needs a root and none is given.
    DatasetError
        Its definition cannot be read.
    """
    name = complete_dataset_name(settings.dataset)
    given = settings.root and make_absolute(settings.root)
    kept = run.manifest_file.is_file() and run.windows_file.is_file()
    manifest = read_manifest(run) if kept else None
    if manifest is None or manifest.dataset != name or manifest.definition is None:
        dataset = get_dataset(name)
        return Source(dataset, dataset.find_root(given))
    if is_gone(name):
        return Source(
            manifest.open_dataset(),
            given or manifest.root,
            manifest.definition,
            f"the dataset {name} is gone; what the run keeps of it is used.",
        )
    dataset = get_dataset(name)
    return Source(dataset, dataset.find_root(given), manifest.definition)
