"""Reference pools and hidden positives: by hand, against the definition, and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from stages.head import pools
from stages.head.pools import draw_rows, find_hidden_positives


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def at_degrees(*angles: float) -> Tensor:
    radians = torch.tensor([math.radians(angle) for angle in angles], dtype=torch.float64)
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_drawn_rows_differ_and_are_those_of_their_seed() -> None:
    drawn = draw_rows(50, 20, seeded(3))
    assert drawn.dtype == torch.int64
    assert len(set(drawn.tolist())) == 20
    assert set(drawn.tolist()) <= set(range(50))
    assert torch.equal(drawn, draw_rows(50, 20, seeded(3)))
    assert not torch.equal(drawn, draw_rows(50, 20, seeded(4)))


def test_of_fewer_rows_than_wanted_all_are_drawn() -> None:
    assert sorted(draw_rows(5, 2048, seeded()).tolist()) == [0, 1, 2, 3, 4]


def test_every_row_is_drawn_equally_often() -> None:
    generator = seeded()
    drawn = torch.cat([draw_rows(10, 3, generator) for _ in range(4000)])
    share = drawn.bincount(minlength=10) / 4000
    assert (share - 0.3).abs().max() < 0.03


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
    monkeypatch.setattr(pools, "_BLOCK", 7)
    assert torch.equal(find_hidden_positives(vectors, vectors, pool), expected)


def test_positives_are_found_without_a_gradient() -> None:
    vectors = F.normalize(torch.randn(4, 3, generator=seeded()), dim=1).requires_grad_()
    assert not find_hidden_positives(vectors, vectors, vectors[:1]).requires_grad


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one entry"):
        find_hidden_positives(torch.ones(2, 3), torch.ones(2, 3), torch.ones(0, 3))
