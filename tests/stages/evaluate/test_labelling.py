"""Labelling one image: what the CRF is given, and what becomes of its answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.crf import CrfSettings
from stages.evaluate.labelling import label_windows
from stages.evaluate.stitching import stitch_windows

BOXES = [(0, 0, 8, 8), (4, 0, 12, 8)]


class Turner:
    """A CRF that gives every pixel the probabilities of the next class."""

    name = "turner"

    def refine(
        self, unary: NDArray[np.float32], image: NDArray[np.uint8], settings: CrfSettings
    ) -> NDArray[np.float32]:
        self.unary, self.image, self.settings = unary, image, settings
        return np.roll(np.exp(-unary), 1, axis=0)


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    image = np.random.default_rng(0).integers(0, 256, size=(8, 24, 3)).astype(np.uint8)
    return image[:, ::2]  # as a cut-out is: not in one piece


def test_without_a_crf(logits: Tensor) -> None:
    found = label_windows(logits, BOXES, 8, None, None)
    probabilities = stitch_windows(logits, BOXES, 8).softmax(dim=0)
    torch.testing.assert_close(found.probabilities, probabilities)
    assert found.refined is None
    assert found.plain.dtype == np.uint8
    np.testing.assert_array_equal(found.plain, probabilities.argmax(dim=0))
    assert found.confidence == pytest.approx(float(probabilities.amax(dim=0).sum()), rel=1e-5)


def test_with_a_crf(logits: Tensor, pixels: NDArray[np.uint8]) -> None:
    crf = Turner()
    bare = label_windows(logits, BOXES, 8, None, None)
    found = label_windows(logits, BOXES, 8, pixels, crf)
    np.testing.assert_allclose(np.exp(-crf.unary), bare.probabilities, atol=1e-6)
    assert crf.unary.dtype == np.float32
    np.testing.assert_array_equal(crf.image, pixels)
    assert crf.image.flags.c_contiguous
    assert crf.settings == CrfSettings()
    assert found.refined is not None
    np.testing.assert_array_equal(found.plain, bare.plain)
    np.testing.assert_array_equal(found.refined, (bare.plain + 1) % 4)
    torch.testing.assert_close(found.probabilities, bare.probabilities.roll(1, 0))
    assert found.confidence == bare.confidence, "of the model, not of the CRF"


def test_energies_are_finite_however_sure_the_model_is(pixels: NDArray[np.uint8]) -> None:
    crf = Turner()
    sure = torch.zeros(2, 3, 2, 2)
    sure[:, 1] = 1e6
    found = label_windows(sure, BOXES, 8, pixels, crf)
    assert np.isfinite(crf.unary).all()
    assert (found.plain == 1).all()
    assert found.confidence == pytest.approx(8 * 12)
