"""STEGO's loss: every part by hand in float64, its gradient, its symmetries, its edges."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.head import correspondence
from stages.head.correspondence import (
    Stego,
    centre,
    correspondence_loss,
    draw_others,
    draw_positions,
    normalise,
    read_bilinear,
)
from stages.head.settings import HeadSettings

WEIGHTS, SHIFTS = (0.67, 0.25, 0.63), (0.08, 0.02, 0.66)


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64)


def as_doubles(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def literal_loss(
    features_a: Tensor, features_b: Tensor, codes_a: Tensor, codes_b: Tensor, shift: float
) -> float:
    """Sum the paper's formula pair by pair."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    def volume(a: Tensor, b: Tensor) -> list[list[list[float]]]:
        return [[[cosine(p, q) for q in v] for p in u] for u, v in zip(a, b, strict=True)]

    similar, codes = volume(features_a, features_b), volume(codes_a, codes_b)
    everything = [value for window in similar for row in window for value in row]
    overall = sum(everything) / len(everything)
    losses = []
    for window, of_codes in zip(similar, codes, strict=True):
        for row, of_row in zip(window, of_codes, strict=True):
            mean = sum(row) / len(row)
            for value, code in zip(row, of_row, strict=True):
                losses.append(-(value - mean + overall - shift) * max(code, 0.0))
    return sum(losses) / len(losses)


# positions


def test_positions_are_uniform_and_repeatable() -> None:
    positions = draw_positions(50, 11, make_generator())
    assert positions.shape == (50, 11, 11, 2)
    assert positions.dtype == torch.float32
    assert torch.equal(positions, draw_positions(50, 11, make_generator()))
    assert not torch.equal(positions, draw_positions(50, 11, make_generator(1)))
    assert positions.min() >= -1
    assert positions.max() <= 1
    counts = torch.histc(positions, bins=10, min=-1, max=1) / positions.numel()
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.01, rtol=0)


# reading


def test_reading_by_hand() -> None:
    grid = as_doubles([[[[0.0], [1.0], [2.0]], [[10.0], [11.0], [12.0]]]])
    positions = as_doubles(
        [[[-1, -1], [1, 1], [0, 0], [0.5, -1], [1, -0.5], [-2, 3], [-0.75, 0.2]]]
    )
    expected = [0.0, 12.0, 6.0, 1.5, 4.5, 10.0, 0.25 + 6.0]
    torch.testing.assert_close(read_bilinear(grid, positions)[0, :, 0], as_doubles(expected))


@given(
    windows=st.integers(1, 3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_reading_is_grid_sample(windows: int, rows: int, columns: int, seed: int) -> None:
    grid = draw(windows, rows, columns, 3, seed=seed).requires_grad_()
    positions = 1.2 * draw_positions(windows, 4, make_generator(seed)).double()
    ours = read_bilinear(grid, positions)
    theirs = F.grid_sample(
        grid.permute(0, 3, 1, 2), positions, padding_mode="border", align_corners=True
    )
    theirs = theirs.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    factor = draw(*ours.shape, seed=seed + 1)
    (ours_gradient,) = torch.autograd.grad((ours * factor).sum(), grid)
    (theirs_gradient,) = torch.autograd.grad((theirs * factor).sum(), grid)
    torch.testing.assert_close(ours_gradient, theirs_gradient)


def test_reading_keeps_the_type_of_the_grid() -> None:
    positions = draw_positions(2, 3, make_generator())
    for kind in (torch.float32, torch.float64):
        assert read_bilinear(torch.ones(2, 4, 4, 5, dtype=kind), positions).dtype == kind


def test_reading_a_mirrored_grid_at_mirrored_positions() -> None:
    grid, positions = draw(2, 4, 5, 3), draw_positions(2, 3, make_generator()).double()
    mirrored = read_bilinear(grid.flip(2), positions * as_doubles([-1.0, 1.0]))
    torch.testing.assert_close(mirrored, read_bilinear(grid, positions))


# volumes


def test_unit_vectors_by_hand() -> None:
    vectors = as_doubles([[[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]]])
    expected = as_doubles([[[0.6, 0.8], [0.0, -1.0], [0.0, 0.0]]])
    torch.testing.assert_close(normalise(vectors), expected)


def test_zero_vectors_have_no_gradient() -> None:
    a = torch.zeros(1, 2, 3, requires_grad=True)
    b = torch.ones(1, 2, 3, requires_grad=True)
    (normalise(a) @ normalise(b).transpose(1, 2)).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert not a.grad.any()
    assert not b.grad.any()


def test_centring_by_hand() -> None:
    volume = as_doubles([[[1.0, 3.0], [10.0, 20.0]], [[0.0, 0.0], [-4.0, 2.0]]])
    expected = as_doubles([[[-1.0, 1.0], [-5.0, 5.0]], [[0.0, 0.0], [-3.0, 3.0]]]) + 4.0
    torch.testing.assert_close(centre(volume), expected)


# the loss of pairs


def compare(
    features_a: Tensor, features_b: Tensor, codes_a: Tensor, codes_b: Tensor, shift: float
) -> Tensor:
    vectors = (normalise(one) for one in (features_a, features_b, codes_a, codes_b))
    return correspondence_loss(*vectors, shift)


def test_loss_by_hand() -> None:
    # F = [1, 0; 0, 1] and S = [1, -1; 0.6, 0.8]: centring leaves F as it is, the clamp drops -1
    features = as_doubles([[[2.0, 0.0], [0.0, 1.0]]])
    codes_a = as_doubles([[[1.0, 0.0], [0.6, 0.8]]])
    codes_b = as_doubles([[[5.0, 0.0], [-1.0, 0.0]]])
    loss = compare(features, features, codes_a, codes_b, 0.25)
    # S = [1, -1; 0.6, -0.6]
    assert float(loss) == pytest.approx(-(0.75 * 1 - 0.25 * 0.6) / 4)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_loss_is_the_sum_over_pairs(shift: float) -> None:
    case = draw(2, 4, 3), draw(2, 5, 3, seed=1), draw(2, 4, 2, seed=2), draw(2, 5, 2, seed=3)
    assert float(compare(*case, shift)) == pytest.approx(literal_loss(*case, shift))


def test_gradient_of_the_codes_and_none_of_the_features() -> None:
    features = [draw(2, 4, 3, seed=seed).requires_grad_() for seed in (0, 1)]
    codes = [draw(2, 4, 2, seed=seed).requires_grad_() for seed in (2, 3)]
    assert torch.autograd.gradcheck(lambda a, b: compare(*features, a, b, 0.1), codes)
    compare(*features, *codes, 0.1).backward()
    assert all(one.grad is None for one in features)


def test_the_loss_pulls_similar_features_codes_together_and_others_apart() -> None:
    features = as_doubles([[[1.0, 0.0], [0.0, 1.0]]])
    angle = as_doubles([math.pi / 4]).requires_grad_()
    codes = torch.stack([as_doubles([1.0, 0.0]), torch.cat([angle.cos(), angle.sin()])])[None]
    compare(features, features, codes, codes, 0.1).backward()
    assert angle.grad is not None
    assert float(angle.grad) < 0


# other windows


@pytest.mark.parametrize("windows", [2, 3, 16])
def test_others_are_a_permutation_without_a_fixed_point(windows: int) -> None:
    for seed in range(50):
        others = draw_others(windows, make_generator(seed))
        assert others.dtype == torch.int64
        assert sorted(others.tolist()) == list(range(windows))
        assert not (others == torch.arange(windows)).any()


def test_all_others_are_equally_likely() -> None:
    generator, counts = make_generator(), torch.zeros(4, 4)
    for _ in range(3000):
        counts[torch.arange(4), draw_others(4, generator)] += 1 / 3000
    expected = (1 - torch.eye(4)) / 3
    torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)


def test_of_a_single_window_none_is_another() -> None:
    with pytest.raises(ValueError, match="1 windows"):
        draw_others(1, make_generator())


# the loss of a batch


def make_batch(windows: int = 3, kind: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(windows, 4, 5, channels) for channels in (6, 3, 6, 3)]
    return [draw(*shape, seed=seed).to(kind) for seed, shape in enumerate(shapes)]


def compute_loss(batch: list[Tensor], seed: int = 0, **options: object) -> Tensor:
    chosen = {"term_weights": WEIGHTS, "term_shifts": SHIFTS, "others": 2, "side": 3, "dim": 3}
    settings = HeadSettings.model_validate(chosen | options)
    features, codes, neighbour_features, neighbour_codes = batch
    method = Stego(6, settings, make_generator(), lambda total, *_: draw(total, 6))
    return method.compare(
        features, codes, neighbour_features, neighbour_codes, make_generator(seed)
    )


def test_the_terms_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch()
    first, second = (draw_positions(3, 3, make_generator(seed)) for seed in (5, 6))
    others = [torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])]
    positions, strangers = iter([first, second]), iter(others)
    monkeypatch.setattr(correspondence, "draw_positions", lambda *_: next(positions))
    monkeypatch.setattr(correspondence, "draw_others", lambda *_: next(strangers))

    def read(grid: Tensor, where: Tensor) -> Tensor:
        return (
            F.grid_sample(
                grid.permute(0, 3, 1, 2), where.double(), padding_mode="border", align_corners=True
            )
            .flatten(2)
            .transpose(1, 2)
        )

    features, codes, near, codes_near = batch
    here, code = read(features, first), read(codes, first)
    expected = 0.5 * literal_loss(here, here, code, code, 0.1)
    expected += 2.0 * literal_loss(here, read(near, second), code, read(codes_near, second), 0.2)
    for other in others:
        there, code_there = read(features, second)[other], read(codes, second)[other]
        expected += 3.0 * literal_loss(here, there, code, code_there, 0.3) / 2
    loss = compute_loss(batch, term_weights=(0.5, 2.0, 3.0), term_shifts=(0.1, 0.2, 0.3))
    assert float(loss) == pytest.approx(expected)


def test_gradient_of_the_batch() -> None:
    features, codes, near, codes_near = make_batch(2)
    near.requires_grad_()

    def compute(codes: Tensor, codes_near: Tensor) -> Tensor:
        return compute_loss([features, codes, near, codes_near])

    assert torch.autograd.gradcheck(compute, (codes.requires_grad_(), codes_near.requires_grad_()))
    compute(codes, codes_near).backward()
    assert near.grad is None


@pytest.mark.parametrize("axis", [1, 2])
def test_mirrored_images_have_the_same_loss(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch()
    expected = compute_loss(batch)
    sign = torch.tensor([1.0, -1.0] if axis == 1 else [-1.0, 1.0])

    def draw_mirrored(windows: int, side: int, generator: torch.Generator) -> Tensor:
        return sign * draw_positions(windows, side, generator)

    monkeypatch.setattr(correspondence, "draw_positions", draw_mirrored)
    mirrored = compute_loss([grid.flip(axis) for grid in batch])
    torch.testing.assert_close(mirrored, expected, rtol=1e-6, atol=0)
    assert not torch.isclose(compute_loss(batch), expected)


def test_scales_of_features_and_codes_do_not_matter() -> None:
    batch = make_batch()
    scaled = [factor * grid for factor, grid in zip((3.0, 0.2, 7.0, 40.0), batch, strict=True)]
    torch.testing.assert_close(compute_loss(scaled), compute_loss(batch))


def test_the_seed_decides() -> None:
    batch = make_batch(kind=torch.float32)
    assert torch.equal(compute_loss(batch), compute_loss(batch))
    assert not torch.equal(compute_loss(batch), compute_loss(batch, seed=1))


def test_a_single_window_meets_itself_and_its_neighbour_alone() -> None:
    batch = make_batch(1)
    batch[1].requires_grad_()
    loss = compute_loss(batch)
    loss.backward()
    assert batch[1].grad is not None
    assert batch[1].grad.isfinite().all()
    assert batch[1].grad.any()
    assert torch.equal(loss, compute_loss(batch, term_weights=(*WEIGHTS[:2], 100.0)))
    own, near = (compute_loss(batch, term_weights=weights) for weights in ((1, 0, 0), (0, 1, 0)))
    torch.testing.assert_close(loss, WEIGHTS[0] * own + WEIGHTS[1] * near)
    assert own != 0 and near != 0


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_images_have_a_loss(value: float) -> None:
    batch = [torch.full((2, 4, 5, channels), value) for channels in (6, 3, 6, 3)]
    batch[1].requires_grad_()
    loss = compute_loss(batch)
    loss.backward()
    # equal vectors have cosine 1, zero vectors 0: then there is nothing to pull
    cosine = float(value > 0)
    expected = -sum(w * (cosine - b) for w, b in zip(WEIGHTS, SHIFTS, strict=True)) * cosine
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    assert batch[1].grad is not None
    assert batch[1].grad.abs().max() < 1e-5
