"""Parts of clusters: a small tree by hand, and clicks that are followed."""

from __future__ import annotations

import numpy as np
import pytest

from stages.parts import Tree

# units 0..5; 6 = 0 + 1, 7 = 2 + 6, 8 = 3 + 4, and then 9 = 5 + 7, 10 = 8 + 9
MERGES = np.array([[0, 1], [2, 6], [3, 4], [5, 7], [8, 9]])
# cut after three merges: {0, 1, 2}, {3, 4}, {5}
CLUSTERS = np.array([1, 1, 1, 0, 0, 2])


@pytest.fixture
def tree() -> Tree:
    return Tree(MERGES, CLUSTERS)


def test_parts_by_hand(tree: Tree) -> None:
    assert tree.find_units((1,)).tolist() == [0, 1, 2]
    assert tree.find_units((1, 0)).tolist() == [0, 1]
    assert tree.find_units((1, 1)).tolist() == [2]
    # of equal halves the first is that of the smaller number
    assert tree.find_units((1, 0, 1)).tolist() == [1]
    assert tree.find_units((0, 0)).tolist() == [3]
    assert tree.measure((1,)) == 3


@pytest.mark.parametrize("part", [(2, 0), (1, 1, 0), (3, 0), (1, 2)])
def test_what_is_no_part(tree: Tree, part: tuple[int, ...]) -> None:
    with pytest.raises(KeyError):
        tree.find_units(part)


def test_the_smallest_part_that_is_named_counts(tree: Tree) -> None:
    names = {(1, 1): 7, (1,): 5, (2,): 6}
    assert tree.name_units(names, {}, -1).tolist() == [5, 5, 7, -1, -1, 6]


def test_a_click_is_its_own_and_in_a_cluster_without_a_name_the_others_follow(tree: Tree) -> None:
    # cluster 1 has a name: the click says one unit; cluster 0 has none: 4 follows 3
    assert tree.name_units({(1,): 5}, {0: 8, 3: 9}, -1).tolist() == [8, 5, 5, 9, 9, -1]
    # 1 is merged with 0 first, whatever 2 is
    assert tree.name_units({}, {0: 8, 2: 9}, -1).tolist() == [8, 8, 9, -1, -1, -1]
    assert tree.name_units({}, {2: 9}, -1).tolist() == [9, 9, 9, -1, -1, -1]


def test_one_unit_alone() -> None:
    tree = Tree(np.empty((0, 2), np.int64), np.zeros(1, np.int64))
    assert tree.find_units((0,)).tolist() == [0]
