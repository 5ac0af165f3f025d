"""Settings of the methods: one set for every dataset there is."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.dataset_names import DATASET_NAMES
from stages.head.settings import DINOV2_SHIFTS, get_preset

DINO = "vit_small_patch8_224.dino"


@pytest.mark.parametrize(
    ("dataset", "shifts"),
    [
        ("cocostuff", (0.08, 0.02, 0.66)),
        ("cityscapes", (0.18, 0.12, 0.46)),
        ("potsdam", (0.08, 0.02, 0.46)),
    ],
)
def test_published_values_of_stego(dataset: str, shifts: tuple[float, float, float]) -> None:
    preset = get_preset("stego", dataset, DINO)
    assert preset == {"term_weights": (0.67, 0.25, 0.63), "term_shifts": shifts}


def test_published_values_of_hp() -> None:
    names = ("temperature", "renew_every", "warm_up", "average", "pool", "negatives", "consistency")
    rows = {
        "cocostuff": (0.8, 100, 1000, 0.99, 2048, 0.02, 0.05),
        "cityscapes": (0.6, 20, 50, 0.999, 2048, 0.02, 0.05),
        "potsdam": (0.4, 20, 100, 0.999, 1024, 1.0, 0.0),
    }
    for dataset, row in rows.items():
        expected = dict(zip(names, row, strict=True))
        expected |= {"dim": 256} if dataset == "potsdam" else {}
        assert get_preset("hp", dataset, DINO) == expected


@pytest.mark.parametrize("method", ["stego", "hp"])
def test_every_dataset_has_a_preset(method: str) -> None:
    def find(dataset: str) -> dict[str, Any]:
        return get_preset(method, dataset, DINO)

    assert all(find(name) for name in DATASET_NAMES)
    assert find("camvid") == find("cityscapes")
    for other in ("folder", "/somewhere/my-dataset.yaml", "list:/somewhere/all.csv"):
        assert find(other) == find("cocostuff")


def test_a_method_of_another_package_has_none() -> None:
    assert get_preset("another", "cocostuff", DINO) == {}


def test_dinov2_has_shifts_of_its_own() -> None:
    for name in DATASET_NAMES:
        preset = get_preset("stego", name, "vit_small_patch14_dinov2.lvd142m")
        assert preset["term_shifts"] == DINOV2_SHIFTS
