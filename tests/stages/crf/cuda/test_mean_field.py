"""Batched inference against the dense float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stages.crf.cuda.mean_field import (
    arrange_energies,
    build_spatial_lattice,
    infer_posteriors,
    stack_unaries,
)
from stages.crf.cuda.passes import TORCH_PASSES
from stages.crf.settings import CrfSettings
from tests.stages.crf.cuda.samples import Sample, draw_sample
from tests.stages.crf.reference import infer_reference

CPU = torch.device("cpu")


def infer(samples: list[Sample], settings: CrfSettings) -> list[NDArray[np.float32]]:
    stacked = stack_unaries([torch.from_numpy(unary) for unary, _ in samples], 8, CPU)
    images = torch.from_numpy(np.stack([image for _, image in samples]))
    found = infer_posteriors(arrange_energies(stacked), images, settings, TORCH_PASSES).numpy()
    return [
        row[:, : len(unary)].T.reshape(unary.shape)
        for row, (unary, _) in zip(found, samples, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [CrfSettings(), CrfSettings(spatial_sxy=1.03, bilateral_sxy=4.1, bilateral_srgb=3.3)],
)
def test_equals_the_dense_reference(settings: CrfSettings) -> None:
    samples = [draw_sample(labels, 6, 7, seed=labels) for labels in (1, 3, 8)]
    for (unary, image), posterior in zip(samples, infer(samples, settings), strict=True):
        np.testing.assert_allclose(posterior, infer_reference(unary, image, settings), atol=2e-5)


def test_no_iterations_give_the_softmax_of_the_unary() -> None:
    unary, image = draw_sample(5, 4, 9)
    expected = np.exp(-unary.astype(np.float64))
    (found,) = infer([(unary, image)], CrfSettings(iterations=0))
    np.testing.assert_allclose(found, expected / expected.sum(axis=0), atol=1e-6)


def test_energies_by_hand() -> None:
    unaries = [torch.tensor([2.0, 5.0]).reshape(2, 1, 1), torch.tensor([[[-3e38]], [[3e38]]])]
    stacked = stack_unaries(unaries, 3, CPU)
    assert stacked.flatten().tolist()[:3] == [2.0, 5.0, torch.inf]
    energies = arrange_energies(stacked)
    assert energies.shape == (2, 1, 3)
    forbidden = float(np.float32(1e30))
    assert energies.flatten().tolist() == [0.0, 3.0, forbidden, 0.0, forbidden, forbidden]


def test_the_spatial_lattice_is_kept_and_unchanged() -> None:
    build_spatial_lattice.cache_clear()
    sample = draw_sample(3, 17, 19)
    first = infer([sample], CrfSettings())[0]
    second = infer([sample], CrfSettings())[0]
    assert build_spatial_lattice.cache_info().misses == 1
    assert first.tobytes() == second.tobytes()
