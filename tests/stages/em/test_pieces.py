"""Pieces of a step: the whole step's sums to the last bit, in any number of pieces and threads.

Windows one by one: the same bits beside whichever others, in any number of threads.

Prototypes: their weight, their logits, and the momentum update.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.compute.scheduler import Team
from stages.clustering import cluster_loss, measure_clusters
from stages.em.methods import FitState, run_em_epoch, run_kmeans_epoch
from stages.em.pieces import (
    GROUP,
    FitBatch,
    Prototypes,
    add_in_order,
    apply_windows,
    cluster_piece,
    compute_logits,
    compute_weight_gradient,
    make_prototypes,
    measure_turn,
    one_thread,
    predict_piece,
    sum_groups,
    update_momentum,
)
from stages.em.settings import EmSettings
from stages.em.start import find_initial_directions

WINDOWS, GRID, SCALE, CHANNELS, CLASSES = 29, 6, 5, 33, 5


def make_batch(*, student: bool = True) -> FitBatch:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(WINDOWS, GRID, GRID, CHANNELS, generator=generator)
    ids = torch.randint(0, 4, (WINDOWS, GRID * SCALE, GRID * SCALE), generator=generator)
    other = features + torch.randn(features.shape, generator=generator) if student else None
    return FitBatch(features, ids.to(torch.uint8), other)


def cut(batch: FitBatch, size: int) -> list[FitBatch]:
    """Cut a batch into pieces with memory of their own, as workers have it."""

    def take(tensor: Tensor | None, low: int) -> Tensor | None:
        return None if tensor is None else tensor[low : low + size].clone()

    return [
        FitBatch(
            batch.features[low : low + size].clone(),
            take(batch.proposals, low),
            take(batch.student, low),
        )
        for low in range(0, WINDOWS, size)
    ]


def fit(run: Callable[..., Any], step: list[FitBatch]) -> tuple[Any, ...]:
    directions = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(1))
    start = make_prototypes(directions)
    state = FitState(start.copy(), start.copy(), start.copy())
    settings = EmSettings(classes=CLASSES, device="cpu", momentum_every=2)
    epoch = run(state, [step, step, step], settings)
    return epoch, state.running.weight(), state.momentum.weight()


@pytest.fixture(params=["1", "2", "3"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", request.param)
    torch.set_num_threads(int(request.param))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("run", [run_em_epoch, run_kmeans_epoch])
@pytest.mark.parametrize("student", [True, False])
@pytest.mark.usefixtures("threads")
def test_pieces_change_no_bit(run: Callable[..., Any], student: bool) -> None:
    batch = make_batch(student=student)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        expected = fit(run, [batch])
    for size in (GROUP, 2 * GROUP, WINDOWS):
        found = fit(run, cut(batch, size))
        assert found[0] == expected[0]
        assert all(
            torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True)
        )


class LateTeam(Team):
    """Ends the last pieces first, and gives all in their order."""

    def map(self, function: Callable[..., Any], tasks: Any) -> list[Any]:
        return super().map(function, list(tasks)[::-1])[::-1]


def test_the_order_of_completion_changes_no_bit() -> None:
    pieces = cut(make_batch(), GROUP)
    for run in (run_em_epoch, run_kmeans_epoch):
        found, expected = fit(partial(run, team=LateTeam()), pieces), fit(run, pieces)
        assert found[0] == expected[0]
        assert all(
            torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True)
        )


@pytest.mark.usefixtures("threads")
def test_principal_directions_do_not_depend_on_threads() -> None:
    blocks = [piece.features for piece in cut(make_batch(), 2 * GROUP)]
    found = find_initial_directions(lambda: blocks, CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert torch.equal(find_initial_directions(lambda: blocks, CLASSES), found)


def test_the_gradient_of_k_means_is_autograd_s() -> None:
    batch = make_batch()
    direction = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(2))
    direction.requires_grad_()
    loss, usage = cluster_loss(batch.features, direction)
    (expected,) = torch.autograd.grad(loss, direction)
    unit = F.normalize(direction, dim=1)
    found = cluster_piece(batch, unit.detach())
    unit.backward(found.gradient.sum(dim=0) / found.windows)
    torch.testing.assert_close(direction.grad, expected, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close((found.loss.sum() / WINDOWS).float(), loss.detach())
    assert torch.equal(found.usage, usage)
    assert found.windows == WINDOWS


def test_a_position_without_length_moves_no_prototype() -> None:
    loss, gradient, usage = measure_clusters(torch.zeros(2, 3, 4), torch.eye(2, 4))
    assert not loss.any() and not gradient.any()
    assert usage.tolist() == [[3, 0], [3, 0]]


def test_windows_without_proposals_are_refused() -> None:
    with pytest.raises(ValueError, match="needs proposals"):
        predict_piece(FitBatch(make_batch().features), torch.eye(3), torch.eye(3))


def test_what_lies_between_the_passes_can_travel() -> None:
    # dask may move it to another worker
    found = predict_piece(make_batch(), torch.eye(3, CHANNELS), torch.eye(3, CHANNELS))
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.softmax.sums, found.softmax.sums)
    assert torch.equal(again.seen, found.seen)


def multiply(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return torch.bmm(left, right), left.sum(dim=(1, 2))


@pytest.mark.parametrize("channels", [3, 33, 90, 384])
def test_a_window_is_the_same_in_any_company(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(channels)
    left = torch.randn(11, 5, 64, generator=generator)
    right = torch.randn(11, 64, channels, generator=generator)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [multiply(left[n : n + 1].clone(), right[n : n + 1].clone()) for n in range(11)]
        for number in (1, 2, 3):
            monkeypatch.setenv("OMP_NUM_THREADS", str(number))
            torch.set_num_threads(number)
            for low, high in ((0, 11), (3, 8), (10, 11)):
                found = apply_windows(multiply, left[low:high], right[low:high])
                for place, tensor in enumerate(found):
                    whole = torch.cat([pair[place] for pair in expected[low:high]])
                    assert torch.equal(tensor, whole)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)


def test_groups_of_a_batch_are_those_of_its_pieces() -> None:
    values = torch.randn(21, 3, 5, generator=torch.Generator().manual_seed(0))
    whole = sum_groups(values)
    assert whole.shape == (3, 3, 5)
    pieces = [sum_groups(values[low : low + GROUP].clone()) for low in range(0, 21, GROUP)]
    assert torch.equal(torch.cat(pieces), whole)
    torch.testing.assert_close(whole.sum(dim=0), values.sum(dim=0))


def test_the_first_two_are_added_first() -> None:
    large = torch.tensor([1e8], dtype=torch.float32)
    one = torch.ones(1)
    assert float(add_in_order([one, large, -large])) == 0
    assert float(add_in_order([large, -large, one])) == 1


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def constant(value: float) -> Prototypes:
    ones = torch.ones(2, 3)
    return Prototypes(value * ones, 10 * value * ones[:, :1])


def test_the_weight_is_the_direction_scaled_to_the_norm() -> None:
    prototypes = Prototypes(torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[10.0], [2.0]]))
    torch.testing.assert_close(prototypes.weight(), torch.tensor([[6.0, 8.0], [0.0, 2.0]]))
    longer = Prototypes(7 * prototypes.direction, prototypes.norm)
    torch.testing.assert_close(longer.weight(), prototypes.weight())


def test_the_turn_is_the_mean_angle_whatever_the_lengths() -> None:
    before = make_prototypes(torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]))
    after = make_prototypes(torch.tensor([[0.0, 5.0], [0.0, 1.0], [-1.0, 0.0]]))
    assert measure_turn(before, after) == pytest.approx((90 + 0 + 180) / 3)
    small = Prototypes(torch.tensor([[1.0, 1e-6]]), torch.ones(1, 1))
    assert measure_turn(make_prototypes(torch.tensor([[1.0, 0.0]])), small) == pytest.approx(
        5.7296e-05, rel=1e-4
    )


def test_prototypes_start_at_norm_1_and_share_no_memory() -> None:
    directions = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    prototypes = make_prototypes(directions)
    directions.zero_()
    assert prototypes.norm.tolist() == [[1], [1]]
    torch.testing.assert_close(prototypes.weight(), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_a_copy_shares_no_memory_and_needs_no_gradient() -> None:
    original = Prototypes(torch.ones(2, 3, requires_grad=True), torch.ones(2, 1))
    copy = original.copy()
    copy.direction.zero_()
    copy.norm.zero_()
    assert original.direction.all()
    assert original.norm.all()
    assert not copy.direction.requires_grad


def test_logits_by_hand() -> None:
    features = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
    logits = compute_logits(features, torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]]))
    assert logits.shape == (1, 3, 1, 2)
    assert logits[0, :, 0].tolist() == [[1, 3], [3, 7], [-4, -8]]


def test_the_gradient_of_the_weight_is_autograd_s() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    compute_logits(features, weight).backward(gradient)
    torch.testing.assert_close(compute_weight_gradient(gradient, features).sum(dim=0), weight.grad)


def test_the_first_update_copies() -> None:
    moved = update_momentum(constant(1), constant(5), 0.98, 0)
    assert torch.equal(moved.direction, constant(5).direction)
    assert torch.equal(moved.norm, constant(5).norm)


def test_updates_average_until_the_decay_takes_over() -> None:
    values = [3.0, 8.0, -2.0, 5.0, 1.0, 9.0]
    momentum = constant(100)
    for updates, value in enumerate(values[:4]):
        momentum = update_momentum(momentum, constant(value), 0.75, updates)
        mean = sum(values[: updates + 1]) / (updates + 1)
        torch.testing.assert_close(momentum.direction, constant(mean).direction)
        torch.testing.assert_close(momentum.norm, constant(mean).norm)
    for updates, value in enumerate(values[4:], start=4):
        expected = 0.75 * momentum.direction + 0.25 * value
        momentum = update_momentum(momentum, constant(value), 0.75, updates)
        torch.testing.assert_close(momentum.direction, expected)


@pytest.mark.parametrize("updates", [0, 1, 7])
def test_without_decay_every_update_copies(updates: int) -> None:
    moved = update_momentum(constant(1), constant(5), 0.0, updates)
    assert torch.equal(moved.direction, constant(5).direction)


def test_an_update_needs_no_gradient() -> None:
    running = Prototypes(torch.ones(2, 3, requires_grad=True), torch.ones(2, 1, requires_grad=True))
    moved = update_momentum(constant(1), running, 0.98, 3)
    assert not moved.direction.requires_grad
    assert not moved.norm.requires_grad
