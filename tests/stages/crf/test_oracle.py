"""Our dense CRF and pydensecrf's must choose the same labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.samples import PHOTOGRAPHS, draw_unary, load_square
from stages.crf import CrfSettings, choose_backend

pytest.importorskip("pydensecrf", reason="the oracle needs primaps-pipe[pydensecrf]")

SHARPNESS = (0.5, 1.5, 4.0, 20.0)


def measure_agreement(
    unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
) -> float:
    """Give the share of pixels whose likeliest label is the same with both backends."""
    ours, oracle = choose_backend("numba"), choose_backend("pydensecrf")
    assert ours is not None and oracle is not None
    found = ours.refine(unary, image, settings)
    expected = oracle.refine(unary, image, settings)
    changed = (expected.argmax(axis=0) != unary.argmin(axis=0)).mean()
    assert changed > 0.005 or settings.iterations == 0, "a CRF that changes nothing proves nothing"
    return float((found.argmax(axis=0) == expected.argmax(axis=0)).mean())


@pytest.mark.parametrize("labels", [6, 12, 27])
@pytest.mark.parametrize("name", sorted(PHOTOGRAPHS))
def test_photographs_agree(name: str, labels: int) -> None:
    image = load_square(PHOTOGRAPHS[name], 160)
    unary = draw_unary(image, labels, SHARPNESS[labels % 4], seed=labels)
    assert measure_agreement(unary, image, CrfSettings()) >= 0.999


@pytest.mark.parametrize(
    "settings",
    [
        CrfSettings(iterations=0),
        CrfSettings(iterations=1),
        CrfSettings(spatial_weight=0.0),
        CrfSettings(bilateral_weight=0.0),
        CrfSettings(spatial_sxy=5.0, bilateral_sxy=20.0, bilateral_srgb=13.0),
        CrfSettings(spatial_sxy=0.5, bilateral_sxy=200.0, bilateral_srgb=1.0),
        CrfSettings(spatial_weight=20.0, bilateral_weight=30.0),
    ],
)
def test_other_settings_agree(settings: CrfSettings) -> None:
    image = load_square(PHOTOGRAPHS["coffee"], 128)
    unary = draw_unary(image, 5, 1.5, seed=1)
    assert measure_agreement(unary, image, settings) >= 0.999


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 1), (31, 57)])
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_posteriors_agree_on_small_images(shape: tuple[int, int], labels: int) -> None:
    image = load_square(PHOTOGRAPHS["flower"], 64)[: shape[0], : shape[1]]
    unary = draw_unary(image, labels, 1.0, seed=2)
    ours, oracle = choose_backend("numba"), choose_backend("pydensecrf")
    assert ours is not None and oracle is not None
    np.testing.assert_allclose(
        ours.refine(unary, image, CrfSettings()),
        oracle.refine(unary, image, CrfSettings()),
        atol=2e-3,
    )


@pytest.mark.parametrize("labels", [6, 12, 27])
def test_camvid_agrees(shared: Path, labels: int) -> None:
    folder = shared / "datasets/camvid/val"
    paths = sorted(folder.glob("*.png"))[:20]
    assert len(paths) == 20, f"{folder} holds too few images"
    agreements = []
    for seed, path in enumerate(paths):
        image = load_square(path, 320)
        unary = draw_unary(image, labels, SHARPNESS[seed % 4], seed)
        agreements.append(measure_agreement(unary, image, CrfSettings()))
    assert min(agreements) >= 0.999, agreements
