"""The fit on synthetic clusters: it finds them, and goes on where it stopped.

Initialisation: against numpy's PCA in float64, and the rule of signs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.em.methods import (
    FitState,
    ReadEpoch,
    place_known,
    run_em_epoch,
    run_kmeans_epoch,
    start_at,
)
from stages.em.pieces import FitBatch, Pins, Prototypes, compute_logits, make_prototypes
from stages.em.settings import METHODS, EmSettings
from stages.em.start import find_initial_directions

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

    def read_epoch(self, epoch: int) -> Iterator[list[FitBatch]]:
        self.epochs.append(epoch)
        order = np.random.default_rng((epoch < 0, abs(epoch))).permutation(len(self.features))
        for rows in np.array_split(order, 3):
            yield [FitBatch(self.features[rows], self.proposals[rows])]

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


def initialise(
    read_sample: Any, read_epoch: ReadEpoch, steps: int, settings: EmSettings
) -> FitState:
    return METHODS[settings.method]().initialise(read_sample, read_epoch, steps, settings)


def run_epochs(state: FitState, read_epoch: ReadEpoch, settings: EmSettings) -> Iterator[FitState]:
    return METHODS[settings.method]().run_epochs(state, read_epoch, settings)


def fit(windows: Windows, settings: EmSettings) -> FitState:
    state = initialise(windows.read_sample, windows.read_epoch, 3, settings)
    for _ in run_epochs(state, windows.read_epoch, settings):
        pass
    return state


def reload(state: FitState) -> FitState:
    """Save a state and read it back; nothing is shared with the one saved."""
    arrays, values = state.pack()
    copies = {name: array.copy() for name, array in arrays.items()}
    return FitState.unpack(copies, json.loads(json.dumps(values)), torch.device("cpu"))


def assert_same(one: FitState, other: FitState) -> None:
    (arrays, values), (expected, expected_values) = one.pack(), other.pack()
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


def test_known_means_take_the_places_of_the_directions_nearest_to_them() -> None:
    directions = torch.eye(3) * 2
    # both are nearest to direction 0; one of them has to go elsewhere
    means = torch.tensor([[3.0, 0.0, 0.1], [5.0, 4.0, 0.0]])
    placed = place_known(directions, means)
    torch.testing.assert_close(placed[:2], F.normalize(means, dim=1))
    torch.testing.assert_close(placed[2:], torch.tensor([[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("method", ["primaps", "kmeans"])
def test_what_is_known_keeps_its_cluster(method: Literal["primaps", "kmeans"]) -> None:
    windows, settings = Windows(12, 2, noise=0.2, seed=5), make_settings(method, classes=2)
    # what is known says that the two clusters are the other way round
    ids = torch.from_numpy(1 - windows.truth).to(torch.uint8)
    of_proposal = torch.full((12, 256), 255, dtype=torch.uint8)
    for quadrant, (y, x) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1)), 1):
        of_proposal[:, quadrant] = ids[:, y, x]
    pins = Pins(ids, of_proposal)

    def read_epoch(_: int) -> Iterator[list[FitBatch]]:
        yield [FitBatch(windows.features, windows.proposals, pins=pins)]

    truth = [windows.features[torch.from_numpy(windows.truth == k)].mean(dim=0) for k in (0, 1)]
    for known in (True, False):
        state = start_at(torch.stack(truth))
        changes = settings.replace(epochs=200, learning_rate=0.05)
        for _ in run_epochs(state, read_epoch if known else windows.read_epoch, changes):
            pass
        nearest = compute_logits(windows.features, state.running.weight()).argmax(dim=1).numpy()
        assert (nearest == (1 - windows.truth if known else windows.truth)).mean() > 0.95


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


def test_a_fit_scores_its_epochs_without_labels() -> None:
    windows = Windows(24, 3, noise=0.8, seed=4)
    state = fit(windows, make_settings(epochs=20))
    assert set(state.scores) == {"agreement", "turn"}
    assert len(state.scores["agreement"]) == len(state.scores["turn"]) == 20
    # proposals hold positions of one class, of which the prototypes come to know most
    assert 1 / 3 < state.scores["agreement"][0] < state.scores["agreement"][-1] <= 1
    assert state.scores["turn"][0] > state.scores["turn"][-1] > 0
    assert set(fit(windows, make_settings("kmeans")).scores) == {"turn"}


def test_agreement_counts_the_pixels_that_the_proposals_confirm() -> None:
    features = torch.eye(2)[torch.tensor([[[0, 0, 1, 0]]])]
    proposals = torch.tensor([[[1, 1, 1, 0]]], dtype=torch.uint8)
    state = start(torch.eye(2), torch.eye(2))
    epoch = run_em_epoch(state, [[FitBatch(features, proposals)]] * 3, make_settings(classes=2))
    assert epoch.agreement == pytest.approx(2 / 3)


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
    return lambda epoch: [[FitBatch(windows.features, windows.proposals)]]


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
        epoch = run_em_epoch(state, read_once(windows)(0), settings)
        assert epoch.usage == pytest.approx(share[::-1] if turn else share)


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
        settings = make_settings(classes=2, focus=focus)
        losses.append(run_em_epoch(state, read_once(windows)(0), settings).loss)
    assert 0 < losses[1] < losses[0]


def test_em_refuses_batches_without_proposals() -> None:
    windows = Windows(4, 3, noise=0.1, seed=9)
    state = start(torch.eye(3, CHANNELS), torch.eye(3, CHANNELS))
    with pytest.raises(ValueError, match="proposals"):
        run_em_epoch(state, [[FitBatch(windows.features)]], make_settings())


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


def step_by_hand(
    seen: Tensor, watched: Tensor, ids: Tensor, running: Tensor, momentum: Tensor, focus: float
) -> Tensor:
    """Move the running directions by one step in float64: a loop over proposals, and autograd."""
    size = ids.shape[1:]

    def enlarge(features: Tensor, weight: Tensor) -> Tensor:
        logits = torch.einsum("nhwd,kd->nkhw", features.double(), weight)
        return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)

    predictions = enlarge(watched, F.normalize(momentum.double(), dim=1)).argmax(dim=1)
    labels = torch.full(ids.shape, 255)
    for window, proposals in enumerate(ids):
        for number in proposals.unique():
            if number:
                inside = proposals == number
                labels[window][inside] = predictions[window][inside].mode().values
    direction = running.double().requires_grad_()
    norm = torch.ones(len(running), 1, dtype=torch.float64, requires_grad=True)
    logits = enlarge(seen, norm * F.normalize(direction, dim=1))
    weight = (1 - logits.detach().softmax(dim=1).mean(dim=(0, 2, 3))) ** focus
    loss = F.cross_entropy(logits, labels, weight, ignore_index=255, reduction="sum")
    adam = torch.optim.Adam([direction, norm], lr=5e-3)
    (loss / labels.numel()).backward()
    adam.step()
    return direction.detach()


def test_the_student_learns_from_its_own_view_what_the_teacher_sees_in_the_clean_one() -> None:
    windows, other = Windows(6, 3, noise=0.4, seed=11), Windows(6, 3, noise=0.4, seed=12)
    generator = torch.Generator().manual_seed(0)
    running, momentum = torch.randn(2, 3, CHANNELS, generator=generator)
    ids = windows.proposals.clone()
    ids[:, :SCALE] = 0
    settings = make_settings(momentum_every=100)
    moved = {}
    for name, seen, watched in (
        ("both", other.features, windows.features),
        ("swapped", windows.features, other.features),
    ):
        state = start(running, momentum)
        run_em_epoch(state, [[FitBatch(watched, ids, seen)]], settings)
        expected = step_by_hand(seen, watched, ids, running, momentum, settings.focus)
        torch.testing.assert_close(state.running.direction, expected.float(), atol=2e-5, rtol=0)
        moved[name] = state.running.direction
    assert not torch.allclose(moved["both"], moved["swapped"], atol=1e-3)


def test_mirrored_windows_teach_the_same() -> None:
    windows = Windows(6, 3, noise=0.4, seed=13)
    student = Windows(6, 3, noise=0.4, seed=14).features
    moved = []
    for turn in (False, True):
        state = start(torch.eye(3, CHANNELS), torch.eye(3, CHANNELS).flip(0))
        grids = (windows.features, windows.proposals, student)
        seen = [grid.flip(2).contiguous() if turn else grid for grid in grids]
        run_em_epoch(state, [[FitBatch(seen[0], seen[1], seen[2])]], make_settings())
        moved.append(state.running.direction)
    torch.testing.assert_close(moved[0], moved[1], atol=1e-6, rtol=0)


def make_sample(seed: int, positions: int = 400, channels: int = 12) -> Tensor:
    """Draw skewed features whose variances fall, rotated and far from the origin."""
    generator = np.random.default_rng(seed)
    skewed = generator.gamma(1.5, size=(positions, channels)) * 0.7 ** np.arange(channels)
    rotation, _ = np.linalg.qr(generator.normal(size=(channels, channels)))
    return torch.from_numpy(skewed @ rotation + 5 * generator.normal(size=channels)).float()


def find_by_hand(sample: Tensor, classes: int) -> np.ndarray:
    points = sample.double().numpy()
    points = points - points.mean(axis=0)
    directions = np.linalg.svd(points, full_matrices=False)[2][:classes]
    skewness = ((points @ directions.T) ** 3).sum(axis=0)
    return directions * np.where(skewness < 0, -1, 1)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_numpy_signs_included(seed: int) -> None:
    sample = make_sample(seed)
    found = find_initial_directions(lambda: [sample], 5)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, find_by_hand(sample, 5), atol=1e-5)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)


def test_signs_point_to_the_longer_tail() -> None:
    few, bulk = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.1], [0.0, -0.1]]).repeat(8, 1)
    found = find_initial_directions(lambda: [torch.cat([few, bulk])], 1)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]), atol=1e-3, rtol=0)
    turned = find_initial_directions(lambda: [-torch.cat([few, bulk])], 1)
    torch.testing.assert_close(turned, -found)


@given(
    cuts=st.lists(st.integers(1, 399), max_size=6, unique=True),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_blocks_do_not_matter(cuts: list[int], seed: int) -> None:
    sample = make_sample(seed)
    blocks = torch.tensor_split(sample, sorted(cuts))
    whole = find_initial_directions(lambda: [sample], 4)
    split = find_initial_directions(lambda: iter(blocks), 4)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)


def test_a_far_away_mean_costs_no_digits() -> None:
    sample = (make_sample(7) * 1024).round() / 1024
    far = sample.double() + 2.0**20
    blocks = far.split(100)
    found = find_initial_directions(lambda: blocks, 4)
    np.testing.assert_allclose(found, find_by_hand(sample, 4), atol=1e-5)


def test_windows_are_flattened() -> None:
    sample = make_sample(8)
    windows = sample.reshape(4, 10, 10, 12)
    expected = find_initial_directions(lambda: [sample], 3)
    torch.testing.assert_close(find_initial_directions(lambda: [windows], 3), expected)


def test_more_classes_than_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="13 classes"):
        find_initial_directions(lambda: [make_sample(1)], 13)


def test_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="no features"):
        find_initial_directions(list, 2)
