"""The projection head: by hand, its initialisation, and the dropout of its input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stages.head.projection import ProjectionHead, drop_channels, make_layer


def make_head(channels: int = 6, dim: int = 3, seed: int = 0) -> ProjectionHead:
    return ProjectionHead(channels, dim, torch.Generator().manual_seed(seed))


def set_layer(layer: torch.nn.Module, weight: list[list[float]], bias: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))  # type: ignore[operator]
        layer.bias.copy_(torch.tensor(bias))  # type: ignore[operator]


def test_codes_by_hand() -> None:
    head = make_head(2, 1).double()
    set_layer(head.linear, [[1.0, 2.0]], [0.5])
    set_layer(head.hidden, [[1.0, 0.0], [0.0, -1.0]], [0.0, 1.0])
    set_layer(head.output, [[10.0, 100.0]], [-3.0])
    # linear: 3 + 2 * 4 + 0.5; hidden: relu(3), relu(1 - 4)
    codes = head(torch.tensor([[[3.0, 4.0]]], dtype=torch.float64))
    assert codes.tolist() == [[[11.5 + 30.0 - 3.0]]]


def test_every_position_is_mapped_alike() -> None:
    head = make_head().double()
    features = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    codes = head(features)
    assert codes.shape == (2, 3, 4, 3)
    torch.testing.assert_close(head(features.flip(2)), codes.flip(2))
    torch.testing.assert_close(head(features[1, 2, 3]), codes[1, 2, 3])


def test_gradients_reach_every_parameter_and_are_right() -> None:
    head = make_head(3, 2).double()
    names, values = zip(*head.named_parameters(), strict=True)
    features = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def project(*parameters: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(
            head, dict(zip(names, parameters, strict=True)), features
        )
        return result

    assert torch.autograd.gradcheck(project, values)


@pytest.mark.parametrize("shape", [(2, 3, 4), (300,), (128,), (5, 3), (0,), ()])
def test_a_layer_is_the_linear_map_of_its_weights(shape: tuple[int, ...]) -> None:
    layer = make_layer(6, 5, torch.Generator().manual_seed(0)).double()
    vectors = torch.randn(*shape, 6, dtype=torch.float64)
    expected = vectors @ layer.weight.T + layer.bias
    assert layer(vectors).shape == (*shape, 5)
    torch.testing.assert_close(layer(vectors), expected)


@pytest.mark.parametrize("shape", [(16, 23, 23, 384), (4096, 384)])
@pytest.mark.parametrize("outputs", [11, 70])
def test_a_layer_does_not_depend_on_the_number_of_threads(
    shape: tuple[int, ...], outputs: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = make_layer(384, outputs, generator)
    vectors = torch.randn(*shape, generator=generator)
    slope = torch.randn(*shape[:-1], outputs, generator=generator)

    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaf = vectors.clone().requires_grad_()
            result = layer(leaf)
            gradients = torch.autograd.grad(result, [leaf, layer.weight, layer.bias], slope)
        finally:
            torch.set_num_threads(before)
        return [result, *gradients]

    alone = run(1)
    for threads in (2, 4, 7):
        assert all(torch.equal(a, b) for a, b in zip(alone, run(threads), strict=True))


def test_weights_fill_the_default_range_and_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    head = make_head(64, 48)
    assert torch.equal(torch.get_rng_state(), before)
    bound = 1 / math.sqrt(64)
    for name, value in head.state_dict().items():
        assert value.abs().max() <= bound
        assert value.abs().max() > 0.9 * bound
        assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.3), name
    for one, other in zip(head.parameters(), make_head(64, 48).parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(head.linear.weight, make_head(64, 48, seed=1).linear.weight)


def test_dropout_takes_whole_channels_of_a_window() -> None:
    features = torch.ones(40, 3, 2, 50)
    dropped = drop_channels(features, 0.25, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert len(dropped[:, 0, 0].unique(dim=0)) == 40


def test_dropout_keeps_the_expectation() -> None:
    features = torch.randn(1, 2, 2, 5, generator=torch.Generator().manual_seed(1)).double()
    many = features.expand(40_000, -1, -1, -1)
    mean = drop_channels(many, 0.1, torch.Generator().manual_seed(2)).mean(dim=0)
    # the standard error of a mean of 40000 is 0.0017 times the feature
    torch.testing.assert_close(mean, features[0], rtol=0.008, atol=0)


def test_dropout_is_a_matter_of_the_generator() -> None:
    features = torch.randn(4, 2, 2, 16)
    first, again = (drop_channels(features, 0.5, torch.Generator().manual_seed(7)) for _ in "ab")
    other = drop_channels(features, 0.5, torch.Generator().manual_seed(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(drop_channels(features, 0.0, torch.Generator()), features)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        drop_channels(torch.ones(1, 1, 1, 1), rate, torch.Generator())
