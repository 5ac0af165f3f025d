"""Windows one by one: the same bits beside whichever others, in any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.em.groups import GROUP, add_in_order, apply_windows, one_thread, sum_groups


def multiply(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return torch.bmm(left, right), left.sum(dim=(1, 2))


@pytest.mark.parametrize("channels", [3, 33, 90, 384])
def test_a_window_is_the_same_in_any_company(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(channels)
    left = torch.randn(11, 5, 64, generator=generator)
    right = torch.randn(11, 64, channels, generator=generator)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [multiply(left[n : n + 1].clone(), right[n : n + 1].clone()) for n in range(11)]
        for number in (1, 2, 3):
            monkeypatch.setenv("OMP_NUM_THREADS", str(number))
            torch.set_num_threads(number)
            for low, high in ((0, 11), (3, 8), (10, 11)):
                found = apply_windows(multiply, left[low:high], right[low:high])
                for place, tensor in enumerate(found):
                    whole = torch.cat([pair[place] for pair in expected[low:high]])
                    assert torch.equal(tensor, whole)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)


def test_groups_of_a_batch_are_those_of_its_pieces() -> None:
    values = torch.randn(21, 3, 5, generator=torch.Generator().manual_seed(0))
    whole = sum_groups(values)
    assert whole.shape == (3, 3, 5)
    pieces = [sum_groups(values[low : low + GROUP].clone()) for low in range(0, 21, GROUP)]
    assert torch.equal(torch.cat(pieces), whole)
    torch.testing.assert_close(whole.sum(dim=0), values.sum(dim=0))


def test_the_first_two_are_added_first() -> None:
    large = torch.tensor([1e8], dtype=torch.float32)
    one = torch.ones(1)
    assert float(add_in_order([one, large, -large])) == 0
    assert float(add_in_order([large, -large, one])) == 1


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before
