"""Prototypes: their weight, their logits, and the momentum update."""

from __future__ import annotations

import pytest
import torch

from stages.em.prototypes import (
    Prototypes,
    compute_logits,
    compute_weight_gradient,
    make_prototypes,
    measure_turn,
    update_momentum,
)


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
