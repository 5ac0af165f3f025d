"""Variants of the robust fit, for ``benchmarks.quality --resample`` to judge.

``--variant benchmarks/variants.py`` runs them all. Each changes one thing. What is kept goes into
``stages/em/robust.py``; what is not stays here, so that nobody has to try it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.run.frames import Batch
from stages.em import cache, robust
from stages.em.codebook import Codebook, make_codebook
from stages.em.methods import Fit, Task
from stages.em.pieces import FitBatch
from stages.em.robust import MOST_CLUSTERS, Robust, count_agreement, link_units
from stages.em.sums import sum_positions

Agreement = NDArray[np.float32]
# Of the units, channels that are clustered; rounds, and the share of the identity, of whitening.
_CHANNELS, _ROUNDS, _RIDGE = 64, 2, 0.1


class _Patched(Robust):
    """The robust fit with other parts: of ``stages.em.robust``, and of the cache."""

    # one at least is to be given
    parts: ClassVar[Mapping[str, Any]] = MappingProxyType({"MOST_CLUSTERS": MOST_CLUSTERS})
    average: ClassVar[Callable[[Batch], FitBatch]] = cache._average

    def fit(self, task: Task) -> Fit:
        with (
            patch.multiple(robust, **self.parts),
            patch.object(cache, "_average", type(self).average),
        ):
            return super().fit(task)


def _count_double(
    units: Tensor, context: Tensor, classes: int, clusterings: int, seed: int, weight: Tensor
) -> Agreement:
    return count_agreement(units, context, 2 * classes, clusterings, seed, weight)


def _count_without(
    units: Tensor, context: Tensor, classes: int, clusterings: int, seed: int, weight: Tensor
) -> Agreement:
    none = torch.zeros_like(context)
    return count_agreement(units, none, classes, clusterings, seed, weight)


def _count_apart(
    units: Tensor, context: Tensor, classes: int, clusterings: int, seed: int, weight: Tensor
) -> Agreement:
    none = torch.zeros_like(context)
    return count_agreement(units - context, none, classes, clusterings, seed, weight)


def _count_whitened(
    units: Tensor, context: Tensor, classes: int, clusterings: int, seed: int, weight: Tensor
) -> Agreement:
    centre = units.mean(dim=0)
    axes = torch.linalg.svd(units - centre, full_matrices=False)[2][:_CHANNELS].T
    units, context = (units - centre) @ axes, (context - centre) @ axes
    agreement = _count_double(units, context, classes, clusterings, seed, weight)
    for _ in range(_ROUNDS):
        groups = torch.from_numpy(link_units(agreement, classes, weight.numpy())[0])
        sums = units.new_zeros(classes, units.shape[1]).index_add_(0, groups, units)
        apart = units - (sums / torch.bincount(groups, minlength=classes)[:, None])[groups]
        values, vectors = torch.linalg.eigh(apart.T @ apart / len(apart))
        scale = ((1 - _RIDGE) * values + _RIDGE * values.mean()).rsqrt()
        turned = vectors * scale
        agreement = _count_double(
            units @ turned, context @ turned, classes, clusterings, seed, weight
        )
    return agreement


def _make_sized(*given: Any) -> Codebook:
    book = make_codebook(*given)
    pieces, team, one = given[0], given[-1], torch.zeros(len(book.weight), dtype=torch.int64)
    _, own = sum_positions(pieces, book.assigned, one, 1, book.origin, team)
    return book._replace(weight=own.count.long().clamp_min(1))


def _take_clean(batch: Batch) -> FitBatch:
    proposals = batch.arrays.get("proposals")
    clean = torch.from_numpy(batch.arrays["clean"]).float()
    return FitBatch(clean, None if proposals is None else torch.from_numpy(proposals))


class UpTo6K(_Patched):
    """Clusterings of K..6K clusters in place of K..3K."""

    parts = MappingProxyType({"MOST_CLUSTERS": 6})


class From2KTo6K(_Patched):
    """Clusterings of 2K..6K clusters."""

    parts = MappingProxyType({"count_agreement": _count_double})


class ContextKept(_Patched):
    """The context is never taken off."""

    parts = MappingProxyType({"count_agreement": _count_without})


class ContextOff(_Patched):
    """The whole context is always taken off."""

    parts = MappingProxyType({"count_agreement": _count_apart})


class Sized(_Patched):
    """A proposal counts as often as it has positions."""

    parts = MappingProxyType({"make_codebook": _make_sized})


class NoMirror(_Patched):
    """The fit sees the features of the windows alone, not their mean with the mirror image's."""

    average = _take_clean


class Whitened(_Patched):
    """64 principal channels, 2K..6K clusters, re-clustered twice, whitened within the groups."""

    parts = MappingProxyType({"count_agreement": _count_whitened})
