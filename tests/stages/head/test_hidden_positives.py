"""The loss of a batch: put together by hand, its slope, draws and edges; what moves along.

The contrastive loss: by hand, against the formula pair by pair, its slope and its draws.

Local hidden positives: weights and mixtures by hand, position by position, and mirrored.

Reference pools and hidden positives: by hand, against the definition, and at the edges.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from stages.head import hidden_positives
from stages.head.hidden_positives import (
    HiddenPositives,
    Projector,
    draw_candidates,
    draw_positions,
    find_hidden_positives,
    find_neighbours,
    hidden_positive_loss,
    mix_positions,
    specific_share,
    weigh_neighbours,
)
from stages.head.material import HeadBatch
from stages.head.projection import ProjectionHead
from stages.head.settings import COLDEST, HeadSettings

CHANNELS, DIM = 6, 5
EVERYTHING = HeadSettings(
    method="hp", dim=DIM, temperature=0.5, positions=10**6, negatives=1.0, consistency=0.05
)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make_method(
    options: HeadSettings = EVERYTHING, seed: int = 0, entries: int = 4
) -> HiddenPositives:
    """Make a method whose average is another head, with pools of so many entries."""

    def read_positions(total: int, *_: int) -> Tensor:
        return torch.randn(total, CHANNELS, generator=seeded(9))

    method = HiddenPositives(CHANNELS, options, seeded(seed), read_positions)
    method.average = ProjectionHead(CHANNELS, DIM, seeded(seed + 1)).requires_grad_(False)
    method.projector = Projector(DIM, seeded(seed + 2))
    method.double()
    if entries:
        method.renew_pools(read_positions(entries).double(), seeded())
    return method


def make_batch(windows: int = 2, rows: int = 3, columns: int = 4, seed: int = 7) -> HeadBatch:
    generator = seeded(seed)

    def draw(channels: int) -> Tensor:
        shape = (windows, rows, columns, channels)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return HeadBatch(draw(CHANNELS), None, draw(CHANNELS), draw(9).abs())


def find_loss(
    batch: HeadBatch, method: HiddenPositives, *, share: float = 0.3, seed: int = 0
) -> Tensor:
    return method.compare(method.make_codes(batch.features), batch, share, seeded(seed))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_the_sum_of_its_terms(share: float) -> None:
    batch, method = make_batch(), make_method()
    features = batch.features.flatten(0, 2)
    codes = method.make_codes(batch.features)
    everywhere = torch.arange(12).expand(2, -1)
    mixed = mix_positions(codes, weigh_neighbours(batch.attention), everywhere).flatten(0, 1)
    averaged = method.average(features)
    terms, counts = [], []
    for vectors, pool in ((features, method.agnostic), (averaged, method.specific)):
        unit = F.normalize(vectors, dim=1)
        positives = find_hidden_positives(unit, unit, pool).fill_diagonal_(False)
        counts.append(positives.sum(dim=1).double().mean())
        terms.append(
            [
                hidden_positive_loss(
                    method.projector(kind),
                    positives,
                    temperature=0.5,
                    negatives=1.0,
                    generator=seeded(),
                )
                for kind in (codes.flatten(0, 2), mixed)
            ]
        )
    whole, local = (
        (1 - share) * agnostic + share * specific for agnostic, specific in zip(*terms, strict=True)
    )
    augmented = method.make_codes(batch.augmented)
    distance = (1 - F.cosine_similarity(codes, augmented, dim=3)).mean()
    assert counts[0] > 0 and counts[1] > 0 and not torch.equal(terms[0][0], terms[1][0])
    for weight in (0.0, 0.05, 1.0):
        method.settings = EVERYTHING.replace(consistency=weight)
        expected = whole + local + weight * distance
        torch.testing.assert_close(find_loss(batch, method, share=share), expected)


@pytest.mark.parametrize(("share", "kinds"), [(0.0, 1), (0.3, 2), (1.0, 1)])
def test_a_kind_without_a_share_is_not_looked_for(
    share: float, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought = []

    def find(*given: Tensor) -> Tensor:
        sought.append(given)
        return find_hidden_positives(*given)

    monkeypatch.setattr(hidden_positives, "find_hidden_positives", find)
    find_loss(make_batch(), make_method(), share=share)
    assert len(sought) == kinds


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    batch = make_batch(windows=2, rows=2, columns=3)
    method = make_method(EVERYTHING.replace(negatives=0.5))
    codes = method.make_codes(batch.features).detach().requires_grad_()

    def compute(leaf: Tensor, augmented: Tensor) -> Tensor:
        return method.compare(leaf, dataclasses.replace(batch, augmented=augmented), 0.4, seeded())

    augmented = batch.augmented.clone().requires_grad_()
    assert torch.autograd.gradcheck(compute, (codes, augmented))


def test_head_and_projector_learn_and_the_average_does_not() -> None:
    method = make_method()
    method.average.requires_grad_(True)
    find_loss(make_batch(), method).backward()
    for module in (method.head, method.projector):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert all(p.grad is None for p in method.average.parameters())


def test_mirrored_windows_have_the_same_loss() -> None:
    batch, method = make_batch(), make_method()
    assert batch.augmented is not None and batch.attention is not None
    mirrored = HeadBatch(
        batch.features.flip(2),
        None,
        batch.augmented.flip(2),
        batch.attention.flip(2)[..., [2, 1, 0, 5, 4, 3, 8, 7, 6]],
    )
    torch.testing.assert_close(find_loss(mirrored, method), find_loss(batch, method))


def test_the_loss_is_that_of_its_seed() -> None:
    batch, method = make_batch(), make_method(EVERYTHING.replace(positions=5, negatives=0.3))
    losses = [find_loss(batch, method, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_the_same_view_twice_is_consistent() -> None:
    batch, method = make_batch(), make_method()
    same = dataclasses.replace(batch, augmented=batch.features)
    loss = find_loss(same, method)
    method.settings = EVERYTHING.replace(consistency=1.0)
    assert abs((find_loss(same, method) - loss).item()) < 1e-12


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 1, 1), (3, 1, 1)])
def test_small_batches_have_a_finite_loss(shape: tuple[int, int, int], share: float) -> None:
    method = make_method()
    loss = find_loss(make_batch(*shape), method, share=share)
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in method.head.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_constant_image_has_no_positives_and_a_finite_loss(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = torch.randn(CHANNELS, generator=seeded(), dtype=torch.float64).to(kind)
    image = feature.expand(2, 5, 5, CHANNELS).contiguous()
    method = make_method(entries=0).to(kind)
    method.renew_pools(image.flatten(0, 2), seeded())
    found = []

    def find(*given: Tensor) -> Tensor:
        found.append(find_hidden_positives(*given))
        return found[-1]

    monkeypatch.setattr(hidden_positives, "find_hidden_positives", find)
    batch = HeadBatch(image, None, image, torch.full((2, 5, 5, 9), 0.04, dtype=kind))
    loss = find_loss(batch, method, share=0.5)
    loss.backward()
    assert len(found) == 2 and not any(each.any() for each in found)
    assert abs(loss.item()) < 1e-6
    gradients = [p.grad for p in method.head.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        find_loss(make_batch(), make_method(), share=share)


def renew(features: Tensor, size: int, seed: int = 0) -> HiddenPositives:
    method = make_method(EVERYTHING.replace(pool=size), entries=0)
    method.renew_pools(features, seeded(seed))
    return method


def test_both_pools_are_of_the_same_positions() -> None:
    features = 3 * torch.randn(30, CHANNELS, generator=seeded(), dtype=torch.float64)
    method = renew(features, 8, seed=1)
    assert method.agnostic.shape == (8, CHANNELS) and method.specific.shape == (8, DIM)
    for pool in (method.agnostic, method.specific):
        torch.testing.assert_close(pool.norm(dim=1), torch.ones(8, dtype=torch.float64))
    source = (method.agnostic @ F.normalize(features, dim=1).T).argmax(dim=1)
    assert len(set(source.tolist())) == 8
    codes = F.normalize(method.average(features[source]), dim=1)
    torch.testing.assert_close(method.specific, codes)
    assert len(renew(features, 2048).specific) == 30


def test_a_pool_is_that_of_its_seed() -> None:
    features = torch.randn(50, CHANNELS, generator=seeded(), dtype=torch.float64)
    first, again, other = (renew(features, 20, seed).agnostic for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_position_is_as_often_in_a_pool() -> None:
    features = torch.eye(CHANNELS, dtype=torch.float64)
    method, generator = make_method(EVERYTHING.replace(pool=2), entries=0), seeded()
    counts = torch.zeros(CHANNELS, dtype=torch.float64)
    for _ in range(4000):
        method.renew_pools(features, generator)
        counts += method.agnostic.sum(dim=0)
    assert (counts / 4000 - 2 / CHANNELS).abs().max() < 0.03


def test_positions_differ_in_a_window_and_between_windows() -> None:
    drawn = draw_positions(50, 12, 5, seeded())
    assert drawn.shape == (50, 5)
    assert all(len(set(row)) == 5 and max(row) < 12 for row in drawn.tolist())
    assert len({tuple(row) for row in drawn.tolist()}) > 40
    assert sorted(draw_positions(1, 4, 121, seeded())[0].tolist()) == [0, 1, 2, 3]


def test_every_position_is_drawn_equally_often() -> None:
    share = draw_positions(6000, 8, 3, seeded()).flatten().bincount(minlength=8) / 6000
    assert (share - 3 / 8).abs().max() < 0.02


def test_the_specific_share_grows_from_the_end_of_the_warm_up_to_the_end() -> None:
    shares = [specific_share(step, 10, 50) for step in (0, 9, 10, 11, 30, 50, 60)]
    assert shares == [0, 0, 0, 1 / 40, 0.5, 1, 1]
    assert [specific_share(step, 0, 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert specific_share(3, 10, 5) == 0


def test_the_average_moves_by_one_minus_the_decay() -> None:
    method = make_method(EVERYTHING.replace(average=0.75))
    before = [value.clone() for value in method.average.parameters()]
    head = [value.clone() for value in method.head.parameters()]
    method.finish_step()
    for old, new, towards in zip(before, method.average.parameters(), head, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * towards)
    method.settings = EVERYTHING.replace(average=0.0)
    method.finish_step()
    for new, towards in zip(method.average.parameters(), method.head.parameters(), strict=True):
        torch.testing.assert_close(new, towards)
    assert all(torch.equal(a, b) for a, b in zip(head, method.head.parameters(), strict=True))


def test_a_projector_is_that_of_its_seed() -> None:
    codes = torch.randn(7, DIM, generator=seeded())
    state = torch.get_rng_state()
    first, second = Projector(DIM, seeded(1))(codes), Projector(DIM, seeded(1))(codes)
    assert torch.equal(first, second) and first.shape == codes.shape
    assert not torch.equal(first, Projector(DIM, seeded(2))(codes))
    assert torch.equal(state, torch.get_rng_state())


def test_a_projector_is_two_maps_with_a_bend() -> None:
    projector = Projector(DIM, seeded()).double()
    codes = torch.randn(7, DIM, generator=seeded(), dtype=torch.float64)
    hidden = (codes @ projector.hidden.weight.T + projector.hidden.bias).clamp_min(0)
    expected = hidden @ projector.output.weight.T + projector.output.bias
    torch.testing.assert_close(projector(codes), expected)


def test_training_draws_positives_together_and_does_not_collapse() -> None:
    # three groups of features in noise: positives lie mostly in the anchor's group
    generator = seeded(3)
    centres = 2 * torch.randn(3, CHANNELS, generator=generator)
    group = torch.randint(3, (8, 6, 6), generator=generator)
    features = centres[group] + torch.randn(8, 6, 6, CHANNELS, generator=generator)
    augmented = features + 0.1 * torch.randn(features.shape, generator=generator)
    batch = HeadBatch(features, None, augmented, torch.ones(8, 6, 6, 9))
    method = make_method(
        EVERYTHING.replace(temperature=0.4, positions=36, negatives=0.3, pool=20, average=0.9),
        entries=0,
    ).float()
    method.average.load_state_dict(method.head.state_dict())
    adam = torch.optim.AdamW(method.list_trained(), lr=5e-3)
    losses = []
    for step in range(60):
        if step % 20 == 0:
            method.renew_pools(features.flatten(0, 2), generator)
        share = specific_share(step, 20, 60)
        loss = method.compare(method.make_codes(features), batch, share, generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
        method.finish_step()
        losses.append(loss.item())
    codes = F.normalize(method.make_codes(features).detach().flatten(0, 2), dim=1)
    same = group.flatten()[:, None] == group.flatten()
    cosines = codes @ codes.T
    assert sum(losses[15:20]) < 0.97 * sum(losses[:5])
    assert cosines[same].mean() > cosines[~same].mean() + 0.3


def make_case(positions: int, dim: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    projected = torch.randn(positions, dim, generator=generator, dtype=torch.float64)
    return projected, torch.rand(positions, positions, generator=generator) < share


def find_loss_contrast(
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
    loss = find_loss_contrast(projected, positives, temperature=1.0)
    # anchor 0 draws 1 against 2, anchor 1 draws 2 against 0, anchor 2 has no positive
    expected = (-math.log(math.e / (math.e + 1)) - math.log(1 / (math.e + 1))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_anchors_weigh_as_many_as_they_have_positives() -> None:
    projected = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]], dtype=torch.float64)
    positives = torch.zeros(4, 4, dtype=torch.bool)
    positives[0, 1] = positives[0, 2] = positives[3, 0] = True
    loss = find_loss_contrast(projected, positives, temperature=1.0)
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
        patch.setattr(hidden_positives, "_GROUP", group)
        patch.setattr(hidden_positives, "_MANY", many)
        loss = find_loss_contrast(projected, positives, temperature)
    expected = literal_loss(projected, positives, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("many", [0, 16])
def test_the_gradient_is_the_slope_of_the_loss_contrast(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_positives, "_GROUP", 4)
    monkeypatch.setattr(hidden_positives, "_MANY", many)
    projected, positives = make_case(9, 3, 0.2, seed=5)
    assert torch.autograd.gradcheck(
        lambda leaf: find_loss_contrast(leaf, positives, 0.4, 0.5), projected.requires_grad_()
    )


def test_only_drawn_negatives_count(monkeypatch: pytest.MonkeyPatch) -> None:
    projected, positives = make_case(12, 3, 0.2, seed=2)
    candidates = torch.tensor([[1, 5, 7]])
    monkeypatch.setattr(hidden_positives, "draw_candidates", lambda *_: candidates)
    cosines = F.cosine_similarity(projected[:, None], projected[None], dim=2)
    apart = ~torch.eye(12, dtype=torch.bool)
    counted = positives.clone()
    counted[:, candidates[0]] = True
    logits = (cosines / 0.5).masked_fill(~(counted & apart), -torch.inf)
    losses = -logits.log_softmax(dim=1)[positives & apart]
    assert find_loss_contrast(projected, positives, negatives=0.25).item() == pytest.approx(
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


def test_the_loss_is_that_of_its_seed_contrast() -> None:
    projected, positives = make_case(60, 3, 0.1, seed=3)
    first = find_loss_contrast(projected, positives, negatives=0.1, seed=1)
    assert torch.equal(first, find_loss_contrast(projected, positives, negatives=0.1, seed=1))
    assert not torch.equal(first, find_loss_contrast(projected, positives, negatives=0.1, seed=2))


@pytest.mark.parametrize("many", [0, 10**6])
def test_threads_do_not_disturb_the_order_of_sums(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_positives, "_MANY", many)
    projected, positives = make_case(700, 64, 0.1, seed=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(4):
            leaf = projected.float().requires_grad_()
            find_loss_contrast(leaf, positives, negatives=0.2).backward()
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_without_positives_loss_and_gradient_are_zero(kind: torch.dtype) -> None:
    leaf = torch.randn(10, 4, generator=seeded(), dtype=kind).requires_grad_()
    loss = find_loss_contrast(leaf, torch.eye(10, dtype=torch.bool), negatives=0.2)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None and torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_anchors_without_positives_pull_nothing_but_push() -> None:
    projected, positives = make_case(6, 3, 0.0, seed=1)
    positives[0, 1] = True
    leaf = projected.clone().requires_grad_()
    find_loss_contrast(leaf, positives).backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert find_loss_contrast(projected, positives).item() == pytest.approx(
        literal_loss(projected, positives, 0.5), abs=1e-12
    )


def test_equal_codes_give_the_logarithm_of_their_number() -> None:
    leaf = torch.ones(8, 4, dtype=torch.float64, requires_grad=True)
    loss = find_loss_contrast(leaf, torch.ones(8, 8, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), abs=1e-12)
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-12


def test_one_position_has_no_loss() -> None:
    loss = find_loss_contrast(torch.ones(1, 4), torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == 0


def test_opposite_codes_stay_finite_at_the_lowest_temperature() -> None:
    leaf = torch.tensor([[1.0, 0], [-1, 0], [-1, 0]], requires_grad=True)
    positives = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()
    loss = find_loss_contrast(leaf, positives, temperature=COLDEST)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    assert leaf.grad is not None and leaf.grad.isfinite().all()


@pytest.mark.parametrize(("temperature", "negatives"), [(0.01, 1.0), (0.5, 0.0), (0.5, 1.5)])
def test_impossible_options_are_refused(temperature: float, negatives: float) -> None:
    projected, positives = make_case(4, 3, 0.5, seed=0)
    with pytest.raises(ValueError, match=r"temperature 0.01|share"):
        find_loss_contrast(projected, positives, temperature, negatives)


MIRRORED = [2, 1, 0, 5, 4, 3, 8, 7, 6]


def make_case_mixing(windows: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    codes = torch.randn(windows, rows, columns, 3, generator=generator, dtype=torch.float64)
    attention = torch.rand(windows, rows, columns, 9, generator=generator, dtype=torch.float64)
    inside = find_neighbours(rows, columns)[1].unflatten(0, (rows, columns))
    return codes, attention * inside


def mix_everywhere(codes: Tensor, attention: Tensor) -> Tensor:
    windows, rows, columns, _ = codes.shape
    positions = torch.arange(rows * columns).expand(windows, -1)
    mixed = mix_positions(codes, weigh_neighbours(attention.to(codes.dtype)), positions)
    return mixed.unflatten(1, (rows, columns))


def literal_mixture(codes: np.ndarray, attention: np.ndarray) -> np.ndarray:
    rows, columns, _ = codes.shape
    places = {
        (y, x): [
            (index, y + index // 3 - 1, x + index % 3 - 1)
            for index in range(9)
            if 0 <= y + index // 3 - 1 < rows and 0 <= x + index % 3 - 1 < columns
        ]
        for y in range(rows)
        for x in range(columns)
    }
    values = [attention[y, x, i] for (y, x), near in places.items() for i, _, _ in near]
    low, high = np.quantile(values, [0.1, 0.9])
    mixed = np.empty_like(codes)
    for (y, x), near in places.items():
        exponentials = np.exp([np.clip(attention[y, x, i], low, high) for i, _, _ in near])
        softmax = exponentials / exponentials.sum()
        softmax[softmax < softmax.mean() - 1e-12] = 0
        neighbours = np.array([codes[row, column] for _, row, column in near])
        mixed[y, x] = softmax @ neighbours / softmax.sum()
    return mixed


def test_neighbours_are_counted_row_by_row() -> None:
    neighbours, inside = find_neighbours(3, 4)
    assert neighbours[5].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert inside[5].all()
    assert neighbours[0][inside[0]].tolist() == [0, 1, 4, 5]
    assert neighbours[11][inside[11]].tolist() == [6, 7, 10, 11]
    assert inside[3].tolist() == [False] * 3 + [True, True, False] * 2


def test_two_positions_by_hand() -> None:
    attention = torch.zeros(1, 1, 2, 9, dtype=torch.float64)
    attention[0, 0, 0, 4], attention[0, 0, 0, 5] = 4.0, 1.0
    attention[0, 0, 1, 3], attention[0, 0, 1, 4] = 2.0, 2.0
    # values 1, 2, 2, 4: no quantile changes an order, so position 0 keeps itself alone (the softmax
    # of the other is below 1/2), position 1 both alike
    weights = weigh_neighbours(attention)
    assert weights[0, 0].tolist() == [
        [0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0.5, 0.5, 0, 0, 0, 0],
    ]
    codes = torch.tensor([[[[2.0, 0.0], [0.0, 4.0]]]], dtype=torch.float64)
    assert mix_everywhere(codes, attention).tolist() == [[[[2, 0], [1, 2]]]]


def test_values_are_clipped_then_soft_maxed() -> None:
    # of 0, 1, .., 8 around the centre, and the same for its neighbours inside the grid
    attention = torch.arange(9.0, dtype=torch.float64).repeat(1, 3, 3, 1)
    inside = find_neighbours(3, 3)[1]
    values = attention[0].reshape(9, 9)[inside].numpy()
    low, high = np.quantile(values, [0.1, 0.9])
    exponentials = np.exp(np.clip(np.arange(9.0), low, high))
    softmax = exponentials / exponentials.sum()
    softmax[softmax < 1 / 9] = 0
    expected = torch.from_numpy(softmax / softmax.sum())
    torch.testing.assert_close(weigh_neighbours(attention)[0, 1, 1], expected)
    # both ends are clipped, and 7 and 8 to the same
    assert 0 < low < high <= 7
    assert expected[7] == expected[8] > 0


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1), (2, 2), (5, 6)])
def test_mixing_is_that_of_the_definition(grid: tuple[int, int]) -> None:
    codes, attention = make_case_mixing(3, *grid, seed=4)
    mixed = mix_everywhere(codes, 5 * attention)
    for window in range(3):
        expected = literal_mixture(codes[window].numpy(), 5 * attention[window].numpy())
        torch.testing.assert_close(mixed[window], torch.from_numpy(expected))


def test_what_stands_outside_the_grid_does_not_matter() -> None:
    codes, attention = make_case_mixing(2, 4, 5)
    inside = find_neighbours(4, 5)[1].unflatten(0, (4, 5))
    other = torch.where(inside, attention, 1e6)
    assert torch.equal(mix_everywhere(codes, attention), mix_everywhere(codes, other))


def test_drawn_positions_are_those_of_the_whole() -> None:
    codes, attention = make_case_mixing(2, 4, 5)
    drawn = torch.tensor([[7, 0, 19], [3, 3, 12]])
    mixed = mix_positions(codes, weigh_neighbours(attention), drawn)
    whole = mix_everywhere(codes, attention).flatten(1, 2)
    torch.testing.assert_close(mixed, whole[torch.arange(2)[:, None], drawn])


def test_a_mirrored_window_is_mixed_to_the_mirrored_codes() -> None:
    codes, attention = make_case_mixing(2, 4, 5)
    mirrored = mix_everywhere(codes.flip(2), attention.flip(2)[..., MIRRORED])
    torch.testing.assert_close(mirrored.flip(2), mix_everywhere(codes, attention))


def test_a_window_does_not_depend_on_the_others() -> None:
    codes, attention = make_case_mixing(3, 4, 5)
    torch.testing.assert_close(
        mix_everywhere(codes[1:2], attention[1:2])[0], mix_everywhere(codes, attention)[1]
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 529])
def test_even_attention_averages_all_neighbours(value: float, kind: torch.dtype) -> None:
    attention = torch.full((1, 3, 3, 9), value, dtype=kind)
    inside = find_neighbours(3, 3)[1]
    expected = (inside / inside.sum(dim=1, keepdim=True)).to(kind)
    torch.testing.assert_close(weigh_neighbours(attention).reshape(9, 9), expected)


def test_equal_codes_stay_as_they_are() -> None:
    attention = make_case_mixing(1, 4, 5)[1]
    codes = torch.tensor([1.0, -2, 3], dtype=torch.float64).expand(1, 4, 5, 3)
    torch.testing.assert_close(mix_everywhere(codes, attention), codes.contiguous())


def test_single_precision_stays_single() -> None:
    codes, attention = make_case_mixing(1, 4, 5)
    mixed = mix_everywhere(codes.float(), attention)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, mix_everywhere(codes, attention).float())


def test_the_gradient_reaches_the_neighbours() -> None:
    codes, attention = make_case_mixing(1, 2, 3)
    assert torch.autograd.gradcheck(
        lambda leaf: mix_everywhere(leaf, 5 * attention), codes.requires_grad_()
    )


def at_degrees(*angles: float) -> Tensor:
    radians = torch.tensor([math.radians(angle) for angle in angles], dtype=torch.float64)
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_positives_are_nearer_than_the_nearest_of_the_pool() -> None:
    # of the pool, 20 degrees away is the nearest to the first anchor, 30 to the second
    found = find_hidden_positives(
        at_degrees(0, 90), at_degrees(0, 10, 25, 65, 119), at_degrees(20, 120)
    )
    assert found.tolist() == [[True, True, False, False, False], [False, False, False, True, True]]


def test_the_relation_need_not_be_mutual() -> None:
    vectors = at_degrees(0, 10)
    found = find_hidden_positives(vectors, vectors, at_degrees(15))
    assert found.tolist() == [[True, True], [False, True]]


def test_equal_vectors_are_no_positives_by_rounding() -> None:
    vector = F.normalize(torch.randn(1, 384, generator=seeded()), dim=1)
    longer = vector * (1 + 4 * torch.finfo(torch.float32).eps)
    assert (vector * longer).sum() > (vector * vector).sum()
    assert not find_hidden_positives(vector, longer, vector).any()
    image = vector.expand(300, -1).contiguous()
    assert not find_hidden_positives(image, image, image[:77].contiguous()).any()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = F.normalize(torch.randn(30, 5, generator=seeded(2), dtype=torch.float64), dim=1)
    pool = F.normalize(torch.randn(8, 5, generator=seeded(3), dtype=torch.float64), dim=1)
    expected = vectors @ vectors.T > (vectors @ pool.T).amax(dim=1, keepdim=True)
    assert expected.any() and not expected.all()
    assert torch.equal(find_hidden_positives(vectors, vectors, pool), expected)
    monkeypatch.setattr(hidden_positives, "_BLOCK", 7)
    assert torch.equal(find_hidden_positives(vectors, vectors, pool), expected)


def test_positives_are_found_without_a_gradient() -> None:
    vectors = F.normalize(torch.randn(4, 3, generator=seeded()), dim=1).requires_grad_()
    assert not find_hidden_positives(vectors, vectors, vectors[:1]).requires_grad


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one entry"):
        find_hidden_positives(torch.ones(2, 3), torch.ones(2, 3), torch.ones(0, 3))
