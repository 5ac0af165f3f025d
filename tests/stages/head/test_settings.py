"""Settings of the methods: one set for every dataset there is."""

from __future__ import annotations

import pytest

from pipeline.dataset_names import DATASET_NAMES
from stages.head.settings import DINOV2_SHIFTS, get_preset

DINO = "vit_small_patch8_224.dino"


@pytest.mark.parametrize(
    ("dataset", "shifts", "temperature", "renew_every"),
    [
        ("cocostuff", (0.08, 0.02, 0.66), 0.8, 100),
        ("cityscapes", (0.18, 0.12, 0.46), 0.6, 20),
        ("potsdam", (0.08, 0.02, 0.46), 0.4, 20),
    ],
)
def test_published_values(
    dataset: str, shifts: tuple[float, float, float], temperature: float, renew_every: int
) -> None:
    preset = get_preset(dataset, DINO)
    assert preset["term_weights"] == (0.67, 0.25, 0.63)
    assert preset["term_shifts"] == shifts
    assert (preset["temperature"], preset["renew_every"]) == (temperature, renew_every)


def test_every_dataset_has_a_preset() -> None:
    assert all(get_preset(name, DINO)["term_weights"] for name in DATASET_NAMES)
    assert get_preset("camvid", DINO) == get_preset("cityscapes", DINO)
    assert get_preset("folder", DINO) == get_preset("cocostuff", DINO)


def test_a_dataset_of_ones_own_takes_what_any_folder_does() -> None:
    assert get_preset("/somewhere/my-dataset.yaml", DINO) == get_preset("folder", DINO)
    assert get_preset("list:/somewhere/all.csv", DINO) == get_preset("folder", DINO)


def test_dinov2_has_shifts_of_its_own() -> None:
    for name in DATASET_NAMES:
        preset = get_preset(name, "vit_small_patch14_dinov2.lvd142m")
        assert preset["term_shifts"] == DINOV2_SHIFTS
        assert preset["temperature"] == get_preset(name, DINO)["temperature"]
