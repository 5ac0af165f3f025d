"""The fit on synthetic clusters: it finds them, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.em.fit import (
    FitBatch,
    FitState,
    ReadEpoch,
    initialise,
    run_em_epoch,
    run_epochs,
    run_kmeans_epoch,
)
from stages.em.prototypes import Prototypes, compute_logits, make_prototypes
from stages.em.settings import EmSettings
from stages.em.stage import _pack, _unpack

GRID, SCALE, CHANNELS = 4, 4, 8


class Windows:
    """Windows of four quadrants; each quadrant is one proposal and shows one cluster."""

    def __init__(self, count: int, clusters: int, noise: float, seed: int) -> None:
        generator = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(generator.normal(size=(CHANNELS, CHANNELS)))
        quadrants = np.array([[1, 2], [3, 4]]).repeat(GRID // 2, 0).repeat(GRID // 2, 1)
        chosen = generator.integers(0, clusters, size=(count, 4))
        self.truth = chosen[:, quadrants - 1]
        spread = noise * generator.normal(size=(count, GRID, GRID, CHANNELS))
        self.features = torch.from_numpy(3 * basis[self.truth] + spread).float()
        large = quadrants.repeat(SCALE, 0).repeat(SCALE, 1).astype(np.uint8)
        self.proposals = torch.from_numpy(large).expand(count, -1, -1)
        self.epochs: list[int] = []

    def read_sample(self) -> list[Tensor]:
        return [self.features]

    def read_epoch(self, epoch: int) -> Iterator[FitBatch]:
        self.epochs.append(epoch)
        order = np.random.default_rng((epoch < 0, abs(epoch))).permutation(len(self.features))
        for rows in np.array_split(order, 3):
            yield FitBatch(self.features[rows], self.proposals[rows])

    def purity(self, prototypes: Prototypes) -> float:
        """Share of the positions with their cluster's commonest prototype, one to a cluster."""
        nearest = compute_logits(self.features, prototypes.weight()).argmax(dim=1).numpy()
        clusters = range(int(self.truth.max()) + 1)
        counts = [np.bincount(nearest[self.truth == k], minlength=8) for k in clusters]
        assert len({int(count.argmax()) for count in counts}) == len(counts)
        return sum(count.max() for count in counts) / nearest.size


def make_settings(method: Literal["primaps", "kmeans"] = "primaps", **changes: Any) -> EmSettings:
    return EmSettings(
        **{"classes": 3, "method": method, "epochs": 6, "init_steps": 30, "device": "cpu"} | changes
    )


def fit(windows: Windows, settings: EmSettings) -> FitState:
    state = initialise(windows.read_sample, windows.read_epoch, 3, settings)
    for _ in run_epochs(state, windows.read_epoch, settings):
        pass
    return state


def reload(state: FitState) -> FitState:
    """Save a state and read it back; nothing is shared with the one saved."""
    arrays, values = _pack(state)
    copies = {name: array.copy() for name, array in arrays.items()}
    return _unpack(copies, json.loads(json.dumps(values)), torch.device("cpu"))


def assert_same(one: FitState, other: FitState) -> None:
    (arrays, values), (expected, expected_values) = _pack(one), _pack(other)
    assert arrays.keys() == expected.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)
    assert values == expected_values


@pytest.mark.parametrize("method", ["primaps", "kmeans"])
def test_a_resumed_fit_is_the_undisturbed_one_bit_for_bit(
    method: Literal["primaps", "kmeans"],
) -> None:
    windows = Windows(12, 3, noise=1.5, seed=1)
    # an update of the momentum prototypes every 4 steps of 3 an epoch: its rhythm must survive
    settings = make_settings(method, momentum_every=4)
    undisturbed = fit(windows, settings)
    state = initialise(windows.read_sample, windows.read_epoch, 3, settings)
    for _ in run_epochs(state, windows.read_epoch, settings):
        if state.epoch == 3:
            break
    resumed = reload(state)
    for _ in run_epochs(state, windows.read_epoch, settings.replace(epochs=4)):
        pass  # what happens to the old state does not reach the saved one
    windows.epochs.clear()
    for _ in run_epochs(resumed, windows.read_epoch, settings):
        pass
    assert windows.epochs == [3, 4, 5]
    assert_same(resumed, undisturbed)
    assert len(undisturbed.loss) == 6


@pytest.mark.parametrize("method", ["primaps", "kmeans"])
def test_adam_does_not_start_again_with_an_epoch(method: Literal["primaps", "kmeans"]) -> None:
    windows = Windows(9, 3, noise=1.0, seed=10)
    run = {"primaps": run_em_epoch, "kmeans": run_kmeans_epoch}[method]
    batches = list(windows.read_epoch(0))
    together, apart = (start(torch.eye(3, CHANNELS), torch.eye(3, CHANNELS)) for _ in range(2))
    run(together, batches, make_settings(method))
    for batch in batches:
        run(apart, [batch], make_settings(method))
    assert_same(apart, together)


def test_a_fit_that_is_finished_does_nothing_more() -> None:
    windows, settings = Windows(6, 3, noise=0.3, seed=2), make_settings(epochs=2)
    state = fit(windows, settings)
    before = reload(state)
    assert list(run_epochs(state, windows.read_epoch, settings)) == []
    assert_same(state, before)


def test_k_means_separates_two_obvious_clusters() -> None:
    windows = Windows(20, 2, noise=0.2, seed=3)
    state = fit(windows, make_settings("kmeans", classes=2, epochs=10))
    assert windows.purity(state.running) == 1
    share = float((windows.truth == 0).mean())
    assert sorted(state.usage[-1]) == pytest.approx(sorted([share, 1 - share]))
    assert state.loss[-1] <= state.loss[0]
    assert torch.equal(state.momentum.weight(), state.running.weight())


def test_em_finds_the_clusters_of_the_proposals() -> None:
    windows = Windows(24, 3, noise=0.8, seed=4)
    state = fit(windows, make_settings(epochs=20))
    assert windows.purity(state.momentum) > 0.98
    assert state.loss[-1] < state.loss[0]
    for usage in state.usage:
        assert sum(usage) == pytest.approx(1)


def test_the_initialisation_takes_the_steps_and_epochs_it_is_told() -> None:
    windows = Windows(6, 3, noise=0.3, seed=5)
    initialise(windows.read_sample, windows.read_epoch, 3, make_settings(init_steps=10))
    assert windows.epochs == [-1, -2, -3, -4]
    windows.epochs.clear()
    initialise(windows.read_sample, windows.read_epoch, 3, make_settings(init_steps=0))
    assert windows.epochs == [-1, -2]
    windows.epochs.clear()
    none = make_settings(init_epochs=0)
    state = initialise(windows.read_sample, windows.read_epoch, 3, none)
    assert windows.epochs == []
    torch.testing.assert_close(state.running.weight().norm(dim=1), torch.ones(3))
    assert (state.epoch, state.step, state.moments) == (0, 0, {})


def read_once(windows: Windows) -> ReadEpoch:
    return lambda epoch: [FitBatch(windows.features, windows.proposals)]


def start(running: Tensor, momentum: Tensor) -> FitState:
    return FitState(make_prototypes(running), make_prototypes(momentum), make_prototypes(running))


def test_the_momentum_prototypes_vote() -> None:
    windows = Windows(8, 2, noise=0.1, seed=6)
    centres = torch.stack(
        [windows.features[torch.from_numpy(windows.truth == k)].mean(dim=0) for k in range(2)]
    )
    settings = make_settings(classes=2)
    share = [float((windows.truth == k).mean()) for k in range(2)]
    for turn in (False, True):
        state = start(centres, centres.flip(0) if turn else centres)
        _, usage = run_em_epoch(state, read_once(windows)(0), settings)
        assert usage == pytest.approx(share[::-1] if turn else share)


def test_the_momentum_prototypes_move_every_few_steps() -> None:
    windows = Windows(8, 3, noise=0.5, seed=7)
    settings = make_settings(momentum_every=2)
    state = start(torch.eye(3, CHANNELS), torch.eye(3, CHANNELS))
    moved = []
    for _ in range(5):
        before = state.momentum.weight()
        run_em_epoch(state, read_once(windows)(0), settings)
        moved.append(not torch.equal(state.momentum.weight(), before))
        if state.step == 2:
            assert torch.equal(state.momentum.weight(), state.running.weight()), "a copy at first"
    assert moved == [False, True, False, True, False]


def test_the_class_weight_holds_a_class_that_takes_everything_back() -> None:
    windows = Windows(24, 2, noise=0.1, seed=8)
    losses = []
    for focus in (0.0, 2.0):
        state = start(3 * torch.eye(2, CHANNELS), torch.eye(2, CHANNELS))
        loss, _ = run_em_epoch(state, read_once(windows)(0), make_settings(classes=2, focus=focus))
        losses.append(loss)
    assert 0 < losses[1] < losses[0]


def test_em_refuses_batches_without_proposals() -> None:
    windows = Windows(4, 3, noise=0.1, seed=9)
    state = start(torch.eye(3, CHANNELS), torch.eye(3, CHANNELS))
    with pytest.raises(ValueError, match="proposals"):
        run_em_epoch(state, [FitBatch(windows.features)], make_settings())


def test_the_baseline_carries_the_first_k_means_on() -> None:
    windows = Windows(12, 3, noise=0.5, seed=3)
    settings = make_settings("kmeans", init_epochs=4, init_steps=0)
    state = initialise(windows.read_sample, windows.read_epoch, 3, settings)
    assert state.moments and (state.epoch, state.loss) == (0, [])
    # lengths grow, so that steps turn prototypes by less and less: they are not set to 1 again
    assert not torch.allclose(state.running.direction.norm(dim=1), torch.ones(3))
    for _ in run_epochs(state, windows.read_epoch, settings.replace(epochs=1)):
        pass
    assert not torch.equal(state.running.weight(), state.initial.weight())
