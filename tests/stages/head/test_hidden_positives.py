"""The loss against the published rules in loops, its parts by hand; pools, draws, what moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from stages.head import hidden_positives
from stages.head.hidden_positives import (
    HiddenPositives,
    Relation,
    draw_kept,
    draw_positions,
    find_neighbours,
    hidden_positive_loss,
    mix_positions,
    relate,
    specific_share,
)
from stages.head.material import HeadBatch
from stages.head.projection import ProjectionHead
from stages.head.settings import COLDEST, HeadSettings

CHANNELS, DIM = 6, 5
SETTINGS = HeadSettings(
    method="hp",
    dim=DIM,
    temperature=0.5,
    negatives=1.0,
    consistency=0.05,
    pool=4,
    renew_every=4,
    average=0.75,
    warm_up=0,
    dropout=0.0,
    precision="float32",
)
ALL = torch.ones((), dtype=torch.bool)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# --- the contrast --------------------------------------------------------------------------------


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum() / one.norm() / other.norm()


def find_literally(vectors: Tensor, pool: Tensor) -> list[list[bool]]:
    """Say of flat positions which are hidden positives: of all pairs, by either's threshold."""
    limits = [max(float(cosine(vector, entry)) for entry in pool) for vector in vectors]
    return [
        [
            i != j and (float(cosine(a, b)) > limits[i] or float(cosine(a, b)) > limits[j])
            for j, b in enumerate(vectors)
        ]
        for i, a in enumerate(vectors)
    ]


def contrast_literally(
    kinds: list[Tensor],
    features: Tensor,
    averaged: Tensor,
    pools: tuple[Tensor, Tensor],
    share: float,
    temperature: float,
    kept: Tensor,
) -> Tensor:
    """Compute the published loss, [window, position, ...], anchor by anchor and pair by pair."""
    windows, each = features.shape[:2]
    agnostic = find_literally(features.flatten(0, 1), pools[0])
    specific = find_literally(averaged.flatten(0, 1), pools[1])
    everything = range(windows * each)
    loss = torch.zeros((), dtype=torch.float64)
    for window in range(windows):
        anchors = [i for i in range(window * each, window * each + each) if any(agnostic[i])]
        weights = {
            i: [agnostic[i][j] + share * specific[i][j] for j in everything] for i in anchors
        }
        mean = sum(sum(row) for row in weights.values()) / max(len(anchors), 1)
        for i in anchors:
            importance = sum(weights[i]) / mean
            counted = [
                j
                for j in everything
                if j != i and (agnostic[i][j] or bool(kept[j // each, j % each, i % each]))
            ]
            for kind in kinds:
                flat = kind.flatten(0, 1)
                logits = [cosine(flat[i], flat[j]) / temperature for j in everything]
                below = torch.stack([logits[j] for j in counted]).exp().sum().log()
                logs = sum(weights[i][j] * (logits[j] - below) for j in everything)
                mean_log = logs / sum(weights[i])
                loss = loss - temperature / 0.07 * importance * mean_log / len(anchors)
    return loss / windows / 2


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_gradients_are_those_of_the_published_rules(seed: int) -> None:
    windows, each = 3, 4
    share, temperature = [(0.0, 0.8), (0.5, 0.6), (1.0, 0.4)][seed % 3]
    features, averaged = draw(windows, each, 3, seed=seed), draw(windows, each, 3, seed=seed + 10)
    pools = (F.normalize(draw(5, 3, seed=1), dim=1), F.normalize(draw(5, 3, seed=2), dim=1))
    kept = torch.rand(windows, each, each, generator=seeded(seed)) < (1.0 if seed < 3 else 0.3)
    leaves = [draw(windows, each, 4, seed=20 + n + seed).requires_grad_() for n in range(2)]
    found = hidden_positive_loss(
        torch.stack(leaves),
        relate(features, pools[0]),
        relate(averaged, pools[1]),
        share=share,
        temperature=temperature,
        kept=kept,
    )
    expected = contrast_literally(leaves, features, averaged, pools, share, temperature, kept)
    assert expected > 1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(loss, leaves) for loss in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert other.abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [0.8, 0.6, 0.4])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_loss_and_gradients_are_those_of_the_authors_code(
    shared: Path, temperature: float, share: float
) -> None:
    file = shared / "reference" / "hp_loss.npz"
    if not file.exists():
        pytest.skip("no reference values at hand")
    values = {name: torch.from_numpy(array) for name, array in np.load(file).items()}
    leaves = [values[name].flatten(1, 2).requires_grad_() for name in ("codes", "mixed_codes")]
    weight, bias = values["projector_weight"], values["projector_bias"]
    found = hidden_positive_loss(
        F.linear(torch.stack(leaves), weight, bias),
        relate(values["features_unit"].flatten(1, 2), values["pool_agnostic"]),
        relate(values["ema_codes_unit"].flatten(1, 2), values["pool_specific"]),
        share=share,
        temperature=temperature,
        kept=ALL,
    )
    found.backward()
    name = f"tau{temperature}_lambda{share}"
    assert found.item() == pytest.approx(values[f"{name}_loss"].item(), abs=1e-5)
    for leaf, kind in zip(leaves, ("codes", "mixed"), strict=True):
        assert leaf.grad is not None
        expected = values[f"{name}_grad_{kind}"].flatten(1, 2)
        torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-3, atol=1e-7)


def at_degrees(*angles: float) -> Tensor:
    radians = torch.tensor([math.radians(angle) for angle in angles], dtype=torch.float64)
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_a_pair_is_positive_by_either_threshold() -> None:
    # of the pool, 20 degrees away is the nearest to 0, 5 to 25: the pair of 15 is by the first's
    relation = relate(at_degrees(0, 15, 40)[None], at_degrees(20))
    assert relation.find(0)[0].tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, False],
    ]
    wider = relate(at_degrees(0, 15, 30)[None], at_degrees(-20, 33))
    assert wider.find(0)[0].tolist() == [
        [False, True, False],
        [True, False, True],
        [False, True, False],
    ]


def test_partners_are_those_of_all_windows() -> None:
    relation = relate(torch.stack([at_degrees(0, 50), at_degrees(3, 100)]), at_degrees(10))
    assert relation.find(0).tolist() == [
        [[False, False], [False, False]],
        [[True, False], [False, True]],
    ]


def test_equal_vectors_are_no_positives_by_rounding() -> None:
    vector = torch.randn(1, 384, generator=seeded())
    image = vector.expand(2, 150, -1).contiguous()
    relation = relate(image, F.normalize(vector.expand(77, -1), dim=1))
    assert not relation.find(0).any() and not relation.find(1).any()


def test_blocks_of_the_pool_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, pool = draw(2, 7, 5, seed=2), F.normalize(draw(9, 5, seed=3), dim=1)
    expected = relate(vectors, pool)
    monkeypatch.setattr(hidden_positives, "_BLOCK", 4)
    assert torch.equal(relate(vectors, pool).threshold, expected.threshold)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one entry"):
        relate(torch.ones(1, 2, 3), torch.ones(0, 3))


def make_relation(pairs: list[tuple[int, int]], windows: int, each: int) -> Relation:
    """Make a relation in which these flat positions, and no others, are each other's positives."""
    positions = windows * each
    cosines = torch.eye(positions, dtype=torch.float64)
    for i, j in pairs:
        cosines[i, j] = cosines[j, i] = 0.5
    # rows of a root of the matrix have these cosines
    values, vectors = torch.linalg.eigh(cosines)
    unit = vectors * values.clamp_min(0).sqrt()
    limit = torch.full((windows, each), 0.25, dtype=torch.float64)
    return Relation(unit.unflatten(0, (windows, each)), limit)


def contrast(projected: Tensor, agnostic: Relation, **changes: Any) -> Tensor:
    options: dict[str, Any] = {"share": 0.0, "temperature": 0.07, "kept": ALL}
    return hidden_positive_loss(
        projected, agnostic, changes.pop("specific", None), **options | changes
    )


def test_three_positions_by_hand() -> None:
    # cosines: 0 and 1 agree, 2 is at right angles to both; 1 and 2 are positives of each other
    projected = torch.tensor([[[[1.0, 0], [3, 0], [0, 2]]]], dtype=torch.float64)
    loss = contrast(projected, make_relation([(1, 2)], 1, 3), temperature=1.0)
    # anchor 1 draws 2 against 0, anchor 2 draws 1 against 0: two pairs, and half of 1 / 0.07
    expected = (math.log(math.e + 1) + math.log(2)) / 2 / 0.07 / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_windows_count_alike_whatever_their_positives() -> None:
    # of four equal codes every pair costs log 3
    equal = torch.ones(1, 2, 2, 3, dtype=torch.float64)
    for pairs, expected in (([(0, 1)], 0.5), ([(0, 2)], 1.0), ([], 0.0)):
        loss = contrast(equal, make_relation(pairs, 2, 2))
        assert loss.item() == pytest.approx(expected * math.log(3) / 2, abs=1e-12)


def test_without_positives_loss_and_gradient_are_zero() -> None:
    leaf = draw(2, 2, 3, 4).requires_grad_()
    specific = make_relation([(0, 3)], 2, 3)
    # a task-specific positive alone makes no anchor
    loss = contrast(leaf, make_relation([], 2, 3), specific=specific, share=1.0)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None and not leaf.grad.any()


def test_opposite_codes_stay_finite_at_the_lowest_temperature() -> None:
    leaf = torch.tensor([[[[1.0, 0], [-1, 0], [-1, 0]]]], requires_grad=True)
    relation = make_relation([(0, 1)], 1, 3)
    relation = Relation(relation.unit.float(), relation.threshold.float())
    loss = contrast(leaf, relation, temperature=COLDEST)
    loss.backward()
    # of two alike at 2 / t: log 2 for anchor 0; anchor 1 draws 0 against 2, its equal
    expected = (math.log(2) + 2 / COLDEST) / 2 * COLDEST / 0.07 / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_negatives_are_kept_by_their_share() -> None:
    assert draw_kept(5, 7, 1.0, seeded()).all()
    drawn = draw_kept(30, 40, 0.02, seeded())
    assert drawn.shape == (30, 40, 40)
    assert abs(drawn.double().mean().item() - 0.02) < 0.002
    assert torch.equal(drawn, draw_kept(30, 40, 0.02, seeded()))


# --- the mixture ---------------------------------------------------------------------------------


def test_neighbours_are_counted_row_by_row() -> None:
    neighbours = find_neighbours(3, 4)
    assert neighbours[5].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    # outside the grid stands the nearest inside
    assert neighbours[0].tolist() == [0, 0, 1, 0, 0, 1, 4, 4, 5]


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1), (5, 6)])
def test_codes_are_mixed_by_their_neighbours_weights(grid: tuple[int, int]) -> None:
    rows, columns = grid
    codes, weights = draw(2, *grid, 3), draw(2, *grid, 9, seed=1)
    expected = torch.zeros_like(codes)
    for y in range(rows):
        for x in range(columns):
            for number in range(9):
                down, across = y + number // 3 - 1, x + number % 3 - 1
                if 0 <= down < rows and 0 <= across < columns:
                    expected[:, y, x] += weights[:, y, x, number, None] * codes[:, down, across]
                else:
                    weights[:, y, x, number] = 0
    drawn = draw_positions(2, rows * columns, 4, seeded())
    found = mix_positions(codes, weights, drawn)
    torch.testing.assert_close(found, expected.flatten(1, 2)[torch.arange(2)[:, None], drawn])


# --- the method ----------------------------------------------------------------------------------


def make_method(options: HeadSettings = SETTINGS, seed: int = 0) -> HiddenPositives:
    """Make a method whose average is another head, its pools filled."""

    def read_positions(total: int, *name: int, each: int = 16) -> Tensor:
        assert each == 1
        return draw(total, CHANNELS, seed=sum(name))

    method = HiddenPositives(CHANNELS, options, seeded(seed), read_positions)
    method.average = ProjectionHead(CHANNELS, DIM, seeded(seed + 1)).requires_grad_(False)
    method.double().renew_pools(0, seeded())
    return method


def make_batch(windows: int = 2, rows: int = 3, columns: int = 4) -> HeadBatch:
    grid = (windows, rows, columns)
    return HeadBatch(
        draw(*grid, CHANNELS, seed=7), None, draw(*grid, CHANNELS, seed=8), draw(*grid, 9, seed=9)
    )


def find_loss(
    batch: HeadBatch, method: HiddenPositives, *, share: float = 0.3, seed: int = 0
) -> Tensor:
    return method.compare(method.make_codes(batch.features), batch, share, seeded(seed))


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_the_loss_is_the_sum_of_its_terms(weight: float) -> None:
    batch, method = make_batch(), make_method(SETTINGS.replace(consistency=weight))
    assert batch.augmented is not None
    codes, seen = method.make_codes(batch.features), method.make_codes(batch.augmented)
    everywhere = torch.arange(12).expand(2, -1)
    assert batch.mixing is not None
    mixed = mix_positions(codes, batch.mixing, everywhere)
    projected = torch.stack([method.projector(v) for v in (codes.flatten(1, 2), mixed)])
    units = [F.normalize(method.projector(v), dim=3) for v in (codes, seen)]
    found = find_loss(batch, method)
    expected = hidden_positive_loss(
        projected,
        relate(batch.features.flatten(1, 2), method.agnostic),
        relate(method.average(batch.features).flatten(1, 2), method.specific),
        share=0.3,
        temperature=0.5,
        kept=ALL,
    )
    distance = (units[0] - units[1] + 1e-6).norm(dim=3).mean()
    assert expected > 1 and distance > 0.1
    torch.testing.assert_close(found, expected + weight * distance)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    batch, method = make_batch(2, 2, 3), make_method(SETTINGS.replace(negatives=0.5))
    codes = method.make_codes(batch.features).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: method.compare(c, batch, 0.4, seeded()), codes)


def test_head_and_projector_learn_and_the_average_does_not() -> None:
    method = make_method()
    method.average.requires_grad_(True)
    find_loss(make_batch(), method).backward()
    for module in (method.head, method.projector):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert all(p.grad is None for p in method.average.parameters())


def test_draws_and_dropout_are_those_of_the_seed() -> None:
    for options in ({"positions": 5}, {"negatives": 0.3}, {"dropout": 0.4}):
        method = make_method(SETTINGS.replace(**options))
        losses = [find_loss(make_batch(), method, seed=seed) for seed in (1, 1, 2)]
        assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    drawn = draw_positions(6000, 8, 3, seeded())
    assert all(len(set(row)) == 3 for row in drawn[:50].tolist())
    assert (drawn.flatten().bincount(minlength=8) / 6000 - 3 / 8).abs().max() < 0.02


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 1, 1), (3, 1, 1)])
def test_small_batches_have_a_finite_loss(shape: tuple[int, int, int]) -> None:
    method = make_method()
    loss = find_loss(make_batch(*shape), method)
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in method.head.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


def test_the_agnostic_pool_is_filled_once_and_the_other_when_it_is_time() -> None:
    plain = make_method()
    torch.testing.assert_close(plain.agnostic, F.normalize(draw(4, CHANNELS, seed=5), dim=1))
    method, batch = make_method(SETTINGS.replace(dropout=0.6)), make_batch()
    assert (method.agnostic == 0).any() and (method.specific == 0).any()
    pools = []
    for step in range(9):
        method.compute_loss(batch, step, seeded(step))
        pools.append((method.agnostic.clone(), method.specific.clone()))
    assert all(torch.equal(pools[0][0], pool) for pool, _ in pools)
    renewed = [not torch.equal(pools[n][1], pools[n - 1][1]) for n in range(1, 9)]
    assert [n for n in range(1, 9) if renewed[n - 1]] == [4, 8]


def test_the_average_moves_by_one_minus_the_decay_before_the_head_does() -> None:
    method = make_method()
    before = [value.clone() for value in method.average.parameters()]
    head = [value.clone() for value in method.head.parameters()]
    method.compute_loss(make_batch(), 1, seeded())
    for old, new, towards in zip(before, method.average.parameters(), head, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * towards)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_gradient_of_the_head_is_no_longer_than_allowed(clip: float) -> None:
    method = make_method(SETTINGS.replace(clip=clip))
    find_loss(make_batch(), method).backward()
    gradients = [p.grad.clone() for p in method.head.parameters() if p.grad is not None]
    projector = method.projector.weight.grad
    assert projector is not None
    before = projector.clone()
    whole = torch.cat([g.flatten() for g in gradients]).norm()
    method.change_gradients()
    for old, parameter in zip(gradients, method.head.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, old * min(1.0, clip / (float(whole) + 1e-6)))
    assert torch.equal(projector, before)


def test_the_projector_decays_not() -> None:
    method = make_method()
    decays = {
        parameter: group["weight_decay"]
        for group in method.make_optimiser().param_groups
        for parameter in group["params"]
    }
    assert {decays[p] for p in method.projector.parameters()} == {0}
    assert {decays[p] for p in method.head.parameters()} == {0.1}
    assert len(decays) == len(method.list_trained())


def test_the_specific_share_grows_from_the_end_of_the_warm_up_to_the_end() -> None:
    shares = [specific_share(step, 10, 50) for step in (0, 9, 10, 11, 30, 50, 60)]
    assert shares == [0, 0, 0, 1 / 40, 0.5, 1, 1]
    assert specific_share(3, 10, 5) == 0


def test_training_draws_positives_together_and_does_not_collapse() -> None:
    # three groups of features in noise: positives lie mostly in the anchor's group
    generator = seeded(3)
    centres = 2 * torch.randn(3, CHANNELS, generator=generator)
    group = torch.randint(3, (8, 6, 6), generator=generator)
    features = centres[group] + torch.randn(8, 6, 6, CHANNELS, generator=generator)
    augmented = features + 0.1 * torch.randn(features.shape, generator=generator)
    batch = HeadBatch(features, None, augmented, torch.full((8, 6, 6, 9), 0.1))
    changes = {"temperature": 0.4, "negatives": 0.3, "pool": 20, "average": 0.9, "steps": 60}
    options = SETTINGS.replace(learning_rate=5e-3, warm_up=20, renew_every=20, **changes)
    flat = features.flatten(0, 2)

    def read_positions(total: int, *name: int, each: int = 16) -> Tensor:
        return flat[torch.randperm(len(flat), generator=seeded(sum(name)))[:total]]

    method = HiddenPositives(CHANNELS, options, seeded(), read_positions)
    optimiser = method.make_optimiser()
    losses = []
    for step in range(60):
        loss, _ = method.compute_loss(batch, step, generator)
        optimiser.zero_grad()
        loss.backward()
        method.change_gradients()
        optimiser.step()
        losses.append(loss.item())
    codes = F.normalize(method.make_codes(features).detach().flatten(0, 2), dim=1)
    same = group.flatten()[:, None] == group.flatten()
    cosines = codes @ codes.T
    assert sum(losses[15:20]) < 0.97 * sum(losses[:5])
    assert cosines[same].mean() > cosines[~same].mean() + 0.3
