"""Training: what falls, what stays apart, and that it goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.head.material import HeadBatch
from stages.head.methods import build_method
from stages.head.settings import HeadSettings
from stages.head.training import (
    Training,
    pack_training,
    restore_training,
    run_round,
    start_training,
)

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

    def read_positions(self, total: int, *seed: int) -> Tensor:
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
    }
    return HeadSettings.model_validate(chosen | changes)


def start(scenes: Scenes, settings: HeadSettings) -> Training:
    method = build_method(scenes.features.shape[-1], settings, scenes.read_positions, CPU)
    return start_training(method, scenes.read_positions, settings, CPU)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_the_probe_uses_its_clusters(method: str) -> None:
    scenes, settings = Scenes(), make_settings(method)
    training = start(scenes, settings)
    batches = scenes.read_steps(0)
    for _ in range(6):
        run_round(training, islice(batches, 10), settings)
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
        run_round(whole, islice(scenes.read_steps(first), 7), settings)
    half = start(scenes, settings)
    run_round(half, islice(scenes.read_steps(0), 7), settings)
    arrays, values = pack_training(half)
    resumed = start(scenes, settings)
    restore_training(resumed, arrays, values)
    run_round(resumed, islice(scenes.read_steps(7), 7), settings)
    (expected, noted), (found, again) = pack_training(whole), pack_training(resumed)
    assert noted == again
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_seed_names_everything_that_is_drawn() -> None:
    scenes = Scenes()

    def train(seed: int) -> np.ndarray:
        settings = make_settings("stego", seed=seed)
        training = start(scenes, settings)
        run_round(training, islice(scenes.read_steps(0), 3), settings)
        return pack_training(training)[0]["probe"]

    np.testing.assert_array_equal(train(3), train(3))
    assert not np.array_equal(train(3), train(4))


def test_the_probe_moves_no_code() -> None:
    scenes, settings = Scenes(), make_settings("stego")
    heads = []
    for rate in (5e-3, 1.0):
        chosen = settings.replace(probe_learning_rate=rate)
        training = start(scenes, chosen)
        run_round(training, islice(scenes.read_steps(0), 3), chosen)
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
            run_round(training, islice(scenes.read_steps(0), 3), settings)
        finally:
            torch.set_num_threads(before)
        return pack_training(training)

    (alone, noted), (shared, again) = train(1), train(2)
    assert noted == again
    for name, array in alone.items():
        np.testing.assert_array_equal(shared[name], array, err_msg=name)


@pytest.mark.parametrize("value", [0.0, 2.5])
@pytest.mark.parametrize("method", METHODS)
def test_constant_images_train_to_numbers(method: str, value: float) -> None:
    scenes, settings = Scenes(), make_settings(method, steps=6, warm_up=0.2)
    training = start(scenes, settings)
    # positions of the pools, too: 0 features make 0 vectors in them
    scenes.features = torch.full_like(scenes.features, value)
    image = scenes.features[:4]
    attention = torch.zeros(*image.shape[:3], 9)
    run_round(training, [HeadBatch(image, image, image, attention)] * 6, settings)
    arrays, values = pack_training(training)
    assert np.isfinite(values["loss"]).all()
    assert np.isfinite(values["usage"]).all()
    for name, array in arrays.items():
        assert np.isfinite(array).all(), name


def test_a_round_needs_batches() -> None:
    settings = make_settings("stego")
    with pytest.raises(ValueError, match="batches"):
        run_round(start(Scenes(), settings), [], settings)
