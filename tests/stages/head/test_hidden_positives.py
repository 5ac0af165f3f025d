"""The loss of a batch: put together by hand, its slope, draws and edges; what moves along."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn

from stages.head.contrast import hidden_positive_loss
from stages.head.hidden_positives import (
    HpBatch,
    HpModules,
    HpOptions,
    HpParts,
    HpPools,
    Projector,
    draw_pools,
    draw_positions,
    hp_loss,
    specific_share,
    update_average,
)
from stages.head.mixing import mix_positions, weigh_neighbours
from stages.head.pools import find_hidden_positives
from stages.head.projection import ProjectionHead

CHANNELS, DIM = 6, 5
EVERYTHING = HpOptions(temperature=0.5, positions=10**6, negatives=1.0, consistency=0.05)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Modules(HpModules):
    """The networks, of which the first is known to be a head."""

    make_codes: ProjectionHead


def make_modules(seed: int = 0) -> Modules:
    head, average = (ProjectionHead(CHANNELS, DIM, seeded(seed + i)) for i in range(2))
    average.requires_grad_(False)
    projector = Projector(DIM, seeded(seed + 2))
    return Modules(head.double(), average.double(), projector.double())


def make_batch(windows: int = 2, rows: int = 3, columns: int = 4, seed: int = 7) -> HpBatch:
    generator = seeded(seed)

    def draw(channels: int) -> Tensor:
        shape = (windows, rows, columns, channels)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return HpBatch(draw(CHANNELS), draw(CHANNELS), draw(9).abs())


def make_pools(modules: Modules, entries: int = 4) -> HpPools:
    features = torch.randn(entries, CHANNELS, generator=seeded(9), dtype=torch.float64)
    return draw_pools(features, modules.average, entries, seeded())


def find_loss(
    batch: HpBatch,
    modules: Modules,
    pools: HpPools,
    options: HpOptions = EVERYTHING,
    *,
    share: float = 0.3,
    seed: int = 0,
) -> tuple[Tensor, HpParts]:
    return hp_loss(
        modules.make_codes(batch.features),
        batch,
        modules,
        pools,
        options,
        share=share,
        generator=seeded(seed),
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_the_sum_of_its_terms(share: float) -> None:
    batch, modules = make_batch(), make_modules()
    pools = make_pools(modules)
    loss, parts = find_loss(batch, modules, pools, share=share)

    features = batch.features.flatten(0, 2)
    codes = modules.make_codes(batch.features)
    everywhere = torch.arange(12).expand(2, -1)
    mixed = mix_positions(codes, weigh_neighbours(batch.attention), everywhere).flatten(0, 1)
    averaged = modules.average(features)
    terms, counts = [], []
    for vectors, pool in ((features, pools.agnostic), (averaged, pools.specific)):
        unit = F.normalize(vectors, dim=1)
        positives = find_hidden_positives(unit, unit, pool).fill_diagonal_(False)
        counts.append(positives.sum(dim=1).double().mean())
        terms.append(
            [
                hidden_positive_loss(
                    modules.projector(kind),
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
    augmented = modules.make_codes(batch.augmented)
    distance = (1 - F.cosine_similarity(codes, augmented, dim=3)).mean()
    torch.testing.assert_close(parts.whole, whole.detach())
    torch.testing.assert_close(parts.mixed, local.detach())
    torch.testing.assert_close(parts.consistency, distance.detach())
    torch.testing.assert_close(loss, whole + local + 0.05 * distance)
    assert counts[0] > 0 and counts[1] > 0 and not torch.equal(terms[0][0], terms[1][0])
    assert parts.agnostic.item() == pytest.approx(counts[0].item() if share < 1 else 0)
    assert parts.specific.item() == pytest.approx(counts[1].item() if share > 0 else 0)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    batch, modules = make_batch(windows=2, rows=2, columns=3), make_modules()
    pools, options = make_pools(modules), dataclasses.replace(EVERYTHING, negatives=0.5)
    codes = modules.make_codes(batch.features).detach().requires_grad_()

    def compute(leaf: Tensor, augmented: Tensor) -> Tensor:
        moved = dataclasses.replace(batch, augmented=augmented)
        return hp_loss(leaf, moved, modules, pools, options, share=0.4, generator=seeded())[0]

    augmented = batch.augmented.clone().requires_grad_()
    assert torch.autograd.gradcheck(compute, (codes, augmented))


def test_head_and_projector_learn_and_the_average_does_not() -> None:
    batch, modules = make_batch(), make_modules()
    modules.average.requires_grad_(True)
    find_loss(batch, modules, make_pools(modules))[0].backward()
    for module in (modules.make_codes, modules.projector):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert all(p.grad is None for p in modules.average.parameters())


def test_mirrored_windows_have_the_same_loss() -> None:
    batch, modules = make_batch(), make_modules()
    pools = make_pools(modules)
    mirrored = HpBatch(
        batch.features.flip(2),
        batch.augmented.flip(2),
        batch.attention.flip(2)[..., [2, 1, 0, 5, 4, 3, 8, 7, 6]],
    )
    loss = find_loss(batch, modules, pools)[0]
    torch.testing.assert_close(find_loss(mirrored, modules, pools)[0], loss)


def test_the_loss_is_that_of_its_seed() -> None:
    batch, modules = make_batch(), make_modules()
    pools = make_pools(modules)
    options = dataclasses.replace(EVERYTHING, positions=5, negatives=0.3)
    losses = [find_loss(batch, modules, pools, options, seed=seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_the_same_view_twice_is_consistent() -> None:
    batch, modules = make_batch(), make_modules()
    same = dataclasses.replace(batch, augmented=batch.features)
    assert abs(find_loss(same, modules, make_pools(modules))[1].consistency.item()) < 1e-12


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 1, 1), (3, 1, 1)])
def test_small_batches_have_a_finite_loss(shape: tuple[int, int, int], share: float) -> None:
    batch, modules = make_batch(*shape), make_modules()
    loss, _ = find_loss(batch, modules, make_pools(modules), share=share)
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in modules.make_codes.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_constant_image_has_no_positives_and_a_finite_loss(kind: torch.dtype) -> None:
    feature = torch.randn(CHANNELS, generator=seeded(), dtype=torch.float64).to(kind)
    image = feature.expand(2, 5, 5, CHANNELS).contiguous()
    modules = make_modules()
    for module in (modules.make_codes, modules.average, modules.projector):
        module.to(kind)
    pools = draw_pools(image.flatten(0, 2), modules.average, 2048, seeded())
    batch = HpBatch(image, image, torch.full((2, 5, 5, 9), 0.04, dtype=kind))
    loss, parts = find_loss(batch, modules, pools, share=0.5)
    loss.backward()
    assert parts.agnostic == parts.specific == 0
    assert abs(loss.item()) < 1e-6
    gradients = [p.grad for p in modules.make_codes.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share: float) -> None:
    batch, modules = make_batch(), make_modules()
    with pytest.raises(ValueError, match="share"):
        find_loss(batch, modules, make_pools(modules), share=share)


def test_both_pools_are_of_the_same_positions() -> None:
    modules = make_modules()
    features = 3 * torch.randn(30, CHANNELS, generator=seeded(), dtype=torch.float64)
    pools = draw_pools(features, modules.average, 8, seeded(1))
    assert pools.agnostic.shape == (8, CHANNELS) and pools.specific.shape == (8, DIM)
    for pool in (pools.agnostic, pools.specific):
        torch.testing.assert_close(pool.norm(dim=1), torch.ones(8, dtype=torch.float64))
    source = (pools.agnostic @ F.normalize(features, dim=1).T).argmax(dim=1)
    assert len(set(source.tolist())) == 8
    codes = F.normalize(modules.average(features[source]), dim=1)
    torch.testing.assert_close(pools.specific, codes)
    assert len(draw_pools(features, modules.average, 2048, seeded()).specific) == 30


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
    average, head = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(average.weight, 2.0)
    nn.init.constant_(average.bias, 0.0)
    nn.init.constant_(head.weight, 4.0)
    nn.init.constant_(head.bias, -1.0)
    update_average(average, head, decay=0.75)
    assert average.weight.item() == 2.5 and average.bias.item() == -0.25
    assert head.weight.item() == 4.0
    update_average(average, head, decay=0.0)
    assert average.weight.item() == 4.0


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
    batch = HpBatch(features, augmented, torch.ones(8, 6, 6, 9))
    modules = make_modules()
    for module in (modules.make_codes, modules.average, modules.projector):
        module.float()
    update_average(modules.average, modules.make_codes, decay=0)
    trained = [*modules.make_codes.parameters(), *modules.projector.parameters()]
    adam = torch.optim.AdamW(trained, lr=5e-3)
    options = HpOptions(temperature=0.4, positions=36, negatives=0.3, consistency=0.05)
    losses = []
    for step in range(60):
        if step % 20 == 0:
            pools = draw_pools(features.flatten(0, 2), modules.average, 20, generator)
        loss, _ = hp_loss(
            modules.make_codes(features),
            batch,
            modules,
            pools,
            options,
            share=specific_share(step, 20, 60),
            generator=generator,
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
        update_average(modules.average, modules.make_codes, 0.9)
        losses.append(loss.item())
    codes = F.normalize(modules.make_codes(features).detach().flatten(0, 2), dim=1)
    same = group.flatten()[:, None] == group.flatten()
    cosines = codes @ codes.T
    assert sum(losses[15:20]) < 0.97 * sum(losses[:5])
    assert cosines[same].mean() > cosines[~same].mean() + 0.3
