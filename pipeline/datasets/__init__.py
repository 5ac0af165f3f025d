"""The datasets by name: `get_dataset("camvid").list_samples(root, ("train",))`."""

from __future__ import annotations

from pipeline.datasets.base import IGNORE, Benchmark, Dataset, Frame, Sample, unknown_name
from pipeline.datasets.camvid import CAMVID
from pipeline.datasets.cityscapes import CITYSCAPES
from pipeline.datasets.cocostuff import COCOSTUFF
from pipeline.datasets.folder import FOLDER
from pipeline.datasets.potsdam import POTSDAM
from pipeline.errors import UsageError

__all__ = ["DATASET_NAMES", "IGNORE", "Benchmark", "Dataset", "Frame", "Sample", "get_dataset"]

_DATASETS: dict[str, Dataset] = {
    dataset.name: dataset for dataset in (FOLDER, COCOSTUFF, CITYSCAPES, POTSDAM, CAMVID)
}

DATASET_NAMES: tuple[str, ...] = tuple(_DATASETS)


def get_dataset(name: str) -> Dataset:
    """Give the dataset of a name.

    Raises
    ------
    UsageError
        No dataset has it; the message lists those there are.
    """
    if name not in _DATASETS:
        raise UsageError(unknown_name("dataset", name, DATASET_NAMES))
    return _DATASETS[name]
