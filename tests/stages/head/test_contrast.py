"""The contrastive loss: by hand, against the formula pair by pair, its slope and its draws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from stages.head import contrast
from stages.head.contrast import draw_candidates, hidden_positive_loss
from stages.head.presets import COLDEST


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make_case(positions: int, dim: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    projected = torch.randn(positions, dim, generator=generator, dtype=torch.float64)
    return projected, torch.rand(positions, positions, generator=generator) < share


def find_loss(
    projected: Tensor,
    positives: Tensor,
    temperature: float = 0.5,
    negatives: float = 1.0,
    seed: int = 0,
) -> Tensor:
    return hidden_positive_loss(
        projected,
        positives,
        temperature=temperature,
        negatives=negatives,
        generator=seeded(seed),
    )


def literal_loss(projected: Tensor, positives: Tensor, temperature: float) -> float:
    cosines = F.cosine_similarity(projected[:, None], projected[None], dim=2)
    exponentials = (cosines / temperature).exp()
    total, pairs = 0.0, 0
    for i in range(len(projected)):
        others = [j for j in range(len(projected)) if j != i]
        denominator = sum(float(exponentials[i, j]) for j in others)
        for j in others:
            if positives[i, j]:
                total -= math.log(float(exponentials[i, j]) / denominator)
                pairs += 1
    return total / max(pairs, 1)


def test_three_positions_by_hand() -> None:
    # cosines: 0 and 1 agree, 2 is at right angles to both
    projected = torch.tensor([[1.0, 0], [3, 0], [0, 2]], dtype=torch.float64)
    positives = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
    loss = find_loss(projected, positives, temperature=1.0)
    # anchor 0 draws 1 against 2, anchor 1 draws 2 against 0, anchor 2 has no positive
    expected = (-math.log(math.e / (math.e + 1)) - math.log(1 / (math.e + 1))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_anchors_weigh_as_many_as_they_have_positives() -> None:
    projected = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]], dtype=torch.float64)
    positives = torch.zeros(4, 4, dtype=torch.bool)
    positives[0, 1] = positives[0, 2] = positives[3, 0] = True
    loss = find_loss(projected, positives, temperature=1.0)
    # each of the two pairs of anchor 0: e of 2e + 1; the only one of anchor 3: 1 of 3
    expected = (2 * -math.log(math.e / (2 * math.e + 1)) + math.log(3)) / 3
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@given(
    positions=st.integers(2, 14),
    share=st.sampled_from([0.05, 0.3, 0.9]),
    group=st.integers(1, 16),
    many=st.sampled_from([0, 16]),
    temperature=st.sampled_from([0.05, 0.4, 0.8]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_loss_is_that_of_the_formula(
    positions: int, share: float, group: int, many: int, temperature: float, seed: int
) -> None:
    projected, positives = make_case(positions, 3, share, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "_GROUP", group)
        patch.setattr(contrast, "_MANY", many)
        loss = find_loss(projected, positives, temperature)
    expected = literal_loss(projected, positives, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("many", [0, 16])
def test_the_gradient_is_the_slope_of_the_loss(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "_GROUP", 4)
    monkeypatch.setattr(contrast, "_MANY", many)
    projected, positives = make_case(9, 3, 0.2, seed=5)
    assert torch.autograd.gradcheck(
        lambda leaf: find_loss(leaf, positives, 0.4, 0.5), projected.requires_grad_()
    )


def test_only_drawn_negatives_count(monkeypatch: pytest.MonkeyPatch) -> None:
    projected, positives = make_case(12, 3, 0.2, seed=2)
    candidates = torch.tensor([[1, 5, 7]])
    monkeypatch.setattr(contrast, "draw_candidates", lambda *_: candidates)
    cosines = F.cosine_similarity(projected[:, None], projected[None], dim=2)
    apart = ~torch.eye(12, dtype=torch.bool)
    counted = positives.clone()
    counted[:, candidates[0]] = True
    logits = (cosines / 0.5).masked_fill(~(counted & apart), -torch.inf)
    losses = -logits.log_softmax(dim=1)[positives & apart]
    assert find_loss(projected, positives, negatives=0.25).item() == pytest.approx(
        losses.mean().item(), abs=1e-12
    )


def test_every_negative_is_kept_equally_often() -> None:
    drawn = draw_candidates(128 * 400, 0.001, seeded())
    assert drawn.shape == (400, 51)
    assert all(len(set(row)) == 51 for row in drawn.tolist())
    generator = seeded()
    few = torch.cat([draw_candidates(20, 0.3, generator).flatten() for _ in range(3000)])
    assert (few.bincount(minlength=20) / 3000 - 0.3).abs().max() < 0.035


def test_candidates_are_the_whole_batch_at_a_share_of_one_and_one_at_least() -> None:
    assert sorted(draw_candidates(6, 1.0, seeded())[0].tolist()) == list(range(6))
    assert draw_candidates(6, 1e-3, seeded()).shape == (1, 1)


def test_the_loss_is_that_of_its_seed() -> None:
    projected, positives = make_case(60, 3, 0.1, seed=3)
    first = find_loss(projected, positives, negatives=0.1, seed=1)
    assert torch.equal(first, find_loss(projected, positives, negatives=0.1, seed=1))
    assert not torch.equal(first, find_loss(projected, positives, negatives=0.1, seed=2))


@pytest.mark.parametrize("many", [0, 10**6])
def test_threads_do_not_disturb_the_order_of_sums(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "_MANY", many)
    projected, positives = make_case(700, 64, 0.1, seed=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(4):
            leaf = projected.float().requires_grad_()
            find_loss(leaf, positives, negatives=0.2).backward()
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_without_positives_loss_and_gradient_are_zero(kind: torch.dtype) -> None:
    leaf = torch.randn(10, 4, generator=seeded(), dtype=kind).requires_grad_()
    loss = find_loss(leaf, torch.eye(10, dtype=torch.bool), negatives=0.2)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None and torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_anchors_without_positives_pull_nothing_but_push() -> None:
    projected, positives = make_case(6, 3, 0.0, seed=1)
    positives[0, 1] = True
    leaf = projected.clone().requires_grad_()
    find_loss(leaf, positives).backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert find_loss(projected, positives).item() == pytest.approx(
        literal_loss(projected, positives, 0.5), abs=1e-12
    )


def test_equal_codes_give_the_logarithm_of_their_number() -> None:
    leaf = torch.ones(8, 4, dtype=torch.float64, requires_grad=True)
    loss = find_loss(leaf, torch.ones(8, 8, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), abs=1e-12)
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-12


def test_one_position_has_no_loss() -> None:
    loss = find_loss(torch.ones(1, 4), torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == 0


def test_opposite_codes_stay_finite_at_the_lowest_temperature() -> None:
    leaf = torch.tensor([[1.0, 0], [-1, 0], [-1, 0]], requires_grad=True)
    positives = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()
    loss = find_loss(leaf, positives, temperature=COLDEST)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    assert leaf.grad is not None and leaf.grad.isfinite().all()


@pytest.mark.parametrize(("temperature", "negatives"), [(0.01, 1.0), (0.5, 0.0), (0.5, 1.5)])
def test_impossible_options_are_refused(temperature: float, negatives: float) -> None:
    projected, positives = make_case(4, 3, 0.5, seed=0)
    with pytest.raises(ValueError, match=r"temperature 0.01|share"):
        find_loss(projected, positives, temperature, negatives)
