"""Which cluster of one evaluation is which of another, in both directions."""

from __future__ import annotations

import numpy as np

from stages.evaluate.metrics import UNMATCHED
from stages.report.comparison.pairwise import Pairwise

# three clusters against four, and against two
PAIRS = Pairwise(
    clusters=(3, 4, 2),
    matchings={
        (0, 1): np.array([2, UNMATCHED, 0, 1]),
        (0, 2): np.array([1, 2]),
        (1, 2): np.array([3, UNMATCHED]),
    },
    shares={(0, 1): 80.0, (0, 2): float("nan"), (1, 2): 12.5},
    differences={},
)


def test_a_matching_may_be_turned_around() -> None:
    assert PAIRS.find_matching(1, 0).tolist() == [2, UNMATCHED, 0, 1]
    assert PAIRS.find_matching(0, 1).tolist() == [2, 3, 0]
    assert PAIRS.find_matching(0, 2).tolist() == [UNMATCHED, 0, 1]
    assert PAIRS.find_matching(1, 2).tolist() == [UNMATCHED, UNMATCHED, UNMATCHED, 0]
    assert PAIRS.find_matching(1, 1).tolist() == [0, 1, 2, 3]


def test_the_table_is_symmetric() -> None:
    assert PAIRS.table == ((None, 80.0, None), (80.0, None, 12.5), (None, 12.5, None))
