"""Local hidden positives: weights and mixtures by hand, position by position, and mirrored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from stages.head.mixing import find_neighbours, mix_positions, weigh_neighbours

MIRRORED = [2, 1, 0, 5, 4, 3, 8, 7, 6]


def make_case(windows: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
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
    codes, attention = make_case(3, *grid, seed=4)
    mixed = mix_everywhere(codes, 5 * attention)
    for window in range(3):
        expected = literal_mixture(codes[window].numpy(), 5 * attention[window].numpy())
        torch.testing.assert_close(mixed[window], torch.from_numpy(expected))


def test_what_stands_outside_the_grid_does_not_matter() -> None:
    codes, attention = make_case(2, 4, 5)
    inside = find_neighbours(4, 5)[1].unflatten(0, (4, 5))
    other = torch.where(inside, attention, 1e6)
    assert torch.equal(mix_everywhere(codes, attention), mix_everywhere(codes, other))


def test_drawn_positions_are_those_of_the_whole() -> None:
    codes, attention = make_case(2, 4, 5)
    drawn = torch.tensor([[7, 0, 19], [3, 3, 12]])
    mixed = mix_positions(codes, weigh_neighbours(attention), drawn)
    whole = mix_everywhere(codes, attention).flatten(1, 2)
    torch.testing.assert_close(mixed, whole[torch.arange(2)[:, None], drawn])


def test_a_mirrored_window_is_mixed_to_the_mirrored_codes() -> None:
    codes, attention = make_case(2, 4, 5)
    mirrored = mix_everywhere(codes.flip(2), attention.flip(2)[..., MIRRORED])
    torch.testing.assert_close(mirrored.flip(2), mix_everywhere(codes, attention))


def test_a_window_does_not_depend_on_the_others() -> None:
    codes, attention = make_case(3, 4, 5)
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
    attention = make_case(1, 4, 5)[1]
    codes = torch.tensor([1.0, -2, 3], dtype=torch.float64).expand(1, 4, 5, 3)
    torch.testing.assert_close(mix_everywhere(codes, attention), codes.contiguous())


def test_single_precision_stays_single() -> None:
    codes, attention = make_case(1, 4, 5)
    mixed = mix_everywhere(codes.float(), attention)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, mix_everywhere(codes, attention).float())


def test_the_gradient_reaches_the_neighbours() -> None:
    codes, attention = make_case(1, 2, 3)
    assert torch.autograd.gradcheck(
        lambda leaf: mix_everywhere(leaf, 5 * attention), codes.requires_grad_()
    )
