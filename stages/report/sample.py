"""Which images the report shows: the worst, the best, and an even sample."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from stages.report.page import Role

# (position, why it is shown)
Choice = tuple[int, Role]
ROLES: tuple[Role, ...] = ("worst", "best", "sample")


def sample_evenly(count: int, wanted: int) -> list[int]:
    """Choose ``wanted`` of ``count`` positions, evenly spaced, without chance."""
    if wanted >= count:
        return list(range(count))
    return [round((i + 0.5) * count / wanted - 0.5) for i in range(wanted)]


def choose_images(ids: Sequence[str], scores: NDArray[np.float64], wanted: int) -> list[Choice]:
    """Choose the images of a split that are shown.

    A third are the worst, a third the best, and the rest are evenly spaced among all others.
    """
    wanted = min(wanted, len(ids))
    rated = [i for i in range(len(ids)) if not np.isnan(scores[i])]
    worst = sorted(rated, key=lambda i: (scores[i], ids[i]))[: (wanted + 1) // 3]
    left = set(rated) - set(worst)
    best = sorted(left, key=lambda i: (-scores[i], ids[i]))[: wanted // 3]
    shown = {*worst, *best}
    others = [i for i in range(len(ids)) if i not in shown]
    sample = sample_evenly(len(others), wanted - len(worst) - len(best))
    return [
        *((i, ROLES[0]) for i in worst),
        *((i, ROLES[1]) for i in best),
        *((others[i], ROLES[2]) for i in sample),
    ]


def rank_choices(choices: Sequence[Sequence[Choice]]) -> list[tuple[int, int]]:
    """Say in which order images are taken as long as there is room: fair to splits and roles."""
    lists = [
        [(split, n) for n, (_, found) in enumerate(chosen) if found == role]
        for role in ROLES
        for split, chosen in enumerate(choices)
    ]
    return [place for round_ in zip_longest(*lists) for place in round_ if place is not None]
