"""Training: what falls, what stays apart, and that it goes on to the same bytes.

The methods: what of a step is computed in which arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.head.material import HeadBatch
from stages.head.methods import Training, build_method
from stages.head.settings import HeadSettings

CHANNELS, GRID, CPU = 12, 5, torch.device("cpu")
METHODS = ("stego", "hp")


class Scenes:
    """Windows of two halves, each of which shows one of four clusters."""

    def __init__(self, count: int = 12, grid: int = GRID, channels: int = CHANNELS) -> None:
        generator = np.random.default_rng(0)
        basis, _ = np.linalg.qr(generator.normal(size=(channels, channels)))
        halves = generator.integers(4, size=(count, 2))
        widths = [grid // 2, grid - grid // 2]
        self.truth = halves.repeat(widths, axis=1)[:, None, :].repeat(grid, axis=1)
        noise = 0.2 * generator.normal(size=(count, grid, grid, channels))
        self.features = torch.from_numpy(basis[self.truth] + noise).float()

    def read_steps(self, first: int) -> Iterator[HeadBatch]:
        step = first
        while True:
            order = np.random.default_rng(step).permutation(len(self.features))
            near = self.features[np.roll(order, 1)]
            noise = torch.from_numpy(np.random.default_rng((1, step)).normal(size=near.shape))
            seen = self.features[order]
            yield HeadBatch(
                seen, near, seen + 0.05 * noise.float(), torch.full((*seen.shape[:3], 9), 0.1)
            )
            step += 1

    def read_positions(self, total: int, *seed: int, each: int = 16) -> Tensor:
        flat = self.features.flatten(0, 2)
        return flat[np.random.default_rng(seed).permutation(len(flat))[:total]]


def make_settings(method: str, **changes: Any) -> HeadSettings:
    chosen: dict[str, Any] = {
        "method": method,
        "classes": 4,
        "dim": 6,
        "steps": 60,
        "learning_rate": 5e-3,
        "term_weights": (0.67, 0.25, 0.63),
        "term_shifts": (0.1, 0.1, 0.5),
        "renew_every": 4,
        "temperature": 0.5,
        "pool": 64,
        "positions": 20,
        "negatives": 0.5,
        "consistency": 0.05,
        "average": 0.9,
        "warm_up": 6,
    }
    return HeadSettings.model_validate(chosen | changes)


def start(scenes: Scenes, settings: HeadSettings) -> Training:
    method = build_method(scenes.features.shape[-1], settings, scenes.read_positions, CPU)
    return Training(method)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_the_probe_uses_its_clusters(method: str) -> None:
    scenes, settings = Scenes(), make_settings(method)
    training = start(scenes, settings)
    batches = scenes.read_steps(0)
    for _ in range(6):
        training.run_round(islice(batches, 10))
    assert training.step == 60
    assert len(training.loss) == len(training.usage) == 6
    if method == "stego":
        # the share of task-specific positives changes the other loss as it goes
        assert training.loss[-1] < training.loss[0]
    assert sum(training.usage[-1]) == pytest.approx(1)
    assert sum(share > 0.05 for share in training.usage[-1]) >= 2


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_to_the_same_bytes(method: str) -> None:
    scenes, settings = Scenes(), make_settings(method)
    whole = start(scenes, settings)
    for first in (0, 7):
        whole.run_round(islice(scenes.read_steps(first), 7))
    half = start(scenes, settings)
    half.run_round(islice(scenes.read_steps(0), 7))
    arrays, values = half.pack()
    resumed = start(scenes, settings)
    resumed.restore(arrays, values)
    resumed.run_round(islice(scenes.read_steps(7), 7))
    (expected, noted), (found, again) = whole.pack(), resumed.pack()
    assert noted == again
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_seed_names_everything_that_is_drawn() -> None:
    scenes = Scenes()

    def train(seed: int) -> np.ndarray:
        settings = make_settings("stego", seed=seed)
        training = start(scenes, settings)
        training.run_round(islice(scenes.read_steps(0), 3))
        return training.pack()[0]["probe"]

    np.testing.assert_array_equal(train(3), train(3))
    assert not np.array_equal(train(3), train(4))


def test_the_probe_moves_no_code() -> None:
    scenes, settings = Scenes(), make_settings("stego")
    heads = []
    for rate in (5e-3, 1.0):
        chosen = settings.replace(probe_learning_rate=rate)
        training = start(scenes, chosen)
        training.run_round(islice(scenes.read_steps(0), 3))
        heads.append(training.method.head.state_dict())
    for name, tensor in heads[0].items():
        assert torch.equal(tensor, heads[1][name])


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_threads_changes_no_byte(method: str) -> None:
    # large enough that torch shares its sums out among threads
    scenes = Scenes(8, grid=23, channels=64)
    settings = make_settings(method, dim=32, steps=3, side=11, positions=121, pool=2048)

    def train(threads: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            training = start(scenes, settings)
            training.run_round(islice(scenes.read_steps(0), 3))
        finally:
            torch.set_num_threads(before)
        return training.pack()

    (alone, noted), (shared, again) = train(1), train(2)
    assert noted == again
    for name, array in alone.items():
        np.testing.assert_array_equal(shared[name], array, err_msg=name)


@pytest.mark.parametrize("value", [0.0, 2.5])
@pytest.mark.parametrize("method", METHODS)
def test_constant_images_train_to_numbers(method: str, value: float) -> None:
    scenes, settings = Scenes(), make_settings(method, steps=6, warm_up=1)
    training = start(scenes, settings)
    # positions of the pools, too: 0 features make 0 vectors in them
    scenes.features = torch.full_like(scenes.features, value)
    image = scenes.features[:4]
    attention = torch.zeros(*image.shape[:3], 9)
    training.run_round([HeadBatch(image, image, image, attention)] * 6)
    arrays, values = training.pack()
    assert np.isfinite(values["loss"]).all()
    assert np.isfinite(values["usage"]).all()
    for name, array in arrays.items():
        assert np.isfinite(array).all(), name


def test_a_round_needs_batches() -> None:
    settings = make_settings("stego")
    with pytest.raises(ValueError, match="batches"):
        start(Scenes(), settings).run_round([])


def read_positions(total: int, *seed: int, each: int = 16) -> Tensor:
    return torch.randn(total, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_augmented_view_is_coded_in_the_arithmetic_of_the_other(precision: str) -> None:
    settings = HeadSettings.model_validate(
        {"method": "hp", "dim": 8, "dropout": 0.0, "precision": precision, "temperature": 0.5}
        | {"renew_every": 4, "pool": 32, "positions": 9, "negatives": 0.5, "average": 0.9}
        | {"warm_up": 0}
    )
    method = build_method(16, settings, read_positions, torch.device("cpu"))
    features = torch.randn(2, 3, 3, 16, generator=torch.Generator().manual_seed(0))
    batch = HeadBatch(features, None, features, torch.full((2, 3, 3, 9), 0.1))
    losses = []
    for weight in (0.0, 1.0):
        method.settings = settings.replace(consistency=weight)
        loss, codes = method.compute_loss(batch, 0, torch.Generator().manual_seed(2))
        losses.append(loss.item())
    # of equals, the distance that keeps its root differentiable: 1e-6 in every channel
    assert abs(losses[1] - losses[0]) < 1e-5
    assert codes.dtype == torch.float32
    assert torch.equal(codes, method.make_codes(features))
    assert torch.equal(codes, method.head(features)) is (precision == "float32")
