"""Packed keys: no two vertices alike, neighbours a constant apart, any number of words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.crf.cuda.keys import KEY_BITS, fold_words, look_up, plan_keys


def test_a_plan_by_hand() -> None:
    # Two axes, 0..10 and -10..0, a margin of 8 on both sides: 26 steps take 5 bits; the second
    # axis has no place; three images take two bits more.
    plan = plan_keys([0.0, -10.0], [10.0, 0.0], 3)
    assert plan.strides.tolist() == [[1, 0, 32]]
    assert plan.offset.tolist() == [-8, -18]
    assert plan.steps.tolist() == [[-1, 1]]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 22), st.integers(1, 5000))
def test_every_coordinate_has_its_own_bits(dimension: int, bits: int, images: int) -> None:
    highest = [float(2**bits)] * (dimension + 1)
    plan = plan_keys([-high for high in highest], highest, images)
    spans = [2 ** (bits + 1) + 8 * (dimension + 1)] * dimension + [0, images - 1]
    for word in plan.strides.tolist():
        used = 0
        for stride, span in sorted((s, n) for s, n in zip(word, spans, strict=True) if s):
            assert stride > used, "carries into the next coordinate"
            used += stride * span
        assert used < 2**KEY_BITS
    # One image needs no bits; the last coordinate never does.
    placed = (plan.strides != 0).sum(axis=0)
    assert placed[:dimension].tolist() == [1] * dimension and placed[dimension] == 0
    assert placed[-1] == 1 or images == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_words_are_folded_in_order_and_found_again(count: int) -> None:
    words = torch.randint(0, 4, (count, 60), generator=torch.Generator().manual_seed(count))
    words *= 2**61 // 4
    keys, tables = fold_words(words)
    by_words = np.lexsort(words.numpy())
    by_keys = np.argsort(keys.numpy(), kind="stable")
    assert by_words.tolist() == by_keys.tolist()
    distinct = keys.unique()
    assert (distinct[look_up(words, tables, distinct).long()] == keys).all()
    absent = look_up(words + 1, tables, distinct)
    assert absent.dtype == torch.int32 and (absent == len(distinct)).all()


def test_a_pair_whose_words_are_known_apart_is_absent() -> None:
    words = torch.tensor([[1, 2], [5, 6]])
    keys, tables = fold_words(words)
    assert look_up(torch.tensor([[1, 2], [6, 6]]), tables, keys.unique()).tolist() == [2, 1]


def test_a_word_that_is_not_there_is_absent_whatever_it_lies_beside() -> None:
    words = torch.tensor([[1, 3], [5, 6]])
    keys, tables = fold_words(words)
    assert look_up(torch.tensor([[2, 3], [6, 7]]), tables, keys.unique()).tolist() == [2, 2]
