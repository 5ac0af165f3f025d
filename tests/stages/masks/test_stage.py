"""The masks stage's refinement: the same ids from every backend, in the order of the windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.crf.backends import Backend, choose_backend
from stages.crf.cuda import CudaBackend
from stages.masks.settings import MaskSettings
from stages.masks.stage import _propose_batch, enlarge_scores, take_largest

WINDOWS, SIZE = 5, 32


def propose(backend: Backend | None) -> tuple[torch.Tensor, list[int]]:
    generator = np.random.default_rng(0)
    areas = generator.integers(0, 4, (WINDOWS, 4, 4)).repeat(2, axis=1).repeat(2, axis=2)
    directions = generator.normal(0.0, 1.0, (4, 6))
    grid = directions[areas] + generator.normal(0.0, 0.2, (WINDOWS, 8, 8, 6))
    images = 60 * areas.repeat(4, axis=1).repeat(4, axis=2)[..., None]
    images = images + generator.integers(0, 9, (WINDOWS, SIZE, SIZE, 3))
    pixels = iter(images.astype(np.uint8))
    features = torch.from_numpy(grid.astype(np.float32))
    return _propose_batch(features, pixels, SIZE, MaskSettings(), backend)


def test_a_batch_backend_gives_the_processors_ids() -> None:
    ids, counts = propose(choose_backend("numba"))
    batched, same = propose(CudaBackend("cpu"))
    assert same == counts and len(set(counts)) > 1
    assert ids.dtype == batched.dtype == torch.uint8 and ids.shape == (WINDOWS, SIZE, SIZE)
    assert torch.equal(ids, batched)
    plain = propose(None)[0]
    assert 0.7 < (ids == plain).float().mean() < 1.0, "refined, and along the scores"


@pytest.mark.parametrize("backend", [None, choose_backend("numba"), CudaBackend("cpu")])
def test_windows_without_features_or_without_contrast_are_refined_too(
    backend: Backend | None,
) -> None:
    grid = torch.zeros(3, 8, 8, 6)
    grid[1] = 2.5
    images = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    images[2] = 255
    ids, counts = _propose_batch(grid, iter(images), SIZE, MaskSettings(), backend)
    assert counts == [0, 1, 0]
    assert [set(window.unique().tolist()) for window in ids.cpu()] == [{0}, {1}, {0}]


def test_ids_are_those_of_the_largest_score_and_the_first_of_equals() -> None:
    scores = torch.tensor([[[0.0]], [[1.0]], [[1.0]]])
    assert take_largest(enlarge_scores(scores, 2)).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("channels", [1, 3])
def test_scores_are_enlarged_to_the_window(channels: int) -> None:
    assert enlarge_scores(torch.zeros(channels, 2, 2), 6).shape == (channels, 6, 6)
