"""Settings of Hidden Positives for the known datasets."""

from __future__ import annotations

import pytest

from pipeline.errors import UsageError
from stages.head.hp_presets import HpPreset, get_hp_preset


@pytest.mark.parametrize(
    ("dataset", "temperature", "renew_every"),
    [
        ("cocostuff", 0.8, 100),
        ("cityscapes", 0.6, 20),
        ("potsdam", 0.4, 20),
        ("camvid", 0.6, 20),
        ("folder", 0.8, 100),
    ],
)
def test_every_dataset_has_its_own(dataset: str, temperature: float, renew_every: int) -> None:
    assert get_hp_preset(dataset) == HpPreset(temperature, renew_every)


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(UsageError, match="cocostuf"):
        get_hp_preset("cocostuf")
