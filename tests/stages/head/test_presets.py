"""The weights and shifts of STEGO's loss: one set for every dataset there is."""

from __future__ import annotations

import pytest

from pipeline.datasets import DATASET_NAMES
from pipeline.errors import UsageError
from stages.head.presets import get_stego_preset


@pytest.mark.parametrize(
    ("dataset", "shifts"),
    [
        ("cocostuff", (0.08, 0.02, 0.66)),
        ("cityscapes", (0.18, 0.12, 0.46)),
        ("potsdam", (0.08, 0.02, 0.46)),
    ],
)
def test_published_values(dataset: str, shifts: tuple[float, float, float]) -> None:
    preset = get_stego_preset(dataset)
    assert preset.weights == (0.67, 0.25, 0.63)
    assert preset.shifts == shifts


def test_every_dataset_has_a_preset() -> None:
    assert all(get_stego_preset(name).weights for name in DATASET_NAMES)
    assert get_stego_preset("camvid") == get_stego_preset("cityscapes")
    assert get_stego_preset("folder") == get_stego_preset("cocostuff")


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'cityscapes'"):
        get_stego_preset("cityscape")
