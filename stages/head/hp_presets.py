"""What Hidden Positives sets differently for the datasets that it was tuned to."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.datasets.base import unknown_name
from pipeline.errors import UsageError


@dataclass(frozen=True)
class HpPreset:
    """How sharp the contrast is, and how long a reference pool lasts.

    Attributes
    ----------
    temperature
        Divides the cosines.
    renew_every
        Steps between renewals of the pools.
    """

    temperature: float
    renew_every: int


_COCOSTUFF = HpPreset(temperature=0.8, renew_every=100)
_CITYSCAPES = HpPreset(temperature=0.6, renew_every=20)
_POTSDAM = HpPreset(temperature=0.4, renew_every=20)

_PRESETS = {
    "cocostuff": _COCOSTUFF,
    "cityscapes": _CITYSCAPES,
    "potsdam": _POTSDAM,
    "camvid": _CITYSCAPES,
    "folder": _COCOSTUFF,
}


def get_hp_preset(dataset: str) -> HpPreset:
    """Give temperature and renewal for a dataset.

    Those of ``cocostuff``, ``cityscapes`` and ``potsdam`` are the paper's (Seong et al., CVPR
    2023). ``camvid`` shows streets and takes those of Cityscapes, a ``folder`` of any images those
    of COCO-Stuff.

    Parameters
    ----------
    dataset
        Name of a dataset.

    Raises
    ------
    UsageError
        There are none for it; the message lists those there are.
    """
    if dataset not in _PRESETS:
        raise UsageError(unknown_name("dataset", dataset, tuple(_PRESETS)))
    return _PRESETS[dataset]
