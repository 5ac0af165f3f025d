"""Weights and shifts of STEGO's loss for the datasets that it was tuned to."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.datasets.base import unknown_name
from pipeline.errors import UsageError


@dataclass(frozen=True)
class StegoPreset:
    """How the terms of STEGO's loss are weighted and shifted.

    Attributes
    ----------
    weights
        lambda of the terms self, knn and random.
    shifts
        b of the same terms.
    """

    weights: tuple[float, float, float]
    shifts: tuple[float, float, float]


_WEIGHTS = (0.67, 0.25, 0.63)
_COCOSTUFF = StegoPreset(_WEIGHTS, (0.08, 0.02, 0.66))
_CITYSCAPES = StegoPreset(_WEIGHTS, (0.18, 0.12, 0.46))
_POTSDAM = StegoPreset(_WEIGHTS, (0.08, 0.02, 0.46))

_PRESETS = {
    "cocostuff": _COCOSTUFF,
    "cityscapes": _CITYSCAPES,
    "potsdam": _POTSDAM,
    "camvid": _CITYSCAPES,
    "folder": _COCOSTUFF,
}


def get_stego_preset(dataset: str) -> StegoPreset:
    """Give the weights and shifts for a dataset.

    Those of ``cocostuff``, ``cityscapes`` and ``potsdam`` are of STEGO's authors (Hamilton et al.,
    ICLR 2022), tuned to DINO ViT-S; other backbones have other cosines, for which they are a start.
    The others are a choice made here: ``camvid`` shows streets and takes those of Cityscapes, a
    ``folder`` of any images those of COCO-Stuff.

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
