"""The codebook: against float64, and the same bytes whoever computes, in whatever order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pipeline.compute.scheduler import Team
from stages.discriminants import Moments
from stages.em.codebook import Codebook, Units, find_centroids, make_codebook, pool_units
from stages.em.robust import RobustFit, fit_robust
from stages.em.sums import hold_positions, number_proposals, sum_positions
from tests.fakes import HeldPiece

WINDOWS, GRID, CHANNELS, CLASSES = 60, 4, 6, 3


class Backwards(Team):
    """A team whose pieces end in the reverse order, each twice; results come in order all the same.

    Every thread has another number of threads of its own than the others.
    """

    def stream(
        self, function: Callable[..., Any], firsts: Iterable[Any], *rest: Any
    ) -> Iterator[Any]:
        tasks = list(firsts)
        found = {}
        for number, first in reversed([*enumerate(tasks)] * 2):
            torch.set_num_threads(1 + number % 2)
            found[number] = function(first, *rest)
        yield from (found[number] for number in range(len(tasks)))


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(CLASSES, (WINDOWS, 2, 2), generator=generator)
    centres = 2 * torch.eye(CLASSES, CHANNELS) + 1
    features = centres[truth].repeat_interleave(2, 1).repeat_interleave(2, 2)
    features = features + 0.4 * torch.randn(features.shape, generator=generator)
    quarters = torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    # the first quarter is no proposal
    return features, quarters.to(torch.uint8).repeat(WINDOWS, 1, 1)


def cut(features: Tensor, proposals: Tensor, piece: int) -> list[HeldPiece]:
    windows = np.arange(len(features))
    return [
        HeldPiece(features, proposals, windows[low : low + piece], 4)
        for low in range(0, len(windows), piece)
    ]


def fit(size: int, team: Team | None = None, piece: int = 12) -> tuple[Codebook, RobustFit]:
    pieces = cut(*draw(), piece)
    book = make_codebook(pieces, pieces, size, 0, team or Team())
    asked: Any = {"classes": CLASSES, "seed": 0, "clusterings": 20, "shrinkage": 0.1}
    found = fit_robust(*[pieces] * 4, codebook=size, team=team or Team(), **asked)
    return book, found


def pool_all() -> Units:
    features, proposals = draw()
    centres = proposals[:, 1::2, 1::2].long().flatten(1)
    number = number_proposals(centres, np.arange(WINDOWS))
    return pool_units(features.double().flatten(1, 2), number)


def test_few_proposals_are_units_themselves() -> None:
    book, found = fit(WINDOWS * 3)
    units = pool_all()
    assert book.is_plain and found.sums.units is None
    assert torch.equal(book.assigned.number, units.number)
    assert torch.equal(book.feature, units.feature) and torch.equal(book.context, units.context)
    assert book.weight.unique().tolist() == [1]


def test_every_proposal_counts_in_the_mean_of_its_nearest_centroid() -> None:
    book, _ = fit(20)
    units = pool_all()
    assert not book.is_plain and len(book.weight) <= 20
    assert torch.equal(book.assigned.number, units.number)
    assert int(book.weight.sum()) == len(units.number) == WINDOWS * 3
    unit = book.assigned.unit.long()
    members = F.one_hot(unit, len(book.weight)).double()
    assert torch.equal(members.sum(dim=0).long(), book.weight)
    for mean, values in ((book.feature, units.feature), (book.context, units.context)):
        torch.testing.assert_close(mean, members.T @ values / book.weight[:, None])
    # that they are the nearest, of centroids found by the same draw
    points = units.find_directions()
    centroids = find_centroids(points, 20, 0).double()
    nearest = (points.double() @ centroids.T).argmax(dim=1)
    np.testing.assert_array_equal(nearest.unique(return_inverse=True)[1], unit)


@pytest.mark.parametrize("size", [20, 4096])
def test_the_same_bytes_whoever_computes_and_in_whatever_order(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    book, found = fit(size)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        again, other = fit(size, Backwards())
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(book[:-1], again[:-1], strict=True):
        assert torch.equal(one, two)
    for name in ("prototypes", "bias", "usage", "groups"):
        assert torch.equal(getattr(found, name), getattr(other, name)), name
    for name in ("clusters", "proposals", "merges"):
        assert torch.equal(getattr(found.sums, name), getattr(other.sums, name)), name
    assert torch.equal(found.sums.moments.total, other.sums.moments.total)
    assert torch.equal(found.sums.moments.scatter, other.sums.moments.scatter)


def test_sums_over_pieces_are_those_of_all_positions() -> None:
    features, proposals = draw()
    book, _ = fit(20)
    assigned = book.assigned
    labels = torch.arange(len(book.weight)) % CLASSES
    # of other features, finer than what was clustered
    fine = features.repeat_interleave(2, 1).repeat_interleave(2, 2)
    fine = fine + torch.randn(fine.shape, generator=torch.Generator().manual_seed(1))
    for values in (features, fine):
        origin = values.double().flatten(0, 2).mean(dim=0)
        pieces = cut(values, proposals, 7)
        found = sum_positions(pieces, assigned, labels, CLASSES, origin)
        side = 8 // values.shape[1]
        held = proposals[:, side // 2 :: side, side // 2 :: side].long()
        points = values.double()[held > 0]
        numbers = 256 * torch.arange(WINDOWS)[:, None, None] + held
        unit = assigned.unit[torch.searchsorted(assigned.number, numbers[held > 0])].long()
        expected = Moments.make_empty(origin, len(labels))
        expected.add(points, unit)
        for name in ("count", "total", "scatter"):
            torch.testing.assert_close(getattr(found.own, name), getattr(expected, name))
        joined = expected.join(labels.tolist(), CLASSES)
        torch.testing.assert_close(found.moments.total, joined.total)
        # every fold alone, and some positions with the units that they are of
        fold = torch.arange(len(labels)) % 5
        kept = hold_positions(pieces, assigned, found.own, fold)
        torch.testing.assert_close(kept.scatters.sum(dim=0), expected.scatter)
        mine = points[fold[unit] == 2] - origin
        torch.testing.assert_close(kept.scatters[2], mine.T @ mine)
        assert torch.equal(kept.features, points) and torch.equal(kept.rows.long(), unit)


def test_groups_are_found_through_the_codebook_as_without_it() -> None:
    features, _ = draw()
    (_, plain), (_, coarse) = fit(4096), fit(20)
    labels = [
        (features @ found.prototypes.T + found.bias).argmax(dim=-1) for found in (plain, coarse)
    ]
    assert float((labels[0] == labels[1]).double().mean()) > 0.98
