"""Cosine K-means: its loss and gradient by hand."""

from __future__ import annotations

import pytest
import torch

from stages.clustering import cluster_loss, count_numbers, list_unused, measure_clusters


def test_the_loss_of_k_means_by_hand() -> None:
    features = torch.tensor([[3.0, 4.0], [-2.0, 0.0], [0.0, 0.5]]).reshape(1, 1, 3, 2)
    direction = torch.tensor([[7.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    loss, usage = cluster_loss(features, direction)
    assert float(loss) == pytest.approx(-(0.8 + 1.0 + 1.0) / 3)
    assert usage.tolist() == [0, 2, 1]


def test_the_gradient_of_k_means_turns_a_prototype_to_its_positions() -> None:
    features = torch.tensor([[0.6, 0.8], [0.8, 0.6]]).reshape(1, 2, 1, 2)
    direction = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    cluster_loss(features, direction)[0].backward()
    assert direction.grad is not None
    torch.testing.assert_close(direction.grad, torch.tensor([[0.0, -0.7], [0.0, 0.0]]))


def test_a_pinned_position_is_its_prototype_s_whatever_is_nearest() -> None:
    runs = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]]], dtype=torch.float64)
    unit = torch.eye(2, dtype=torch.float64)
    pins = torch.tensor([[0, 255, 255]], dtype=torch.uint8)
    loss, gradient, usage = measure_clusters(runs, unit, pins)
    assert loss.tolist() == pytest.approx([-(0.6 + 1 + 1) / 3])
    torch.testing.assert_close(gradient, -torch.tensor([[[1.6, 0.8], [0, 1]]]).double() / 3)
    assert usage.tolist() == [[2, 1]]


def test_numbers_are_counted() -> None:
    numbers = torch.tensor([[0, 3], [3, 1]])
    assert count_numbers(numbers, 5).tolist() == [1, 1, 0, 2, 0]


def test_unused_classes_are_listed() -> None:
    assert list_unused([0.5, 0.0, 0.4985, 0.001, 0.0005]) == [1, 3, 4]
